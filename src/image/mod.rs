//! Images as files carry them: archives, OCI layouts, separated sets; what is in them, and the way into a store.
//!
//! A client, like every other one of containerd: it shares the stores and the pipeline with Apply, and calls no
//! strategy. Inputs are read where they are. Nothing is extracted, and no path is made of a name that an input gives.
//!
//! Source: docs/formats/archives.md.

pub mod archive;
pub mod chain;
pub mod config;
pub mod document;
pub mod error;
mod finds;
pub mod inspect;
mod json;
pub mod load;
mod member;
pub mod name;
pub mod options;
mod output;
pub mod platform;
pub mod pool;
pub mod progress;
pub mod resolve;
mod set;
mod source;
mod target;
mod transfer;
pub mod unpack;
