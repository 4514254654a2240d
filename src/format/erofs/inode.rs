//! EROFS inodes: compact (32 bytes) and extended (64 bytes) records.
//!
//! Both forms become one [`Inode`]. What follows a record (attributes, chunk array, inline tail) is
//! addressed by the reader and placed by the writer.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_inode_compact`, `struct erofs_inode_extended`;
//! `fs/erofs/inode.c`.

use super::{Block, chunk::ChunkFormat, chunk::ChunkFormatError};
use crate::{
    error::{Classify, Kind},
    format::record::{get, put},
    tree::{Attributes, Device, FileType, Timestamp},
};

/// Inode in either form, with the meaning of all fields.
///
/// | compact | extended | size   | field          | unit and meaning                                   |
/// |--------:|---------:|-------:|----------------|----------------------------------------------------|
/// |    0x00 |     0x00 | 2      | i_format       | bit 0: extended; bits 1–3: data layout; bit 4: no `.` record (directory) or link count 1 and i_nb an address part (others, compact); rest 0 |
/// |    0x02 |     0x02 | 2      | i_xattr_icount | 0: none, else the attributes take 12 + 4·(n − 1) bytes |
/// |    0x04 |     0x04 | 2      | i_mode         | POSIX type and permission bits                     |
/// |    0x06 |     0x06 | 2      | i_nb           | compact: link count; extended: bits 32..47 of the address in i_u |
/// |    0x08 |     0x08 | 4 / 8  | i_size         | bytes                                              |
/// |    0x0C |        – | 4      | i_mtime        | seconds after the superblock's epoch               |
/// |    0x10 |     0x10 | 4      | i_u            | first block, compressed blocks, chunk format or device number |
/// |    0x14 |     0x14 | 4      | i_ino          | number for 32-bit programs                         |
/// |    0x18 |     0x18 | 2 / 4  | i_uid          |                                                    |
/// |    0x1A |     0x1C | 2 / 4  | i_gid          |                                                    |
/// |    0x1C |        – | 4      | reserved       | 0                                                  |
/// |       – |     0x20 | 8      | i_mtime        | signed seconds since 1970                          |
/// |       – |     0x28 | 4      | i_mtime_nsec   | below 10^9                                         |
/// |       – |     0x2C | 4      | i_nlink        |                                                    |
/// |       – |     0x30 | 16     | reserved       | 0                                                  |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Size of the attribute body in the format's own count, see [`super::xattr::body_len`].
    pub xattr_icount: u16,
    /// Type from the upper bits of i_mode.
    pub file_type: FileType,
    /// Owner, permissions and time. Nanoseconds from a full second on are cut to 999 999 999.
    pub attributes: Attributes,
    /// Link count: names of a file; 2 and the subdirectories of a directory.
    pub nlink: u32,
    /// Length of the data in bytes, holes included.
    pub size_bytes: u64,
    /// Number that programs with a 32-bit `ino_t` see.
    pub ino: u32,
    /// True for a directory without a `.` record.
    pub dot_omitted: bool,
    /// Place of the data, or the device number.
    pub data: Data,
}

/// Data layout, with the meaning that it gives the inode's union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Consecutive blocks, the last one padded.
    Plain {
        /// First block; `None` for a hole, which reads as zeros.
        start: Option<Block>,
    },
    /// Consecutive whole blocks. The rest of the data stands after the inode and its attributes.
    Inline {
        /// First whole block. Without a meaning when the data is shorter than a block.
        start: Option<Block>,
    },
    /// Chunks of one size, each with an address.
    Chunks(ChunkFormat),
    /// Compressed with a full index or with extent records.
    CompressedFull {
        /// Blocks of compressed data, as `st_blocks` counts them.
        blocks: u64,
    },
    /// Compressed with a compact index.
    CompressedCompact {
        /// Blocks of compressed data, as `st_blocks` counts them.
        blocks: u64,
    },
    /// Device number of a character or block device.
    Device(Device),
    /// Fifo or socket, which has no data.
    None,
}

/// Form of an inode record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// 32 bytes.
    Compact,
    /// 64 bytes.
    Extended,
}

/// Data layout as numbered in i_format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Consecutive blocks, number 0.
    Plain,
    /// Compressed with a full index or extent records, number 1.
    CompressedFull,
    /// Consecutive blocks and an inline tail, number 2.
    Inline,
    /// Compressed with a compact index, number 3.
    CompressedCompact,
    /// Chunk-based, number 4.
    Chunks,
}

/// Time from which compact inodes count, kept in the superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeBase {
    /// Seconds since 1970, signed.
    pub epoch: i64,
    /// Nanoseconds of the times of all compact inodes.
    pub nanoseconds: u32,
}

/// Refusal of bytes that are no inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InodeError {
    /// Unknown format bits, or a data layout above 4.
    #[error("inode format {found:#06x} has unknown bits or an unknown data layout")]
    Format {
        /// Value of i_format.
        found: u16,
    },
    /// Type bits of the mode that name no file type.
    #[error("inode mode {found:#o} names no file type")]
    Mode {
        /// Value of i_mode.
        found: u16,
    },
    /// Size of 2^63 or more: negative to the kernel.
    #[error("inode size {found:#x} is above 2^63 - 1")]
    Size {
        /// Value of i_size.
        found: u64,
    },
    /// Chunk format with unknown bits, or wide addresses without indexes.
    #[error(transparent)]
    Chunk(#[from] ChunkFormatError),
    /// Bytes end inside the record.
    #[error("{len} bytes hold no inode")]
    Short {
        /// Number of bytes given.
        len: usize,
    },
}

impl Classify for InodeError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        match self {
            Self::Format { .. } => "erofs.inode.format",
            Self::Mode { .. } => "erofs.inode.mode",
            Self::Size { .. } => "erofs.inode.size",
            Self::Chunk(error) => error.reason(),
            Self::Short { .. } => "erofs.inode.bounds",
        }
    }
}

const EXTENDED: u16 = 1;
const LAYOUT_SHIFT: u16 = 1;
const LAYOUT_MASK: u16 = 7;
// One bit with two meanings: a directory without `.`, or a file with one link whose count holds
// address bits.
const SHORT: u16 = 1 << 4;
const FORMAT_KNOWN: u16 = 0x1f;

impl Form {
    /// Reads the form from i_format, a record's first two bytes.
    pub fn of(format: [u8; 2]) -> Self {
        if u16::from_le_bytes(format) & EXTENDED == 0 { Self::Compact } else { Self::Extended }
    }

    /// Length of the record, in bytes.
    pub fn record_len(self) -> u64 {
        match self {
            Self::Compact => Inode::COMPACT_LEN as u64,
            Self::Extended => Inode::EXTENDED_LEN as u64,
        }
    }
}

impl Layout {
    /// Reads the layout from i_format. Errors: [`InodeError::Format`], also for unknown bits.
    pub fn of(format: [u8; 2]) -> Result<Self, InodeError> {
        let found = u16::from_le_bytes(format);
        if found & !FORMAT_KNOWN != 0 {
            return Err(InodeError::Format { found });
        }
        Ok(match (found >> LAYOUT_SHIFT) & LAYOUT_MASK {
            0 => Self::Plain,
            1 => Self::CompressedFull,
            2 => Self::Inline,
            3 => Self::CompressedCompact,
            4 => Self::Chunks,
            _ => return Err(InodeError::Format { found }),
        })
    }

    /// Value of the layout bits in i_format.
    fn number(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::CompressedFull => 1,
            Self::Inline => 2,
            Self::CompressedCompact => 3,
            Self::Chunks => 4,
        }
    }

    /// Lower-case name, as dumps show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::CompressedFull => "compressed-full",
            Self::Inline => "inline",
            Self::CompressedCompact => "compressed-compact",
            Self::Chunks => "chunks",
        }
    }
}

impl Data {
    /// Layout for this data; devices, fifos and sockets use `Plain`.
    pub fn layout(&self) -> Layout {
        match self {
            Self::Plain { .. } | Self::Device(_) | Self::None => Layout::Plain,
            Self::Inline { .. } => Layout::Inline,
            Self::Chunks(_) => Layout::Chunks,
            Self::CompressedFull { .. } => Layout::CompressedFull,
            Self::CompressedCompact { .. } => Layout::CompressedCompact,
        }
    }

    fn decode(
        layout: Layout,
        file_type: FileType,
        low: u32,
        high: Option<u16>,
    ) -> Result<Self, ChunkFormatError> {
        match file_type {
            FileType::CharDevice | FileType::BlockDevice => return Ok(Self::Device(device_from_number(low))),
            FileType::Fifo | FileType::Socket => return Ok(Self::None),
            FileType::Regular | FileType::Directory | FileType::Symlink => {}
        }
        let start = || high.map_or(Block::from_narrow(low), |high| Block::from_wide(low, high));
        let blocks = u64::from(low) | u64::from(high.unwrap_or(0)) << 32;
        Ok(match layout {
            Layout::Plain => Self::Plain { start: start() },
            Layout::Inline => Self::Inline { start: start() },
            Layout::CompressedFull => Self::CompressedFull { blocks },
            Layout::CompressedCompact => Self::CompressedCompact { blocks },
            // The upper half of the union is padding.
            Layout::Chunks => {
                let [a, b, ..] = low.to_le_bytes();
                Self::Chunks(ChunkFormat::decode(u16::from_le_bytes([a, b]))?)
            }
        })
    }

    /// Spells i_u and the upper 16 bits of an address.
    fn encode(&self) -> (u32, u16) {
        match self {
            Self::Plain { start } | Self::Inline { start } => Block::to_wide(*start),
            Self::CompressedFull { blocks } | Self::CompressedCompact { blocks } => {
                Block::to_wide(Some(Block(*blocks)))
            }
            Self::Chunks(format) => (u32::from(format.encode()), 0),
            Self::Device(device) => (number_of_device(*device), 0),
            Self::None => (0, 0),
        }
    }
}

impl Inode {
    /// Length of a compact record, in bytes.
    pub const COMPACT_LEN: usize = 32;
    /// Length of an extended record, in bytes.
    pub const EXTENDED_LEN: usize = 64;

    /// Reads the record at the start of `bytes`, of either form.
    ///
    /// Errors: [`InodeError`], when a field has no meaning or `bytes` ends inside the record.
    pub fn decode(bytes: &[u8], base: TimeBase) -> Result<(Self, Form), InodeError> {
        let short = InodeError::Short { len: bytes.len() };
        let form = Form::of(*bytes.first_chunk().ok_or(short)?);
        let inode = match form {
            Form::Compact => Self::decode_compact(bytes.first_chunk().ok_or(short)?, base)?,
            Form::Extended => Self::decode_extended(bytes.first_chunk().ok_or(short)?)?,
        };
        Ok((inode, form))
    }

    /// Reads a compact record, whose times count from `base`.
    fn decode_compact(record: &[u8; Self::COMPACT_LEN], base: TimeBase) -> Result<Self, InodeError> {
        let layout = Layout::of(get::<0x00, _, _>(record))?;
        let (file_type, mode) = split_mode(u16::from_le_bytes(get::<0x04, _, _>(record)))?;
        let short = u16::from_le_bytes(get::<0x00, _, _>(record)) & SHORT != 0;
        let nb = u16::from_le_bytes(get::<0x06, _, _>(record));
        let nlink_omitted = short && file_type != FileType::Directory;
        let (nlink, high) = if nlink_omitted { (1, Some(nb)) } else { (nb, None) };
        let later = u32::from_le_bytes(get::<0x0C, _, _>(record));
        Ok(Self {
            xattr_icount: u16::from_le_bytes(get::<0x02, _, _>(record)),
            file_type,
            attributes: Attributes {
                mode,
                uid: u32::from(u16::from_le_bytes(get::<0x18, _, _>(record))),
                gid: u32::from(u16::from_le_bytes(get::<0x1A, _, _>(record))),
                // The kernel adds with wrap-around too.
                mtime: timestamp(base.epoch.wrapping_add(i64::from(later)), base.nanoseconds),
            },
            nlink: u32::from(nlink),
            size_bytes: u64::from(u32::from_le_bytes(get::<0x08, _, _>(record))),
            ino: u32::from_le_bytes(get::<0x14, _, _>(record)),
            dot_omitted: short && file_type == FileType::Directory,
            data: Data::decode(layout, file_type, u32::from_le_bytes(get::<0x10, _, _>(record)), high)?,
        })
    }

    /// Reads an extended record. Errors: [`InodeError`] for a field without a meaning.
    fn decode_extended(record: &[u8; Self::EXTENDED_LEN]) -> Result<Self, InodeError> {
        let layout = Layout::of(get::<0x00, _, _>(record))?;
        let (file_type, mode) = split_mode(u16::from_le_bytes(get::<0x04, _, _>(record)))?;
        let short = u16::from_le_bytes(get::<0x00, _, _>(record)) & SHORT != 0;
        let size_bytes = u64::from_le_bytes(get::<0x08, _, _>(record));
        if i64::try_from(size_bytes).is_err() {
            return Err(InodeError::Size { found: size_bytes });
        }
        let low = u32::from_le_bytes(get::<0x10, _, _>(record));
        let high = u16::from_le_bytes(get::<0x06, _, _>(record));
        Ok(Self {
            xattr_icount: u16::from_le_bytes(get::<0x02, _, _>(record)),
            file_type,
            attributes: Attributes {
                mode,
                uid: u32::from_le_bytes(get::<0x18, _, _>(record)),
                gid: u32::from_le_bytes(get::<0x1C, _, _>(record)),
                mtime: timestamp(
                    i64::from_le_bytes(get::<0x20, _, _>(record)),
                    u32::from_le_bytes(get::<0x28, _, _>(record)),
                ),
            },
            nlink: u32::from_le_bytes(get::<0x2C, _, _>(record)),
            size_bytes,
            ino: u32::from_le_bytes(get::<0x14, _, _>(record)),
            dot_omitted: short && file_type == FileType::Directory,
            data: Data::decode(layout, file_type, low, Some(high))?,
        })
    }

    /// Spells the extended record, which can hold every inode.
    ///
    /// "No block" is spelled with all 48 bits. Where an image has no 48-bit addresses, its writer
    /// passes [`Block::UNUSED`] instead.
    pub fn encode_extended(&self) -> [u8; Self::EXTENDED_LEN] {
        let mut record = [0; Self::EXTENDED_LEN];
        let (low, high) = self.data.encode();
        let short = if self.dot_omitted { SHORT } else { 0 };
        put::<0x00, _, _>(&mut record, self.format(EXTENDED | short).to_le_bytes());
        put::<0x02, _, _>(&mut record, self.xattr_icount.to_le_bytes());
        put::<0x04, _, _>(&mut record, self.mode().to_le_bytes());
        put::<0x06, _, _>(&mut record, high.to_le_bytes());
        put::<0x08, _, _>(&mut record, self.size_bytes.to_le_bytes());
        put::<0x10, _, _>(&mut record, low.to_le_bytes());
        put::<0x14, _, _>(&mut record, self.ino.to_le_bytes());
        put::<0x18, _, _>(&mut record, self.attributes.uid.to_le_bytes());
        put::<0x1C, _, _>(&mut record, self.attributes.gid.to_le_bytes());
        put::<0x20, _, _>(&mut record, self.attributes.mtime.seconds.to_le_bytes());
        put::<0x28, _, _>(&mut record, self.attributes.mtime.nanoseconds.to_le_bytes());
        put::<0x2C, _, _>(&mut record, self.nlink.to_le_bytes());
        record
    }

    /// Spells the compact record; `None` when a field does not fit it.
    ///
    /// Times other than `base` are stored relative to it, and kernels before 6.15 ignore that
    /// field: a writer for older kernels compares first. Ours writes extended records only; tests
    /// read both.
    #[cfg(test)]
    pub(crate) fn encode_compact(&self, base: TimeBase) -> Option<[u8; Self::COMPACT_LEN]> {
        let mtime = self.attributes.mtime;
        if mtime.nanoseconds != base.nanoseconds {
            return None;
        }
        let later = u32::try_from(mtime.seconds.checked_sub(base.epoch)?).ok()?;
        let wide = self.data.encode();
        let nlink = u16::try_from(self.nlink).ok()?;
        let (low, nb, short) = match wide {
            (low, 0) if low != u32::MAX => (low, nlink, self.dot_omitted),
            (u32::MAX, 0 | u16::MAX) => (u32::MAX, nlink, self.dot_omitted),
            // The upper address bits take the place of the link count.
            (low, high) if self.nlink == 1 && self.file_type != FileType::Directory => (low, high, true),
            _ => return None,
        };
        let mut record = [0; Self::COMPACT_LEN];
        put::<0x00, _, _>(&mut record, self.format(if short { SHORT } else { 0 }).to_le_bytes());
        put::<0x02, _, _>(&mut record, self.xattr_icount.to_le_bytes());
        put::<0x04, _, _>(&mut record, self.mode().to_le_bytes());
        put::<0x06, _, _>(&mut record, nb.to_le_bytes());
        put::<0x08, _, _>(&mut record, u32::try_from(self.size_bytes).ok()?.to_le_bytes());
        put::<0x0C, _, _>(&mut record, later.to_le_bytes());
        put::<0x10, _, _>(&mut record, low.to_le_bytes());
        put::<0x14, _, _>(&mut record, self.ino.to_le_bytes());
        put::<0x18, _, _>(&mut record, u16::try_from(self.attributes.uid).ok()?.to_le_bytes());
        put::<0x1A, _, _>(&mut record, u16::try_from(self.attributes.gid).ok()?.to_le_bytes());
        Some(record)
    }

    fn format(&self, bits: u16) -> u16 {
        self.data.layout().number() << LAYOUT_SHIFT | bits
    }

    fn mode(&self) -> u16 {
        self.file_type.mode_bits() | self.attributes.mode & PERMISSIONS
    }
}

const PERMISSIONS: u16 = 0o7777;

fn split_mode(mode: u16) -> Result<(FileType, u16), InodeError> {
    let file_type = FileType::from_mode(mode).ok_or(InodeError::Mode { found: mode })?;
    Ok((file_type, mode & PERMISSIONS))
}

fn timestamp(seconds: i64, nanoseconds: u32) -> Timestamp {
    Timestamp { seconds, nanoseconds: nanoseconds.min(999_999_999) }
}

/// Encodes a device number in 32 bits, as the kernel's `new_encode_dev` does.
fn number_of_device(Device { major, minor }: Device) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn device_from_number(number: u32) -> Device {
    Device { major: (number >> 8) & 0xfff, minor: (number & 0xff) | ((number >> 12) & 0xf_ff00) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file() -> Inode {
        Inode {
            xattr_icount: 0,
            file_type: FileType::Regular,
            attributes: Attributes { mode: 0o644, uid: 1000, gid: 1000, mtime: Timestamp::default() },
            nlink: 1,
            size_bytes: 6,
            ino: 1,
            dot_omitted: false,
            data: Data::Inline { start: Some(Block::UNUSED) },
        }
    }

    #[test]
    fn an_extended_file_is_spelled_as_documented() {
        let mut inode = file();
        inode.attributes.mtime.seconds = 1_700_000_000;
        let want = "05000000a48100000600000000000000ffffffff01000000e8030000e8030000\
                    00f1536500000000000000000100000000000000000000000000000000000000";
        let hex: String = inode.encode_extended().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, want);
    }

    #[test]
    fn compact_records_hold_what_fits_them() {
        let base = TimeBase { epoch: 100, nanoseconds: 5 };
        let mut inode = file();
        assert_eq!(inode.encode_compact(base), None, "another time");
        inode.attributes.mtime = Timestamp { seconds: 107, nanoseconds: 5 };
        inode.data = Data::Plain { start: Some(Block(9)) };
        let fits = inode;
        assert_eq!(Inode::decode_compact(&fits.encode_compact(base).unwrap(), base), Ok(fits));
        for (what, spoil) in [
            ("size", (|inode: &mut Inode| inode.size_bytes = 1 << 32) as fn(&mut Inode)),
            ("owner", |inode| inode.attributes.uid = 65536),
            ("group", |inode| inode.attributes.gid = 65536),
            ("links", |inode| inode.nlink = 65536),
            ("earlier", |inode| inode.attributes.mtime.seconds = 99),
            ("address", |inode| {
                inode.nlink = 2;
                inode.data = Data::Plain { start: Some(Block(1 << 32)) };
            }),
        ] {
            let mut inode = fits;
            spoil(&mut inode);
            assert_eq!(inode.encode_compact(base), None, "{what}");
        }
    }

    #[test]
    fn a_wide_address_takes_the_place_of_a_single_link() {
        let mut inode = file();
        inode.data = Data::Plain { start: Some(Block(3 << 32 | 4)) };
        let record = inode.encode_compact(TimeBase::default()).unwrap();
        assert_eq!(record[..2], [0x10, 0]);
        assert_eq!(Inode::decode_compact(&record, TimeBase::default()), Ok(inode));
    }

    #[test]
    fn fields_without_a_meaning_are_refused() {
        let good = file().encode_extended();
        let with = |at: usize, bytes: &[u8]| {
            let mut record = good;
            record[at..at + bytes.len()].copy_from_slice(bytes);
            Inode::decode_extended(&record)
        };
        for format in [0x0b_u16, 0x0d, 0x0f, 0x25, 0x8005] {
            assert_eq!(with(0, &format.to_le_bytes()), Err(InodeError::Format { found: format }));
        }
        assert_eq!(with(4, &[0xa4, 0x01]), Err(InodeError::Mode { found: 0o644 }));
        assert_eq!(with(8, &(1_u64 << 63).to_le_bytes()), Err(InodeError::Size { found: 1 << 63 }));
        let chunked = Layout::Chunks.number() << 1 | EXTENDED;
        let mut record = good;
        record[..2].copy_from_slice(&chunked.to_le_bytes());
        record[0x10..0x14].copy_from_slice(&0x80_u32.to_le_bytes());
        assert_eq!(Inode::decode_extended(&record), Err(InodeError::Chunk(ChunkFormatError { found: 0x80 })));
        assert_eq!(
            Inode::decode(good.get(..63).unwrap(), TimeBase::default()),
            Err(InodeError::Short { len: 63 })
        );
    }

    #[test]
    fn device_numbers_are_those_of_the_kernel() {
        for (major, minor, number) in
            [(0, 0, 0), (8, 1, 0x801), (1, 0x100, 0x10_0100), (0xfff, 0xf_ffff, 0xffff_ffff)]
        {
            let device = Device { major, minor };
            assert_eq!(number_of_device(device), number);
            assert_eq!(device_from_number(number), device);
        }
    }

    fn data() -> impl Strategy<Value = (FileType, Data)> {
        use FileType::{BlockDevice, CharDevice, Directory, Fifo, Regular, Socket, Symlink};
        let start = prop_oneof![Just(None), (0..Block::LIMIT).prop_map(|block| Some(Block(block)))];
        let with_data = prop_oneof![Just(Regular), Just(Directory), Just(Symlink)];
        let layout = prop_oneof![
            start.clone().prop_map(|start| Data::Plain { start }),
            start.prop_map(|start| Data::Inline { start }),
            (0..Block::LIMIT).prop_map(|blocks| Data::CompressedFull { blocks }),
            (0..Block::LIMIT).prop_map(|blocks| Data::CompressedCompact { blocks }),
            (0_u8..32, any::<bool>()).prop_map(|(bits, indexes)| {
                Data::Chunks(ChunkFormat::new(bits, indexes).expect("within 31"))
            }),
        ];
        let device = (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| Device { major, minor });
        prop_oneof![
            4 => (with_data, layout),
            1 => (prop_oneof![Just(CharDevice), Just(BlockDevice)], device.prop_map(Data::Device)),
            1 => (prop_oneof![Just(Fifo), Just(Socket)], Just(Data::None)),
        ]
    }

    prop_compose! {
        fn inodes()(
            (file_type, data) in data(),
            (xattr_icount, mode, uid, gid) in (any::<u16>(), 0_u16..0o10000, any::<u32>(), any::<u32>()),
            (seconds, nanoseconds) in (any::<i64>(), 0_u32..1_000_000_000),
            (nlink, size, ino, dot) in (any::<u32>(), any::<i64>(), any::<u32>(), any::<bool>()),
        ) -> Inode {
            Inode {
                xattr_icount,
                file_type,
                attributes: Attributes { mode, uid, gid, mtime: Timestamp { seconds, nanoseconds } },
                nlink,
                size_bytes: size.unsigned_abs() >> 1,
                ino,
                dot_omitted: dot && file_type == FileType::Directory,
                data,
            }
        }
    }

    proptest! {
        #[test]
        fn extended_records_round_trip(inode in inodes()) {
            let record = inode.encode_extended();
            prop_assert_eq!(Inode::decode_extended(&record), Ok(inode));
            prop_assert_eq!(Inode::decode(&record, TimeBase::default()), Ok((inode, Form::Extended)));
        }

        #[test]
        fn compact_records_round_trip(mut inode in inodes(), later in any::<u32>(), narrow in any::<u16>()) {
            let base = TimeBase { epoch: -5, nanoseconds: inode.attributes.mtime.nanoseconds };
            inode.attributes.mtime.seconds = base.epoch + i64::from(later);
            (inode.attributes.uid, inode.attributes.gid) = (u32::from(narrow), u32::from(narrow));
            inode.nlink &= 0xffff;
            inode.size_bytes &= 0xffff_ffff;
            if let Some(record) = inode.encode_compact(base) {
                prop_assert_eq!(Inode::decode(&record, base), Ok((inode, Form::Compact)));
            }
        }

        #[test]
        fn no_bytes_panic(record in any::<[u8; 64]>(), len in 0_usize..64) {
            let _ = Inode::decode(&record, TimeBase::default());
            let _ = Inode::decode(record.get(..len).unwrap(), TimeBase { epoch: i64::MAX, nanoseconds: 0 });
        }
    }
}
