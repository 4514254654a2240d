//! `plywood config`: the commented default file, a check of one, and what containerd needs to find us.

use std::path::{Path, PathBuf};

use super::output;
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
}

/// Runs the subcommand.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    match &arguments.command {
        Command::Default => output::result(&Config::default_file()),
        Command::Check { file } => check(file),
    }
}

fn check(file: &Path) -> Result<(), Error> {
    config::load(Some(file))?;
    output::result(&format!("{}: no problem found\n", file.display()))
}
