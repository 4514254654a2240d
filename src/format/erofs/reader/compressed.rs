//! Compressed files: reads their maps, which hold the place and content of each pcluster. Data is
//! not decoded.
//!
//! A map is read once, from its first record to its last. The kernel instead jumps from any
//! lcluster back to the start of its extent, and forward to the next. So every distance is compared
//! here with the place to which it should lead.
//!
//! Described in `docs/formats/erofs.md`, "Compressed files". Source: Linux `fs/erofs/zmap.c`,
//! `fs/erofs/decompressor.c` (`z_erofs_parse_cfgs`).

use super::{
    Image, Node,
    error::{MapFault, ReadError},
};
use crate::format::{
    ReadAt,
    erofs::{
        Block, Nid,
        compression::{
            Algorithm, BLOCK_COUNT, DECODED_BYTES, ExtentRecord, FullRecord, MapHeader, PCLUSTER_BYTES, Pack,
            Start, advise,
        },
        inode::Layout,
        superblock::{Superblock, incompat},
    },
};

/// Extent of a compressed file: a stretch of the file that one pcluster holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedExtent {
    /// Byte of the file at which the extent starts.
    pub offset: u64,
    /// Length of the decoded bytes, not zero.
    pub len: u64,
    /// Place of the pcluster, or that there is none.
    pub source: Source,
    /// Algorithm of the pcluster; `None` for uncompressed bytes, holes and fragments.
    pub algorithm: Option<Algorithm>,
    /// True when the pcluster decodes to more than this extent.
    pub partial: bool,
}

/// Source of an extent's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Hole: all bytes are zero.
    Hole,
    /// Pcluster on a device.
    Device {
        /// Number of the device; 0 for the image's own file.
        device: u16,
        /// Byte offset in the device's file.
        offset: u64,
        /// Encoded length in bytes.
        len: u64,
    },
    /// Pcluster after the map, in the image's own file.
    Inline {
        /// Byte offset in the image's own file.
        offset: u64,
        /// Encoded length in bytes.
        len: u64,
    },
    /// Part of the packed file.
    Fragment {
        /// Byte offset in the data of the packed file.
        offset: u64,
    },
}

/// Failure of one step, before the number of the inode is added.
enum Fault {
    Read(ReadError),
    Map(MapFault),
}

impl Fault {
    fn of(self, nid: Nid) -> ReadError {
        match self {
            Self::Read(error) => error,
            Self::Map(fault) => ReadError::Map { nid, fault },
        }
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<MapFault> for Fault {
    fn from(fault: MapFault) -> Self {
        Self::Map(fault)
    }
}

/// Compression settings of the whole image, from the superblock and the records after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compression {
    /// Algorithms that files may use.
    pub algorithms: Vec<Algorithm>,
    /// Largest LZ4 pcluster, in bytes.
    pub lz4_bytes: u64,
    /// Byte after the configuration records.
    pub end: u64,
}

/// Iterator over the extents of a compressed file, in order. It stops after the first error.
#[derive(Debug)]
pub struct CompressedExtents<'i, R> {
    image: &'i Image<R>,
    nid: Nid,
    size: u64,
    compression: Compression,
    map: Map,
    /// Byte of the image after the map and its inline pcluster.
    end: u64,
    finished: bool,
}

#[derive(Debug)]
enum Map {
    Whole { offset: u64 },
    Index(Index),
    Records(Records),
}

/// Index: a map with one record for each lcluster.
#[derive(Debug)]
struct Index {
    header: MapHeader,
    algorithms: [Option<Algorithm>; 2],
    cluster_bits: u8,
    clusters: u64,
    form: IndexForm,
    /// Number of the lcluster that is read next.
    next: u64,
    head: Option<Head>,
}

#[derive(Clone, Copy, Debug)]
enum IndexForm {
    Full { start: u64 },
    Compact { start: u64, narrow_first: u64, wide: u64 },
}

/// Start of an extent whose end is not known yet.
#[derive(Clone, Copy, Debug)]
struct Head {
    cluster: u64,
    /// Byte of the file at which the extent starts.
    offset: u64,
    start: Start,
    block: u32,
    hole: bool,
    partial: bool,
    /// Blocks of the pcluster, if the record after the start has them.
    blocks: Option<u16>,
    /// True when that record had to have them but does not.
    uncounted: bool,
    /// Furthest lcluster to which a distance forward leads.
    ahead: u64,
}

/// Map of extent records, one for each extent.
#[derive(Debug)]
struct Records {
    header: MapHeader,
    start: u64,
    count: u64,
    /// Length of every extent in bytes, when all have the same.
    unit: Option<u64>,
    next: u64,
    /// First byte of the next extent's pcluster, when pclusters follow each other.
    physical: u64,
    /// Record that was read ahead to find the end of the one before.
    ahead: Option<ExtentRecord>,
}

impl<R: ReadAt> Image<R> {
    /// Reads the compression settings of the image.
    ///
    /// Errors: [`ReadError::Compression`] for settings that no kernel mounts.
    pub fn compression(&self) -> Result<Compression, ReadError> {
        let superblock = &self.superblock;
        let block_len = superblock.block_bits.size();
        let slots = usize::from(superblock.extension_slots) * Superblock::SLOT_LEN;
        let mut end = Superblock::OFFSET + (Superblock::LEN + slots) as u64;
        if !superblock.has_incompat(incompat::COMPR_CFGS) {
            // Without COMPR_CFGS the field holds LZ4's largest distance.
            let lz4 = superblock.compression != 0 || superblock.has_incompat(incompat::ZERO_PADDING);
            let algorithms = if lz4 { vec![Algorithm::Lz4] } else { Vec::new() };
            return Ok(Compression { algorithms, lz4_bytes: block_len, end });
        }
        let known: u16 = Algorithm::ALL.iter().map(|algorithm| algorithm.bit()).sum();
        if superblock.compression & !known != 0 {
            let fault = "the superblock lists unknown algorithms";
            return Err(ReadError::Compression { algorithm: "", fault });
        }
        let mut compression = Compression { lz4_bytes: block_len, ..Compression::default() };
        for algorithm in Algorithm::ALL {
            if superblock.compression & algorithm.bit() == 0 {
                continue;
            }
            let mut len = [0; 2];
            end = end.next_multiple_of(4);
            self.read_at(end, &mut len, "compression configuration")?;
            let mut record = [0; 16];
            let len = usize::from(u16::from_le_bytes(len));
            let used = record.get_mut(..len.min(14)).unwrap_or_default();
            self.read_at(end + 2, used, "compression configuration")?;
            let blocks = algorithm
                .configuration(used, block_len)
                .map_err(|fault| ReadError::Compression { algorithm: algorithm.as_str(), fault })?;
            if algorithm == Algorithm::Lz4 {
                compression.lz4_bytes = blocks * block_len;
            }
            end += 2 + len as u64;
            compression.algorithms.push(algorithm);
        }
        compression.end = end;
        Ok(compression)
    }

    /// Inode of the packed file, which holds the ends of other files; `None` without one.
    pub fn packed(&self) -> Result<Option<Node>, ReadError> {
        let nid = Nid(self.superblock.packed_nid);
        if !self.superblock.has_incompat(incompat::FRAGMENTS) || nid.0 == 0 {
            return Ok(None);
        }
        self.node(nid).map(Some)
    }

    /// Iterates over the extents of a compressed file, and checks on the way that the kernel reads
    /// its map.
    ///
    /// Errors: [`ReadError::Map`], [`ReadError::Outside`]; items can be the same errors.
    pub fn compressed_extents(&self, node: &Node) -> Result<CompressedExtents<'_, R>, ReadError> {
        let compression = self.compression()?;
        let fault = |fault| ReadError::Map { nid: node.nid, fault };
        if compression.algorithms.is_empty() {
            return Err(fault(MapFault::Header { fault: "the image has no compression" }));
        }
        let at = node.xattr_end().next_multiple_of(MapHeader::LEN as u64);
        let mut record = [0; MapHeader::LEN];
        self.read_at(at, &mut record, "compression map")?;
        let header = MapHeader::decode(&record);
        let (map, end) =
            self.map(node, header, at + MapHeader::LEN as u64).map_err(|fault| fault.of(node.nid))?;
        if end > self.size_bytes {
            return Err(self.outside("compression map", at, end - at));
        }
        let size = node.inode.size_bytes;
        Ok(CompressedExtents { image: self, nid: node.nid, size, compression, map, end, finished: size == 0 })
    }

    /// Builds the map from its header, and finds the byte after it.
    fn map(&self, node: &Node, header: MapHeader, at: u64) -> Result<(Map, u64), Fault> {
        let header_fault = |fault| Err(Fault::Map(MapFault::Header { fault }));
        let superblock = &self.superblock;
        let size = node.inode.size_bytes;
        if let Some(offset) = header.whole_fragment() {
            return Ok((Map::Whole { offset }, at));
        }
        let full = node.inode.data.layout() == Layout::CompressedFull;
        let (cluster, unknown) = header.cluster_bits();
        if header.advise() & !advise::KNOWN != 0 || unknown != 0 {
            return header_fault("it has unknown bits");
        }
        for (bit, feature, fault) in [
            (advise::FRAGMENT, incompat::FRAGMENTS, "a fragment in an image without the feature"),
            (advise::INLINE, incompat::ZTAILPACKING, "an inline pcluster in an image without the feature"),
        ] {
            if header.has(bit) && !superblock.has_incompat(feature) {
                return header_fault(fault);
            }
        }
        let cluster_bits = superblock.block_bits.get() + cluster;
        if full && header.has(advise::EXTENTS) {
            if !superblock.has_incompat(incompat::WIDE) {
                return header_fault("extent records in an image without 48-bit addresses");
            }
            if header.has(advise::INLINE) {
                return header_fault("an inline pcluster beside extent records");
            }
            let record_len = header.extent_len();
            let start = at.next_multiple_of(record_len);
            let unit = (record_len <= 8).then_some(1_u64 << cluster_bits);
            let count = unit.map_or(header.extents(), |unit| size.div_ceil(unit));
            let base = if record_len == 4 { 8 } else { 0 };
            let end = count.checked_mul(record_len).and_then(|len| (start + base).checked_add(len));
            let records = Records { header, start, count, unit, next: 0, physical: 0, ahead: None };
            return Ok((Map::Records(records), end.unwrap_or(u64::MAX)));
        }
        if header.has(advise::FRAGMENT) && header.has(advise::INLINE) {
            return header_fault("both a fragment and an inline pcluster");
        }
        let mut algorithms = [None; 2];
        for (algorithm, number) in algorithms.iter_mut().zip(header.algorithms()) {
            *algorithm = Some(Algorithm::from_number(number).ok_or(MapFault::Algorithm { number })?);
        }
        let big = [advise::BIG_PCLUSTER_1, advise::BIG_PCLUSTER_2].map(|bit| header.has(bit));
        if big != [false; 2] && !superblock.has_incompat(incompat::COMPR_CFGS) {
            return header_fault("big pclusters in an image without the feature");
        }
        if !full && big != [true; 2] && big != [false; 2] {
            return header_fault("big pclusters of only one algorithm in a compact index");
        }
        if cluster_bits > 14 {
            return header_fault("its lclusters are larger than 16 KiB");
        }
        let clusters = size.div_ceil(1 << cluster_bits);
        if clusters > u64::from(u32::MAX) >> cluster {
            return header_fault("it has more than 2^32 lclusters");
        }
        let form = if full {
            IndexForm::Full { start: at + 8 }
        } else {
            // The kernel counts in blocks here.
            let blocks = superblock.block_bits.blocks_for(size);
            let narrow_first = (32 - at % 32) / 4 % 8;
            let wide = match blocks.checked_sub(narrow_first) {
                Some(rest) if header.has(advise::COMPACTED_2B) => rest / 16 * 16,
                _ => 0,
            };
            if wide > 0 && cluster_bits > 12 {
                return header_fault("lclusters above 4 KiB in 2-byte records");
            }
            IndexForm::Compact { start: at, narrow_first, wide }
        };
        let index = Index { header, algorithms, cluster_bits, clusters, form, next: 0, head: None };
        let mut end = clusters.checked_sub(1).map_or(at, |last| index.record_place(last).1);
        if header.has(advise::INLINE) {
            let len = header.inline_len();
            if len == 0 || superblock.block_bits.within(end) + len > superblock.block_bits.size() {
                return Err(MapFault::Inline { offset: end, len }.into());
            }
            end += len;
        }
        Ok((Map::Index(index), end))
    }
}

impl Index {
    /// First and end byte of an lcluster's record, or of the pack that holds it.
    fn record_place(&self, cluster: u64) -> (u64, u64) {
        match self.form {
            IndexForm::Full { start } => {
                let at = start + cluster * FullRecord::LEN as u64;
                (at, at + FullRecord::LEN as u64)
            }
            IndexForm::Compact { .. } => {
                let (at, len) = self.compact_place(cluster);
                (at - at % len, at - at % len + len)
            }
        }
    }

    /// Byte of an lcluster's record in a compact index, then the length of its pack.
    fn compact_place(&self, cluster: u64) -> (u64, u64) {
        let IndexForm::Compact { start, narrow_first, wide } = self.form else { return (0, 1) };
        let (narrow, wide_pack) = (Pack::NARROW_LEN as u64, Pack::WIDE_LEN as u64);
        match cluster.checked_sub(narrow_first) {
            None => (start + cluster * 4, narrow),
            Some(cluster) if cluster < wide => (start + narrow_first * 4 + cluster * 2, wide_pack),
            Some(cluster) => (start + narrow_first * 4 + wide * 2 + (cluster - wide) * 4, narrow),
        }
    }

    /// True when pclusters of extents with this start may be larger than a block.
    fn big(&self, start: Start) -> bool {
        self.header.has(if start == Start::First { advise::BIG_PCLUSTER_1 } else { advise::BIG_PCLUSTER_2 })
    }

    /// Reads the record of lcluster `cluster`.
    fn record<R: ReadAt>(&self, image: &Image<R>, cluster: u64) -> Result<FullRecord, Fault> {
        let (at, _) = self.record_place(cluster);
        if let IndexForm::Full { .. } = self.form {
            let mut record = [0; FullRecord::LEN];
            image.read_at(at, &mut record, "lcluster index")?;
            return Ok(FullRecord::decode(&record));
        }
        let (record_at, len) = self.compact_place(cluster);
        let mut bytes = [0; Pack::WIDE_LEN];
        let wide = len == Pack::WIDE_LEN as u64;
        let bytes = if wide { &mut bytes[..] } else { bytes.split_at_mut(Pack::NARROW_LEN).0 };
        image.read_at(at, bytes, "lcluster index")?;
        let pack = Pack::new(bytes, self.cluster_bits.max(12));
        let number = usize::try_from((record_at - at) / if wide { 2 } else { 4 }).unwrap_or(0);
        let (start, value) = pack.record(number);
        let mut record =
            FullRecord { start, hole: false, partial: false, offset: value, block: 0, back: 0, ahead: 0 };
        if start == Start::Nothing {
            (record.back, record.ahead) = (pack.back(number), pack.ahead(number));
        } else {
            let block = pack.block(number, self.header.has(advise::BIG_PCLUSTER_1));
            let fault = "a distance before it in its pack makes no sense";
            record.block = block.ok_or(MapFault::Record { index: cluster, fault })?;
        }
        Ok(record)
    }

    /// Next extent: its start, then the byte of the file at which the one after it starts, if there
    /// is one.
    fn next<R: ReadAt>(&mut self, image: &Image<R>, size: u64) -> Result<Option<(Head, Option<u64>)>, Fault> {
        let wrong = |index, fault| Err(MapFault::Record { index, fault }.into());
        while self.next < self.clusters {
            let cluster = self.next;
            self.next += 1;
            let record = self.record(image, cluster)?;
            if record.start == Start::Nothing {
                let Some(head) = &mut self.head else {
                    return wrong(cluster, "nothing starts before it");
                };
                let distance = cluster - head.cluster;
                let may_count = self.header.has(if head.start == Start::First {
                    advise::BIG_PCLUSTER_1
                } else {
                    advise::BIG_PCLUSTER_2
                });
                if record.back & BLOCK_COUNT != 0 {
                    if distance != 1 || !may_count || head.hole {
                        return wrong(cluster, "a number of blocks where none belongs");
                    }
                    head.blocks = Some(record.back & !BLOCK_COUNT);
                } else {
                    if !(1..=distance).contains(&u64::from(record.back)) {
                        return wrong(cluster, "its distance back does not lead to the start of its extent");
                    }
                    head.uncounted |= distance == 1 && may_count && !head.hole;
                }
                // Writers before erofs-utils 1.0 left the distance out; the kernel then takes the
                // next record.
                head.ahead = head.ahead.max(cluster + u64::from(record.ahead.max(1)));
                continue;
            }
            if u64::from(record.offset) >= 1 << self.cluster_bits {
                return wrong(cluster, "its extent starts outside it");
            }
            let offset = (cluster << self.cluster_bits) + u64::from(record.offset);
            if cluster == 0 && offset != 0 {
                return wrong(cluster, "the file does not start with it");
            }
            if offset > size {
                return wrong(cluster, "its extent starts behind the end of the file");
            }
            let head = Head {
                cluster,
                offset,
                start: record.start,
                block: record.block,
                hole: record.hole,
                partial: record.partial,
                blocks: None,
                uncounted: false,
                ahead: 0,
            };
            if let Some(before) = self.head.replace(head) {
                if before.ahead > cluster {
                    return wrong(cluster, "a distance forward leads beyond it");
                }
                return Ok(Some((before, Some(offset))));
            }
        }
        // When the file ends within an lcluster, a record may mark its end.
        Ok(self.head.take().filter(|head| head.offset < size).map(|head| (head, None)))
    }
}

impl Records {
    fn read<R: ReadAt>(&self, image: &Image<R>, number: u64) -> Result<ExtentRecord, Fault> {
        let len = self.header.extent_len();
        let base = if len == 4 { 8 } else { 0 };
        let mut record = [0; ExtentRecord::LEN];
        let stored = record.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        image.read_at(self.start + base + number * len, stored, "extent record")?;
        Ok(ExtentRecord::decode(&record))
    }

    /// Next extent: its record, its byte in the file, then that of the one after it, if there is
    /// one.
    fn next<R: ReadAt>(
        &mut self,
        image: &Image<R>,
        size: u64,
    ) -> Result<Option<(ExtentRecord, u64, Option<u64>)>, Fault> {
        let index = self.next;
        let wrong = |fault| Err(MapFault::Record { index, fault }.into());
        if index >= self.count {
            return if index == 0 { wrong("there is none") } else { Ok(None) };
        }
        if index == 0 && self.header.extent_len() == 4 {
            let mut first = [0; 8];
            image.read_at(self.start, &mut first, "extent record")?;
            self.physical = u64::from_le_bytes(first);
        }
        let mut record = self.ahead.take().map_or_else(|| self.read(image, index), Ok)?;
        self.next += 1;
        let last = self.next == self.count;
        let offset = self.unit.map_or(record.logical, |unit| index * unit);
        if index == 0 && offset != 0 {
            return wrong("the file does not start with it");
        }
        if self.header.extent_len() == 4 {
            record.physical = self.physical;
            self.physical = self.physical.wrapping_add(record.encoded_len());
        }
        let next = match (last, self.unit) {
            (true, _) => None,
            (false, Some(unit)) => Some(self.next * unit),
            (false, None) => {
                let after = self.read(image, self.next)?;
                self.ahead = Some(after);
                Some(after.logical)
            }
        };
        if next.is_some_and(|next| next <= offset) || next.unwrap_or(offset) >= size {
            return wrong("the next does not start after it and within the file");
        }
        Ok(Some((record, offset, next)))
    }
}

impl<R: ReadAt> CompressedExtents<'_, R> {
    /// Byte of the image after the map and after the inline pcluster that may follow it.
    pub fn map_end(&self) -> u64 {
        self.end
    }

    fn advance(&mut self) -> Result<Option<CompressedExtent>, Fault> {
        match &mut self.map {
            Map::Whole { offset } => {
                let offset = *offset;
                self.finished = true;
                self.fragment(0, offset).map(Some)
            }
            Map::Index(index) => {
                let Some((head, next)) = index.next(self.image, self.size)? else { return Ok(None) };
                let (header, clusters) = (index.header, index.clusters);
                let cluster_bits = index.cluster_bits;
                let algorithm = match head.start {
                    Start::Plain | Start::Nothing => None,
                    Start::First => index.algorithms.first().copied().flatten(),
                    Start::Second => index.algorithms.last().copied().flatten(),
                };
                let (big, in_last) = (index.big(head.start), head.cluster + 1 == clusters);
                let end = next.unwrap_or(self.size);
                let last = end == self.size;
                // The kernel lets the last extent end with its lcluster, not with the file.
                let mapped_end = next.unwrap_or(clusters << cluster_bits);
                let offset = head.offset;
                if last && header.has(advise::FRAGMENT) {
                    // Linux 6.18 compares a plain extent with the length of its pcluster, which a
                    // fragment does not have, and refuses it. mkfs.erofs marks fragments as
                    // compressed.
                    if head.start == Start::Plain {
                        let (index, fault) = (head.cluster, "a fragment marked as plain");
                        return Err(MapFault::Record { index, fault }.into());
                    }
                    let wide = header_is_full(index);
                    let high = if wide { u64::from(head.block) << 32 } else { 0 };
                    return self.fragment(offset, header.low() | high).map(Some);
                }
                if last && header.has(advise::INLINE) {
                    let len = header.inline_len();
                    let source = Source::Inline { offset: self.end - len, len };
                    let mapped_end = if in_last { end } else { mapped_end };
                    return self
                        .stored(offset, end, mapped_end, len, algorithm, head.partial, source)
                        .map(Some);
                }
                if head.uncounted {
                    let (index, fault) = (head.cluster + 1, "the number of blocks is missing");
                    return Err(MapFault::Record { index, fault }.into());
                }
                if head.hole {
                    return Ok(Some(hole(offset, end - offset)));
                }
                let blocks = match head.blocks {
                    Some(0) => {
                        let (index, fault) = (head.cluster + 1, "a pcluster of no blocks");
                        return Err(MapFault::Record { index, fault }.into());
                    }
                    Some(blocks) if big => u64::from(blocks),
                    _ => 1,
                };
                let bits = self.image.superblock.block_bits;
                let len = blocks << bits.get();
                let source = self.on_line(u64::from(head.block) << bits.get(), len)?;
                self.stored(offset, end, mapped_end, len, algorithm, head.partial, source).map(Some)
            }
            Map::Records(records) => {
                let Some((record, offset, next)) = records.next(self.image, self.size)? else {
                    return Ok(None);
                };
                let (header, index) = (records.header, records.next - 1);
                let end = next.unwrap_or(self.size);
                if next.is_none() && header.has(advise::FRAGMENT) {
                    let high = if header.extent_len() > 4 { record.physical << 32 } else { 0 };
                    return self.fragment(offset, u64::from(record.word) | high).map(Some);
                }
                if record.encoded_len() == 0 {
                    return Ok(Some(hole(offset, end - offset)));
                }
                if record.has_unknown_bits() {
                    return Err(MapFault::Record { index, fault: "it has unknown bits" }.into());
                }
                let algorithm = match record.algorithm() {
                    None => None,
                    Some(number) => {
                        Some(Algorithm::from_number(number).ok_or(MapFault::Algorithm { number })?)
                    }
                };
                let len = record.encoded_len();
                let source = self.on_line(record.physical, len)?;
                self.stored(offset, end, end, len, algorithm, record.partial(), source).map(Some)
            }
        }
    }

    /// Place of `len` bytes from byte `at` of the unified line.
    fn on_line(&self, at: u64, len: u64) -> Result<Source, ReadError> {
        let bits = self.image.superblock.block_bits;
        let stretch = self.image.devices.unified(bits, Block(bits.block_of(at)));
        let outside = |device, size_bytes| ReadError::Outside {
            what: "compressed data",
            device,
            offset: at,
            len,
            size_bytes,
        };
        let stretch = stretch.ok_or_else(|| outside(0, self.image.size_bytes))?;
        let offset = stretch.offset + bits.within(at);
        let size_bytes = match stretch.device {
            0 => self.image.size_bytes,
            device => self.image.device_size_bytes(device).unwrap_or(0),
        };
        if offset.checked_add(len).is_none_or(|end| end > size_bytes) {
            return Err(outside(stretch.device, size_bytes));
        }
        Ok(Source::Device { device: stretch.device, offset, len })
    }

    fn fragment(&self, offset: u64, at: u64) -> Result<CompressedExtent, Fault> {
        let len = self.size - offset;
        let packed = self.image.packed()?;
        // The packed file cannot have its own end in itself.
        let packed = packed.filter(|packed| packed.nid != self.nid);
        let packed_size = packed.map_or(0, |packed| packed.inode.size_bytes);
        if at.checked_add(len).is_none_or(|end| end > packed_size) {
            return Err(MapFault::Fragment { offset: at, len }.into());
        }
        let source = Source::Fragment { offset: at };
        Ok(CompressedExtent { offset, len, source, algorithm: None, partial: false })
    }

    /// Extent from `offset` to `end` with a pcluster of `encoded` bytes. The kernel lets it end at
    /// `mapped_end`.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of one record")]
    fn stored(
        &self,
        offset: u64,
        end: u64,
        mapped_end: u64,
        encoded: u64,
        algorithm: Option<Algorithm>,
        partial: bool,
        source: Source,
    ) -> Result<CompressedExtent, Fault> {
        let (len, mapped) = (end - offset, mapped_end - offset);
        let most = match algorithm {
            Some(Algorithm::Lz4) => self.compression.lz4_bytes,
            _ => PCLUSTER_BYTES,
        };
        let fits = match algorithm {
            // Writers store data uncompressed that would grow. The kernel refuses such a pcluster
            // except at the end of the file.
            Some(_) => partial || encoded <= len || end == self.size,
            None => mapped <= encoded,
        };
        if encoded > most || mapped > DECODED_BYTES || !fits {
            return Err(MapFault::Size { offset, len, encoded, algorithm }.into());
        }
        if let Some(algorithm) = algorithm
            && !self.compression.algorithms.contains(&algorithm)
        {
            let number = Algorithm::ALL.iter().take_while(|other| **other != algorithm).count();
            return Err(MapFault::Algorithm { number: u8::try_from(number).unwrap_or(u8::MAX) }.into());
        }
        Ok(CompressedExtent { offset, len, source, algorithm, partial })
    }
}

fn hole(offset: u64, len: u64) -> CompressedExtent {
    CompressedExtent { offset, len, source: Source::Hole, algorithm: None, partial: false }
}

/// True when the index has room for the upper half of a fragment's offset.
fn header_is_full(index: &Index) -> bool {
    matches!(index.form, IndexForm::Full { .. })
}

impl<R: ReadAt> Iterator for CompressedExtents<'_, R> {
    type Item = Result<CompressedExtent, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.advance();
        self.finished |= !matches!(next, Ok(Some(_)));
        let nid = self.nid;
        next.map_err(|fault| fault.of(nid)).transpose()
    }
}
