//! Linux, as far as a differ needs it: files and directories reached by descriptor, never by a path
//! that somebody else may change in between; threads and their capabilities.
//!
//! System calls under safe names and nothing more: the callers decide what they are for.
//!
//! Source: the manual pages of section 2; kernel 5.6 or later for `openat2`.

pub mod capabilities;
pub mod dir;
pub mod file;
pub mod inherited;
pub mod inode;
pub mod lock_file;
pub mod loop_device;
pub mod messages;
pub mod mounted;
pub mod pipe;
pub mod process;
pub mod sandbox;
pub mod thread;
