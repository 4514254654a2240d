//! A published turboOCI layer: a small archive with the metadata of a file system, whose file data is in the original layer.
//!
//! The known members are unpacked unchanged. No name of the archive is used as a path.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::{Duration, Instant},
};

use super::overlaybd::read_all;
use crate::{
    apply::{
        job::{Built, Job, verified},
        published_ext4::{PublishedExt4, refuse_superblock},
        request::Contents,
    },
    call::Cancel,
    error::{Classify, Error, Kind, Result},
    format::{
        ReadAt, Sink as _,
        gzindex::Index,
        lsmt::Layer,
        turbo::{Event, Member, Reader},
    },
    kind::overlaybd::TURBO_TARGET_TYPES,
    overlaybd::blob::Blob,
    pipeline::{buffer::Chunk, stage::Stage},
    snapshot::{NewFile, Publication, TURBO_EROFS_NAME, TURBO_EXT4_NAME, TURBO_GZIP_NAME, TURBO_MARKER_NAME},
};

/// Stands for the original layer while nothing of it is read.
const NOTHING: &[u8] = &[];
/// Unit in which the data of the original layer is mapped, in bytes.
const SECTOR: u64 = 512;

/// Reason why a turboOCI layer cannot be used, besides those of its formats.
#[derive(Debug, thiserror::Error)]
enum TargetError {
    /// The format has no index for the original's compression.
    #[error(
        "an original layer of type {media_type:?} cannot be read in pieces: only plain and gzip tars can"
    )]
    Type {
        /// Media type of the original layer.
        media_type: String,
    },
    /// The original is compressed, and nothing says how to read it.
    #[error("the original layer is compressed, and the archive has no gzip.meta")]
    Index,
    /// The index was made of another blob.
    #[error("gzip.meta is the index of a blob of {found} bytes, and the original layer has {expected}")]
    Size {
        /// Size of the blob that the index is for.
        found: u64,
        /// Size of the original layer in the store.
        expected: u64,
    },
    /// The metadata needs more of the original than there is.
    #[error("{name} maps the original layer up to byte {found}, but it has {plain_bytes} bytes uncompressed")]
    End {
        /// Name of the member.
        name: &'static str,
        /// End of the last mapped sector.
        found: u64,
        /// Length of the original layer, uncompressed.
        plain_bytes: u64,
    },
}

impl Classify for TargetError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Type { .. } => "turbo.target",
            Self::Index => "turbo.index",
            Self::Size { .. } => "turbo.target-size",
            Self::End { .. } => "turbo.end",
        }
    }
}

/// Name of a member in the set.
fn declared(member: Member) -> &'static str {
    match member {
        Member::Ext4 => TURBO_EXT4_NAME,
        Member::Erofs => TURBO_EROFS_NAME,
        Member::Marker => TURBO_MARKER_NAME,
        Member::GzipIndex => TURBO_GZIP_NAME,
    }
}

/// Unpacks a turboOCI layer, and checks all of it.
pub(in crate::apply) fn run(job: Job<'_, '_>) -> Result<Built> {
    let is_compressed = is_compressed(job.layer.annotations)?;
    let Job { layer, publication, plan, options } = job;
    let takes_ext4 = options.overlaybd.published_ext4;
    let target = Target { is_compressed, size_bytes: layer.target_bytes };
    let stage = Unpack {
        reader: Reader::new(),
        publication,
        takes_ext4,
        files: BTreeMap::new(),
        open: None,
        busy: Duration::ZERO,
    };
    let ran = layer.pipeline(plan).run(stage)?;
    let ((mut files, busy), mut facts) = (ran.output, ran.facts);
    facts.times.build = busy;
    facts.times.verify = verified(plan, || check(&files, target, takes_ext4, plan.work.cancel))?;
    // The set ends with the marker, whose name has changed over time.
    if let Entry::Vacant(place) = files.entry(Member::Marker) {
        place.insert(publication.file(TURBO_MARKER_NAME)?);
    }
    let image_bytes = files.values().map(NewFile::size_bytes).fold(0, u64::saturating_add);
    Ok(Built { files: files.into_values().collect(), image_bytes, contents: Contents::default(), facts })
}

/// Whether the original layer is a gzip stream, as far as annotations say. Errors: it is compressed otherwise.
fn is_compressed(annotations: &BTreeMap<String, String>) -> Result<bool, TargetError> {
    let Some(media_type) = TURBO_TARGET_TYPES.iter().find_map(|name| annotations.get(*name)) else {
        return Ok(false);
    };
    match media_type.rsplit(['.', '+']).next() {
        Some("tar") => Ok(false),
        Some("gzip") => Ok(true),
        _ => Err(TargetError::Type { media_type: media_type.chars().take(255).collect() }),
    }
}

/// The original layer, as far as it is known.
#[derive(Clone, Copy)]
struct Target {
    is_compressed: bool,
    size_bytes: Option<u64>,
}

/// Checks the index, and the metadata of each file system from end to end.
fn check(files: &BTreeMap<Member, NewFile>, target: Target, takes_ext4: bool, cancel: &Cancel) -> Result<()> {
    let plain_bytes = match files.get(&Member::GzipIndex) {
        Some(file) => {
            let index = Index::read(file)?;
            index.verify(file)?;
            let found = index.header().blob_bytes;
            if let Some(expected) = target.size_bytes.filter(|expected| *expected != found) {
                return Err(TargetError::Size { found, expected }.into());
            }
            Some(index.header().plain_bytes)
        }
        None if target.is_compressed => return Err(TargetError::Index.into()),
        None => target.size_bytes,
    };
    for member in [Member::Ext4, Member::Erofs] {
        let Some(file) = files.get(&member) else { continue };
        let contents = Blob::target(file)?;
        // Only where the layer points is looked at, not what is there: the original is not at hand.
        let (metadata, original): (&dyn ReadAt, &dyn ReadAt) = (&contents, &NOTHING);
        let layer = Layer::open_turbo(metadata, original)?;
        if !takes_ext4 {
            refuse_superblock(&layer, &contents)?;
        }
        let end = layer.target_end();
        if let Some(plain_bytes) = plain_bytes.filter(|bytes| end > bytes.next_multiple_of(SECTOR)) {
            return Err(TargetError::End { name: member.name(), found: end, plain_bytes }.into());
        }
        read_all(&contents, cancel)?;
    }
    Ok(())
}

/// Writes the members of the archive.
struct Unpack<'a> {
    reader: Reader,
    publication: &'a Publication,
    takes_ext4: bool,
    files: BTreeMap<Member, NewFile>,
    /// The member whose data follows.
    open: Option<Member>,
    busy: Duration,
}

impl Unpack<'_> {
    fn take(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(event) = self.reader.next(&mut input)? {
            match event {
                Event::Member { member: Member::Ext4, .. } if !self.takes_ext4 => {
                    return Err(PublishedExt4::Metadata.into());
                }
                Event::Member { member, .. } => {
                    self.files.insert(member, self.publication.file(declared(member))?);
                    self.open = Some(member);
                }
                Event::Data { offset, bytes } => {
                    if let Some(file) = self.open.and_then(|member| self.files.get_mut(&member)) {
                        file.write_at(offset, bytes).map_err(Error::disk)?;
                    }
                }
                Event::End => self.open = None,
            }
        }
        Ok(())
    }
}

impl Stage for Unpack<'_> {
    type Output = (BTreeMap<Member, NewFile>, Duration);

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        let started = Instant::now();
        let outcome = self.take(&chunk);
        self.busy += started.elapsed();
        outcome
    }

    fn finish(self) -> Result<Self::Output> {
        self.reader.finish()?;
        Ok((self.files, self.busy))
    }
}
