//! Scrub: looks at every committed snapshot of a node, finds those that are broken, and makes them anew.
//!
//! ```text
//! root: directories, records ──┐
//! containerd: images, layers ──┼──> Scrub ──> look: structure ──> rebuild: compare, publish ──> Report
//! kernel: mounts ──────────────┘
//! ```
//!
//! containerd never looks at a layer again once its snapshot is committed, and pulling the image again finds the snapshot
//! there. So what a disk, a crash or a hand has broken stays broken. [`Scrub`] looks, and with [`Settings::repair`]
//! rebuilds from the content store what it can, by the strategies, the checks and the publication of Apply.
//!
//! Described in `docs/operations.md`, "Find and mend broken snapshots".

mod catalog;
mod compare;
mod device;
mod leftovers;
mod look;
mod make;
mod merged;
mod numbering;
mod rebuild;
mod report;
mod same;
mod subject;
mod walk;

pub use self::{
    report::{Counts, Finding, Report, RootReport, State},
    subject::{Scrub, Settings},
};
