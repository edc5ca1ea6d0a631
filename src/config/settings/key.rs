//! One API key, wherever it stands: every option of it, and that no other key has its id or its hash.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use super::Check;
use super::keys::{CREATE, is_key_id};
use crate::auth::key;
use crate::auth::network::{Network, NotANetwork};
use crate::config::problem::hint;
use crate::config::raw;
use crate::config::secret::Secret;
use crate::letta::agents::can_be_an_agent;
use crate::letta::routes::Scope;

/// What is taken already, and by which key.
pub(super) struct Seen {
    /// The configuration's own, in the words of a message.
    file: String,
    ids: HashMap<String, Whose>,
    digests: HashMap<[u8; 32], Whose>,
}

/// A key by its place.
#[derive(Clone, Copy)]
pub(super) struct Whose {
    pub(super) list: List,
    pub(super) index: usize,
}

/// Where keys stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// Under `keys`.
    Configuration,
    KeysFile,
}

impl Seen {
    pub(super) fn new(file: String) -> Self {
        Self { file, ids: HashMap::new(), digests: HashMap::new() }
    }

    /// The key `other` to whom reads the list of `whose`.
    fn name(&self, other: Whose, whose: Whose) -> String {
        let Whose { list, index } = other;
        if list == whose.list { format!("keys[{index}]") } else { format!("keys[{index}] of {}", self.file) }
    }
}

impl Check {
    pub(super) fn key(
        &mut self,
        whose: Whose,
        key: raw::Key,
        plans: &BTreeMap<String, raw::Plan>,
        seen: &mut Seen,
    ) -> Option<key::Settings> {
        let path = &*format!("keys[{}]", whose.index);
        let raw::Key { id, hash, hashes, plan, scopes, agents, letta_user, allowed_ips, expires_at, disabled } = key;
        let id = self.required(path, "id", id);
        let digests = self.digests(path, hash, hashes, whose, seen);
        let scopes = self.required(path, "scopes", scopes);
        if scopes.as_ref().is_some_and(Vec::is_empty) {
            self.problem(
                &format!("{path}.scopes"),
                "is empty, so the key could do nothing; write e.g. [read, message]",
            );
        }
        if let Some(id) = &id {
            self.key_id(&format!("{path}.id"), id, whose, seen);
        }
        if !plans.contains_key(&plan) {
            let plans: Vec<&str> = plans.keys().map(String::as_str).collect();
            self.problem(&format!("{path}.plan"), format_args!("there is no plan \"{plan}\"{}", hint(&plan, &plans)));
        }
        let agents = self.agents(&format!("{path}.agents"), agents);
        if let Some(user) = &letta_user
            && !is_user_id(user)
        {
            self.problem(&format!("{path}.letta_user"), "is no id of a Letta user; write user- and its UUID");
        }
        let allowed_ips = self.networks(&format!("{path}.allowed_ips"), allowed_ips);
        if let Some(moment) = expires_at.as_ref().filter(|moment| moment.time <= SystemTime::now()) {
            self.warn(&format!("{path}.expires_at"), format_args!("{moment} is over: the key is refused"));
        }
        let (id, scopes) = (id?, scopes?.into_iter().map(scope).collect());
        let expires_at = expires_at.map(|moment| moment.time);
        Some(key::Settings { id, digests, plan, scopes, agents, letta_user, allowed_ips, expires_at, disabled })
    }

    fn key_id(&mut self, path: &str, id: &str, whose: Whose, seen: &mut Seen) {
        if !is_key_id(id) {
            self.problem(path, "must be 1 to 64 letters, digits, \"-\", \"_\" or \".\"");
        }
        if let Some(other) = seen.ids.insert(id.to_owned(), whose) {
            let other = seen.name(other, whose);
            self.problem(path, format_args!("\"{id}\" is the id of {other} too; each key has its own"));
        }
    }

    /// `hash` or `hashes`: one of the two, with one or two hashes.
    fn digests(
        &mut self,
        path: &str,
        hash: Option<Secret>,
        hashes: Option<Vec<Secret>>,
        whose: Whose,
        seen: &mut Seen,
    ) -> Vec<[u8; 32]> {
        let hashes: Vec<(String, Secret)> = match (hash, hashes) {
            (Some(_), Some(_)) => {
                self.problem(&format!("{path}.hashes"), "stands beside hash; put all hashes here and take hash off");
                return Vec::new();
            }
            (hash, None) => {
                self.required(path, "hash", hash).map(|hash| (format!("{path}.hash"), hash)).into_iter().collect()
            }
            (None, Some(hashes)) => {
                if !(1..=2).contains(&hashes.len()) {
                    let told = "must be one hash, or the two of a key that is being changed";
                    self.problem(&format!("{path}.hashes"), told);
                }
                let path = |index| format!("{path}.hashes[{index}]");
                hashes.into_iter().enumerate().map(|(index, hash)| (path(index), hash)).collect()
            }
        };
        let mut digests = Vec::with_capacity(hashes.len());
        for (path, hash) in hashes {
            let Some(digest) = self.digest(&path, &hash) else { continue };
            digests.push(digest);
            if let Some(other) = seen.digests.insert(digest, whose) {
                let other = seen.name(other, whose);
                self.problem(&path, format_args!("is the hash of {other} too; make another key with: {CREATE}"));
            }
        }
        digests
    }

    /// Agents by their ids, or by patterns of these.
    fn agents(&mut self, path: &str, agents: Vec<String>) -> Vec<String> {
        if agents.is_empty() {
            self.problem(path, "is empty, so the key would reach no agent; write ids, or \"*\" for all");
        }
        for (index, agent) in agents.iter().enumerate() {
            let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_*?".contains(&byte);
            let told = match () {
                () if agent.is_empty() || !agent.bytes().all(is_known) => {
                    "is no agent; write its id, a pattern with * and ? (agent-0f6e*), or \"*\" for all"
                }
                () if agent.contains("**") => "two * in a row are no more than one; write one",
                () if agent == raw::ALL_AGENTS && agents.len() > 1 => {
                    "\"*\" stands for all agents; let it stand alone or leave it out"
                }
                () if !can_be_an_agent(agent) => "does not begin with agent- as Letta's agent ids do",
                () => continue,
            };
            self.problem(&format!("{path}[{index}]"), told);
        }
        agents
    }

    fn networks(&mut self, path: &str, networks: Vec<String>) -> Vec<Network> {
        let mut read = Vec::with_capacity(networks.len());
        for (index, text) in networks.iter().enumerate() {
            let path = format!("{path}[{index}]");
            match text.trim().parse() {
                Ok(network) => read.push(network),
                Err(NotANetwork::Meant(network)) => {
                    self.problem(&path, format_args!("has bits behind its prefix; write {network}"));
                }
                Err(NotANetwork::Form) => self.problem(&path, "must be an IP address, or a network like 10.0.0.0/8"),
            }
        }
        read
    }
}

/// `user-` and a UUID (`letta/validators.py`).
fn is_user_id(id: &str) -> bool {
    id.strip_prefix("user-").is_some_and(|uuid| {
        uuid.len() == 36
            && uuid.bytes().enumerate().all(|(place, byte)| match place {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    })
}

fn scope(scope: raw::Scope) -> Scope {
    match scope {
        raw::Scope::Read => Scope::Read,
        raw::Scope::Message => Scope::Message,
        raw::Scope::Modify => Scope::Modify,
        raw::Scope::Admin => Scope::Admin,
    }
}
