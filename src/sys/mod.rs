//! Linux, as far as a differ needs it: files and directories reached by descriptor, never by a path
//! that somebody else may change in between.
//!
//! System calls under safe names and nothing more: what they are used for is decided by their callers.
//!
//! Source: the manual pages of section 2; kernel 5.6 or later for `openat2`.

pub mod capabilities;
pub mod dir;
pub mod file;
pub mod inherited;
pub mod inode;
pub mod loop_device;
pub mod sandbox;
pub mod thread;
