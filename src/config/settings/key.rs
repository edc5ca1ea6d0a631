//! One API key, wherever it stands: every option of it, and that no other key has its id or its hash.

use std::collections::HashMap;
use std::time::SystemTime;

use super::Check;
use super::keys::{CREATE, is_key_id};
use crate::auth::key;
use crate::auth::network::{Network, NotANetwork};
use crate::config::problem::hint;
use crate::config::raw;
use crate::config::secret::Secret;
use crate::letta::routes::Scope;

/// What is taken already, and where: the key in the words of a message, its file.
#[derive(Default)]
pub(super) struct Seen {
    ids: HashMap<String, (String, String)>,
    digests: HashMap<[u8; 32], (String, String)>,
}

impl Check {
    pub(super) fn key(&mut self, path: &str, key: raw::Key, plans: &[&str], seen: &mut Seen) -> Option<key::Settings> {
        let raw::Key { id, hash, hashes, plan, scopes, agents, letta_user, allowed_ips, expires_at, disabled } = key;
        let id = self.required(path, "id", id);
        let digests = self.digests(path, hash, hashes, seen);
        let scopes = self.required(path, "scopes", scopes);
        if scopes.as_ref().is_some_and(Vec::is_empty) {
            self.problem(
                &format!("{path}.scopes"),
                "is empty, so the key could do nothing; write e.g. [read, message]",
            );
        }
        if let Some(id) = &id {
            self.key_id(&format!("{path}.id"), id, seen);
        }
        if !plans.contains(&&*plan) {
            self.problem(&format!("{path}.plan"), format_args!("there is no plan \"{plan}\"{}", hint(&plan, plans)));
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

    fn key_id(&mut self, path: &str, id: &str, seen: &mut Seen) {
        if !is_key_id(id) {
            self.problem(path, "must be 1 to 64 letters, digits, \"-\", \"_\" or \".\"");
        }
        let place = self.key_place(path);
        if let Some(other) = seen.ids.insert(id.to_owned(), place) {
            let other = self.key_name(&other);
            self.problem(path, format_args!("\"{id}\" is the id of {other} too; each key has its own"));
        }
    }

    /// `hash` or `hashes`: one of the two, with one or two hashes.
    fn digests(
        &mut self,
        path: &str,
        hash: Option<Secret>,
        hashes: Option<Vec<Secret>>,
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
            let place = self.key_place(&path);
            if let Some(other) = seen.digests.insert(digest, place) {
                let other = self.key_name(&other);
                self.problem(&path, format_args!("is the hash of {other} too; make another key with: {CREATE}"));
            }
        }
        digests
    }

    /// Agents by their ids, or by how these begin.
    fn agents(&mut self, path: &str, agents: Vec<String>) -> Vec<String> {
        if agents.is_empty() {
            self.problem(path, "is empty, so the key would reach no agent; write ids, or \"*\" for all");
        }
        for (index, agent) in agents.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let (front, rest) = agent.split_once('*').map_or((&**agent, ""), |(front, rest)| (front, rest));
            let is_id = front.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            if !is_id || !rest.is_empty() || agent.is_empty() {
                self.problem(&path, "is no agent; write its id, how ids begin and a * (agent-0f6e*), or \"*\" for all");
            } else if agent == raw::ALL_AGENTS && agents.len() > 1 {
                self.problem(&path, "\"*\" stands for all agents; let it stand alone or leave it out");
            } else if agent != raw::ALL_AGENTS && !agent.starts_with("agent-") {
                self.problem(&path, "does not begin with agent- as Letta's agent ids do");
            }
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

    /// The key at or around `path`, and its file.
    fn key_place(&self, path: &str) -> (String, String) {
        let key = path.split_once(']').map_or_else(|| path.to_owned(), |(key, _)| format!("{key}]"));
        (key, self.known.file.clone())
    }

    fn key_name(&self, (key, file): &(String, String)) -> String {
        if *file == self.known.file { key.clone() } else { format!("{key} of {file}") }
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
