//! A layer that is an EROFS image already: copied, or unwrapped from zstd frames.
//!
//! Where the blob's file is at hand the kernel copies it, or shares its blocks, and the digest is that of
//! the copy: whatever happens to the blob meanwhile, the bytes published are those that were hashed.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Contents,
    convert::{Built, Layer},
};
use crate::{
    call::{Cancel, Phase, Work},
    codec::Coding,
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    format::Sink as _,
    pipeline::{self, BlobError, Facts, Plan, StageTimes, buffer::Chunk, stage::Stage},
    snapshot::NewFile,
    sys::thread::spawn_scoped,
};

/// Bytes hashed at a time.
const HASH_BYTES: usize = 512 << 10;

/// Makes `image` the image that `layer` holds.
pub(super) fn run(plan: Plan<'_>, layer: Layer<'_>, image: NewFile, coding: Coding) -> Result<Built> {
    let contents = Contents::default();
    let expected = layer.digest.as_ref();
    if let (Coding::Plain, Some(file), Some(size_bytes)) = (coding, layer.file, layer.size_bytes)
        && expected.is_none_or(|digest| digest.algorithm() == Algorithm::Sha256)
    {
        let (image, facts) = share(plan, file, size_bytes, expected, image)?;
        return Ok(Built { image, contents, facts });
    }
    let copy = Copy { image, written: 0, busy: Duration::ZERO };
    let ran = pipeline::run(layer.source(Some(coding)), plan, copy)?;
    let (mut image, mut facts) = (ran.output.image, ran.facts);
    image.set_len(ran.output.written).map_err(Error::disk)?;
    facts.times.build = ran.output.busy;
    Ok(Built { image, contents, facts })
}

/// Writes what it is given to a file, from its start.
struct Copy {
    image: NewFile,
    written: u64,
    busy: Duration,
}

impl Stage for Copy {
    type Output = Self;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        self.image.write_at(self.written, &chunk).map_err(Error::disk)?;
        self.written = self.written.saturating_add(chunk.len() as u64);
        self.busy += started.elapsed();
        Ok(())
    }

    fn finish(self) -> Result<Self> {
        Ok(self)
    }
}

/// Lets the kernel copy the file, and hashes the copy as it grows.
fn share(
    plan: Plan<'_>,
    source: &File,
    size_bytes: u64,
    expected: Option<&Digest>,
    mut image: NewFile,
) -> Result<(NewFile, Facts)> {
    if size_bytes > plan.resources.limits.blob_bytes {
        return Err(BlobError::Limit { size_bytes, limit: plan.resources.limits.blob_bytes }.into());
    }
    let found = source.metadata().map_err(|error| Error::from_io(error, Kind::DataLoss, "blob.read"))?.len();
    if found != size_bytes {
        return Err(BlobError::Size { expected: size_bytes, found }.into());
    }
    let Work { cancel, progress } = plan.work;
    progress.begin(Phase::Transfer, Some(size_bytes));
    let copy = image.file().try_clone().map_err(Error::disk)?;
    let (sender, receiver) = mpsc::channel();
    let started = Instant::now();
    let (blob, blob_digest, build) = thread::scope(|scope| {
        let helper = plan.resources.helpers.take().map(|permit| {
            let copy = &copy;
            spawn_scoped(scope, "blob-digest", move || {
                let _held = permit;
                hash(copy, receiver, cancel)
            })
        });
        let helper = helper.transpose()?;
        let report = |copied| {
            // Without a helper nobody listens.
            let _heard = sender.send(copied);
            progress.set_done(copied);
        };
        let outcome = image.copy_from(source, size_bytes, |copied| {
            cancel.check().map_err(|stop| Error::from(stop).into_io())?;
            report(copied);
            Ok(())
        });
        match outcome {
            Ok(_shared) => report(size_bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let found = source.metadata().map_or(0, |metadata| metadata.len());
                return Err(BlobError::Size { expected: size_bytes, found }.into());
            }
            Err(error) => return Err(Error::disk(error)),
        }
        let build = started.elapsed();
        drop(sender);
        let (blob, busy) = match helper {
            Some(helper) => helper.join()?,
            None => hash(&copy, [size_bytes], cancel)?,
        };
        Ok::<_, Error>((blob, busy, build))
    })?;
    if let Some(expected) = expected.filter(|expected| **expected != blob) {
        return Err(BlobError::Digest { expected: expected.clone(), found: blob, refused: None }.into());
    }
    let facts = Facts {
        coding: Coding::Plain,
        diff_id: blob.clone(),
        stream_bytes: size_bytes,
        blob,
        blob_bytes: size_bytes,
        times: StageTimes { blob_digest, build, ..StageTimes::default() },
    };
    Ok((image, facts))
}

/// Hashes a growing file up to each of `ends`, in bytes; the last is the whole of it.
fn hash(file: &File, ends: impl IntoIterator<Item = u64>, cancel: &Cancel) -> Result<(Digest, Duration)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; HASH_BYTES];
    let (mut position, mut busy) = (0, Duration::ZERO);
    for end in ends {
        let started = Instant::now();
        while position < end {
            cancel.check()?;
            let len = usize::try_from(end - position).unwrap_or(HASH_BYTES).min(HASH_BYTES);
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            file.read_exact_at(bytes, position).map_err(Error::disk)?;
            hasher.update(bytes);
            position += len as u64;
        }
        busy += started.elapsed();
    }
    Ok((hasher.finish(), busy))
}
