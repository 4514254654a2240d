//! Makes the turboOCI layer of an existing layer: a small archive with the metadata of a file system, whose file data
//! stays in the layer.
//!
//! ```text
//! layer ──> decode ──┬──> index                  ──┐
//!                    └──> file system ──> ZFile  ──┴──> archive, gzip
//! ```
//!
//! Described in `docs/formats/overlaybd.md`, "The published turboOCI layer".

use std::{collections::BTreeMap, thread};

use super::build::{Base, DataPlace, LayerWriter, NewLayer};
use crate::{
    codec::{Coding, encode::Compression},
    error::{Classify, Kind, Result},
    format::{
        ReadAt,
        turbo::{self, Member},
        zfile,
    },
    kind::{
        Container, LayerType, TABLE,
        overlaybd::{BLOB_DIGEST, BLOB_SIZE, TURBO_TARGET_TYPES, TURBO_TARGETS, VERSION},
    },
    pipeline::{
        Facts, Pipeline, Plan, Source,
        encode::{self, Deliver},
        unpack::Unpack,
    },
    snapshot::NewFile,
    sys::thread::spawn_scoped,
};

/// Version of turboOCI layers.
const TURBO_VERSION: &str = "0.1.0-turbo.ociv1";

/// Reason why no turboOCI layer can be made.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    /// Readers would read the layer in another way.
    #[error(
        "the media type {media_type} is that of another layer than a tar compressed with {}",
        coding.as_str()
    )]
    MediaType {
        /// The media type.
        media_type: &'static str,
        /// Compression of the layer.
        coding: Coding,
    },
    /// The format has no index for the layer's compression.
    #[error("a layer compressed with {} cannot be read in pieces: only plain and gzip tars can", coding.as_str())]
    Coding {
        /// Compression of the layer.
        coding: Coding,
    },
}

impl Classify for PublishError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }

    fn reason(&self) -> &'static str {
        "turbo.target"
    }
}

/// A turboOCI layer that was made.
#[derive(Debug)]
pub struct TurboLayer {
    /// Media type of the archive.
    pub media_type: &'static str,
    /// Digests and sizes of the archive.
    pub archive: encode::Facts,
    /// Digests and sizes of the layer that it is made of.
    pub original: Facts,
    /// Annotations of the archive's descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// Makes the turboOCI layer of `source`, on the device `base`, and delivers it. `scratch` makes files for what is not
/// complete yet. `layer_type` is what the layer is said to be; without it, that follows from the compression.
///
/// Errors: those of the pipeline, of archives and of the builder; a gzip blob of several members; `turbo.target` for a
/// compression other than gzip, and for a layer that is not of its type.
pub fn turbo(
    source: Source<'_>,
    layer_type: Option<&LayerType>,
    base: &Base<'_>,
    scratch: &dyn Fn() -> Result<NewFile>,
    plan: Plan<'_>,
    deliver: Deliver<'_>,
) -> Result<TurboLayer> {
    let mut index = scratch()?;
    let writer = LayerWriter::new(scratch()?, base, DataPlace::Target, plan)?;
    let unpack = Unpack::new(writer, plan.resources.limits.stream_bytes);
    let ran = Pipeline::new(source, plan).indexed(&mut index).run(unpack)?;
    let original = ran.facts;
    let coding = original.coding;
    if !matches!(coding, Coding::Plain | Coding::Gzip) {
        return Err(PublishError::Coding { coding }.into());
    }
    // The media type says whether the layer is read through the index.
    if let Some(said) = layer_type.filter(|said| (said.container, said.coding) != (Container::Tar, coding)) {
        return Err(PublishError::MediaType { media_type: said.media_type, coding }.into());
    }
    let media_type = layer_type.map_or_else(|| media_type_of(coding), |said| said.media_type);
    let layer = ran.output.writer.finish_unchecked(base)?;
    let mut metadata = scratch()?;
    write_checked(&layer, base, plan, &mut metadata)?;
    drop(layer);

    let mut members: Vec<(Member, &dyn ReadAt)> = vec![(Member::Erofs, &metadata)];
    if ran.index.is_some() {
        members.push((Member::GzipIndex, &index));
    }
    // Its members are blocks of LZ4 and windows of zlib: compressed again, the archive would be 6 % smaller, and the whole
    // layer would take 8 % more time.
    let ((), archive) =
        encode::run(plan, Compression::GZIP_STORED, deliver, |out| turbo::write(out, &members))?;
    let annotations = annotations(&archive, &original, media_type);
    Ok(TurboLayer { media_type: media_type_of(Coding::Gzip), archive, original, annotations })
}

/// Compresses the layer, and checks it meanwhile if there is a thread for that: neither needs the other's outcome.
fn write_checked(
    layer: &NewLayer<NewFile>,
    base: &Base<'_>,
    plan: Plan<'_>,
    out: &mut NewFile,
) -> Result<()> {
    let helpers = &plan.resources.helpers;
    let mut write = || layer.write(zfile::writer::Options::default(), helpers, out);
    let Some(permit) = helpers.take() else {
        base.check(layer.device(), plan)?;
        return write().map(drop);
    };
    thread::scope(|scope| {
        let writing = spawn_scoped(scope, "write", move || {
            let _held = permit;
            write()
        })?;
        base.check(layer.device(), plan)?;
        writing.join().map(drop)
    })
}

/// Media type of an OCI layer with this compression.
fn media_type_of(coding: Coding) -> &'static str {
    let is = |row: &&LayerType| row.written && row.container == Container::Tar && row.coding == coding;
    TABLE.iter().find(is).map_or_else(Default::default, |row| row.media_type)
}

fn annotations(archive: &encode::Facts, original: &Facts, media_type: &str) -> BTreeMap<String, String> {
    let [target, _older] = TURBO_TARGETS;
    let [target_type, _older] = TURBO_TARGET_TYPES;
    let pairs = [
        (BLOB_DIGEST, archive.blob.to_string()),
        (BLOB_SIZE, archive.blob_bytes.to_string()),
        (VERSION, TURBO_VERSION.to_owned()),
        (target, original.blob.to_string()),
        (target_type, media_type.to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
