//! Files of bbolt, in which containerd's snapshotters keep their records: one transaction of one, read.
//!
//! A file is an array of pages. Two of them, the metas, take turns in naming the root of a B+ tree of buckets; the one
//! with the later transaction counts. A transaction never writes to a page of the one before it, so a reader without a
//! lock reads a whole transaction as long as no two others end meanwhile: compare [`Bolt::transaction`] of a file opened
//! before and of one opened after.
//!
//! | page header | size | field                                  |
//! |------------:|-----:|----------------------------------------|
//! |           0 |    8 | number of the page                     |
//! |           8 |    2 | 1 branch, 2 leaf, 4 meta, 16 free list |
//! |          10 |    2 | number of elements                     |
//! |          12 |    4 | number of pages that continue it       |
//!
//! | leaf element | size | field                          | branch element | size | field                     |
//! |-------------:|-----:|--------------------------------|---------------:|-----:|---------------------------|
//! |            0 |    4 | 1: the value is a bucket       |              0 |    4 | key, from the element on  |
//! |            4 |    4 | key, from the element on       |              4 |    4 | length of the key         |
//! |            8 |    4 | length of the key              |              8 |    8 | page                      |
//! |           12 |    4 | length of the value behind it  |                |      |                           |
//!
//! Numbers have the byte order of the machine that wrote the file. Files of big-endian machines are refused.
//!
//! Source: go.etcd.io/bbolt `internal/common/{meta,page,bucket}.go`.

use std::{cell::Cell, io};

use super::{ReadAt, record::get};
use crate::error::{Classify, Kind, disk_kind};

/// Length of a page's header and of an element, in bytes.
const HEADER: usize = 16;
/// Length of a meta without its page's header, in bytes.
const META: usize = 64;
/// Length of the meta's bytes that its checksum covers.
const SUMMED: usize = 56;
/// Length of a bucket's header in front of its page, if that is in the value.
const BUCKET: usize = 16;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const IS_BRANCH: u16 = 1;
const IS_LEAF: u16 = 2;
const IS_BUCKET: u32 = 1;
/// Page sizes of the machines that there are.
const PAGE_SIZES: [u64; 3] = [4096, 16 << 10, 64 << 10];
/// Longest page with those that continue it, in bytes. A record of a snapshot has a few hundred.
const PAGE_MAX: u64 = 16 << 20;

/// Reason why a file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BoltError {
    /// Reading failed.
    #[error("reading {len} bytes at byte {offset} failed")]
    Io {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Error of the file's reader.
        source: io::Error,
    },
    /// Neither meta is whole.
    #[error("neither meta page has the magic number, version 2 and its checksum")]
    Meta,
    /// A page is not what leads to it says.
    #[error("page {page}: {problem}")]
    Page {
        /// Number of the page; that of the bucket's root for a page inside a value.
        page: u64,
        /// Rule that the page breaks.
        problem: &'static str,
    },
}

impl Classify for BoltError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => disk_kind(source),
            Self::Meta | Self::Page { .. } => Kind::Malformed,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "disk.read",
            Self::Meta => "bolt.meta",
            Self::Page { .. } => "bolt.page",
        }
    }
}

/// One transaction of a file.
#[derive(Debug)]
pub struct Bolt<R> {
    source: R,
    page_bytes: u64,
    root: u64,
    transaction: u64,
    /// Pages that may still be read: each belongs to one tree, so no walk takes more than there are.
    left: Cell<u64>,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket(Root);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Root {
    /// The page with its root.
    Page(u64),
    /// The bucket's only page.
    Inline(Vec<u8>),
}

/// Takes a key and its value.
pub type Taking<'a> = &'a mut dyn FnMut(&[u8], Value<'_>) -> Result<(), BoltError>;

/// A value of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// Another bucket, which [`Bucket::within`] opens.
    Bucket(&'a [u8]),
}

impl Bucket {
    /// Opens the bucket that is the value [`Value::Bucket`].
    pub fn within(value: &[u8]) -> Result<Self, BoltError> {
        let short = BoltError::Page { page: 0, problem: "a bucket has fewer bytes than its header" };
        let (header, page) = value.split_first_chunk::<BUCKET>().ok_or(short)?;
        Ok(Self(match u64::from_le_bytes(get::<0, _, _>(header)) {
            0 => Root::Inline(page.to_vec()),
            root => Root::Page(root),
        }))
    }
}

impl<R: ReadAt> Bolt<R> {
    /// Reads the metas. Errors: [`BoltError::Meta`] when the file is none, or was written on a big-endian machine.
    pub fn open(source: R) -> Result<Self, BoltError> {
        let size_bytes = source.size_bytes();
        let mut latest: Option<(u64, u64, u64)> = None;
        for offset in [0].into_iter().chain(PAGE_SIZES) {
            let mut meta = [0; HEADER + META];
            if offset.saturating_add(meta.len() as u64) > size_bytes {
                break;
            }
            read(&source, offset, &mut meta)?;
            let Some((page_bytes, root, transaction)) = meta_of(&meta) else { continue };
            // The second meta is in the second page.
            if offset == 0 || offset == page_bytes {
                latest = latest.max(Some((transaction, root, page_bytes)));
            }
        }
        let (transaction, root, page_bytes) = latest.ok_or(BoltError::Meta)?;
        let left = Cell::new(size_bytes / page_bytes);
        Ok(Self { source, page_bytes, root, transaction, left })
    }

    /// Number of the transaction.
    pub fn transaction(&self) -> u64 {
        self.transaction
    }

    /// The bucket that all others are in.
    pub fn root(&self) -> Bucket {
        Bucket(Root::Page(self.root))
    }

    /// Finds the bucket `name` in `bucket`.
    pub fn bucket(&self, bucket: &Bucket, name: &[u8]) -> Result<Option<Bucket>, BoltError> {
        let mut found = None;
        self.each(bucket, &mut |key, value| {
            if let (true, Value::Bucket(value)) = (key == name, value) {
                found = Some(Bucket::within(value)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Passes each key of `bucket` and its value to `take`, in the order of the keys. Keys of buckets within it are not
    /// among them.
    pub fn each(&self, bucket: &Bucket, take: Taking<'_>) -> Result<(), BoltError> {
        let mut pending = match &bucket.0 {
            Root::Inline(bytes) => return leaf(&Page { number: 0, bytes }, take),
            Root::Page(number) => vec![*number],
        };
        while let Some(number) = pending.pop() {
            let bytes = self.page(number)?;
            let page = Page { number, bytes: &bytes };
            match page.header()? {
                (IS_LEAF, _) => leaf(&page, take)?,
                (IS_BRANCH, count) => {
                    for index in (0..count).rev() {
                        let (_, element) = page.element(index)?;
                        pending.push(u64::from_le_bytes(get::<8, _, _>(&element)));
                    }
                }
                _ => return Err(page.wrong("it is neither a branch nor a leaf")),
            }
        }
        Ok(())
    }

    /// Reads a page with those that continue it.
    fn page(&self, number: u64) -> Result<Vec<u8>, BoltError> {
        let wrong = |problem| BoltError::Page { page: number, problem };
        let offset = number.checked_mul(self.page_bytes).ok_or_else(|| wrong("it is outside the file"))?;
        let mut header = [0; HEADER];
        if offset.saturating_add(self.page_bytes) > self.source.size_bytes() {
            return Err(wrong("it is outside the file"));
        }
        read(&self.source, offset, &mut header)?;
        if u64::from_le_bytes(get::<0, _, _>(&header)) != number {
            return Err(wrong("it has another number"));
        }
        let pages = u64::from(u32::from_le_bytes(get::<12, _, _>(&header))) + 1;
        let len = pages * self.page_bytes;
        if len > PAGE_MAX || offset.saturating_add(len) > self.source.size_bytes() {
            return Err(wrong("it is longer than the file or the limit"));
        }
        let left = self.left.get().checked_sub(pages);
        self.left.set(left.ok_or_else(|| wrong("more pages are named than there are"))?);
        let mut bytes = vec![0; usize::try_from(len).map_err(|_wide| wrong("it is too long"))?];
        read(&self.source, offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Page size, root and transaction of a meta with its page's header; `None` for one that is torn, and for anything else.
fn meta_of(page: &[u8; HEADER + META]) -> Option<(u64, u64, u64)> {
    let meta: [u8; META] = get::<HEADER, _, _>(page);
    let (magic, version) =
        (u32::from_le_bytes(get::<0, _, _>(&meta)), u32::from_le_bytes(get::<4, _, _>(&meta)));
    let summed: [u8; SUMMED] = get::<0, _, _>(&meta);
    let is_whole = checksum(&summed) == u64::from_le_bytes(get::<SUMMED, _, _>(&meta));
    let page_bytes = u64::from(u32::from_le_bytes(get::<8, _, _>(&meta)));
    (magic == MAGIC && version == VERSION && is_whole && PAGE_SIZES.contains(&page_bytes)).then(|| {
        (page_bytes, u64::from_le_bytes(get::<16, _, _>(&meta)), u64::from_le_bytes(get::<48, _, _>(&meta)))
    })
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn read(source: &impl ReadAt, offset: u64, buf: &mut [u8]) -> Result<(), BoltError> {
    let len = buf.len() as u64;
    source.read_exact_at(offset, buf).map_err(|source| BoltError::Io { offset, len, source })
}

/// Bytes of a page.
struct Page<'a> {
    number: u64,
    bytes: &'a [u8],
}

impl<'a> Page<'a> {
    /// Kind and number of elements.
    fn header(&self) -> Result<(u16, usize), BoltError> {
        let header = self.bytes.first_chunk::<HEADER>().ok_or_else(|| self.wrong("it has no header"))?;
        let kind = u16::from_le_bytes(get::<8, _, _>(header));
        Ok((kind, usize::from(u16::from_le_bytes(get::<10, _, _>(header)))))
    }

    /// The bytes from an element on, and the element.
    fn element(&self, index: usize) -> Result<(&'a [u8], [u8; HEADER]), BoltError> {
        let outside = || self.wrong("an element is outside it");
        let from = self.bytes.get(HEADER + index * HEADER..).ok_or_else(outside)?;
        Ok((from, *from.first_chunk().ok_or_else(outside)?))
    }

    fn wrong(&self, problem: &'static str) -> BoltError {
        BoltError::Page { page: self.number, problem }
    }
}

/// Passes the keys and values of a leaf to `take`.
fn leaf(page: &Page<'_>, take: Taking<'_>) -> Result<(), BoltError> {
    let (kind, count) = page.header()?;
    if kind != IS_LEAF {
        return Err(page.wrong("it is no leaf"));
    }
    let mut end = HEADER + count * HEADER;
    for index in 0..count {
        let (from, element) = page.element(index)?;
        let number = |field: [u8; 4]| usize::try_from(u32::from_le_bytes(field)).unwrap_or(usize::MAX);
        let start = number(get::<4, _, _>(&element));
        let (key_len, value_len) = (number(get::<8, _, _>(&element)), number(get::<12, _, _>(&element)));
        let outside = || page.wrong("a key or a value is outside it");
        let (key, rest) =
            from.get(start..).and_then(|at| at.split_at_checked(key_len)).ok_or_else(outside)?;
        let value = rest.get(..value_len).ok_or_else(outside)?;
        // Buckets within values that overlapped could hold more than the file.
        let begins = HEADER + index * HEADER + start;
        if begins < end {
            return Err(page.wrong("its keys and values overlap"));
        }
        end = begins + key_len + value_len;
        match u32::from_le_bytes(get::<0, _, _>(&element)) & IS_BUCKET {
            0 => take(key, Value::Bytes(value))?,
            _ => take(key, Value::Bucket(value))?,
        }
    }
    Ok(())
}

/// Fuzz entry: any bytes are a file, or are refused.
///
/// Described in `CONTRIBUTING.md`, "Fuzzing".
pub fn fuzz(data: &[u8]) {
    let Ok(bolt) = Bolt::open(data) else { return };
    let mut pending = vec![bolt.root()];
    while let Some(bucket) = pending.pop() {
        let _refused = bolt.each(&bucket, &mut |_, value| {
            if let Value::Bucket(value) = value {
                pending.push(Bucket::within(value)?);
            }
            Ok(())
        });
        // Buckets within values need no pages, and each lies in the one that holds it.
        assert!(pending.len() <= data.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written by containerd 2.1; recipe in tests/fixtures/bolt/README.md.
    const RECORDS: &[u8] = include_bytes!("../../tests/fixtures/bolt/metadata.db");

    fn names(bolt: &Bolt<&[u8]>, bucket: &Bucket) -> Vec<String> {
        let mut names = Vec::new();
        bolt.each(bucket, &mut |key, _| {
            names.push(String::from_utf8_lossy(key).into_owned());
            Ok(())
        })
        .unwrap();
        names
    }

    fn snapshots(file: &[u8]) -> Vec<String> {
        let bolt = Bolt::open(file).unwrap();
        let version = bolt.bucket(&bolt.root(), b"v1").unwrap().unwrap();
        let snapshots = bolt.bucket(&version, b"snapshots").unwrap().unwrap();
        names(&bolt, &snapshots)
    }

    #[test]
    fn the_records_of_a_snapshotter_are_found() {
        let bolt = Bolt::open(RECORDS).unwrap();
        assert_eq!(names(&bolt, &bolt.root()), ["v1"]);
        let version = bolt.bucket(&bolt.root(), b"v1").unwrap().unwrap();
        assert_eq!(names(&bolt, &version), ["parents", "snapshots"]);
        assert_eq!(bolt.bucket(&version, b"none").unwrap(), None);
        let found = snapshots(RECORDS);
        assert!(found.len() > 1 && found.iter().all(|name| name.starts_with("default/")), "{found:?}");
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(found, sorted);
    }

    #[test]
    fn the_later_of_the_two_metas_that_are_whole_counts() {
        let whole = Bolt::open(RECORDS).unwrap().transaction();
        for torn in [HEADER + 48, 4096 + HEADER + 48] {
            let mut file = RECORDS.to_vec();
            file[torn] ^= 1;
            let left = Bolt::open(&file[..]).unwrap().transaction();
            assert!(left <= whole && left + 1 >= whole, "{left} of {whole}");
        }
        let mut file = RECORDS.to_vec();
        (file[HEADER], file[4096 + HEADER]) = (0, 0);
        assert!(matches!(Bolt::open(&file[..]), Err(BoltError::Meta)));
        assert!(matches!(Bolt::open(&b""[..]), Err(BoltError::Meta)));
    }

    #[test]
    fn pages_that_lead_in_a_circle_end() {
        let bolt = Bolt::open(RECORDS).unwrap();
        let root = usize::try_from(bolt.root).unwrap() * 4096;
        let mut file = RECORDS.to_vec();
        // The root becomes a branch whose only page is itself.
        file[root + 8..root + 12].copy_from_slice(&[1, 0, 1, 0]);
        file[root + 24..root + 32].copy_from_slice(&bolt.root.to_le_bytes());
        let bolt = Bolt::open(&file[..]).unwrap();
        let error = bolt.each(&bolt.root(), &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), format!("page {}: more pages are named than there are", bolt.root));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_panic(at in 0..RECORDS.len(), bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let mut file = RECORDS.to_vec();
            for (place, byte) in file[at..].iter_mut().zip(bytes) {
                *place = byte;
            }
            fuzz(&file);
        }
    }
}
