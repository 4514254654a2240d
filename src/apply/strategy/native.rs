//! A layer that is an EROFS image already: copied, or unwrapped from zstd frames.
//!
//! Where the store has the blob as a file, the kernel copies it or shares its blocks. The copy is hashed, not the
//! blob, so that the published bytes are those of the digest even if the blob changes meanwhile.

use std::{
    fs::File,
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    apply::{
        job::{Built, Job, Layer, verified},
        options::NativeVerify,
        request::Contents,
    },
    call::{Cancel, Phase, Work},
    codec::Coding,
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    format::{ReadAt as _, Sink as _, erofs::check::Level},
    pipeline::{AheadFacts, BlobError, Facts, Plan, StageTimes, buffer::Chunk, image, stage::Stage},
    snapshot::{LAYER_NAME, NewFile},
    sys::thread::spawn_scoped,
};

/// Bytes read and hashed between two looks at the cancel flag, which every stage has to look at once in 1 MiB.
const HASH_BYTES: usize = 512 << 10;

/// Copies the image out of the layer, and checks it as `native_verify` says.
pub(in crate::apply) fn run(job: Job<'_, '_>, coding: Coding) -> Result<Built> {
    let Job { layer, publication, plan, options } = job;
    let (image, mut facts) = copy(plan, layer, publication.file(LAYER_NAME)?, coding)?;
    let level = match options.native_verify {
        NativeVerify::Strict => Some(Level::Strict),
        NativeVerify::Superblock => Some(Level::Superblock),
        NativeVerify::Off => None,
    };
    let (limits, lease, cancel) = (&plan.resources.limits, plan.lease, plan.work.cancel);
    facts.times.verify = verified(plan, || match level {
        Some(level) => image::verify(&image, level, limits, lease, cancel),
        None => Ok(()),
    })?;
    let image_bytes = image.size_bytes();
    Ok(Built { files: vec![image], image_bytes, contents: Contents::default(), facts })
}

/// Fills `image` with the layer's image. Copies the blob's file where the store has one and the expected digest is
/// SHA-256 or none; otherwise decodes the blob.
fn copy(plan: Plan<'_>, layer: Layer<'_>, image: NewFile, coding: Coding) -> Result<(NewFile, Facts)> {
    let expected = layer.digest.as_ref();
    if let (Coding::Plain, None, Some(file), Some(size_bytes)) =
        (coding, layer.chain, layer.file, layer.size_bytes)
        && expected.is_none_or(|digest| digest.algorithm() == Algorithm::Sha256)
    {
        return share(plan, file, size_bytes, expected, image);
    }
    let copy = Copy { image, written: 0, busy: Duration::ZERO };
    let ran = layer.pipeline(plan).coded(coding).run(copy)?;
    let (mut image, mut facts) = (ran.output.image, ran.facts);
    image.set_len(ran.output.written).map_err(Error::disk)?;
    facts.times.build = ran.output.busy;
    Ok((image, facts))
}

/// Writes the decoded stream to a file, from its start.
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

/// Copies `source` in the kernel, and hashes the copy as it grows.
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
            // Without a helper there is no receiver: the copy is hashed after it is complete.
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
        ahead: AheadFacts::default(),
    };
    Ok((image, facts))
}

/// Hashes a growing file up to each of `ends`, in bytes. The last one is the end of the file.
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
            file.read_exact_at(position, bytes).map_err(Error::disk)?;
            hasher.update(bytes);
            position += len as u64;
        }
        busy += started.elapsed();
    }
    Ok((hasher.finish(), busy))
}
