//! Reads the contents of a ZFile at any offset.
//!
//! Source: `docs/formats/overlaybd.md`, "ZFile".

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    End, ZfileError,
    block::Decoder,
    header::{Header, flag},
    index::{GROUP, Index, read},
};
use crate::{error::Error, format::ReadAt};

/// Bytes of contents in the blocks that are kept for further reads. A reader of a file system asks for a few hundred
/// bytes at a time, and goes back and forth between inodes and directories.
const KEPT_BYTES: u32 = 1 << 20;
/// Groups of the index that are kept, at 8 KiB each.
const KEPT_GROUPS: usize = 16;
/// Contents that are read from the file at a time.
const RUN_BYTES: usize = 256 << 10;

/// Reader of one ZFile, whose contents it gives as [`ReadAt`].
///
/// Opening reads and checks the header, the trailer and the whole index. Each block is checked when it is read. The
/// memory does not depend on the file: about two megabytes, and 8 bytes for each 1024 blocks.
///
/// Threads may share a reader: they wait for each other only while they look for a block that was kept.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    header: Header,
    index: Index,
    kept: Mutex<Kept>,
}

/// Contents that were read before.
#[derive(Debug)]
struct Kept {
    groups: Slots<[u64]>,
    blocks: Slots<[u8]>,
    /// Buffers and decoders that no thread uses.
    idle: Vec<Scratch>,
}

/// A number's slot is its remainder: looking one up costs the same however many there are.
#[derive(Debug)]
struct Slots<T: ?Sized>(Vec<Option<(u64, Arc<T>)>>);

impl<T: ?Sized> Slots<T> {
    fn new(slots: usize) -> Self {
        Self(std::iter::repeat_with(|| None).take(slots).collect())
    }

    fn slot(&mut self, number: u64) -> Option<&mut Option<(u64, Arc<T>)>> {
        let at = number.checked_rem(self.0.len() as u64)?;
        self.0.get_mut(usize::try_from(at).ok()?)
    }

    fn find(&mut self, number: u64) -> Option<Arc<T>> {
        let found = self.slot(number)?.as_ref().filter(|(held, _)| *held == number);
        found.map(|(_, value)| Arc::clone(value))
    }

    fn keep(&mut self, number: u64, value: &Arc<T>) {
        if let Some(slot) = self.slot(number) {
            *slot = Some((number, Arc::clone(value)));
        }
    }
}

/// Memory of one read.
#[derive(Debug)]
struct Scratch {
    stored: Vec<u8>,
    decoder: Decoder,
}

impl<R: ReadAt> Reader<R> {
    /// Opens a file and checks all but the blocks.
    ///
    /// Errors: [`ZfileError`].
    pub fn open(source: R) -> Result<Self, ZfileError> {
        let size_bytes = source.size_bytes();
        let want = 2 * Header::LEN as u64;
        let end = size_bytes.checked_sub(Header::LEN as u64).filter(|_| size_bytes >= want);
        let end = end.ok_or(ZfileError::Truncated { size_bytes, want })?;
        let record = |offset| -> Result<[u8; Header::LEN], ZfileError> {
            let mut record = [0; Header::LEN];
            read(&source, offset, &mut record)?;
            Ok(record)
        };
        let header = Header::decode_header(&record(0)?).map_err(|fault| ZfileError::Header {
            end: End::Header,
            offset: 0,
            fault,
        })?;
        let trailer = Header::decode_trailer(&record(end)?).map_err(|fault| ZfileError::Header {
            end: End::Trailer,
            offset: end,
            fault,
        })?;
        compare(&header, &trailer, end)?;
        let index = Index::read(&source, &trailer, end)?;
        let blocks = usize::try_from(KEPT_BYTES / trailer.block_size.bytes()).unwrap_or_default();
        let kept = Kept { groups: Slots::new(KEPT_GROUPS), blocks: Slots::new(blocks), idle: Vec::new() };
        Ok(Self { source, header: trailer, index, kept: Mutex::new(kept) })
    }

    /// The trailer, which always holds the final values.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// Fills `buf` with the contents from byte `offset` on, which end inside the file.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ZfileError> {
        let idle = self.kept().idle.pop();
        let mut scratch = idle.unwrap_or_else(|| Scratch {
            stored: Vec::new(),
            decoder: Decoder::new(self.header.algorithm, self.header.verify),
        });
        let done = self.fill(offset, buf, &mut scratch);
        self.kept().idle.push(scratch);
        done
    }

    fn fill(&self, mut offset: u64, mut buf: &mut [u8], scratch: &mut Scratch) -> Result<(), ZfileError> {
        let block_bytes = u64::from(self.header.block_size.bytes());
        while !buf.is_empty() {
            let (block, within) = (offset / block_bytes, offset % block_bytes);
            let len = self.len_of(block);
            let done = if within == 0 && buf.len() >= len {
                self.whole(block, buf, scratch)?
            } else {
                let contents = self.block(block, scratch)?;
                let from = usize::try_from(within).unwrap_or(usize::MAX);
                let part = contents.get(from..).unwrap_or_default();
                let len = part.len().min(buf.len());
                if let (Some(to), Some(part)) = (buf.get_mut(..len), part.get(..len)) {
                    to.copy_from_slice(part);
                }
                len
            };
            if done == 0 {
                // Offsets beyond the end were refused before.
                return Err(ZfileError::Changed { block });
            }
            buf = buf.get_mut(done..).unwrap_or_default();
            offset += done as u64;
        }
        Ok(())
    }

    /// Length of a block's contents; 0 beyond the last.
    fn len_of(&self, block: u64) -> usize {
        let block_bytes = u64::from(self.header.block_size.bytes());
        let left = self.header.contents_bytes.saturating_sub(block.saturating_mul(block_bytes));
        usize::try_from(left.min(block_bytes)).unwrap_or_default()
    }

    /// Reads blocks from `block` on that `buf` holds wholly, without keeping them. Returns how many bytes they have.
    fn whole(&self, block: u64, buf: &mut [u8], scratch: &mut Scratch) -> Result<usize, ZfileError> {
        let offsets = self.offsets(block)?;
        let most = buf.len().min(RUN_BYTES);
        let (mut end, mut bytes) = (block, 0);
        while end / GROUP == block / GROUP {
            let len = self.len_of(end);
            if len == 0 || bytes + len > most {
                break;
            }
            bytes += len;
            end += 1;
        }
        self.fetch(&offsets, block..end, scratch)?;
        let (first, _) = place(&offsets, block)?;
        let mut rest = buf.get_mut(..bytes).unwrap_or_default();
        for block in block..end {
            let (at, after) = place(&offsets, block)?;
            let stored = part(&scratch.stored, at - first, after - first);
            let (contents, others) = rest.split_at_mut(self.len_of(block).min(rest.len()));
            let decoded = scratch.decoder.decode(stored, contents);
            decoded.map_err(|fault| ZfileError::Block { block, offset: at, fault })?;
            rest = others;
        }
        Ok(bytes)
    }

    /// The contents of a block of which a part is read.
    fn block(&self, block: u64, scratch: &mut Scratch) -> Result<Arc<[u8]>, ZfileError> {
        if let Some(contents) = self.kept().blocks.find(block) {
            return Ok(contents);
        }
        let offsets = self.offsets(block)?;
        self.fetch(&offsets, block..block + 1, scratch)?;
        let (offset, _) = place(&offsets, block)?;
        let mut contents = vec![0; self.len_of(block)];
        let decoded = scratch.decoder.decode(&scratch.stored, &mut contents);
        decoded.map_err(|fault| ZfileError::Block { block, offset, fault })?;
        let contents = Arc::from(contents);
        self.kept().blocks.keep(block, &contents);
        Ok(contents)
    }

    /// Reads the stored bytes of blocks of one group.
    fn fetch(&self, offsets: &[u64], blocks: Range<u64>, scratch: &mut Scratch) -> Result<(), ZfileError> {
        let (start, _) = place(offsets, blocks.start)?;
        let (_, end) = place(offsets, blocks.end.saturating_sub(1))?;
        // The index keeps each block within twice its contents.
        let len = usize::try_from(end - start).unwrap_or_default();
        scratch.stored.resize(len, 0);
        read(&self.source, start, &mut scratch.stored)
    }

    /// Offsets of the blocks in the group of `block`.
    fn offsets(&self, block: u64) -> Result<Arc<[u64]>, ZfileError> {
        let group = block / GROUP;
        if let Some(offsets) = self.kept().groups.find(group) {
            return Ok(offsets);
        }
        let offsets = Arc::from(self.index.group(&self.source, group)?);
        self.kept().groups.keep(group, &offsets);
        Ok(offsets)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Every value in it is whole at any time.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Start and end of a block, from the offsets of its group.
fn place(offsets: &[u64], block: u64) -> Result<(u64, u64), ZfileError> {
    let at = usize::try_from(block % GROUP).unwrap_or(usize::MAX);
    match offsets.get(at..).unwrap_or_default() {
        [start, end, ..] => Ok((*start, *end)),
        _ => Err(ZfileError::Changed { block }),
    }
}

fn part(bytes: &[u8], from: u64, to: u64) -> &[u8] {
    let range = usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(to).unwrap_or(usize::MAX);
    bytes.get(range).unwrap_or_default()
}

/// Compares both ends of a file. A header that was not written again at the end has no values of the index.
fn compare(header: &Header, trailer: &Header, offset: u64) -> Result<(), ZfileError> {
    let shown = |header: &Header| {
        let always = [
            ("digest flag", u64::from(header.has_digest())),
            ("block size", header.block_size.bytes().into()),
            ("algorithm", header.algorithm.as_byte().into()),
            ("dictionary size", header.dictionary_bytes.into()),
            ("checksum flag", header.verify.into()),
        ];
        let index_crc = if header.has_digest() { header.index_crc } else { 0 };
        let finally = [
            ("index offset", header.index_offset),
            ("number of blocks", header.blocks),
            ("size of the contents", header.contents_bytes),
            ("index checksum", index_crc.into()),
        ];
        (always, finally)
    };
    let (of_header, of_trailer) = (shown(header), shown(trailer));
    let is_final = header.flags & flag::FINAL_HEADER != 0;
    let finally = of_header.1.iter().zip(&of_trailer.1).filter(|_| is_final);
    for ((field, header), (_, trailer)) in of_header.0.iter().zip(&of_trailer.0).chain(finally) {
        if header != trailer {
            return Err(ZfileError::Differs { offset, field, trailer: *trailer, header: *header });
        }
    }
    Ok(())
}

impl<R: ReadAt> ReadAt for Reader<R> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.header.contents_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read(offset, buf).map_err(|error| Error::from(error).into_io())
    }

    fn size_bytes(&self) -> u64 {
        self.header.contents_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{Classify, Kind},
        format::{
            crc32c,
            zfile::{
                block::{self, Algorithm, BlockSize},
                header::flag,
            },
        },
    };

    /// A file as streaming writers make it: the header is not written again.
    struct Made {
        header: Header,
        contents: Vec<u8>,
        /// Stored bytes of the blocks, checksums included.
        blocks: Vec<Vec<u8>>,
    }

    impl Made {
        fn new(contents: &[u8], block_size: u32, algorithm: Algorithm) -> Self {
            let blocks = contents.chunks(block_size as usize).map(|contents| {
                let compressed = match algorithm {
                    Algorithm::Lz4 => lz4_flex::block::compress(contents),
                    Algorithm::Zstd => zstd::bulk::compress(contents, 3).unwrap(),
                };
                [&compressed[..], &block::checksum(&compressed).to_le_bytes()].concat()
            });
            let header = Header {
                flags: flag::HEADER | flag::DATA | flag::DIGEST,
                index_offset: 0,
                blocks: 0,
                contents_bytes: 0,
                index_crc: 0,
                block_size: BlockSize::new(block_size).unwrap(),
                algorithm,
                dictionary_bytes: 0,
                verify: true,
            };
            Self { header, contents: contents.to_vec(), blocks: blocks.collect() }
        }

        fn trailer(&self) -> (Header, Vec<u8>) {
            let lengths =
                self.blocks.iter().flat_map(|block| u32::try_from(block.len()).unwrap().to_le_bytes());
            let index: Vec<u8> = lengths.collect();
            let stored: usize = self.blocks.iter().map(Vec::len).sum();
            let trailer = Header {
                flags: flag::DATA | flag::SEALED | (self.header.flags & flag::DIGEST),
                index_offset: (Header::LEN + stored) as u64 + u64::from(self.header.dictionary_bytes),
                blocks: self.blocks.len() as u64,
                contents_bytes: self.contents.len() as u64,
                index_crc: crc32c::raw(0, &index),
                ..self.header
            };
            (trailer, index)
        }

        fn with(&self, change: impl Fn(&mut Header, &mut Header, &mut Vec<u8>)) -> Vec<u8> {
            let (mut trailer, mut index) = self.trailer();
            let mut header = self.header;
            change(&mut header, &mut trailer, &mut index);
            let dictionary = vec![0xDD; header.dictionary_bytes as usize];
            [&header.encode()[..], &dictionary, &self.blocks.concat(), &index, &trailer.encode()].concat()
        }

        fn file(&self) -> Vec<u8> {
            self.with(|_, _, _| ())
        }
    }

    fn contents(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at / 7 * at / 11) % 251).unwrap()).collect()
    }

    fn reason(file: &[u8]) -> &'static str {
        match Reader::open(file) {
            Err(error) => error.reason(),
            Ok(reader) => {
                let mut buf = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
                match reader.read(0, &mut buf) {
                    Ok(()) => "ok",
                    Err(error) => error.reason(),
                }
            }
        }
    }

    #[test]
    fn every_part_of_every_kind_of_file_is_read_right() {
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
            for (len, block_size) in [
                (0, 4096),
                (1, 4096),
                (4096, 4096),
                (4097, 4096),
                (300_001, 4096),
                (300_001, 65_536),
                (65_536, 65_536),
            ] {
                let made = Made::new(&contents(len), block_size, algorithm);
                let file = made.file();
                let reader = Reader::open(&file[..]).unwrap();
                assert_eq!(reader.size_bytes(), len as u64);
                let lens = [0, 1, 511, 4095, 4096, 4097, 20_000, len];
                for offset in (0..=len).step_by(1 + len / 37) {
                    for len in lens.into_iter().filter(|piece| offset + piece <= len) {
                        let mut buf = vec![0xEE; len];
                        reader.read_exact_at(offset as u64, &mut buf).unwrap();
                        assert_eq!(buf, made.contents[offset..offset + len], "{algorithm} {len} at {offset}");
                    }
                }
                for (offset, len) in [(len as u64, 1), (u64::MAX, 1), (0, len + 1)] {
                    let error = reader.read_exact_at(offset, &mut vec![0; len]).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
            }
        }
    }

    #[test]
    fn blocks_of_several_groups_of_the_index_are_found() {
        let len = 4096 * 2049 + 5;
        let made = Made::new(&contents(len), 4096, Algorithm::Lz4);
        let file = made.file();
        let reader = Reader::open(&file[..]).unwrap();
        let mut all = vec![0; len];
        reader.read_exact_at(0, &mut all).unwrap();
        assert!(all == made.contents);
        for offset in [4096 * 1023 + 4000, 4096 * 1024, 4096 * 2047 + 1, 4096 * 2049 + 1] {
            let mut buf = vec![0; (len - offset).min(300)];
            reader.read_exact_at(offset as u64, &mut buf).unwrap();
            assert_eq!(buf, made.contents[offset..offset + buf.len()], "{offset}");
        }
    }

    #[test]
    fn a_file_without_checksums_and_digests_is_read() {
        let mut made = Made::new(&contents(9000), 4096, Algorithm::Lz4);
        made.header.verify = false;
        made.header.flags &= !flag::DIGEST;
        for block in &mut made.blocks {
            block.truncate(block.len() - 4);
        }
        let file = made.with(|header, trailer, _| {
            header.index_crc = 1;
            trailer.index_crc = 2;
        });
        assert_eq!(reason(&file), "ok");
    }

    #[test]
    fn blocks_begin_behind_a_dictionary_that_nobody_uses() {
        let mut made = Made::new(&contents(9000), 4096, Algorithm::Lz4);
        made.header.dictionary_bytes = 100;
        assert_eq!(reason(&made.file()), "ok");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sound = Made::new(&contents(9000), 4096, Algorithm::Lz4).file();
        for at in 0..sound.len() {
            let mut file = sound.clone();
            file[at] ^= 0x10;
            assert_ne!(reason(&file), "ok", "byte {at}");
        }
        for len in (0..sound.len()).step_by(13) {
            assert_ne!(reason(&sound[..len]), "ok", "cut to {len}");
        }
    }

    #[test]
    fn each_contradiction_has_a_reason_of_its_own() {
        let made = Made::new(&contents(9000), 4096, Algorithm::Lz4);
        let crc = |trailer: &mut Header, index: &[u8]| trailer.index_crc = crc32c::raw(0, index);
        let final_header = |header: &mut Header, trailer: &Header| {
            header.flags |= flag::FINAL_HEADER;
            header.index_offset = trailer.index_offset;
            header.blocks = trailer.blocks;
            header.contents_bytes = trailer.contents_bytes;
            header.index_crc = trailer.index_crc;
        };
        type Change<'a> = &'a dyn Fn(&mut Header, &mut Header, &mut Vec<u8>);
        let cases: [(&str, Change<'_>); 14] = [
            ("ok", &|header, trailer, _| final_header(header, trailer)),
            ("zfile.differs", &|header, trailer, _| {
                final_header(header, trailer);
                header.blocks -= 1;
            }),
            ("zfile.differs", &|header, _, _| header.block_size = BlockSize::MAX),
            ("zfile.differs", &|header, _, _| header.flags &= !flag::DIGEST),
            ("zfile.differs", &|_, trailer, _| trailer.verify = false),
            ("zfile.blocks", &|_, trailer, _| trailer.contents_bytes += 4096),
            ("zfile.blocks", &|_, trailer, _| trailer.blocks = 0),
            ("limit.zfile-blocks", &|_, trailer, _| trailer.blocks = 1_000_000_001),
            ("zfile.index.bounds", &|_, trailer, _| trailer.index_offset = 511),
            ("zfile.index.bounds", &|_, trailer, _| trailer.index_offset = u64::MAX),
            ("zfile.index.bounds", &|_, trailer, _| trailer.index_offset += 1),
            ("zfile.index.checksum", &|_, _, index| index[0] ^= 1),
            ("zfile.block.length", &|_, trailer, index| {
                index[..4].copy_from_slice(&4_u32.to_le_bytes());
                crc(trailer, index);
            }),
            ("zfile.blocks.end", &|_, trailer, index| {
                index[0] += 1;
                crc(trailer, index);
            }),
        ];
        for (want, change) in cases {
            assert_eq!(reason(&made.with(change)), want);
        }
        let too_long = made.with(|_, trailer, index| {
            index[..4].copy_from_slice(&8193_u32.to_le_bytes());
            crc(trailer, index);
        });
        assert_eq!(reason(&too_long), "zfile.block.length");
    }

    #[test]
    fn an_error_of_a_block_names_the_block_and_its_place() {
        let mut made = Made::new(&contents(9000), 4096, Algorithm::Lz4);
        made.blocks[1][0] ^= 0x80;
        let file = made.file();
        let reader = Reader::open(&file[..]).unwrap();
        reader.read_exact_at(0, &mut [0; 4096]).unwrap();
        let error = Error::disk(reader.read_exact_at(4096, &mut [0; 9]).unwrap_err());
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "zfile.block.checksum"));
        let start = Header::LEN + made.blocks[0].len();
        assert!(error.to_string().starts_with(&format!("block 1 at byte {start}: checksum 0x")), "{error}");
    }

    /// Written by the upstream tools; tests/fixtures/overlaybd/zfile/README.md says how.
    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/fixtures/overlaybd/zfile/", $name)).as_slice()
        };
    }

    fn all(file: &[u8]) -> Vec<u8> {
        let reader = Reader::open(file).unwrap();
        let mut contents = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
        reader.read_exact_at(0, &mut contents).unwrap();
        contents
    }

    #[test]
    fn files_of_the_upstream_tools_are_read_right() {
        let payload = fixture!("payload.bin");
        for file in [
            fixture!("payload.lz4-4k.zfile"),
            fixture!("payload.lz4-32k.zfile"),
            fixture!("payload.zstd-4k.zfile"),
            fixture!("payload.zstd-32k.zfile"),
        ] {
            assert!(all(file) == payload);
        }
        let layer = all(fixture!("erofs.lz4-4k.zfile"));
        assert_eq!((layer.len(), &layer[..4]), (188_416, &b"LSMT"[..]));
        assert!(all(fixture!("erofs.zstd-8k.zfile")) == layer, "one layer in two compressions");
        let merged = all(fixture!("merged-ops2-over2.zfile"));
        assert_eq!((merged.len(), &merged[..4]), (111_104, &b"LSMT"[..]));
    }

    #[test]
    fn threads_read_one_file_at_once() {
        let made = Made::new(&contents(400_000), 4096, Algorithm::Zstd);
        let file = made.file();
        let reader = Reader::open(&file[..]).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (reader, contents) = (&reader, &made.contents);
                scope.spawn(move || {
                    for at in 0..200 {
                        let offset = (at * 7919 + thread * 104_729) % 390_000;
                        let mut buf = vec![0; 1 + at * 37];
                        reader.read_exact_at(offset as u64, &mut buf).unwrap();
                        assert_eq!(buf, contents[offset..offset + buf.len()]);
                    }
                });
            }
        });
    }
}
