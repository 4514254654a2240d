//! Apply: a layer and the mounts of a snapshot in, a mountable image in the snapshot's directory out.
//!
//! ```text
//! Request ──> Applier: mounts ──> SnapshotDir, route ──> choose ──> Strategy ──> Job ──> Built ──> Publication::commit
//! ```
//!
//! [`Applier`] finds the directory, chooses the strategy and opens the blob; [`Converter`], which the command line
//! uses without store and snapshots, lets the strategy build and check the files, and publishes them. A strategy is
//! one file in `strategy/`. Nothing here knows a wire message; calls block, callers bring a thread.

mod applier;
mod below;
mod choose;
mod converter;
mod flight;
mod job;
mod merged;
mod options;
mod parents;
mod processors;
mod published_ext4;
mod request;
mod strategy;

pub use applier::Applier;
pub use below::Snapshotter;
pub use choose::{Asked, Conversion, Data, Strategy, choose};
pub use converter::Converter;
pub use job::Layer;
pub use options::{ImpliedDirectories, NativeVerify, Options, OrdinaryLayers, Overlaybd};
pub use parents::Parents;
pub use processors::Processors;
pub use request::{Applied, Apply, ApplyError, Contents, Payload, Request, Stats};
