//! Parse, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    plywood::cli::run(plywood::cli::Arguments::parse())
}
