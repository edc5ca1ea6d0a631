//! Agents as the configuration names them: by their ids, or by patterns of these.

use std::collections::HashSet;

use wildmatch::WildMatch;

/// What every id of an agent begins with (`letta/schemas/agent.py`).
const FRONT: &str = "agent-";
const WILDCARDS: [char; 2] = ['*', '?'];

/// Some agents, or all.
#[derive(Debug, Default)]
pub struct Agents {
    all: bool,
    ids: HashSet<Box<str>>,
    patterns: Vec<WildMatch>,
}

impl Agents {
    /// Of ids, and patterns in which `*` stands for any text and `?` for any one character.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut agents = Self::default();
        for name in names {
            match name {
                "*" => agents.all = true,
                pattern if pattern.contains(WILDCARDS) => agents.patterns.push(WildMatch::new(pattern)),
                id => {
                    agents.ids.insert(id.into());
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
        let one = self.ids.iter().next().filter(|_| !self.all && self.patterns.is_empty() && self.ids.len() == 1);
        one.map(|id| &**id)
    }

    pub fn has(&self, agent: &str) -> bool {
        self.all || self.ids.contains(agent) || self.patterns.iter().any(|pattern| pattern.matches(agent))
    }
}

/// Whether an id or a pattern can be an agent's, by how Letta's ids begin.
pub fn can_be_an_agent(name: &str) -> bool {
    match name.split_once(WILDCARDS) {
        None => name.starts_with(FRONT),
        Some((front, _)) => front.starts_with(FRONT) || FRONT.starts_with(front),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_agents_are_meant() {
        let agents = Agents::new(["agent-1", "agent-ab*", "agent-*-Z", "agent-q?"]);
        for (agent, named) in [
            ("agent-1", true),
            ("agent-12", false),
            ("agent-ab", true),
            ("agent-abc", true),
            ("agent-a", false),
            ("agent-x-Z", true),
            ("agent--Z", true),
            ("agent-x-Z-Z", true),
            ("agent-x-Z-", false),
            ("agent-x-z", false),
            ("Agent-x-Z", false),
            ("x-agent-x-Z", false),
            ("agent-q1", true),
            ("agent-qé", true),
            ("agent-q", false),
            ("agent-q12", false),
            ("", false),
        ] {
            assert_eq!(agents.has(agent), named, "{agent}");
        }
        assert!(Agents::new(["*"]).has("agent-2") && Agents::new(["*"]).are_all() && !agents.are_all());
        assert_eq!((Agents::new(["agent-1"]).only(), agents.only()), (Some("agent-1"), None));
        // what a client writes is an id, never a pattern
        assert!(
            !Agents::new(["agent-1"]).has("agent-?") && !agents.has("*") && !Agents::new(["agent-?"]).has("agent-*1")
        );
        assert_eq!((Agents::new(["agent-?"]).only(), Agents::new(["agent-1", "*1"]).only()), (None, None));
        assert_eq!((Agents::new(["agent-1*"]).only(), Agents::new(["*"]).only()), (None, None));
        assert!(!Agents::new([]).has("agent-1"));
    }
    #[test]
    fn a_name_that_no_id_of_lettas_can_have_is_known() {
        for name in ["agent-1", "agent-?f*", "*", "*7b11", "ag*", "?gent-1", "agent*"] {
            assert!(can_be_an_agent(name), "{name}");
        }
        for name in ["", "agent", "mine", "mine*", "agents-*", "Agent-*"] {
            assert!(!can_be_an_agent(name), "{name}");
        }
    }
}
