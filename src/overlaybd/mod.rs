//! overlaybd layers: the files of a device, opened.
//!
//! ```text
//! config.v1.json ──> config: files of the lowers ──> blob: tar wrapper, ZFile ──> layer
//! ```
//!
//! The formats are in [`mod@crate::format`].

pub mod blob;
pub mod config;
