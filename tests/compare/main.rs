//! Diff against the kernel: directories that overlayfs wrote, layers that are applied again, and ext4 images on loop
//! devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod block_mode;
mod live;
mod round_trip;

use testkit::{Suite, namespace};

fn main() {
    namespace::enter();
    let mut suite = Suite::new();
    suite.room("block_mode", block_mode::add);
    suite.room("live", live::add);
    suite.room("round_trip", round_trip::add);
    suite.run()
}
