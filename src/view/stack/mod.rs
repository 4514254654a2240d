//! Stacks of views: the merged tree that overlayfs shows of several layers.

mod error;
mod marks;
mod merged;
mod read;
mod tree;

pub(crate) use self::{
    marks::{Marks, Metacopy},
    merged::{Found, Layers, Meaning, Merged, Place, common_tail, join},
    read::read_merged,
};
