//! Log lines on standard error, as text for people or JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::{Log, LogFormat},
    error::{Error, Kind},
};

/// Starts logging for the whole process. `RUST_LOG`, when set, goes before the configured level.
pub fn start(log: &Log) -> Result<(), Error> {
    let level = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|level| !level.is_empty());
    let level = level.as_deref().unwrap_or(&log.level);
    let filter: EnvFilter = level.parse().map_err(|error: tracing_subscriber::filter::ParseError| {
        Error::new(Kind::Malformed, "log.level", format!("log level {level:?}: {error}"))
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

/// A panic becomes a log line like any other; the request it hits is failed by its own thread.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("not a text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(target: "plywood::security", event = "panic", %place, message = %super::one_line(message, 512));
    }));
}
