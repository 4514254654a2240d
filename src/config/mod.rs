//! The configuration file: all settings, their defaults, and the checks of their values.
//!
//! `settings.rs` is the one source: its doc comments become the comments of the default file, its
//! default expressions the values. Unknown keys are refused before anything is opened, and so are
//! values that contradict each other.

mod file;
mod filter;
mod paths;
mod processors;
mod settings;
mod validate;

pub use file::{ConfigError, Origin, load, parse, read, read_processors};
pub use filter::log_filter;
pub use processors::{MEDIA_TYPE_VARIABLE, StreamProcessor, StreamProcessors, routes};
pub use settings::{
    Apply, Config, Containerd, DecodeAhead, DeviceDiff, Diff, Erofs, Inherit, InlineLimit, Limits, Log,
    LogFormat, Overlaybd, Security, Server, Snapshots, Timestamps,
};

/// Path of the configuration file when the command line names none.
pub const DEFAULT_PATH: &str = "/etc/plywood/config.toml";
