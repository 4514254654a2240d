//! One layer to apply: the input of a strategy, and its result.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    time::{Duration, Instant},
};

use super::{options::Options, parents::Parents, request::Contents};
use crate::{
    call::Phase,
    digest::Digest,
    error::Result,
    format::ztoc::Ztoc,
    kind::LayerType,
    pipeline::{Facts, Pipeline, Plan, Source, processor::Chain},
    snapshot::{DeviceDir, NewFile, Publication},
};

/// A layer as its store delivers it.
pub struct Layer<'a> {
    /// Row of the layer's media type, behind its processors.
    pub layer_type: &'static LayerType,
    /// Annotations of its descriptor.
    pub annotations: &'a BTreeMap<String, String>,
    /// The blob from its first byte to its last.
    pub reader: &'a mut dyn Read,
    /// File that holds just this blob, where the store has one.
    pub file: Option<&'a File>,
    /// Size that the blob must have, in bytes, when it is known.
    pub size_bytes: Option<u64>,
    /// Digest that the blob must have, when it is known.
    pub digest: Option<Digest>,
    /// Processors that the blob goes through before it is of type `layer_type`.
    pub chain: Option<&'a Chain>,
    /// Index of the blob, whose places help to decode it.
    pub ztoc: Option<&'a Ztoc<'a>>,
    /// Access to the layers below, for directories that the layer does not list.
    pub parents: Option<Parents<'a>>,
    /// The device of the layers below, for a layer of a device; `None` for the lowest one.
    pub device: Option<DeviceDir>,
    /// Size in bytes of the original layer of a turboOCI layer, when it is known.
    pub target_bytes: Option<u64>,
}

impl<'a> Layer<'a> {
    /// The pipeline that reads the layer, through its processors. Strategies read it no other way: without its processors
    /// it is of another type.
    pub(super) fn pipeline<'p>(self, plan: Plan<'p>) -> Pipeline<'a, 'p> {
        let source = Source { reader: self.reader, size_bytes: self.size_bytes, digest: self.digest };
        Pipeline::new(source, plan).through(self.chain).hinted(self.ztoc)
    }
}

/// Input of a strategy: the layer, and the means to build its files.
pub(super) struct Job<'a, 'l> {
    pub(super) layer: Layer<'l>,
    /// Creates the files of the strategy's set.
    pub(super) publication: &'a Publication,
    pub(super) plan: Plan<'a>,
    pub(super) options: &'a Options,
}

/// The files that a strategy has written and checked, ready to be published.
pub(super) struct Built {
    /// All files of the strategy's set.
    pub(super) files: Vec<NewFile>,
    /// Size of the image that is mounted, in bytes.
    pub(super) image_bytes: u64,
    pub(super) contents: Contents,
    pub(super) facts: Facts,
}

/// Runs `check`, the last step of a strategy, and returns its time. Errors: those of `check`; `Cancelled`.
pub(super) fn verified(plan: Plan<'_>, check: impl FnOnce() -> Result<()>) -> Result<Duration> {
    plan.work.cancel.check()?;
    plan.work.progress.begin(Phase::Verify, None);
    let started = Instant::now();
    check()?;
    Ok(started.elapsed())
}
