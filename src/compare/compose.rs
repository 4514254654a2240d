//! From two stacks to the bytes of a layer: the part of a Diff that daemon and command line share.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Contents, Times,
    changes::{self, Counts, RootEntry, XattrFilter},
    chunked, erofs,
    indexed::{self, Indexed},
    output::Output,
    overlaybd, tar,
};
use crate::{
    call::Work,
    codec::{Coding, encode::Compression},
    digest::Digest,
    error::Result,
    kind::{Container, Index, LayerType},
    overlaybd::snapshot,
    pipeline::{
        Plan, Resources,
        budget::Use,
        encode::{Deliver, Facts},
    },
    snapshot::{DeviceDir, Stack, Watch},
    tree::Timestamp,
    view::{
        Volume,
        open::{self, reading, references},
    },
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

/// Form of a layer.
#[derive(Debug)]
pub enum Form<'a> {
    /// An archive or an image of the changes.
    Of(&'a LayerType),
    /// A layer of a device, with the changes on top of this device, which the older side is.
    Changed(Arc<DeviceDir>),
    /// The layer that a container has written to this device. The sides are not compared.
    Written(Arc<DeviceDir>),
    /// The topmost layer of this device. The sides are not compared.
    Top(Arc<DeviceDir>),
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
    /// Annotations that the layer's descriptor needs beside those of the caller.
    pub annotations: BTreeMap<String, String>,
    /// Numbers of the layer's entries.
    pub contents: Contents,
    /// File system on the device of which it is a layer, if the layer has its superblock.
    pub file_system: Option<&'static str>,
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

    /// Compares both sides, and hands the layer that turns the older into the newer one to `deliver`, in its `form`, piece
    /// by piece.
    ///
    /// Equal sides and options give equal bytes. After an error `deliver` may have got part of a layer, which the
    /// caller throws away.
    pub fn compose(
        &self,
        work: Work<'_>,
        sides: Sides,
        form: &Form<'_>,
        epoch: Option<Timestamp>,
        deliver: Deliver<'_>,
    ) -> Result<Composed> {
        let cancel = work.cancel;
        let Options { gzip, zstd, nanoseconds, image, xattrs } = &self.options;
        let limits = &self.resources.limits;
        let started = Instant::now();
        let lease = self.resources.budget.lease(cancel)?;
        let plan = Plan { resources: &self.resources, lease: &lease, work };
        let own = match form {
            Form::Written(dir) => Some(snapshot::written_layer(dir, plan)?),
            Form::Top(dir) => Some(snapshot::top_layer(dir, plan)?),
            Form::Of(_) | Form::Changed(_) => None,
        };
        if let Some(own) = own {
            let opened = started.elapsed();
            let facts = overlaybd::written(plan, &own, &image.work_directory, deliver)?;
            let composed = Composed::new(facts, Contents::default(), opened);
            return Ok(Composed { file_system: overlaybd::file_system(&own), ..composed });
        }
        // Beside what the writer of an image uses.
        let mut charge = |bytes| lease.charge(Use::Window, bytes, cancel);
        let watches = [sides.lower.watch()?, sides.upper.watch()?];
        let devices = |dir: &DeviceDir| Ok(Volume::from(snapshot::open(dir, plan)?));
        let open = || {
            let open = |stack| open::layers(stack, &devices, cancel);
            Ok([open(sides.lower)?, open(sides.upper)?])
        };
        let [lower, upper] = reading(open)?;
        let [lower, upper] = [&lower, &upper].map(|layers| references(layers));
        let opened = started.elapsed();

        let mut compare = |root, output: &mut dyn Output| {
            let options = changes::Options { xattrs: xattrs.clone(), epoch, root, limits: limits.clone() };
            reading(|| changes::write(&lower, &upper, &options, cancel, &mut charge, output))
        };
        // All that depends on the container is decided here: how it is written, and what of both sides it needs.
        let (mut file_system, mut annotations) = (None, BTreeMap::new());
        let (counts, facts) = match form {
            Form::Of(layer_type) => {
                let compression = match layer_type.coding {
                    Coding::Plain => Compression::PLAIN,
                    Coding::Gzip => *gzip,
                    Coding::Zstd => *zstd,
                };
                match (layer_type.container, layer_type.indexed) {
                    (Container::Tar, Some(index)) => {
                        let options = tar::Options { compression, nanoseconds: *nanoseconds };
                        let changes = |output: &mut dyn Output| compare(RootEntry::WhenChanged, output);
                        let written = match index {
                            Index::Stargz => indexed::write(plan, options, deliver, changes)?,
                            Index::Containers => chunked::write(plan, options, deliver, changes)?,
                        };
                        let Indexed { output, facts, annotations: own } = written;
                        annotations = own;
                        (output, facts)
                    }
                    (Container::Tar | Container::Overlaybd | Container::Turbo, _) => {
                        let options = tar::Options { compression, nanoseconds: *nanoseconds };
                        tar::write(plan, options, deliver, |output| compare(RootEntry::WhenChanged, output))?
                    }
                    (Container::Erofs, _) => {
                        let options = erofs::Options { compression, ..image.clone() };
                        // The root of an image needs attributes, even when they did not change.
                        erofs::write(plan, &options, deliver, |output| compare(RootEntry::Always, output))?
                    }
                }
            }
            Form::Changed(dir) | Form::Written(dir) | Form::Top(dir) => {
                let below = snapshot::open(dir, plan)?;
                file_system = overlaybd::file_system(&below);
                let directory = &image.work_directory;
                overlaybd::changed(plan, &below, directory, deliver, |output| {
                    compare(RootEntry::WhenChanged, output)
                })?
            }
        };
        // A container that was started meanwhile has its image mounted: what has been read may be a mixture.
        watches.iter().try_for_each(Watch::check)?;
        Ok(Composed { annotations, file_system, ..Composed::new(facts, contents(counts), opened) })
    }
}

impl Composed {
    /// A layer with these `contents`, for which the sides were `opened` in that time.
    fn new(facts: Facts, contents: Contents, opened: Duration) -> Self {
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
        Self {
            blob,
            blob_bytes,
            diff_id,
            uncompressed_bytes: stream_bytes,
            annotations: BTreeMap::new(),
            contents,
            file_system: None,
            times,
        }
    }
}

fn contents(counts: Counts) -> Contents {
    let Counts { changed, deleted, opaque, parents, sockets, .. } = counts;
    let whiteouts = deleted.saturating_add(opaque);
    let entries = changed.saturating_add(parents).saturating_add(whiteouts);
    Contents { entries, whiteouts, sockets }
}
