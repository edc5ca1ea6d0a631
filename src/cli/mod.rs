//! The command line: what each command takes, what it prints where, and the exit codes.
//!
//! What was asked for goes to standard output; problems go to standard error, each as `error: what and where; fix`.
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 78 bad configuration (`EX_CONFIG` of sysexits.h).

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Problems};
use crate::error::Cause;

mod healthcheck;
mod keys;
mod run;

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => {
            // help and version come this way too, and clap knows where to print what
            let _ = told.print();
            return ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(FAILED));
        }
    };
    match arguments.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        // whoever read the output has enough, e.g. `| head`
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.code())
        }
    }
}

const FAILED: u8 = 1;
const BAD_CONFIG: u8 = 78;

const EXAMPLES: &str = "\
Examples:
  letta-gateway config default > gateway.yaml     every option at its default
  letta-gateway keys create --id team-a           a new key, and the line to paste under keys
  letta-gateway check --config gateway.yaml       tells all that is wrong with it
  letta-gateway run --config gateway.yaml         runs until SIGTERM; SIGHUP reads the file again

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 bad configuration.";

/// The API gateway in front of Letta replicas.
#[derive(Debug, Parser)]
#[command(name = "letta-gateway", version = version(), arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway until SIGTERM or Ctrl-C.
    ///
    /// SIGHUP, or a change of the file or of a file it names, takes the new configuration over without touching
    /// requests in flight; a bad one is told and the old one stays. SIGTERM takes no more connections, lets streams end
    /// within `drain`, and exits 0.
    Run(ConfigFile),
    /// Checks a configuration as `run` would before it binds: certificates, secrets and all.
    Check(ConfigFile),
    /// Makes, lists, rotates, revokes and hashes API keys, and shows what they have used.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Prints the default configuration, or its JSON Schema.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Asks a running gateway whether it is alive: exit code 0 or 1. For a container's HEALTHCHECK.
    Healthcheck(healthcheck::Arguments),
    /// Runs two demo replicas that are not Letta and the gateway in front: the first minute.
    Demo,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The YAML file [default: $LETTA_GATEWAY_CONFIG, else /etc/letta-gateway/gateway.yaml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Prints every option at its default with a line of why; a configuration to start from.
    Default,
    /// Prints the JSON Schema of the configuration, for editors.
    Schema,
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Run(file) => run::run(file.path()),
            Self::Check(file) => run::check(&file.path()),
            Self::Keys(command) => command.run(),
            Self::Config(ConfigCommand::Default) => print(config::DEFAULT),
            Self::Config(ConfigCommand::Schema) => print(&config::schema()),
            Self::Healthcheck(arguments) => arguments.run(),
            Self::Demo => run::demo(),
        }
    }
}

impl ConfigFile {
    fn path(self) -> PathBuf {
        self.config
            .or_else(|| std::env::var_os("LETTA_GATEWAY_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from("/etc/letta-gateway/gateway.yaml"))
    }
}

/// The configuration at `path`, or why it cannot be had.
fn load(path: &Path) -> Result<config::Settings, Failure> {
    if path.exists() {
        return config::load(path).map_err(Failure::Config);
    }
    Err(Failure::NoConfig(path.to_owned()))
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(Failure::Output)
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
enum Failure {
    Config(Problems),
    NoConfig(PathBuf),
    /// The configuration is right, but something it names cannot be used.
    Unfit(String),
    Failed(String),
    Output(io::Error),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::NoConfig(_) | Self::Unfit(_) => BAD_CONFIG,
            Self::Failed(_) | Self::Output(_) => FAILED,
        }
    }
}

impl From<Cause> for Failure {
    fn from(error: Cause) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let next = error.to_string();
            // many errors say their cause themselves
            if !text.contains(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        Self::Failed(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(problems) => {
                for problem in problems.iter() {
                    writeln!(f, "error: {problem}")?;
                }
                match problems.len() {
                    1 => f.write_str("1 problem in the configuration"),
                    many => write!(f, "{many} problems in the configuration"),
                }
            }
            Self::NoConfig(path) => {
                let path = path.display();
                write!(
                    f,
                    "error: {path}: there is no such file; name one with --config, or start from: letta-gateway config default"
                )
            }
            Self::Unfit(text) | Self::Failed(text) => write!(f, "error: {text}"),
            Self::Output(error) => write!(f, "error: cannot write to standard output: {error}"),
        }
    }
}

/// This version, and the commit if the build was told it in `LETTA_GATEWAY_COMMIT`.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let commit =
            option_env!("LETTA_GATEWAY_COMMIT").map_or_else(String::new, |commit| format!("commit {commit}, "));
        let (rust, os, arch) = (env!("CARGO_PKG_RUST_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
        format!("{} ({commit}Rust {rust} or later, {os} {arch})", env!("CARGO_PKG_VERSION"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
