//! Layers on their way from the inputs into the target, each compared with its digest and its diffID as it passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use super::{
    document::docker_layer,
    error::ImageError,
    pool::{Place, Pool},
    progress::{Board, State},
    resolve::{Blob, From, Plan},
    target::{Target, none},
};
use crate::{
    call::{Progress, Work},
    codec::Coding,
    containerd::UNCOMPRESSED,
    descriptor::Descriptor,
    digest::Digest,
    error::{Classify as _, Error, Result},
    kind::{Container, LayerType},
    pipeline::{self, Pipeline, Resources, buffer::Chunk, stage::Stage},
    store::{Ingest, reason},
};

/// Sums of what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Number of blobs that were written.
    pub blobs: u64,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Bytes that an earlier attempt had sent.
    pub kept_bytes: u64,
}

/// Moves every blob of `plan` that an input has. Fills in the descriptors that were not known.
pub(super) fn run(
    plan: &mut Plan,
    pool: &Pool,
    target: &dyn Target,
    resources: &Resources,
    board: &Board,
    resume: bool,
) -> Result<Moved> {
    let mut rows = BTreeMap::new();
    // One pass over each archive; blobs that are in it in the order in which it has them.
    let mut archives: BTreeMap<(usize, usize), BTreeMap<String, Vec<usize>>> = BTreeMap::new();
    for (number, blob) in plan.blobs.iter().enumerate() {
        let (state, total) = match &blob.from {
            From::Store => (State::AlreadyExists, 0),
            From::Input(source) => (State::Waiting, source.size_bytes()),
            From::Missing(_) => continue,
        };
        rows.insert(number, board.add(row_name(blob), state, total));
        if let From::Input(source) = &blob.from {
            let Place { input, part, name } = source.located.place.clone();
            archives.entry((input, part)).or_default().entry(name).or_default().push(number);
        }
    }
    let mut moved = Moved::default();
    for (archive, numbers) in archives {
        let mut left = numbers;
        let names: BTreeSet<String> = left.keys().cloned().collect();
        pool.visit(archive, &names, &mut |name, size_bytes, bytes| {
            let mut waiting = left.remove(name).unwrap_or_default().into_iter();
            let Some(first) = waiting.next() else { return Ok(()) };
            let mut blob = plan.blobs.get(first).cloned().ok_or_else(|| gone(name))?;
            let progress =
                rows.get(&first).map(|row| board.set(*row, State::Downloading)).unwrap_or_default();
            let work = Work { cancel: &pool.cancel, progress: &progress };
            let mover = Mover { target, resources, work, resume };
            let path = Place { input: archive.0, part: archive.1, name: name.to_owned() };
            let descriptor = mover
                .blob(&blob, size_bytes, bytes, &mut moved)
                .map_err(|error| error.context(format!("{}: {name}", pool.path(&path).display())))?;
            blob.descriptor = Some(descriptor);
            // The same file under several diffIDs is a lie about all but one.
            for number in waiting {
                let other = plan.blobs.get(number).cloned().ok_or_else(|| gone(name))?;
                if let (Some(expected), Some(found)) = (other.diff_id, &blob.diff_id)
                    && expected != *found
                {
                    let what = format!("layer {name}");
                    return Err(ImageError::Digest { what, expected, found: found.clone() }.into());
                }
                if let Some(other) = plan.blobs.get_mut(number) {
                    other.descriptor = other.descriptor.take().or_else(|| blob.descriptor.clone());
                }
                rows.get(&number).map(|row| board.set(*row, State::Complete));
            }
            rows.get(&first).map(|row| board.set(*row, State::Complete));
            if let Some(place) = plan.blobs.get_mut(first) {
                *place = blob;
            }
            Ok(())
        })?;
        if let Some((name, _)) = left.pop_first() {
            return Err(gone(&name));
        }
    }
    Ok(moved)
}

fn gone(name: &str) -> Error {
    ImageError::Missing(format!("{name}, which was in the input a moment ago,")).into()
}

/// `layer (0123456789ab)`, as containerd's clients call it.
fn row_name(blob: &Blob) -> String {
    let digest = blob.descriptor.as_ref().map(|descriptor| &descriptor.digest).or(blob.diff_id.as_ref());
    object("layer", digest)
}

pub(super) fn object(kind: &str, digest: Option<&Digest>) -> String {
    let short: String = digest.map(|digest| digest.hex().chars().take(12).collect()).unwrap_or_default();
    format!("{kind} ({short})")
}

struct Mover<'a> {
    target: &'a dyn Target,
    resources: &'a Resources,
    work: Work<'a>,
    resume: bool,
}

impl Mover<'_> {
    /// Writes one blob.
    fn blob(
        &self,
        blob: &Blob,
        size_bytes: u64,
        bytes: &mut dyn Read,
        moved: &mut Moved,
    ) -> Result<Descriptor> {
        let expected = blob.descriptor.as_ref();
        if let Some(expected) = expected.filter(|expected| expected.size_bytes != size_bytes) {
            let message = format!("the file has {size_bytes} bytes, the image says {}", expected.size_bytes);
            let error = pipeline::BlobError::Size { expected: expected.size_bytes, found: size_bytes };
            return Err(Error::new(error.kind(), error.reason(), message));
        }
        let reference = match (expected, &blob.diff_id) {
            // Containerd's own name for it: another client may have begun the same blob.
            (Some(expected), _) => format!("layer-{}", expected.digest),
            (None, Some(diff_id)) => format!("plywood-load-{diff_id}"),
            (None, None) => String::new(),
        };
        let ingest = self.target.begin(&reference, self.resume)?;
        let kept_bytes = ingest.kept_bytes();
        let mut tee = Tee { bytes, ingest, done_bytes: 0, progress: self.work.progress };
        let facts = self.check(blob, size_bytes, &mut tee)?;
        let labels = match (&blob.diff_id, facts.coding) {
            (Some(_), Coding::Gzip | Coding::Zstd) if blob.layer_type().is_some() => {
                [(UNCOMPRESSED.to_owned(), facts.diff_id.to_string())].into()
            }
            _ => none(),
        };
        tee.ingest.commit(&facts.blob, &labels)?;
        moved.blobs += 1;
        moved.bytes += size_bytes.saturating_sub(kept_bytes);
        moved.kept_bytes += kept_bytes.min(size_bytes);
        let media_type = match expected {
            Some(expected) => expected.media_type.as_str(),
            None => docker_layer(facts.coding),
        };
        let annotations = expected.map(|expected| expected.annotations.clone()).unwrap_or_default();
        Ok(Descriptor { annotations, ..Descriptor::of(media_type, facts.blob, size_bytes) })
    }

    /// Reads the blob to its end. Errors: it is not the one that was expected, or does not hold the layer.
    fn check(&self, blob: &Blob, size_bytes: u64, tee: &mut Tee<'_>) -> Result<pipeline::Facts> {
        let lease = self.resources.budget.lease(self.work.cancel)?;
        let plan = pipeline::Plan { resources: self.resources, lease: &lease, work: self.work };
        let digest = blob.descriptor.as_ref().map(|descriptor| descriptor.digest.clone());
        // A plain layer is called by its diffID; that it differs is about the layer then, not about the blob.
        let digest = digest.filter(|digest| Some(digest) != blob.diff_id.as_ref() || blob.member.is_none());
        let source = pipeline::Source { reader: tee, size_bytes: Some(size_bytes), digest };
        let pipeline = Pipeline::new(source, plan);
        let layer_type = blob.layer_type().filter(|_| blob.diff_id.is_some());
        let facts = match layer_type {
            Some(LayerType { container: Container::Erofs, coding, .. }) => pipeline.coded(*coding),
            Some(_) => pipeline,
            None => pipeline.coded(Coding::Plain),
        }
        .run(Discard)?
        .facts;
        if let (Some(expected), Some(_)) = (&blob.diff_id, layer_type)
            && *expected != facts.diff_id
        {
            let (expected, found) = (expected.clone(), facts.diff_id);
            return Err(
                ImageError::Digest { what: "the uncompressed layer".to_owned(), expected, found }.into()
            );
        }
        Ok(facts)
    }
}

/// Passes bytes on to the target while they are read.
struct Tee<'a> {
    bytes: &'a mut dyn Read,
    ingest: Box<dyn Ingest>,
    done_bytes: u64,
    progress: &'a Progress,
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buf)?;
        self.ingest.write(buf.get(..read).unwrap_or_default()).map_err(Error::into_io)?;
        self.done_bytes += u64::try_from(read).unwrap_or(u64::MAX);
        self.progress.set_done(self.done_bytes);
        Ok(read)
    }
}

/// The consumer of a layer of which only the digests are wanted.
struct Discard;

impl Stage for Discard {
    type Output = ();

    fn push(&mut self, _: Chunk) -> Result<()> {
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

/// Whether bytes of an earlier attempt are to blame: then the blob is written anew.
pub(super) fn is_stale(error: &Error) -> bool {
    [reason::DIGEST, reason::OFFSET].contains(&error.reason())
}
