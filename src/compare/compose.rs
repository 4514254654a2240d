//! From two stacks to the bytes of a layer: the part of a Diff that daemon and command line share.

use std::{path::PathBuf, sync::Arc, time::Instant};

use super::{
    Contents, Times,
    changes::{self, Counts, RootEntry, XattrFilter},
    erofs,
    output::Output,
    tar,
};
use crate::{
    call::Work,
    codec::{Coding, encode::Compression},
    digest::Digest,
    error::Result,
    kind::{Container, LayerType},
    pipeline::{
        Plan, Resources,
        budget::Use,
        encode::{Deliver, Facts},
    },
    snapshot::{Stack, Watch},
    tree::Timestamp,
    view::open::{self, reading, references},
};

/// Settings for writing layers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Level for layers that are compressed with gzip.
    pub gzip: Compression,
    /// Level for those compressed with zstd.
    pub zstd: Compression,
    /// Times in tar layers with their nanoseconds instead of whole seconds.
    pub nanoseconds: bool,
    /// Layout of EROFS images, and the directory to lay them out in. Its compression is ignored: `gzip` and `zstd`
    /// apply to images as well.
    pub image: erofs::Options,
    /// Extended attributes that belong to an image.
    pub xattrs: XattrFilter,
}

impl Options {
    /// The defaults of every part; images are laid out in `work_directory`.
    pub fn in_directory(work_directory: PathBuf) -> Self {
        Self {
            gzip: Compression::GZIP,
            zstd: Compression::ZSTD,
            nanoseconds: false,
            image: erofs::Options::in_directory(work_directory),
            xattrs: XattrFilter::default(),
        }
    }
}

/// The two stacks to compare.
#[derive(Debug)]
pub struct Sides {
    /// The older stack.
    pub lower: Stack,
    /// The newer stack.
    pub upper: Stack,
}

/// A layer whose bytes have been delivered.
#[derive(Clone, Debug)]
pub struct Composed {
    /// Digest of the blob.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Size of the uncompressed layer in bytes.
    pub uncompressed_bytes: u64,
    /// Numbers of the layer's entries.
    pub contents: Contents,
    /// Work time of each step. `commit` is zero here: the caller commits.
    pub times: Times,
}

/// Writes layers.
#[derive(Debug)]
pub struct Composer {
    options: Options,
    resources: Arc<Resources>,
}

impl Composer {
    /// A composer that uses `resources`, which it shares with others.
    pub fn new(options: Options, resources: Arc<Resources>) -> Self {
        Self { options, resources }
    }

    /// Compares both sides, and hands the layer that turns the older into the newer one to `deliver`, piece by
    /// piece.
    ///
    /// Equal sides and options give equal bytes. After an error `deliver` may have got part of a layer, which the
    /// caller throws away.
    pub fn compose(
        &self,
        work: Work<'_>,
        sides: Sides,
        layer_type: &LayerType,
        epoch: Option<Timestamp>,
        deliver: Deliver<'_>,
    ) -> Result<Composed> {
        let cancel = work.cancel;
        let Options { gzip, zstd, nanoseconds, image, xattrs } = &self.options;
        let limits = &self.resources.limits;
        let started = Instant::now();
        let lease = self.resources.budget.lease(cancel)?;
        // Beside what the writer of an image uses.
        let mut charge = |bytes| lease.charge(Use::Window, bytes, cancel);
        let watches = [sides.lower.watch()?, sides.upper.watch()?];
        let open = || Ok([open::layers(sides.lower, cancel)?, open::layers(sides.upper, cancel)?]);
        let [lower, upper] = reading(open)?;
        let [lower, upper] = [&lower, &upper].map(|layers| references(layers));
        let opened = started.elapsed();

        let compression = match layer_type.coding {
            Coding::Plain => Compression::PLAIN,
            Coding::Gzip => *gzip,
            Coding::Zstd => *zstd,
        };
        let plan = Plan { resources: &self.resources, lease: &lease, work };
        let mut compare = |root, output: &mut dyn Output| {
            let options = changes::Options { xattrs: xattrs.clone(), epoch, root, limits: limits.clone() };
            reading(|| changes::write(&lower, &upper, &options, cancel, &mut charge, output))
        };
        // All that depends on the container is decided here: how it is written, and what of both sides it needs.
        let (counts, facts) = match layer_type.container {
            Container::Tar => {
                let options = tar::Options { compression, nanoseconds: *nanoseconds };
                tar::write(plan, options, deliver, |output| compare(RootEntry::WhenChanged, output))?
            }
            Container::Erofs => {
                let options = erofs::Options { compression, ..image.clone() };
                // The root of an image needs attributes, even when they did not change.
                erofs::write(plan, &options, deliver, |output| compare(RootEntry::Always, output))?
            }
        };
        // A container that was started meanwhile has its image mounted: what has been read may be a mixture.
        watches.iter().try_for_each(Watch::check)?;
        let Facts { diff_id, stream_bytes, blob, blob_bytes, times, .. } = facts;
        let times = Times {
            open: opened,
            build: times.produce,
            diff_id: times.diff_id,
            encode: times.encode,
            blob_digest: times.blob_digest,
            store: times.deliver,
            ..Times::default()
        };
        Ok(Composed {
            blob,
            blob_bytes,
            diff_id,
            uncompressed_bytes: stream_bytes,
            contents: contents(counts),
            times,
        })
    }
}

fn contents(counts: Counts) -> Contents {
    let Counts { changed, deleted, opaque, parents, sockets, .. } = counts;
    let whiteouts = deleted.saturating_add(opaque);
    let entries = changed.saturating_add(parents).saturating_add(whiteouts);
    Contents { entries, whiteouts, sockets }
}
