//! A containerd differ: image layers to mountable EROFS blobs, and snapshots back to layers.
//!
//! The modules stand on floors. Each uses its own floor and the floors above it in this table, never one below;
//! `tests/tidy` fails when one does, when the edges or the rooms of the domain change their order, and when files use each
//! other in a circle.
//!
//! | floor | modules |
//! |---|---|
//! | 0 values | [`error`], [`digest`], [`descriptor`], [`limits`], [`call`] |
//! | 1 codecs | [`codec`] |
//! | 2 formats | [`tree`], [`mod@format`] |
//! | 3 kinds | [`kind`] |
//! | 4 ports | [`sys`], [`store`], [`containerd`], [`snapshot`] |
//! | 5 domain | [`pipeline`], [`view`], [`overlaybd`], [`merge`], [`stargz`], [`apply`], [`compare`], [`image`], [`scrub`] |
//! | 6 edges, in this order | [`config`], [`processor`], [`observe`], [`service`], [`rpc`], [`daemon`], [`cli`] |

pub mod apply;
pub mod call;
pub mod cli;
pub mod codec;
pub mod compare;
pub mod config;
pub mod containerd;
pub mod daemon;
pub mod descriptor;
pub mod digest;
pub mod error;
pub mod format;
pub mod image;
pub mod kind;
pub mod limits;
pub mod merge;
pub mod observe;
pub mod overlaybd;
pub mod pipeline;
pub mod processor;
pub mod rpc;
pub mod scrub;
pub mod service;
pub mod snapshot;
pub mod stargz;
pub mod store;
pub mod sys;
pub mod tree;
pub mod view;
