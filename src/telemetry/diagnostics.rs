//! Diagnostics: `tracing` events on standard error, apart from the access log.

/// What the configuration says of logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// An `EnvFilter` directive, e.g. `info` or `letta_gateway=debug`.
    pub level: String,
    pub format: Format,
    /// One JSON line a request on standard output.
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}
