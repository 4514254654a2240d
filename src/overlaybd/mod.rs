//! overlaybd layers: the files of a device, opened; layers, made and written to their files.
//!
//! ```text
//! config.v1.json ──> config: files of the lowers ──> blob: tar wrapper, ZFile ──> layer
//! archive or its metadata ──> build: file system above that of the device ──> layer ──> ZFile
//! ```
//!
//! [`apply`] builds into the writable layer of a device. [`wrap`] writes a layer with what goes around it. [`inspect`] tells what a file is.
//!
//! The formats are in [`mod@crate::format`].

pub mod apply;
pub mod blob;
pub mod build;
pub mod config;
pub mod device;
pub mod export;
pub mod inspect;
pub mod life;
pub mod options;
pub mod publish;
pub mod snapshot;
pub mod wrap;
