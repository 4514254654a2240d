//! Shared parts of the tests that drive real daemons: the daemons themselves, images made on the spot, and trees that
//! can be compared.
//!
//! The tests are in `tests/containerd.rs`; they need root and the programs that `setup/tools.sh` unpacks.

pub mod calls;
pub mod commands;
pub mod content;
pub mod daemon;
pub mod disk;
pub mod docker;
pub mod env;
pub mod host;
pub mod image;
pub mod node;
pub mod overlaybd;
pub mod tree;
pub mod ttrpc;

pub use testkit::layers as archive;
