//! `plywood config`: the commented default file, a check of one, and what containerd needs to find us.

use std::path::{Path, PathBuf};

use super::{
    containerd::{self, Version},
    output,
};
use crate::{
    config::{self, Config},
    error::Error,
};

/// Arguments of `plywood config`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `plywood config`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the default configuration, every setting explained
    Default,
    /// Check a configuration file as `plywood serve` would
    Check {
        /// The file
        #[arg(default_value = config::DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Print what to add to containerd's configuration so that it uses Plywood
    Containerd {
        /// containerd's version, such as 2.1 [default: that of the containerd installed here]
        #[arg(long, value_name = "VERSION")]
        version: Option<Version>,
        /// Configuration of the daemon, for the address of its socket
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Runs the subcommand.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    match &arguments.command {
        Command::Default => output::result(&Config::default_file()),
        Command::Check { file } => check(file),
        Command::Containerd { version, config } => print_containerd(*version, config.as_deref()),
    }
}

fn check(file: &Path) -> Result<(), Error> {
    config::load(Some(file))?;
    output::result(&format!("{}: no problem found\n", file.display()))
}

fn print_containerd(version: Option<Version>, config: Option<&Path>) -> Result<(), Error> {
    let (config, _origin) = config::load(config)?;
    let version = version.map_or_else(containerd::installed_version, Ok)?;
    output::result(&containerd::snippet(&containerd::Host {
        version,
        architecture: containerd::architecture(),
        socket: &config.server.socket,
    }))
}
