//! The terminal: standard output for results, standard error for everything a person should read.
//!
//! The only place that prints. A closed pipe ends the output, not the command.

use std::io::{self, Write as _};

use crate::error::{Error, Kind};

/// Writes `text` to standard output as it is. A reader that went away (`plywood man | head`) is no error.
pub fn result(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Unavailable, "output.write", format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes one line to standard error; when even that is gone nobody is there to be told.
pub fn note(line: &str) {
    let _nobody_reads = writeln!(io::stderr().lock(), "{line}");
}

/// Reports the failure that ends the command.
pub fn failure(error: &Error) {
    note(&format!("plywood: {error} [{}]", error.reason()));
}
