//! Agents as the configuration names them.

use std::collections::HashSet;

/// Some agents, or all.
#[derive(Debug, Default)]
pub struct Agents {
    all: bool,
    ids: HashSet<Box<str>>,
    /// Fronts of ids: what stands before the `*`.
    fronts: Vec<Box<str>>,
}

impl Agents {
    /// Of ids, ids that end in `*`, and `*` alone.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut agents = Self::default();
        for name in names {
            match name.strip_suffix('*') {
                Some("") => agents.all = true,
                Some(front) => agents.fronts.push(front.into()),
                None => {
                    agents.ids.insert(name.into());
                }
            }
        }
        agents
    }

    /// Every agent there is or will be.
    pub fn are_all(&self) -> bool {
        self.all
    }

    /// The one agent, if it is one and named by its whole id.
    pub fn only(&self) -> Option<&str> {
        let one = self.ids.iter().next().filter(|_| !self.all && self.fronts.is_empty() && self.ids.len() == 1);
        one.map(|id| &**id)
    }

    pub fn has(&self, agent: &str) -> bool {
        self.all || self.ids.contains(agent) || self.fronts.iter().any(|front| agent.starts_with(&**front))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_agents_are_meant() {
        let agents = Agents::new(["agent-1", "agent-ab*"]);
        for (agent, named) in [
            ("agent-1", true),
            ("agent-12", false),
            ("agent-ab", true),
            ("agent-abc", true),
            ("agent-a", false),
            ("", false),
        ] {
            assert_eq!(agents.has(agent), named, "{agent}");
        }
        assert!(Agents::new(["*"]).has("agent-2") && Agents::new(["*"]).are_all() && !agents.are_all());
        assert_eq!((Agents::new(["agent-1"]).only(), agents.only()), (Some("agent-1"), None));
        assert_eq!((Agents::new(["agent-1*"]).only(), Agents::new(["*"]).only()), (None, None));
        assert!(!Agents::new([]).has("agent-1"));
    }
}
