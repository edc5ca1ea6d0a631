//! Which agents the configuration names.

use std::collections::HashSet;

/// The agents whose answers are kept.
#[derive(Debug, Default)]
pub(super) struct Agents {
    all: bool,
    ids: HashSet<Box<str>>,
    /// Fronts of ids: what stands before the `*`.
    fronts: Vec<Box<str>>,
}

impl Agents {
    /// Of ids, ids that end in `*`, and `*` alone.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
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

    pub(super) fn has(&self, agent: &str) -> bool {
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
        assert!(Agents::new(["*"]).has("agent-2"));
        assert!(!Agents::new([]).has("agent-1"));
    }
}
