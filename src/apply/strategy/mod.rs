//! The strategies: one file for each way to turn a layer into the files of a snapshot.
//!
//! A strategy builds its files and checks the bytes that were written. The converter gives them their names.

pub(super) mod convert;
pub(super) mod erofs;
pub(super) mod native;
pub(super) mod overlaybd;
pub(super) mod turbo;
