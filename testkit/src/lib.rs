//! Parts that the test programs of Plywood share: one way to run tests and to skip them, a corner of the machine in which
//! nothing stays behind, trees that can be compared, and programs and services of others.
//!
//! A test program collects its tests in a [`suite::Suite`] and runs it. A test names what it needs ([`need::Need`]), and
//! is reported as skipped, with what is missing, where the machine does not have it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod archive;
pub mod containerd;
pub mod daemon;
pub mod devices;
pub mod grpc;
pub mod host;
pub mod image;
pub mod images;
pub mod layers;
pub mod mkfs;
pub mod mounts;
pub mod namespace;
pub mod need;
pub mod node;
pub mod random;
pub mod snapshots;
pub mod strace;
pub mod suite;
pub mod tree;
pub mod unit_filter;

pub use libtest_mimic::Failed;
pub use need::Need;
pub use suite::Suite;
