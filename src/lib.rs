//! A containerd differ: image layers to mountable EROFS blobs, and snapshots back to layers.
//!
//! The modules form layers, and `tests/tidy.rs` fails when one imports from a layer above its own:
//!
//! | layer | modules |
//! |---|---|
//! | 0 values | [`error`], [`digest`], [`descriptor`], [`media_type`], [`limits`], [`call`] |
//! | 1 codecs | [`codec`] |
//! | 2 formats | [`tree`], [`mod@format`] |
//! | 3 ports | [`sys`], [`store`], [`snapshot`] |
//! | 4 domain | [`pipeline`], [`apply`], [`compare`] |
//! | 5 edges | [`config`], [`observe`], [`rpc`], [`server`], [`cli`] |

pub mod apply;
pub mod call;
pub mod cli;
pub mod codec;
pub mod compare;
pub mod config;
pub mod descriptor;
pub mod digest;
pub mod error;
pub mod format;
pub mod limits;
pub mod media_type;
pub mod observe;
pub mod pipeline;
pub mod rpc;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod sys;
pub mod tree;
