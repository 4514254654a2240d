//! Second opinions: what we write, read by others, and what others write, read by us.
//!
//! The others are the kernel, mkfs.erofs, fsck.erofs and dump.erofs, mkfs.ext4 and debugfs, GNU tar, Python, xz,
//! lz4, zstd and bzip2, the crates `tar` and `erofs-rs`, and simple models of our own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures of some tests are their result")]

mod devices;
mod erofs_elsewhere;
mod erofs_golden;
mod erofs_mutants;
mod erofs_reader;
mod erofs_writer;
mod ext4;
mod foreign;
mod indexed;
mod layer_model;
mod listing;
mod lsmt;
mod merge;
mod overlaybd_build;
mod overlaybd_vectors;
mod rafs;
mod tar_reader;
mod tar_writer;
mod tree;
mod turbo_over_gzip;
mod zfile;

use testkit::{Suite, namespace};

fn main() {
    namespace::enter();
    let mut suite = Suite::new();
    suite.room("tar_reader", tar_reader::add);
    suite.room("tar_writer", tar_writer::add);
    suite.room("erofs_reader", erofs_reader::add);
    suite.room("erofs_writer", erofs_writer::add);
    suite.room("erofs_elsewhere", erofs_elsewhere::add);
    suite.room("erofs_golden", erofs_golden::add);
    suite.room("erofs_mutants", erofs_mutants::add);
    suite.room("overlaybd_build", overlaybd_build::add);
    suite.room("overlaybd_vectors", overlaybd_vectors::add);
    suite.room("devices", devices::add);
    suite.room("ext4", ext4::add);
    suite.room("foreign", foreign::add);
    suite.room("indexed", indexed::add);
    suite.room("lsmt", lsmt::add);
    suite.room("merge", merge::add);
    suite.room("rafs", rafs::add);
    suite.room("tree", tree::add);
    suite.room("turbo_over_gzip", turbo_over_gzip::add);
    suite.room("zfile", zfile::add);
    suite.run()
}
