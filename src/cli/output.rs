//! The terminal: results on standard output, notes for people on standard error.
//!
//! Nothing else prints. A closed pipe ends the output, not the command.

use std::{
    fmt::{self, Display},
    io::{self, Write as _},
};

use serde_json::{Value, json};

use crate::error::{Classify, Error, Kind};

/// Reason id of arguments that contradict each other or the files they name.
pub const USAGE: &str = "cli.usage";

/// Writes `text` to standard output, unchanged. A reader that went away (`plywood man | head`) is no error.
pub fn result(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::new(
            Kind::Unavailable,
            "output.write",
            format!("standard output: {}", io_text(&error)),
        )),
        _ => Ok(()),
    }
}

/// Lines for standard output, written in large pieces.
#[derive(Debug, Default)]
pub struct Lines(String);

impl Lines {
    /// Length from which on a piece is written, in bytes.
    const PIECE: usize = 64 << 10;

    /// Adds a line. Errors: as for [`result`].
    pub fn add(&mut self, line: impl Display) -> Result<(), Error> {
        // Writing to a string cannot fail.
        let _ = fmt::Write::write_fmt(&mut self.0, format_args!("{line}\n"));
        if self.0.len() < Self::PIECE {
            return Ok(());
        }
        let written = result(&self.0);
        self.0.clear();
        written
    }

    /// Writes the rest. Errors: as for [`result`].
    pub fn finish(self) -> Result<(), Error> {
        result(&self.0)
    }
}

/// Writes one line to standard error. Ignores failures: there is no other place to report them.
pub fn note(line: &str) {
    let _nobody_reads = writeln!(io::stderr().lock(), "{line}");
}

/// An error in the arguments that the parser does not find. Like the parser's, it ends with exit code 2.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, USAGE, message)
}

/// Error for a file of the command line that cannot be read. The caller adds the file's name as context.
pub fn unreadable(error: &io::Error, reason: &'static str) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::PermissionDenied => Kind::Denied,
        _ => Kind::Unavailable,
    };
    Error::new(kind, reason, io_text(error))
}

/// Text of an I/O error for the middle of a sentence: in lower case, and without the number.
pub fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut rest = text.chars();
    rest.next().map(|first| first.to_lowercase().chain(rest).collect()).unwrap_or_default()
}

/// Reports the failure that ends the command: a line on standard error, and a JSON object where one was asked for.
pub fn failure(error: &Error, json: Json) {
    let object = || format!("{:#}\n", json!({ "error": error_as_json(error) }));
    match json {
        Json::No => {}
        Json::Result => {
            // A failure to write it is not reported: the line that follows matters more.
            let _unwritten = result(&object());
        }
        Json::Note => return note(object().trim_end()),
    }
    note(&format!("plywood: {error} [{}]", error.reason()));
}

/// Place of a command's report in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Json {
    /// No JSON: the report is text for people.
    No,
    /// Standard output.
    Result,
    /// Standard error, because standard output carries the layer.
    Note,
}

/// Error as the JSON object of all commands: kind, stable reason id, message.
pub fn error_as_json(error: &Error) -> Value {
    as_json(error.kind(), error.reason(), error)
}

/// [`error_as_json`] for an error of a format.
pub fn format_error_as_json(error: &impl Classify) -> Value {
    as_json(error.kind(), error.reason(), error)
}

fn as_json(kind: Kind, reason: &str, message: &dyn Display) -> Value {
    json!({ "kind": kind.as_str(), "reason": reason, "message": message.to_string() })
}
