//! From an open blob to a published image: what daemon and command line have in common.

use std::{
    fs::File,
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Applied, Contents, Parents, Stats, native, tar_to_erofs};
use crate::{
    call::{Cancel, Phase, Work},
    codec::Coding,
    descriptor::Descriptor,
    digest::Digest,
    error::Result,
    format::{
        ReadAt as _,
        erofs::{check::Level, writer::WriteOptions},
    },
    kind::{Container, LayerType},
    limits::Limits,
    pipeline::{Facts, Plan, Resources, Source, budget::Lease, image},
    snapshot::{Durability, LAYER_NAME, NewFile, Publication},
};

/// How images are made, checked and published.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Layout of images made from tar layers.
    pub image: WriteOptions,
    /// When a published image is on disk.
    pub durability: Durability,
    /// How images that come ready are checked.
    pub native_verify: NativeVerify,
    /// The attributes of directories that an archive does not list.
    pub implied_directories: ImpliedDirectories,
}

/// How an image that comes ready is checked before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeVerify {
    /// All its metadata.
    #[default]
    Strict,
    /// Its superblock.
    Superblock,
    /// Not at all.
    Off,
}

/// Where directories that an archive does not list get their attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImpliedDirectories {
    /// Like the directory of the layers below that they shadow, where that can be seen; otherwise root's.
    #[default]
    FromParents,
    /// Root's, of mode 0755 and time 0.
    Default,
}

/// A layer as its store delivers it.
pub struct Layer<'a> {
    /// What it is.
    pub kind: &'static LayerType,
    /// The blob from its first byte to its last.
    pub reader: &'a mut dyn Read,
    /// The file that holds just this blob, if it is at hand.
    pub file: Option<&'a File>,
    /// The size it must have, in bytes, when that is known.
    pub size_bytes: Option<u64>,
    /// The digest it must have, when that is known.
    pub digest: Option<Digest>,
    /// The layers below it, when they are known.
    pub parents: Option<Parents<'a>>,
}

impl<'a> Layer<'a> {
    /// The source of a pipeline; `None`: the coding is found out.
    pub(super) fn source(self, coding: Option<Coding>) -> Source<'a> {
        Source { reader: self.reader, size_bytes: self.size_bytes, digest: self.digest, coding }
    }
}

/// What a strategy leaves to be checked and published.
pub(super) struct Built {
    pub(super) image: NewFile,
    pub(super) contents: Contents,
    pub(super) facts: Facts,
}

/// Turns layers into images.
#[derive(Debug)]
pub struct Converter {
    options: Options,
    resources: Arc<Resources>,
}

impl Converter {
    /// A converter that uses `resources`, which it shares with others.
    pub fn new(options: Options, resources: Arc<Resources>) -> Self {
        Self { options, resources }
    }

    /// The most that one layer may cost.
    pub(super) fn limits(&self) -> &Limits {
        &self.resources.limits
    }

    /// Converts `layer` into an image and publishes it.
    ///
    /// Nothing is published unless the blob is the one asked for and the finished image, read back from
    /// the file, has passed its check. After an error the file is gone.
    pub fn convert(
        &self,
        work: Work<'_>,
        layer: Layer<'_>,
        publication: Publication,
        sync_fs: bool,
    ) -> Result<Applied> {
        let Work { cancel, progress } = work;
        let started = Instant::now();
        let image = publication.file(LAYER_NAME)?;
        let lease = self.resources.budget.lease(cancel)?;
        let plan = Plan { resources: &self.resources, lease: &lease, work };
        let kind = layer.kind;
        let Built { image, contents, mut facts } = match kind.container {
            Container::Tar => tar_to_erofs::run(plan, layer, image, &self.options)?,
            Container::Erofs => native::run(plan, layer, image, kind.coding)?,
        };
        cancel.check()?;
        progress.begin(Phase::Verify, None);
        facts.times.verify = timed(|| self.verify(kind, &image, &lease, cancel))?;
        cancel.check()?;
        progress.begin(Phase::Commit, None);
        let image_bytes = image.size_bytes();
        facts.times.commit = timed(|| Ok(publication.commit([image], self.options.durability, sync_fs)?))?;
        Ok(Applied {
            descriptor: Descriptor::of(kind.applied, facts.diff_id, facts.stream_bytes),
            stats: Stats {
                blob: facts.blob,
                blob_bytes: facts.blob_bytes,
                coding: facts.coding,
                image_bytes,
                contents,
                times: facts.times,
                total: started.elapsed(),
            },
        })
    }
}

impl Converter {
    /// Checks the finished image, on the bytes in the file.
    fn verify(&self, kind: &LayerType, file: &NewFile, lease: &Lease, cancel: &Cancel) -> Result<()> {
        let limits = self.limits();
        let level = match (kind.container, self.options.native_verify) {
            (Container::Tar, _) => return image::verify_own(file, limits, lease, cancel),
            (Container::Erofs, NativeVerify::Strict) => Level::Strict,
            (Container::Erofs, NativeVerify::Superblock) => Level::Superblock,
            (Container::Erofs, NativeVerify::Off) => return Ok(()),
        };
        image::verify(file, level, limits, lease, cancel)
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}
