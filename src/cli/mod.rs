//! The command line: one module per subcommand, each with its arguments and a `run`.
//!
//! A new subcommand takes a module here, a variant in [`Command`], and an arm in [`run`]. Completions and man pages
//! are generated from these.

pub mod apply;
mod broker;
pub mod check;
pub mod config;
pub mod containerd;
pub mod diff;
mod drop_in;
pub mod dump;
mod files;
pub mod generate;
mod image;
mod indexed;
pub mod inspect;
mod layer;
pub mod load;
pub mod merge;
mod node;
mod objects;
pub mod output;
pub mod overlaybd;
mod report;
pub mod scrub;
pub mod serve;
mod stack;
pub mod stargz;
mod store;
pub mod stream;
pub mod unpack;
mod unpacking;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::output::Json;

/// Turns image layers into mountable EROFS blobs, for containerd and by hand.
#[derive(Debug, Parser)]
#[command(name = "plywood", version = env!("PLYWOOD_VERSION"), max_term_width = 100)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Examples: the shortest way from an installed binary to a pulled image.
const AFTER_HELP: &str = "\
Examples:
  Add a file to containerd's configuration, so that it uses Plywood:
    plywood config containerd --install
  Write a file with every setting explained (optional):
    plywood config default > /etc/plywood/config.toml
  Run the daemon in the foreground:
    plywood serve";

/// Every subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon that containerd calls
    Serve(serve::Arguments),
    /// Convert a layer in a file into a mountable image
    Apply(apply::Arguments),
    /// Write the difference between two directories, images or stacks as a layer
    Diff(diff::Arguments),
    /// Check that images are sound and would be accepted as layers
    Check(check::Arguments),
    /// Show the superblock and the files of an image, one line each
    Dump(dump::Arguments),
    /// Turn a layer on standard input into a tar on standard output, as a stream processor of containerd
    Stream(stream::Arguments),
    /// Merge the images of layers into one metadata image, which is mounted with them as devices
    Merge(merge::Arguments),
    /// Make the metadata of an eStargz layer of its table of contents alone, as RAFS
    Stargz(stargz::Arguments),
    /// Work on the layers of an overlaybd device
    Overlaybd(overlaybd::Arguments),
    /// Bring images from archives, OCI layouts and separated sets into containerd
    Load(load::Arguments),
    /// Make snapshots of the layers of an image that containerd has
    Unpack(unpack::Arguments),
    /// Show the images in archives, OCI layouts, separated sets or containerd, layer by layer
    Inspect(inspect::Arguments),
    /// Find snapshots that are broken, and make them anew from the content store
    Scrub(scrub::Arguments),
    /// Print or check a configuration, or set up containerd for Plywood
    Config(config::Arguments),
    /// Start stream processors for the process at the other end of standard input
    #[command(hide = true, after_help = "Started by plywood itself:\n  plywood broker")]
    Broker,
    /// Print a completion script for a shell
    Completions(generate::Completions),
    /// Print a manual page, or write all of them to a directory
    Man(generate::Man),
}

impl Command {
    /// Returns where a failure is reported as JSON. `check` reports each image itself.
    fn json(&self) -> Json {
        match self {
            Self::Apply(apply::Arguments { json: true, .. })
            | Self::Dump(dump::Arguments { json: true, .. })
            | Self::Load(load::Arguments { json: true, .. })
            | Self::Unpack(unpack::Arguments { json: true, .. })
            | Self::Inspect(inspect::Arguments { json: true, .. })
            | Self::Scrub(scrub::Arguments { json: true, .. }) => Json::Result,
            Self::Diff(arguments) if arguments.json && diff::is_standard_output(&arguments.output) => {
                Json::Note
            }
            Self::Diff(diff::Arguments { json: true, .. }) => Json::Result,
            _ => Json::No,
        }
    }
}

/// Runs the program with the arguments of the process. A link to it with the name of an upstream tool is that tool.
pub fn start() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    match overlaybd::Tool::of(&name) {
        Some(tool) => tool.run(arguments),
        None => run(Arguments::parse()),
    }
}

/// Runs the command. Returns exit code 0 for success, 1 for a failure, whose reason is on standard error, and 2 for
/// wrong usage. `scrub` has two more, for what it found.
fn run(arguments: Arguments) -> ExitCode {
    let json = arguments.command.json();
    let done = match arguments.command {
        Command::Apply(arguments) => apply::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Dump(arguments) => dump::run(&arguments),
        Command::Stream(arguments) => stream::run(&arguments),
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Stargz(arguments) => stargz::run(&arguments),
        Command::Overlaybd(arguments) => overlaybd::run(&arguments),
        Command::Broker => broker::run(),
        Command::Load(arguments) => load::run(&arguments),
        Command::Unpack(arguments) => unpack::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Scrub(arguments) => scrub::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Completions(arguments) => generate::completions(&arguments, &mut Arguments::command()),
        Command::Man(arguments) => generate::man(&arguments, Arguments::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A scrub has printed what it found.
            let is_result = [scrub::BROKEN, scrub::UNTIDY].contains(&error.reason());
            output::failure(&error, if is_result { Json::No } else { json });
            match error.reason() {
                output::USAGE => ExitCode::from(2),
                scrub::BROKEN => ExitCode::from(3),
                scrub::UNTIDY => ExitCode::from(4),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_argument_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn look(command: &clap::Command, missing: &mut Vec<String>) {
            for sub in command.get_subcommands() {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                if !help.contains(&format!("plywood {}", sub.get_name())) {
                    let help =
                        help.replace("plywood config ", "plywood ").replace("plywood overlaybd ", "plywood ");
                    if !help.contains(&format!("plywood {}", sub.get_name())) {
                        missing.push(sub.get_name().to_owned());
                    }
                }
                look(sub, missing);
            }
        }
        let mut missing = Vec::new();
        look(&Arguments::command(), &mut missing);
        assert!(missing.is_empty(), "no example: {missing:?}");
    }

    #[test]
    fn examples_fit_a_terminal_of_80_columns() {
        fn look(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines() {
                assert!(line.len() <= 80, "{}: {} columns: {line}", command.get_name(), line.len());
            }
            command.get_subcommands().for_each(look);
        }
        look(&Arguments::command());
    }

    #[test]
    fn every_argument_has_a_help_text() {
        fn look(command: &clap::Command, missing: &mut Vec<String>) {
            for argument in command.get_arguments().filter(|argument| argument.get_help().is_none()) {
                missing.push(format!("{} {}", command.get_name(), argument.get_id()));
            }
            for sub in command.get_subcommands() {
                if sub.get_about().is_none() {
                    missing.push(sub.get_name().to_owned());
                }
                look(sub, missing);
            }
        }
        let mut missing = Vec::new();
        look(&Arguments::command(), &mut missing);
        assert!(missing.is_empty(), "no help: {missing:?}");
    }
}
