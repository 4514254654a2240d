//! The table of contents: JSON in, checked entries out.
//!
//! Source: stargz-snapshotter `docs/estargz.md`, "TOC"; containers/storage `pkg/chunked/internal/minimal/compression.go`.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    error::{EntryFault, StargzError},
    text,
};
use crate::{
    digest::Digest,
    limits,
    tree::{Attributes, Device, Xattr},
};

/// Names at the root that the format itself adds.
const OWN_NAMES: [&[u8]; 3] = [b".prefetch.landmark", b".no.prefetch.landmark", b"stargz.index.json"];

/// A checked table of contents.
///
/// * Every path is clean, and no two entries have the same one.
/// * No entry is below one that is no directory. Directories above an entry may have no entry of their own.
/// * A hard link leads to an entry that is neither a hard link nor a directory.
/// * The chunks of a file cover it without gaps, begin inside of the payload, and have digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toc {
    entries: Vec<Entry>,
    chunks: Vec<Chunk>,
    tar_split: Option<Digest>,
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path below the root, without a slash before or behind it; empty for the root.
    pub path: Vec<u8>,
    /// Owner, permissions and time. Those of a hard link have no meaning.
    pub attributes: Attributes,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Type of the entry, with the fields that only this type has.
    pub body: Body,
}

/// Type of an entry with its own fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Regular file; its data is in [`Toc::chunks_of`].
    Regular {
        /// Size in bytes.
        size_bytes: u64,
        /// Where its chunks are among all.
        chunks: Chunks,
    },
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink {
        /// 1 to 4095 bytes without NUL.
        target: Vec<u8>,
    },
    /// Further name of another entry.
    HardLink {
        /// Place of that entry in [`Toc::entries`].
        target: usize,
    },
    /// Character device.
    CharDevice(Device),
    /// Block device.
    BlockDevice(Device),
    /// Named pipe.
    Fifo,
}

/// Place of a file's chunks in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks(Range<usize>);

/// A piece of a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Byte of the file at which it begins.
    pub offset: u64,
    /// Size in bytes; at least one.
    pub size_bytes: u64,
    /// Byte of the blob at which the gzip member, or zstd frame, with its data begins.
    pub blob_offset: u64,
    /// End of the bytes of the blob that can hold its data.
    pub blob_end: u64,
    /// Uncompressed bytes of the member or frame before its data.
    pub inner_offset: u64,
    /// SHA-256 of its data.
    pub digest: [u8; 32],
}

/// Whether a path is one of those that the format itself adds: the table, and landmarks for prefetching.
pub fn is_own_name(path: &[u8]) -> bool {
    OWN_NAMES.contains(&path)
}

impl Toc {
    /// Reads and checks the table of a blob whose payload ends at byte `payload_end`.
    ///
    /// Errors: the first rule that it breaks.
    pub fn read(json: &[u8], payload_end: u64) -> Result<Self, StargzError> {
        let limit = limits::STARGZ_TOC_BYTES;
        if json.len() as u64 > limit {
            return Err(StargzError::TocSize { size_bytes: json.len() as u64, limit });
        }
        let mut builder = Builder { payload_end, ..Builder::default() };
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let outcome = Document(&mut builder).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        match (builder.failed.take(), outcome) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(StargzError::Json(error)),
            (None, Ok(())) => builder.finish(),
        }
    }

    /// The entries, in the order of the table. Of entries with the same path the last one.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// SHA-256 of the compressed tar-split data of the layer, if the table has it.
    pub fn tar_split(&self) -> Option<&Digest> {
        self.tar_split.as_ref()
    }

    /// Whether an entry is the table itself, or a landmark for prefetching: files at the root that a reader of the table
    /// hides. The containers tools write none: in their layers such a name is that of an ordinary file.
    pub fn is_of_the_format(&self, entry: &Entry) -> bool {
        self.tar_split.is_none() && is_own_name(&entry.path)
    }

    /// The chunks of a file in their order; none of anything else.
    pub fn chunks_of(&self, entry: &Entry) -> &[Chunk] {
        match &entry.body {
            Body::Regular { chunks: Chunks(range), .. } => self.chunks.get(range.clone()).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// An entry as it is spelled. Unknown members are ignored: old writers have others.
#[derive(Deserialize)]
struct Spelled<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    size: Option<i64>,
    #[serde(borrow)]
    modtime: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "linkName")]
    link_name: Option<Cow<'a, str>>,
    mode: Option<i64>,
    uid: Option<i64>,
    gid: Option<i64>,
    #[serde(rename = "devMajor")]
    major: Option<i64>,
    #[serde(rename = "devMinor")]
    minor: Option<i64>,
    xattrs: Option<BTreeMap<String, Cow<'a, str>>>,
    #[serde(borrow)]
    digest: Option<Cow<'a, str>>,
    offset: Option<i64>,
    #[serde(rename = "endOffset")]
    end_offset: Option<i64>,
    #[serde(rename = "innerOffset")]
    inner_offset: Option<i64>,
    #[serde(rename = "chunkOffset")]
    chunk_offset: Option<i64>,
    #[serde(rename = "chunkSize")]
    chunk_size: Option<i64>,
    #[serde(borrow, rename = "chunkDigest")]
    chunk_digest: Option<Cow<'a, str>>,
}

/// Largest number of a field that counts bytes.
const MOST: u64 = i64::MAX.unsigned_abs();

fn number(field: &'static str, value: Option<i64>, most: u64) -> Result<u64, EntryFault> {
    let found = value.unwrap_or(0);
    let number = u64::try_from(found).ok().filter(|number| *number <= most);
    number.ok_or(EntryFault::Number { field, found, most })
}

fn narrow(field: &'static str, value: Option<i64>, most: u32) -> Result<u32, EntryFault> {
    let number = number(field, value, most.into())?;
    Ok(u32::try_from(number).unwrap_or(most))
}

/// Collects entries.
#[derive(Default)]
struct Builder {
    payload_end: u64,
    version: i64,
    /// Entries and chunks read, those of the same name included.
    seen: usize,
    entries: Vec<Entry>,
    chunks: Vec<Chunk>,
    /// The file whose chunks may follow.
    file: Option<File>,
    /// By entry: where a hard link leads to, as a path.
    links: BTreeMap<usize, Vec<u8>>,
    tar_split: Option<Digest>,
    /// Why reading ended.
    failed: Option<StargzError>,
}

/// A file whose chunks are being read.
struct File {
    entry: usize,
    name: Vec<u8>,
    size_bytes: u64,
    first: usize,
    digest: Option<[u8; 32]>,
    end_offset: Option<u64>,
    /// A chunk that has no digest of its own.
    without: Option<Chunk>,
}

impl Builder {
    fn add(&mut self, spelled: &Spelled<'_>) -> Result<(), StargzError> {
        self.seen += 1;
        if self.seen > limits::STARGZ_ENTRIES {
            return Err(StargzError::Entries { limit: limits::STARGZ_ENTRIES });
        }
        let named = |fault| StargzError::Entry { path: spelled.name.as_bytes().to_vec(), fault };
        if spelled.kind == "chunk" {
            return self.chunk(spelled).map_err(named);
        }
        self.end_file()?;
        self.entry(spelled).map_err(named)
    }

    fn entry(&mut self, spelled: &Spelled<'_>) -> Result<(), EntryFault> {
        let path = text::path(&spelled.name)?;
        let mode = number("mode", spelled.mode, MOST)? & 0o7777;
        let attributes = Attributes {
            mode: u16::try_from(mode).unwrap_or_default(),
            uid: narrow("uid", spelled.uid, u32::MAX)?,
            gid: narrow("gid", spelled.gid, u32::MAX)?,
            mtime: text::time(spelled.modtime.as_deref().unwrap_or_default())?,
        };
        let mut xattrs = Vec::new();
        let mut sum = 0_usize;
        for (name, value) in spelled.xattrs.iter().flatten() {
            let attribute = text::attribute(name, value)?;
            sum += attribute.name.len() + attribute.value.len() + 8;
            if sum > limits::XATTR_SUM_BYTES {
                return Err(EntryFault::Xattr { name: name.clone(), fault: "all of them are too long" });
            }
            xattrs.push(attribute);
        }
        let link = spelled.link_name.as_deref().unwrap_or_default();
        let body = match &*spelled.kind {
            "dir" => Body::Directory,
            "reg" => self.regular(spelled, &path)?,
            "symlink" if link.is_empty() || link.len() > limits::LINK_TARGET_BYTES || link.contains('\0') => {
                return Err(EntryFault::Link(
                    "the target of the link has 0 or more than 4095 bytes, or a NUL",
                ));
            }
            "symlink" => Body::Symlink { target: link.into() },
            "hardlink" => {
                self.links.insert(self.entries.len(), text::path(link)?);
                Body::HardLink { target: 0 }
            }
            "char" => Body::CharDevice(device(spelled)?),
            "block" => Body::BlockDevice(device(spelled)?),
            "fifo" => Body::Fifo,
            other => return Err(EntryFault::Type(other.chars().take(80).collect())),
        };
        if path.is_empty() && body != Body::Directory {
            return Err(EntryFault::Name("the root is no directory"));
        }
        self.entries.push(Entry { path, attributes, xattrs, body });
        Ok(())
    }

    fn regular(&mut self, spelled: &Spelled<'_>, path: &[u8]) -> Result<Body, EntryFault> {
        let size_bytes = number("size", spelled.size, limits::FILE_BYTES)?;
        let digest =
            spelled.digest.as_deref().filter(|text| !text.is_empty()).map(text::digest).transpose()?;
        let first = self.chunks.len();
        let end_offset = spelled.end_offset.map(|end| number("endOffset", Some(end), MOST)).transpose()?;
        self.file = Some(File {
            entry: self.entries.len(),
            name: path.to_vec(),
            size_bytes,
            first,
            digest,
            end_offset,
            without: None,
        });
        // An empty file has no data, wherever an entry says that it is.
        if size_bytes > 0 {
            self.add_chunk(spelled)?;
        }
        Ok(Body::Regular { size_bytes, chunks: Chunks(first..first) })
    }

    fn chunk(&mut self, spelled: &Spelled<'_>) -> Result<(), EntryFault> {
        let path = text::path(&spelled.name)?;
        match &self.file {
            Some(file) if file.name == path && file.size_bytes > 0 => self.add_chunk(spelled),
            _ => Err(EntryFault::StrayChunk),
        }
    }

    fn add_chunk(&mut self, spelled: &Spelled<'_>) -> Result<(), EntryFault> {
        let Some(file) = &mut self.file else { return Err(EntryFault::StrayChunk) };
        let offset = number("chunkOffset", spelled.chunk_offset, MOST)?;
        let blob_offset = number("offset", spelled.offset, MOST)?;
        let rest = file.size_bytes.saturating_sub(offset);
        let size_bytes = match number("chunkSize", spelled.chunk_size, MOST)? {
            0 => rest,
            size => size,
        };
        if size_bytes == 0 || size_bytes > rest {
            let (covered, size_bytes) = (0, file.size_bytes);
            return Err(EntryFault::Chunks { covered, size_bytes, next: Some(offset) });
        }
        if blob_offset >= self.payload_end {
            return Err(EntryFault::Offset { offset: blob_offset, end: self.payload_end });
        }
        let digest = spelled.chunk_digest.as_deref().filter(|text| !text.is_empty());
        let digest = digest.map(text::digest).transpose()?;
        let chunk = Chunk {
            offset,
            size_bytes,
            blob_offset,
            blob_end: self.payload_end,
            inner_offset: number("innerOffset", spelled.inner_offset, MOST)?,
            digest: digest.unwrap_or_default(),
        };
        if digest.is_none() {
            file.without = Some(chunk);
        }
        self.chunks.push(chunk);
        Ok(())
    }

    /// Checks the chunks of the file that ends here.
    fn end_file(&mut self) -> Result<(), StargzError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let end = self.chunks.len();
        let chunks = self.chunks.get_mut(file.first..).unwrap_or_default();
        chunks.sort_by_key(|chunk| chunk.offset);
        file.check(chunks).map_err(|fault| StargzError::Entry { path: file.name, fault })?;
        if let Some(Entry { body: Body::Regular { chunks, .. }, .. }) = self.entries.get_mut(file.entry) {
            *chunks = Chunks(file.first..end);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Toc, StargzError> {
        if self.version != 1 {
            return Err(StargzError::Version { found: self.version });
        }
        self.end_file()?;
        // The containers tools list nothing of an empty archive. All others have a landmark at least.
        if self.entries.is_empty() && self.tar_split.is_none() {
            return Err(StargzError::Empty);
        }
        self.bound_chunks();
        let order = self.order()?;
        self.resolve_links(&order)?;
        self.keep(&order);
        Ok(Toc { entries: self.entries, chunks: self.chunks, tar_split: self.tar_split })
    }

    /// Ends the data of each chunk where the next member or frame begins that the table knows. Offsets need not rise.
    fn bound_chunks(&mut self) {
        let mut offsets: Vec<_> = self.chunks.iter().map(|chunk| chunk.blob_offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        for chunk in &mut self.chunks {
            let next = offsets.partition_point(|offset| *offset <= chunk.blob_offset);
            let next = offsets.get(next).copied().unwrap_or(self.payload_end);
            chunk.blob_end = chunk.blob_end.min(next);
        }
    }

    /// The last entry of each path, sorted so that everything below a path comes directly behind it.
    fn order(&self) -> Result<Vec<usize>, StargzError> {
        let path = |at: &usize| self.entries.get(*at).map(|entry| entry.path.as_slice()).unwrap_or_default();
        let mut order: Vec<_> = (0..self.entries.len()).collect();
        order.sort_by(|a, b| compare(path(a), path(b)).then(b.cmp(a)));
        order.dedup_by(|later, first| path(later) == path(first));
        for pair in order.windows(2) {
            let [Some(above), Some(below)] = [pair.first(), pair.last()].map(|at| self.entries.get(*at?))
            else {
                continue;
            };
            let is_below = below.path.strip_prefix(above.path.as_slice());
            if above.body != Body::Directory && is_below.is_some_and(|rest| rest.starts_with(b"/")) {
                let fault = EntryFault::Parent(above.path.clone());
                return Err(StargzError::Entry { path: below.path.clone(), fault });
            }
        }
        Ok(order)
    }

    /// Replaces the paths of hard links by the entries at the end of each chain of links.
    fn resolve_links(&mut self, order: &[usize]) -> Result<(), StargzError> {
        let entries = &mut self.entries;
        let find = |entries: &[Entry], path: &[u8]| {
            let place = order.binary_search_by(|at| {
                entries.get(*at).map_or(Ordering::Less, |entry| compare(&entry.path, path))
            });
            place.ok().and_then(|place| order.get(place).copied())
        };
        let mut targets = BTreeMap::new();
        for (link, path) in &self.links {
            if let Some(target) = find(entries, path) {
                targets.insert(*link, target);
            }
        }
        let mut resolved: BTreeMap<usize, usize> = BTreeMap::new();
        for link in order.iter().filter(|link| self.links.contains_key(link)) {
            // No chain is walked twice: all links of one lead to its end.
            let mut chain = vec![*link];
            let mut at = *link;
            let end = loop {
                let refuse = |fault| {
                    let path = entries.get(*link).map(|entry| entry.path.clone()).unwrap_or_default();
                    StargzError::Entry { path, fault: EntryFault::Link(fault) }
                };
                let target = targets.get(&at).ok_or_else(|| refuse("the hard link leads to no entry"))?;
                if let Some(end) = resolved.get(target) {
                    break *end;
                }
                match entries.get(*target).map(|entry| &entry.body) {
                    Some(Body::Directory) => return Err(refuse("the hard link leads to a directory")),
                    Some(Body::HardLink { .. }) if chain.len() > self.links.len() => {
                        return Err(refuse("the hard link leads back to itself"));
                    }
                    Some(Body::HardLink { .. }) => {
                        chain.push(*target);
                        at = *target;
                    }
                    _ => break *target,
                }
            };
            resolved.extend(chain.into_iter().map(|link| (link, end)));
        }
        for (link, end) in resolved {
            if let Some(entry) = entries.get_mut(link) {
                entry.body = Body::HardLink { target: end };
            }
        }
        Ok(())
    }

    /// Drops all entries that are not in `order`.
    fn keep(&mut self, order: &[usize]) {
        let mut is_kept = vec![false; self.entries.len()];
        for at in order {
            if let Some(kept) = is_kept.get_mut(*at) {
                *kept = true;
            }
        }
        let mut places = Vec::with_capacity(is_kept.len());
        let mut count = 0;
        for kept in &is_kept {
            places.push(count);
            count += usize::from(*kept);
        }
        let mut kept = is_kept.iter();
        self.entries.retain(|_| kept.next().copied().unwrap_or_default());
        for entry in &mut self.entries {
            if let Body::HardLink { target } = &mut entry.body {
                *target = places.get(*target).copied().unwrap_or_default();
            }
        }
    }
}

/// Order of paths in which everything below one comes directly behind it.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

fn device(spelled: &Spelled<'_>) -> Result<Device, EntryFault> {
    Ok(Device {
        major: narrow("devMajor", spelled.major, limits::DEVICE_MAJOR)?,
        minor: narrow("devMinor", spelled.minor, limits::DEVICE_MINOR)?,
    })
}

impl File {
    /// Checks that `chunks`, in order, are the file, and completes them.
    fn check(&self, chunks: &mut [Chunk]) -> Result<(), EntryFault> {
        let mut covered = 0;
        for chunk in &*chunks {
            if chunk.offset != covered {
                let (size_bytes, next) = (self.size_bytes, Some(chunk.offset));
                return Err(EntryFault::Chunks { covered, size_bytes, next });
            }
            covered += chunk.size_bytes;
        }
        if covered != self.size_bytes {
            return Err(EntryFault::Chunks { covered, size_bytes: self.size_bytes, next: None });
        }
        if let (Some(last), Some(end)) = (chunks.last_mut(), self.end_offset)
            && end > last.blob_offset
        {
            last.blob_end = last.blob_end.min(end);
        }
        match (chunks, self.without, self.digest) {
            // The digest of the file is that of its only chunk.
            ([only], Some(_), Some(digest)) => only.digest = digest,
            (_, Some(Chunk { offset, size_bytes, .. }), _) => {
                return Err(EntryFault::NoDigest { offset, size_bytes });
            }
            _ => {}
        }
        Ok(())
    }
}

/// The whole document.
struct Document<'b>(&'b mut Builder);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with version and entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "version" | "entries" | "tarSplitDigest" if seen.contains(&key) => {
                    return Err(A::Error::custom(format!("{key} comes twice")));
                }
                "version" => self.0.version = map.next_value()?,
                "entries" => map.next_value_seed(Entries(self.0))?,
                "tarSplitDigest" => {
                    let text = map.next_value::<Option<Cow<'_, str>>>()?;
                    let text = text.filter(|text| !text.is_empty());
                    let digest = text.map(|text| text::digest(&text)).transpose();
                    self.0.tar_split = digest.map_err(A::Error::custom)?.map(Digest::of_sha256);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            }
            seen.push(key);
        }
        Ok(())
    }
}

/// The list of entries, none of which is kept as it is spelled.
struct Entries<'b>(&'b mut Builder);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(spelled) = list.next_element::<Spelled<'_>>()? {
            if let Err(error) = self.0.add(&spelled) {
                self.0.failed = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
