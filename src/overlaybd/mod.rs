//! overlaybd layers: the files of a device, opened.
//!
//! ```text
//! config.v1.json ──> config: files of the lowers ──> blob: tar wrapper, ZFile ──> layer
//! ```
//!
//! [`wrap`] is the other direction: it writes a layer with what goes around it. [`inspect`] tells what a file is.
//!
//! The formats are in [`mod@crate::format`].

pub mod blob;
pub mod config;
pub mod device;
pub mod export;
pub mod inspect;
pub mod life;
pub mod wrap;
