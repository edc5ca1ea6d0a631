//! What of a configuration is made once, at the start: a reload that changes it is told that it takes a restart.

use super::Settings;

/// Each option that takes a restart, in the words of the file, with its value. Sockets, threads and the writers of
/// logs are made once; all else is built anew from the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed([(&'static str, String); 5]);

/// An option whose value in the file is not the one in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub option: &'static str,
    pub running: String,
    pub configured: String,
}

impl Fixed {
    pub fn of(settings: &Settings) -> Self {
        let mut addresses: Vec<_> = settings.listeners.iter().map(|listener| listener.address.to_string()).collect();
        // their order is nothing that a client could see
        addresses.sort_unstable();
        let admin = settings.admin.as_ref().map_or_else(|| "none".to_owned(), |admin| admin.address.to_string());
        Self([
            ("listeners[].address", addresses.join(", ")),
            ("admin.address", admin),
            ("log.format", format!("{:?}", settings.log.format).to_lowercase()),
            ("log.access", settings.log.access.to_string()),
            ("workers", settings.workers.map_or_else(|| "auto".to_owned(), |workers| workers.to_string())),
        ])
    }

    /// What `new` has otherwise than what runs.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let both = self.0.iter().zip(&new.0).filter(|((_, running), (_, configured))| running != configured);
        both.map(|((option, running), (_, configured))| Change {
            option,
            running: running.clone(),
            configured: configured.clone(),
        })
        .collect()
    }
}
