//! The terminal: standard output for results, standard error for everything a person should read.
//!
//! The only place that prints. A closed pipe ends the output, not the command.

use std::io::{self, Write as _};

use serde_json::{Value, json};

use crate::error::{Classify, Error, Kind};

/// Reason id of arguments that contradict each other or the files they name.
pub const USAGE: &str = "cli.usage";

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

/// An error in the arguments that their parser cannot see; like the parser's, it ends with exit code 2.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, USAGE, message)
}

/// Reports the failure that ends the command: a line on standard error, and a JSON object where one was asked for.
pub fn failure(error: &Error, json: Json) {
    let object = || format!("{:#}\n", json!({ "error": error_as_json(error) }));
    match json {
        Json::No => {}
        Json::Result => {
            // Its own failure has no better place than the line that follows.
            let _unwritten = result(&object());
        }
        Json::Note => return note(object().trim_end()),
    }
    note(&format!("plywood: {error} [{}]", error.reason()));
}

/// Where a command reports in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Json {
    /// Nowhere: the report is for people.
    No,
    /// Standard output.
    Result,
    /// Standard error, because standard output carries the layer.
    Note,
}

/// An error as all commands report it: kind, stable reason id, message.
pub fn error_as_json(error: &Error) -> Value {
    json!({ "kind": error.kind().as_str(), "reason": error.reason(), "message": error.to_string() })
}

/// [`error_as_json`] for an error of a format.
pub fn format_error_as_json(error: &impl Classify) -> Value {
    json!({ "kind": error.kind().as_str(), "reason": error.reason(), "message": error.to_string() })
}
