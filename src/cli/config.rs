//! `plywood config`: prints the commented default file, checks a file, and sets up containerd.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::{
    containerd::{self, Version},
    drop_in, node, output,
};
use crate::{
    config::{self, Config},
    error::{Error, Kind},
};

/// Arguments of `plywood config`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Every setting with its default and what it does:
    plywood config default
  Would the daemon start with this file on this machine?
    plywood config check /etc/plywood/config.toml
  Let containerd use Plywood:
    plywood config containerd --install")]
pub struct Arguments {
    /// Command to run
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `plywood config`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the default configuration with every setting explained
    #[command(after_help = "Example:\n  plywood config default > /etc/plywood/config.toml")]
    Default,
    /// Check a configuration file, and that this machine has the paths in it
    ///
    /// A wrong setting is an error. A path that is missing here, or a file that `plywood serve` would not obey
    /// because others than root can change it, is a warning: the file may be meant for another machine.
    #[command(after_help = CHECK_HELP)]
    Check {
        /// Fail if there are warnings
        #[arg(long)]
        strict: bool,
        /// The configuration file
        #[arg(default_value = config::DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Print or install the part of containerd's configuration that makes it use Plywood
    #[command(after_help = "\
Examples:
  What would be installed, for another release:
    plywood config containerd --version 2.3
  A file of its own, which containerd's config.toml imports:
    plywood config containerd --install && systemctl restart containerd")]
    Containerd {
        /// Write it to plywood.toml in DIR, and make the config.toml beside DIR import it. Without a DIR, use
        /// /etc/containerd/conf.d
        #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = drop_in::DEFAULT_DIRECTORY)]
        install: Option<PathBuf>,
        /// containerd's version, such as 2.1. Without it, the containerd installed here is asked
        #[arg(long, value_name = "VERSION")]
        version: Option<Version>,
        /// Also for the overlaybd snapshotter, which listens on SOCKET
        #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = containerd::OVERLAYBD_SOCKET)]
        overlaybd: Option<PathBuf>,
        /// Plywood's configuration file, which names its socket [default: /etc/plywood/config.toml if there is one]
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Examples for CI and for the node itself.
const CHECK_HELP: &str = "\
The exit code is 0 without an error, 1 with one, and 2 after wrong usage.
With --strict it is 1 for a warning as well.

Examples:
  In CI, as any user:
    plywood config check config.toml
  On the node:
    plywood config check --strict && systemctl restart plywood";

/// Runs the subcommand. Errors: a wrong setting, a warning with `--strict`, a file that cannot be written.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    match &arguments.command {
        Command::Default => output::result(&Config::default_file()),
        Command::Check { strict, file } => check(file, *strict),
        Command::Containerd { install, version, overlaybd, config } => {
            print_containerd(install.as_deref(), *version, overlaybd.as_deref(), config.as_deref())
        }
    }
}

fn check(file: &Path, strict: bool) -> Result<(), Error> {
    let (config, disobeyed) = config::read(file)?;
    let mut warnings: Vec<_> = disobeyed.iter().map(ToString::to_string).collect();
    warnings.extend(node::problems(&config));
    let file = file.display();
    for warning in &warnings {
        output::note(&format!("plywood: warning: {warning}"));
    }
    let count = match warnings.len() {
        0 => return output::result(&format!("{file}: no problem found\n")),
        1 => "1 warning".to_owned(),
        more => format!("{more} warnings"),
    };
    if strict {
        return Err(Error::new(Kind::Malformed, "config.node", format!("{file}: {count}, and --strict")));
    }
    output::result(&format!("{file}: no error, {count} about this machine\n"))
}

fn print_containerd(
    install: Option<&Path>,
    version: Option<Version>,
    overlaybd: Option<&Path>,
    config: Option<&Path>,
) -> Result<(), Error> {
    let (config, _origin) = config::load(config)?;
    let version = version.map_or_else(containerd::installed_version, Ok)?;
    // Where it cannot be known, the place where it is installed.
    let program = env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/plywood"));
    let snippet = containerd::snippet(&containerd::Host {
        version,
        architecture: containerd::architecture(),
        socket: &config.server.socket,
        program: &program,
        overlaybd: overlaybd.map(|socket| (config.overlaybd.snapshotter.as_str(), socket)),
    });
    match install {
        Some(directory) => output::result(&drop_in::install(directory, &snippet, version.imports_unasked())?),
        None => output::result(&snippet),
    }
}
