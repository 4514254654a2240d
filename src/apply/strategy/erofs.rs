//! A tar layer becomes an EROFS image, in one pass.
//!
//! File data goes from the decoder's buffers to its place in the image; names stay in memory until the
//! end of the archive. The rest of the image is written only once the whole blob has been read and both
//! digests are known to be right.

use std::time::Instant;

use uuid::Uuid;

use crate::{
    apply::{
        job::{Built, Job, verified},
        options::ImpliedDirectories,
        parents::{self, Implied},
        request::Contents,
    },
    call::Phase,
    digest::Digest,
    error::Result,
    format::{ReadAt as _, erofs::writer},
    pipeline::{
        image::{self, ImageWriter},
        unpack::Unpack,
    },
    snapshot::LAYER_NAME,
};

/// Converts the layer's tar archive into an EROFS image.
pub(in crate::apply) fn run(job: Job<'_, '_>) -> Result<Built> {
    let Job { layer, publication, plan, options } = job;
    let image = publication.file(LAYER_NAME)?;
    let (lease, cancel, limits) = (plan.lease, plan.work.cancel, &plan.resources.limits);
    let asked = options.implied_directories == ImpliedDirectories::FromParents;
    let parents = layer.parents.filter(|_| asked);
    let writer = ImageWriter::new(
        image,
        writer::Options {
            image: options.image,
            max_nodes: limits.nodes,
            max_metadata_bytes: limits.metadata_bytes,
            ..writer::Options::default()
        },
        lease,
        cancel,
    );
    let unpack = Unpack::new(writer, limits.stream_bytes);
    let ran = layer.pipeline(plan).run(unpack)?;
    let (mut unpacked, mut facts) = (ran.output, ran.facts);
    plan.work.progress.begin(Phase::Finish, None);
    let started = Instant::now();
    // Only now is it known which directories no entry describes: an entry may come after what is in it.
    let Implied { directories, inherited, without_parents } =
        parents::inherit(&mut unpacked.writer, parents, lease, cancel)?;
    let (image, summary) = unpacked.writer.finish(image_uuid(&facts.blob))?;
    facts.times.build = unpacked.busy;
    facts.times.finish = started.elapsed();
    let contents = Contents {
        nodes: summary.nodes,
        whiteouts: summary.whiteouts,
        dropped_xattrs: unpacked.dropped_xattrs,
        implied_directories: directories,
        inherited_directories: inherited,
        without_parents,
        ..Contents::default()
    };
    facts.times.verify = verified(plan, || image::verify_own(&image, &[], limits, lease, cancel))?;
    Ok(Built { image_bytes: image.size_bytes(), files: vec![image], contents, facts })
}

/// UUID of the image: name-based, and the one that containerd's EROFS differ gives the image of the same blob.
///
/// Source: containerd `plugins/diff/erofs/differ.go`.
fn image_uuid(blob: &Digest) -> [u8; 16] {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("erofs:blobs/{blob}").as_bytes()).into_bytes()
}
