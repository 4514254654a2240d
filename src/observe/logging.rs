//! Log lines on standard error, as text for people or JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::{Log, LogFormat, log_filter},
    error::{Error, Kind},
};

/// Starts logging for the whole process. `RUST_LOG`, if it is set, overrides the configured level.
pub fn start(log: &Log) -> Result<(), Error> {
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|level| !level.is_empty());
    let (name, level) = match &from_environment {
        Some(level) => (EnvFilter::DEFAULT_ENV, level),
        None => ("log.level", &log.level),
    };
    let filter = log_filter(level).map_err(|problem| {
        Error::new(Kind::Malformed, "log.level", format!("{name} = {level:?}: {problem}"))
    })?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Error::new(Kind::Internal, "log.start", error.to_string()))?;
    log_panics();
    Ok(())
}

/// Logs panics as lines like all others. The thread of the request that panicked reports its failure.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("not a text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(target: "plywood::security", event = "panic", %place, message = %one_line(message, 512));
    }));
}

/// Returns `text` as one line: control characters escaped, cut to `max_len` bytes.
pub fn one_line(text: &str, max_len: usize) -> String {
    const CUT: &str = "...";
    let mut line = String::new();
    for part in text.chars() {
        let before = line.len();
        if part.is_control() {
            line.extend(part.escape_default());
        } else {
            line.push(part);
        }
        if line.len() > max_len.saturating_sub(CUT.len()) {
            line.truncate(before);
            line.push_str(CUT);
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(one_line("a\nb\x1b[2J", 100), "a\\nb\\u{1b}[2J");
        assert_eq!(one_line("abcdef", 5), "ab...");
        assert_eq!(one_line("ééé", 6), "é...");
        assert_eq!(one_line("", 5), "");
    }
}
