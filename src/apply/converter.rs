//! From an open blob to published files: the part of Apply that daemon and command line share.

use std::{sync::Arc, time::Instant};

use super::{
    choose::Strategy,
    job::{Built, Job, Layer},
    merged,
    options::Options,
    request::{Applied, Stats},
    strategy::{convert, erofs, native, overlaybd, turbo},
};
use crate::{
    call::{Phase, Work},
    descriptor::Descriptor,
    error::Result,
    limits::Limits,
    pipeline::{Plan, Resources},
    snapshot::{NewFile, Publication},
};

/// Turns layers into images.
#[derive(Debug)]
pub struct Converter {
    options: Options,
    resources: Arc<Resources>,
}

impl Converter {
    /// A converter with `options`. Other converters and composers may use the same `resources`.
    pub fn new(options: Options, resources: Arc<Resources>) -> Self {
        Self { options, resources }
    }

    /// The converter's settings.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Limits on one layer.
    pub fn limits(&self) -> &Limits {
        &self.resources.limits
    }

    /// Turns `layer` into the files of `strategy` and publishes them.
    ///
    /// Nothing is published unless size and digest of the blob are those of `layer` and the finished files, read back
    /// from the disk, have passed their check. After an error the files are removed.
    pub fn convert(
        &self,
        work: Work<'_>,
        strategy: Strategy,
        layer: Layer<'_>,
        publication: Publication,
        sync_fs: bool,
    ) -> Result<Applied> {
        let started = Instant::now();
        let (files, mut applied) = self.rehearse(work, strategy, layer, &publication)?;
        work.cancel.check()?;
        work.progress.begin(Phase::Commit, None);
        let committing = Instant::now();
        publication.commit(files, self.options.durability, sync_fs)?;
        applied.stats.times.commit = committing.elapsed();
        applied.stats.total = started.elapsed();
        Ok(applied)
    }

    /// Turns `layer` into the files of `strategy` and checks them, like [`Converter::convert`], and publishes nothing:
    /// the caller compares the files with others, or commits them to `publication`.
    pub fn rehearse(
        &self,
        work: Work<'_>,
        strategy: Strategy,
        layer: Layer<'_>,
        publication: &Publication,
    ) -> Result<(Vec<NewFile>, Applied)> {
        let started = Instant::now();
        let lease = self.resources.budget.lease(work.cancel)?;
        let plan = Plan { resources: &self.resources, lease: &lease, work };
        let applied = layer.layer_type.applied;
        let parents = layer.parents;
        let job = Job { layer, publication, plan, options: &self.options };
        let Built { mut files, image_bytes, mut contents, facts } = match strategy {
            Strategy::Erofs => erofs::run(job)?,
            Strategy::Native { coding } => native::run(job, coding)?,
            Strategy::Overlaybd => overlaybd::run(job)?,
            Strategy::Trace => overlaybd::trace(job)?,
            Strategy::Turbo => turbo::run(job)?,
            Strategy::Convert(conversion) => convert::run(job, conversion)?,
        };
        if strategy.is_mountable()
            && let Some(image) = files.first()
        {
            let max_unmerged = self.options.max_unmerged_layers;
            if let Some(merged) = merged::beside(image, max_unmerged, parents, publication, plan)? {
                contents.merged_layers = merged.layers;
                files.push(merged.file);
            }
        }
        let descriptor = Descriptor::of(applied, facts.diff_id, facts.stream_bytes);
        let stats = Stats {
            blob: facts.blob,
            blob_bytes: facts.blob_bytes,
            coding: facts.coding,
            image_bytes,
            contents,
            times: facts.times,
            ahead: facts.ahead,
            total: started.elapsed(),
        };
        Ok((files, Applied { descriptor, stats }))
    }
}
