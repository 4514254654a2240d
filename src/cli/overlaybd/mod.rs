//! `plywood overlaybd`: the life of an overlaybd layer, and the upstream tools by their names.
//!
//! One module per command, with its arguments and a `run`. A command takes a variant in [`Command`] and an arm in
//! [`run`]; one that an upstream tool has as well, a row in [`TOOLS`].

pub mod apply;
pub mod commit;
pub mod create;
pub mod export;
pub mod merge;
mod produce;
pub mod turbo_export;
pub mod zfile;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::output::{self, Json};
use crate::error::Result;

/// Arguments of `plywood overlaybd`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  A layer for a registry, from nothing:
    plywood overlaybd create data index 64
    plywood overlaybd commit -z -t data index layer.tar
  A layer that shows the files of an archive:
    plywood overlaybd convert layer.tar overlaybd.commit
  Compress a file so that any part of it can be read:
    plywood overlaybd zfile layer.lsmt layer.zfile")]
pub struct Arguments {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands. Where a command takes its files in several forms, its usage is written out: that of the parser shows one.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create the files of a writable layer
    #[command(override_usage = "\
plywood overlaybd create [OPTIONS] <DATA> <INDEX> <VSIZE_GB>
       plywood overlaybd create [OPTIONS] <DIR> <VSIZE_GB>")]
    Create(create::Arguments),
    /// Make the data file of a writable layer a read-only layer
    #[command(override_usage = "\
plywood overlaybd seal <DATA> <INDEX>
       plywood overlaybd seal <DIR> <OUT_DIR>")]
    Seal(commit::SealArguments),
    /// Write a read-only layer of a writable or sealed one
    #[command(override_usage = "\
plywood overlaybd commit [OPTIONS] <DATA> <INDEX> <OUT>
       plywood overlaybd commit [OPTIONS] <DIR> <OUT_DIR>
       plywood overlaybd commit [OPTIONS] --commit_sealed <SEALED> <OUT>")]
    Commit(commit::Arguments),
    /// Unpack a layer's archive into the writable layer of a device
    Apply(apply::Arguments),
    /// Write what a device needs to show a layer's files out of its archive
    TurboApply(apply::TurboArguments),
    /// Convert an archive to a layer that shows its files
    Convert(apply::ConvertArguments),
    /// Write one layer of all layers of a device
    Merge(merge::Arguments),
    /// Write a device as a plain file
    #[command(override_usage = "\
plywood overlaybd flatten [OPTIONS] --output <OUT> <LOWER>...
       plywood overlaybd flatten --config <FILE> --output <OUT>")]
    Flatten(merge::FlattenArguments),
    /// Write the headers of an archive without its data, and the index of a gzip blob
    Export(export::Arguments),
    /// Make the turboOCI layer of an existing layer, and print its descriptor
    TurboExport(turbo_export::Arguments),
    /// Compress a file in blocks, extract or verify one
    Zfile(zfile::Arguments),
}

/// Runs a command.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Create(arguments) => create::run(arguments),
        Command::Seal(arguments) => commit::run_seal(arguments),
        Command::Commit(arguments) => commit::run(arguments),
        Command::Apply(arguments) => apply::run(arguments),
        Command::TurboApply(arguments) => apply::run_turbo(arguments),
        Command::Convert(arguments) => apply::run_convert(arguments),
        Command::Merge(arguments) => merge::run(arguments),
        Command::Flatten(arguments) => merge::run_flatten(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::TurboExport(arguments) => turbo_export::run(arguments),
        Command::Zfile(arguments) => zfile::run(arguments),
    }
}

/// An upstream tool that this program replaces, when it is called by its name.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    /// The command that takes the tool's arguments.
    command: &'static str,
    run: fn(&clap::ArgMatches) -> Result<()>,
}

/// The upstream tools.
const TOOLS: &[Tool] = &[
    Tool { name: "overlaybd-create", command: "create", run: |matches| create::run(&parsed(matches)?) },
    Tool { name: "overlaybd-commit", command: "commit", run: |matches| commit::run(&parsed(matches)?) },
    Tool { name: "overlaybd-apply", command: "apply", run: |matches| apply::run(&parsed(matches)?) },
    Tool {
        name: "turboOCI-apply",
        command: "turbo-apply",
        run: |matches| apply::run_turbo_tool(&parsed(matches)?),
    },
    Tool { name: "overlaybd-merge", command: "merge", run: |matches| merge::run(&parsed(matches)?) },
    Tool { name: "overlaybd-zfile", command: "zfile", run: |matches| zfile::run(&parsed(matches)?) },
];

impl Tool {
    /// Exit code of every failure, as of the upstream tools.
    const FAILURE: u8 = 255;

    /// Returns the tool of the name by which the program was called.
    pub fn of(called: &OsStr) -> Option<&'static Self> {
        let name = Path::new(called).file_name()?;
        TOOLS.iter().find(|tool| name == tool.name)
    }

    /// The parser of its arguments: that of the command, by the tool's name wherever the command's stands.
    fn parser(&self) -> clap::Command {
        let all = Command::augment_subcommands(clap::Command::new("overlaybd"));
        let mut command = all.find_subcommand(self.command).cloned().expect("the tools are commands as well");
        let spelled = format!("plywood overlaybd {}", self.command);
        let renamed = |text: &clap::builder::StyledStr| text.to_string().replace(&spelled, self.name);
        let usage = renamed(&command.render_usage());
        let help = command.get_after_help().map(renamed).unwrap_or_default();
        // A usage that is written out names the tool by now, and one that the parser makes will.
        let usage =
            usage.strip_prefix("Usage: ").filter(|usage| usage.starts_with(self.name)).map(str::to_owned);
        if let Some(usage) = usage {
            command = command.override_usage(usage);
        }
        command.name(self.name).after_help(help).no_binary_name(true).version(env!("PLYWOOD_VERSION"))
    }

    /// Runs the tool. Returns exit code 0 for success, and 255 for a failure, whose reason is on standard error.
    pub fn run(&self, arguments: impl Iterator<Item = OsString>) -> ExitCode {
        let outcome = match self.parser().try_get_matches_from(arguments) {
            Ok(matches) => (self.run)(&matches),
            Err(error) => {
                // A terminal that went away does not matter any more.
                let _unprinted = error.print();
                return if error.use_stderr() { ExitCode::from(Self::FAILURE) } else { ExitCode::SUCCESS };
            }
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::failure(&error, Json::No);
                ExitCode::from(Self::FAILURE)
            }
        }
    }
}

/// Reads a tool's arguments. The parser has checked them.
fn parsed<T: Args>(matches: &clap::ArgMatches) -> Result<T> {
    T::from_arg_matches(matches).map_err(|error| output::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_known_by_the_last_part_of_the_name_it_is_called_by() {
        let name = |called: &str| Tool::of(OsStr::new(called)).map(|tool| tool.name);
        assert_eq!(name("/opt/overlaybd/bin/overlaybd-zfile"), Some("overlaybd-zfile"));
        assert_eq!(name("overlaybd-zfile"), Some("overlaybd-zfile"));
        for called in ["plywood", "overlaybd", "/opt/overlaybd-zfile/plywood", "", "zfile"] {
            assert_eq!(name(called), None, "{called}");
        }
    }

    #[test]
    fn the_arguments_of_every_tool_are_consistent() {
        for tool in TOOLS {
            tool.parser().debug_assert();
        }
    }
}
