//! A tar layer becomes an EROFS image, in one pass.
//!
//! File data goes from the decoder's buffers to its place in the image; names stay in memory until the
//! end of the archive. The rest of the image is written only once the whole blob has been read and both
//! digests are known to be right.

use std::time::{Duration, Instant};

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
    format::{
        ReadAt as _,
        erofs::writer,
        tar::{Event, Parser},
    },
    pipeline::{
        Pipeline, StreamLimit,
        buffer::Chunk,
        image::{self, ImageWriter},
        stage::Stage,
    },
    snapshot::LAYER_NAME,
    tree::Body,
};

/// Converts the layer's tar archive into an EROFS image.
pub(in crate::apply) fn run(job: Job<'_, '_>) -> Result<Built> {
    let Job { layer, publication, plan, options } = job;
    let image = publication.file(LAYER_NAME)?;
    let (lease, cancel, limits) = (plan.lease, plan.work.cancel, &plan.resources.limits);
    let asked = options.implied_directories == ImpliedDirectories::FromParents;
    let parents = layer.parents.filter(|_| asked);
    let build = Build {
        parser: Parser::new(),
        writer: ImageWriter::new(
            image,
            writer::Options {
                image: options.image,
                max_nodes: limits.nodes,
                max_metadata_bytes: limits.metadata_bytes,
                ..writer::Options::default()
            },
            lease,
            cancel,
        ),
        stream_bytes: 0,
        hole_bytes: 0,
        limit: limits.stream_bytes,
        busy: Duration::ZERO,
    };
    let chain = layer.chain;
    let ran = Pipeline::new(layer.source(), plan).through(chain).run(build)?;
    let (mut build, mut facts) = (ran.output, ran.facts);
    plan.work.progress.begin(Phase::Finish, None);
    let started = Instant::now();
    // Only now is it known which directories no entry describes: an entry may come after what is in it.
    let Implied { directories, inherited, without_parents } =
        parents::inherit(&mut build.writer, parents, lease, cancel)?;
    let (image, summary) = build.writer.finish(image_uuid(&facts.blob))?;
    facts.times.build = build.busy;
    facts.times.finish = started.elapsed();
    let contents = Contents {
        nodes: summary.nodes,
        whiteouts: summary.whiteouts,
        dropped_xattrs: build.parser.dropped_xattrs(),
        implied_directories: directories,
        inherited_directories: inherited,
        without_parents,
    };
    facts.times.verify = verified(plan, || image::verify_own(&image, limits, lease, cancel))?;
    Ok(Built { image_bytes: image.size_bytes(), files: vec![image], contents, facts })
}

/// UUID of the image: name-based, and the one that containerd's EROFS differ gives the image of the same blob.
///
/// Source: containerd `plugins/diff/erofs/differ.go`.
fn image_uuid(blob: &Digest) -> [u8; 16] {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("erofs:blobs/{blob}").as_bytes()).into_bytes()
}

/// Parses the archive and writes the image.
struct Build<'env> {
    parser: Parser,
    writer: ImageWriter<'env>,
    stream_bytes: u64,
    hole_bytes: u64,
    /// Largest sum of `stream_bytes` and `hole_bytes`.
    limit: u64,
    busy: Duration,
}

impl Build<'_> {
    fn take(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(event) = self.parser.next(&mut input)? {
            match event {
                Event::Entry { entry, .. } => {
                    self.count_holes(&entry.body)?;
                    self.writer.entry(&entry)
                }
                Event::Data { offset, bytes } => self.writer.data(offset, bytes),
                Event::EndOfEntry => self.writer.end_entry(),
            }?;
        }
        Ok(())
    }

    /// Adds the holes of a file to the bytes that are limited, because a header can name holes of any length. Diff
    /// would write them as zeros.
    fn count_holes(&mut self, body: &Body) -> Result<()> {
        if let Body::Regular { size_bytes, extents: Some(extents) } = body {
            let data: u64 = extents.iter().map(|extent| extent.len).sum();
            self.hole_bytes = self.hole_bytes.saturating_add(size_bytes.saturating_sub(data));
        }
        self.check_limit()
    }

    fn check_limit(&self) -> Result<()> {
        if self.stream_bytes.saturating_add(self.hole_bytes) > self.limit {
            return Err(StreamLimit::Length { limit: self.limit }.into());
        }
        Ok(())
    }
}

impl Stage for Build<'_> {
    type Output = Self;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        self.stream_bytes = self.stream_bytes.saturating_add(chunk.len() as u64);
        let outcome = self.check_limit().and_then(|()| self.take(&chunk));
        self.busy += started.elapsed();
        outcome
    }

    fn finish(mut self) -> Result<Self> {
        self.parser.finish()?;
        Ok(self)
    }
}
