//! `plywood completions` and `plywood man`: generated from the argument tree.

use std::path::PathBuf;

use super::output;
use crate::error::{Error, Kind};

/// Arguments of `plywood completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  plywood completions bash > /usr/share/bash-completion/completions/plywood")]
pub struct Completions {
    /// The shell to complete for
    pub shell: clap_complete::Shell,
}

/// Arguments of `plywood man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  plywood man | man -l -
  plywood man --directory /usr/share/man/man1")]
pub struct Man {
    /// Directory for plywood.1, plywood-serve.1 and so on. Without it, plywood.1 goes to standard output
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// Prints the completion script of `command`.
pub fn completions(arguments: &Completions, command: &mut clap::Command) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "plywood", &mut script);
    output::result(&String::from_utf8_lossy(&script))
}

/// Prints the manual page of `command`, or writes one file per subcommand.
pub fn man(arguments: &Man, command: clap::Command) -> Result<(), Error> {
    let Some(directory) = &arguments.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| Error::new(Kind::Internal, "man.render", error.to_string()))?;
        return output::result(&String::from_utf8_lossy(&page));
    };
    clap_mangen::generate_to(command, directory).map_err(|error| {
        let message = format!(
            "{}: the manual pages cannot be written there: {}",
            directory.display(),
            output::io_text(&error)
        );
        Error::new(crate::error::disk_kind(&error), "man.write", message)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{super::Arguments, *};

    #[test]
    fn one_manual_page_is_written_per_command() {
        let directory = tempfile::tempdir().unwrap();
        man(&Man { directory: Some(directory.path().to_owned()) }, Arguments::command()).unwrap();
        for page in ["plywood.1", "plywood-config.1", "plywood-config-default.1"] {
            let text = std::fs::read_to_string(directory.path().join(page)).unwrap();
            assert!(text.contains(".SH"), "{page}");
        }
    }
}
