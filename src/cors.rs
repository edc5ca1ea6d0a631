//! (being written)

/// What the configuration says of cross-origin requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Origins that may read answers, e.g. `https://app.example.com`; `*` for all. Empty: no CORS headers at all.
    pub origins: Vec<String>,
}
