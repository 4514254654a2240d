//! The configuration file: what may be set, what it is when it is not, and what makes no sense.
//!
//! `settings.rs` is the one source of truth: its doc comments become the comments of the default file,
//! its default expressions the values. Unknown keys are refused, and so are values that contradict each
//! other, before anything is opened.

mod file;
mod filter;
mod settings;
mod validate;

pub use file::{ConfigError, Origin, load, parse, read};
pub use filter::log_filter;
pub use settings::{
    Apply, Config, Containerd, Diff, Erofs, Inherit, InlineLimit, Limits, Log, LogFormat, Security, Server,
    Snapshots, Timestamps,
};

/// Where the daemon looks when it is not told otherwise.
pub const DEFAULT_PATH: &str = "/etc/plywood/config.toml";
