//! A layer that is one of a device already: taken out of its archive, and checked.
//!
//! The snapshotter looks for the magic number of the file itself, so nothing stays around it. What follows the first file
//! of the archive is hashed and otherwise passed over, as all readers do: some publishers append more than they should.

use std::time::{Duration, Instant};

use crate::{
    apply::{
        job::{Built, Job, verified},
        published_ext4::refuse_superblock,
        request::Contents,
    },
    call::Cancel,
    error::{Classify, Error, Kind, Quoted, Result},
    format::{
        ReadAt, Sink as _,
        lsmt::Layer,
        tar::{
            Event, Parser,
            wrapper::{self, WrapperError},
        },
    },
    overlaybd::blob::Blob,
    pipeline::{buffer::Chunk, stage::Stage},
    snapshot::{NewFile, OVERLAYBD_NAME, TRACE_NAME},
    tree::{Body, Entry},
};

/// Name of the file in the archive of an acceleration layer.
const TRACE: &[u8] = b"trace";
/// Contents read at a time to check all blocks.
const CHECK_BYTES: usize = 1 << 20;

/// Reason why a layer is not what its annotations say.
#[derive(Debug, thiserror::Error)]
enum LayerError {
    /// The archive holds something else.
    #[error("the first entry of the layer is {}, not {}", Quoted(found), Quoted(want))]
    Name {
        /// Name of the first entry.
        found: Vec<u8>,
        /// Name that it should have.
        want: &'static [u8],
    },
}

impl Classify for LayerError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }

    fn reason(&self) -> &'static str {
        "overlaybd.wrapper.name"
    }
}

/// Takes the layer of a device out of its archive, and checks all of it.
pub(in crate::apply) fn run(job: Job<'_, '_>) -> Result<Built> {
    let takes_ext4 = job.options.overlaybd.published_ext4;
    unwrap(job, OVERLAYBD_NAME, wrapper::NAME, |file, cancel| check(file, takes_ext4, cancel))
}

/// Takes the list of blocks to fetch early out of its archive. It is a hint, which nobody checks.
pub(in crate::apply) fn trace(job: Job<'_, '_>) -> Result<Built> {
    unwrap(job, TRACE_NAME, TRACE, |_trace, _cancel| Ok(()))
}

fn unwrap(
    job: Job<'_, '_>,
    declared: &str,
    member: &'static [u8],
    check: impl FnOnce(&NewFile, &Cancel) -> Result<()>,
) -> Result<Built> {
    let Job { layer, publication, plan, .. } = job;
    let file = publication.file(declared)?;
    let stage = Unwrap { parser: Parser::new(), member, file, at: At::Before, busy: Duration::ZERO };
    let ran = layer.pipeline(plan).run(stage)?;
    let (Unwrap { file, busy, .. }, mut facts) = (ran.output, ran.facts);
    facts.times.build = busy;
    facts.times.verify = verified(plan, || check(&file, plan.work.cancel))?;
    Ok(Built { image_bytes: file.size_bytes(), files: vec![file], contents: Contents::default(), facts })
}

/// Checks a layer of a device: both formats from end to end, the contents of every block included.
fn check(file: &NewFile, takes_ext4: bool, cancel: &Cancel) -> Result<()> {
    let contents = Blob::target(file)?;
    let layer = Layer::open(&contents)?;
    if !takes_ext4 {
        refuse_superblock(&layer, &contents)?;
    }
    match contents {
        // Nothing but the index says whether it is right.
        Blob::Plain(_) => Ok(()),
        contents => read_all(&contents, cancel),
    }
}

/// Reads all of `contents`, whose reader checks what it reads.
pub(super) fn read_all(contents: &impl ReadAt, cancel: &Cancel) -> Result<()> {
    let (mut buffer, mut at) = (vec![0; CHECK_BYTES], 0);
    while at < contents.size_bytes() {
        cancel.check()?;
        let len = usize::try_from(contents.size_bytes() - at).unwrap_or(CHECK_BYTES).min(CHECK_BYTES);
        let piece = buffer.get_mut(..len).unwrap_or_default();
        contents.read_exact_at(at, piece).map_err(Error::disk)?;
        at += len as u64;
    }
    Ok(())
}

/// Name of an entry as the archive of a directory's files may have it.
pub(super) fn name(entry: &Entry) -> &[u8] {
    entry.path.strip_prefix(b"./").unwrap_or(&entry.path)
}

/// Whether an entry is the directory that the files of an archive are in.
pub(super) fn is_directory(entry: &Entry) -> bool {
    entry.body == Body::Directory && matches!(entry.path.as_slice(), b"" | b"." | b"./")
}

/// Where in the archive the parser is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Before,
    Inside,
    Behind,
}

/// Writes the first file of the archive.
struct Unwrap {
    parser: Parser,
    member: &'static [u8],
    file: NewFile,
    at: At,
    busy: Duration,
}

impl Unwrap {
    fn take(&mut self, mut input: &[u8]) -> Result<()> {
        while self.at != At::Behind
            && let Some(event) = self.parser.next(&mut input)?
        {
            match event {
                Event::Entry { entry, .. } if is_directory(&entry) => {}
                Event::Entry { entry, .. } if name(&entry) != self.member => {
                    return Err(LayerError::Name { found: entry.path, want: self.member }.into());
                }
                Event::Entry { entry, .. } => {
                    let Body::Regular { extents: None, .. } = entry.body else {
                        return Err(WrapperError::NotFile { name: entry.path }.into());
                    };
                    self.at = At::Inside;
                }
                Event::Data { offset, bytes } => self.file.write_at(offset, bytes).map_err(Error::disk)?,
                Event::EndOfEntry => self.at = At::Behind,
            }
        }
        Ok(())
    }
}

impl Stage for Unwrap {
    type Output = Self;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        let outcome = self.take(&chunk);
        self.busy += started.elapsed();
        outcome
    }

    fn finish(mut self) -> Result<Self> {
        if self.at != At::Behind {
            self.parser.finish()?;
            return Err(WrapperError::NoFile { bytes: 0 }.into());
        }
        Ok(self)
    }
}
