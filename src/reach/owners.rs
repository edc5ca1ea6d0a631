//! Whose a conversation, a run, a step or a message is: asked of Letta once, remembered within bounds.
//!
//! An owner never changes, so that what is remembered is never wrong. Two generations are kept: when the young one is
//! full it becomes the old one, and what was not asked for since is forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::letta::LONGEST_ID;
use crate::letta::routes::reach::Thing;

/// Owners of one generation.
const MOST: usize = 32 * 1024;

/// Whose each thing is.
type Generation = HashMap<(Thing, Box<str>), Box<str>>;

/// The owners that are remembered.
#[derive(Default)]
pub(super) struct Owners {
    generations: Mutex<[Generation; 2]>,
}

impl Owners {
    /// The agent that `id` belongs to, if that is remembered.
    pub(super) fn find(&self, thing: Thing, id: &str) -> Option<Box<str>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        let key = (thing, Box::from(id));
        if let Some(agent) = young.get(&key) {
            return Some(agent.clone());
        }
        let agent = old.remove(&key)?;
        add(young, old, key, agent.clone());
        Some(agent)
    }

    pub(super) fn remember(&self, thing: Thing, id: &str, agent: &str) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        add(young, old, (thing, id.into()), agent.into());
    }
}

fn add(young: &mut Generation, old: &mut Generation, key: (Thing, Box<str>), agent: Box<str>) {
    if young.len() >= MOST {
        *old = std::mem::take(young);
    }
    young.insert(key, agent);
}

/// What Letta is to be asked for; `None`: this is no id of Letta's.
pub(super) fn question(thing: Thing, id: &str) -> Option<String> {
    let is_id = (1..=LONGEST_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let list = match thing {
        Thing::Conversation => "conversations",
        Thing::Run => "runs",
        Thing::Step => "steps",
        Thing::Message => "messages",
    };
    is_id.then(|| format!("/v1/{list}/{id}"))
}

/// What Letta's answer says of the owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Agent(Box<str>),
    /// It is that of another thing, which is asked for next.
    Of(Thing, Box<str>),
    /// Nobody's, as far as can be told.
    Nobody,
}

impl Owner {
    pub(super) fn read(thing: Thing, answer: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Whole {
            agent_id: Option<Box<str>>,
        }
        /// A message says which step or run it is of, not which agent's (`schemas/letta_message.py`).
        #[derive(Deserialize)]
        struct Part {
            step_id: Option<Box<str>>,
            run_id: Option<Box<str>>,
        }
        let owner = match thing {
            Thing::Conversation | Thing::Run | Thing::Step => {
                serde_json::from_slice::<Whole>(answer).ok().and_then(|whole| whole.agent_id).map(Self::Agent)
            }
            Thing::Message => serde_json::from_slice::<Vec<Part>>(answer).ok().and_then(|parts| {
                let mut parts = parts.into_iter();
                parts.find_map(|part| match part {
                    Part { run_id: Some(run), .. } => Some(Self::Of(Thing::Run, run)),
                    Part { step_id: Some(step), .. } => Some(Self::Of(Thing::Step, step)),
                    Part { run_id: None, step_id: None } => None,
                })
            }),
        };
        owner.unwrap_or(Self::Nobody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_remembered_within_bounds_and_those_asked_for_stay() {
        let owners = Owners::default();
        owners.remember(Thing::Run, "run-1", "agent-1");
        for other in 0..10 * MOST {
            owners.remember(Thing::Run, &format!("run-x{other}"), "agent-2");
            if other % 1000 == 0 {
                assert_eq!(owners.find(Thing::Run, "run-1").as_deref(), Some("agent-1"));
            }
        }
        assert_eq!(owners.find(Thing::Run, "run-x0"), None);
        assert_eq!(owners.find(Thing::Step, "run-1"), None);
        let kept = owners.generations.lock().unwrap().iter().map(HashMap::len).sum::<usize>();
        assert!(kept <= 2 * MOST, "{kept}");
    }

    #[test]
    fn nothing_but_an_id_is_put_into_a_path() {
        assert_eq!(question(Thing::Run, "run-1").as_deref(), Some("/v1/runs/run-1"));
        for id in ["", ".", "..", "../agents", "a/b", "a?b", "a b", "a%2Fb", "é", &"x".repeat(129)] {
            assert_eq!(question(Thing::Run, id), None, "{id}");
        }
    }

    #[test]
    fn an_owner_is_read_from_where_letta_says_it() {
        let read = |thing, answer: &str| Owner::read(thing, answer.as_bytes());
        assert_eq!(read(Thing::Step, r#"{"id":"step-1","agent_id":"agent-1"}"#), Owner::Agent("agent-1".into()));
        for answer in ["{}", r#"{"agent_id":null}"#, "[]", "", r#"{"agent_id":"a","agent_id":"b"}"#] {
            assert_eq!(read(Thing::Run, answer), Owner::Nobody, "{answer}");
        }
        let message = r#"[{"id":"message-1","step_id":null},{"step_id":"step-1","run_id":null}]"#;
        assert_eq!(read(Thing::Message, message), Owner::Of(Thing::Step, "step-1".into()));
        assert_eq!(read(Thing::Message, r#"[{"step_id":"s","run_id":"r"}]"#), Owner::Of(Thing::Run, "r".into()));
        assert_eq!(read(Thing::Message, "[]"), Owner::Nobody);
    }
}
