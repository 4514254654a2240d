//! What several test binaries share.

// Each test binary uses its own part of it.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod containerd;
pub mod layer_model;
pub mod listing;
pub mod mkfs;
