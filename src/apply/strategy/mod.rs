//! The strategies: one file for each way to turn a layer into the files of a snapshot.
//!
//! Each builds its files and checks them on the bytes that were written; naming them is left to the caller.

pub(super) mod erofs;
pub(super) mod native;
