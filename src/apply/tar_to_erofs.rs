//! A tar layer becomes an EROFS image, in one pass.
//!
//! File data goes from the decoder's buffers to its place in the image; names stay in memory until the
//! end of the archive. The rest of the image is written only once the whole blob has been read and both
//! digests are known to be right.

use std::{
    io,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    Contents,
    convert::{Built, Layer, Options},
};
use crate::{
    call::Cancel,
    digest::Digest,
    error::{Error, Result},
    format::{
        Sink,
        erofs::writer::{self, Writer, WriterError},
        tar::{Event, Parser},
    },
    pipeline::{
        self, Plan,
        budget::{Lease, Use},
        buffer::Chunk,
        stage::Stage,
    },
    snapshot::LayerFile,
};

/// Memory is charged in steps of this many bytes.
const CHARGE_BYTES: u64 = 1 << 20;

/// Makes `image` the image of the tar archive in `layer`.
pub(super) fn run(plan: Plan<'_>, layer: Layer<'_>, image: LayerFile, options: &Options) -> Result<Built> {
    let (lease, cancel) = (plan.lease, plan.cancel);
    let build = Build {
        parser: Parser::new(),
        writer: Writer::new(
            Watched { image, cancel },
            writer::Options {
                block_bits: options.block_bits,
                inline_limit: options.inline_limit,
                max_nodes: options.limits.nodes,
                max_metadata_bytes: options.limits.metadata_bytes,
                ..writer::Options::default()
            },
        ),
        charged: 0,
        lease,
        cancel,
        busy: Duration::ZERO,
    };
    let ran = pipeline::run(layer.source(None), plan, build)?;
    let (build, mut facts) = (ran.output, ran.facts);
    let started = Instant::now();
    let mut writer = build.writer;
    writer.set_uuid(image_uuid(&facts.blob));
    let (Watched { image, .. }, summary) = writer.finish().map_err(writer_error)?;
    facts.times.build = build.busy;
    facts.times.finish = started.elapsed();
    let contents = Contents {
        nodes: summary.nodes,
        whiteouts: summary.whiteouts,
        dropped_xattrs: build.parser.dropped_xattrs(),
    };
    Ok(Built { image, contents, facts })
}

/// The identifier that containerd's differ gives the image of a blob: a name-based UUID.
///
/// Source: containerd `plugins/diff/erofs/differ.go`.
fn image_uuid(blob: &Digest) -> [u8; 16] {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("erofs:blobs/{blob}").as_bytes()).into_bytes()
}

/// An error of the sink may carry one of ours.
fn writer_error(error: WriterError) -> Error {
    match error {
        WriterError::Sink(error) => Error::disk(error),
        error => error.into(),
    }
}

/// A file whose writes end when the call is cancelled: the end of a large image takes seconds.
struct Watched<'env> {
    image: LayerFile,
    cancel: &'env Cancel,
}

impl Watched<'_> {
    fn check(&self) -> io::Result<()> {
        self.cancel.check().map_err(|stop| Error::from(stop).into_io())
    }
}

impl Sink for Watched<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check()?;
        self.image.write_at(offset, bytes)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        self.image.discard(offset, len)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.image.set_len(len)
    }
}

/// Parses the archive and writes the image.
struct Build<'env> {
    parser: Parser,
    writer: Writer<Watched<'env>>,
    /// Metadata memory charged so far, in bytes.
    charged: u64,
    lease: &'env Lease,
    cancel: &'env Cancel,
    busy: Duration,
}

impl Build<'_> {
    fn charge(&mut self) -> Result<()> {
        let used = self.writer.metadata_bytes();
        if used > self.charged {
            let charged = used.next_multiple_of(CHARGE_BYTES);
            self.lease.charge(Use::Metadata, charged, self.cancel)?;
            self.charged = charged;
        }
        Ok(())
    }

    fn take(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(event) = self.parser.next(&mut input)? {
            match event {
                Event::Data { offset, bytes } => self.writer.data(offset, bytes),
                Event::EndOfEntry => self.writer.end_entry(),
                Event::Entry(entry) => {
                    let taken = self.writer.entry(&entry);
                    self.charge()?;
                    taken
                }
            }
            .map_err(writer_error)?;
        }
        Ok(())
    }
}

impl Stage for Build<'_> {
    type Output = Self;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        let outcome = self.take(&chunk);
        self.busy += started.elapsed();
        outcome
    }

    fn finish(mut self) -> Result<Self> {
        self.parser.finish()?;
        Ok(self)
    }
}
