//! The 512-byte tar header: its fields, its checksum, and the dialects it may be written in.
//!
//! Fields are returned as they stand. [`super::parser`] combines them with extension headers.
//!
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format";
//! `star(5)` for the `tar\0` mark; Go `archive/tar/format.go` for the rules that distinguish the
//! dialects.

use std::ops::Range;

use super::{error::Problem, number};

/// Size of a header block in bytes. Data is padded to a multiple of it.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK_NAME: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_MARK: Range<usize> = 508..512;

/// Dialect of a header, which decides about the fields from byte 257 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// No magic. The header has neither devices nor a prefix.
    V7,
    /// `ustar\0`: the POSIX format.
    Posix,
    /// `ustar\0` with `tar\0` at the end: the prefix is shorter, and times follow it.
    Star,
    /// `ustar  \0`: times stand in place of the POSIX prefix, unless Go wrote a prefix there by
    /// mistake.
    Gnu,
}

/// Header whose checksum is right.
///
/// | offset | size | field    | meaning                                                        |
/// |-------:|-----:|----------|----------------------------------------------------------------|
/// |      0 |  100 | name     | up to the first NUL                                            |
/// |    100 |    8 | mode     | numeric; the low 12 bits count                                 |
/// |    108 |    8 | uid      | numeric                                                        |
/// |    116 |    8 | gid      | numeric                                                        |
/// |    124 |   12 | size     | numeric, bytes of data that follow                             |
/// |    136 |   12 | mtime    | numeric, seconds since 1970                                    |
/// |    148 |    8 | checksum | octal, sum of all bytes with spaces in this field              |
/// |    156 |    1 | type     | one character                                                  |
/// |    157 |  100 | linkname | up to the first NUL                                            |
/// |    257 |    8 | magic    | `ustar\0` + any version, `ustar  \0`, or NULs                  |
/// |    265 |   64 |          | owner and group as text: not read                              |
/// |    329 |    8 | devmajor | numeric; not in V7                                             |
/// |    337 |    8 | devminor | numeric; not in V7                                             |
/// |    345 |  155 | prefix   | goes before `name`, `/`; 131 bytes with star's mark; not in V7   |
/// |    508 |    4 |          | star's mark, `tar\0`                                           |
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    pub(super) kind: u8,
    pub(super) mode: u16,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size_bytes: u64,
    pub(super) mtime: i64,
    pub(super) device: (i64, i64),
    pub(super) name: &'a [u8],
    pub(super) prefix: &'a [u8],
    pub(super) link_name: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads a header. Errors: a wrong checksum, an unknown dialect, a field that is no number.
    pub(super) fn decode(block: &'a [u8; BLOCK]) -> Result<Self, Problem> {
        verify_checksum(block)?;
        Self::decode_unsummed(block)
    }

    /// Reads a header whose checksum means nothing.
    pub(super) fn decode_unsummed(block: &'a [u8; BLOCK]) -> Result<Self, Problem> {
        let dialect = dialect(block)?;
        let kind = block.get(TYPE).copied().unwrap_or_default();
        let size = numeric(block, "size", SIZE)?;
        let size_bytes = u64::try_from(size).ok().ok_or(Problem::Size { found: size })?;
        let device = match dialect {
            // V7 has no fields for devices.
            Dialect::V7 => (0, 0),
            Dialect::Posix | Dialect::Star | Dialect::Gnu => {
                (numeric(block, "devmajor", DEVICE_MAJOR)?, numeric(block, "devminor", DEVICE_MINOR)?)
            }
        };
        let [.., mode_high, mode_low] = numeric(block, "mode", MODE)?.to_be_bytes();
        Ok(Self {
            kind,
            mode: u16::from_be_bytes([mode_high, mode_low]) & 0o7777,
            uid: numeric(block, "uid", UID)?,
            gid: numeric(block, "gid", GID)?,
            size_bytes: if has_no_body(kind, dialect) { 0 } else { size_bytes },
            mtime: numeric(block, "mtime", MTIME)?,
            device,
            name: name(block),
            prefix: match dialect {
                Dialect::V7 => &[],
                Dialect::Gnu => mistaken_prefix(block),
                Dialect::Posix => until_nul(field(block, PREFIX)),
                Dialect::Star => until_nul(field(block, STAR_PREFIX)),
            },
            link_name: until_nul(field(block, LINK_NAME)),
        })
    }
}

impl Header<'_> {
    /// Encodes a POSIX header, as Go's `archive/tar` does for an archive with PAX records.
    ///
    /// A value that does not fit has a PAX record. In the header its name is cut after 100 bytes
    /// and loses bytes that are not ASCII; its number becomes 0. `prefix` is not written.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put_name(&mut block, NAME, self.name);
        put_octal(&mut block, MODE, i64::from(self.mode));
        put_octal(&mut block, UID, self.uid);
        put_octal(&mut block, GID, self.gid);
        put_octal(&mut block, SIZE, i64::try_from(self.size_bytes).unwrap_or(i64::MAX));
        put_octal(&mut block, MTIME, self.mtime);
        put(&mut block, TYPE..TYPE + 1, &[self.kind]);
        put_name(&mut block, LINK_NAME, self.link_name);
        put(&mut block, MAGIC, b"ustar\x0000");
        put_octal(&mut block, DEVICE_MAJOR, self.device.0);
        put_octal(&mut block, DEVICE_MINOR, self.device.1);
        mend_checksum(&mut block);
        block
    }
}

/// True for a header of POSIX's dialect and version whose checksum is right.
pub(super) fn is_posix(block: &[u8; BLOCK]) -> bool {
    field(block, MAGIC) == b"ustar\x0000" && verify_checksum(block).is_ok()
}

/// True when the header can hold a name without a PAX record.
pub(super) fn holds_name(name: &[u8]) -> bool {
    name.len() <= NAME.len() && name.is_ascii()
}

/// True when the header can hold an owner without a PAX record.
pub(super) fn holds_owner(id: i64) -> bool {
    fits_octal(&UID, id)
}

/// True when the header can hold a size or a time without a PAX record.
pub(super) fn holds_size(size: i64) -> bool {
    fits_octal(&SIZE, size)
}

/// True when octal digits and a NUL fit the field.
fn fits_octal(at: &Range<usize>, value: i64) -> bool {
    let digits = u32::try_from(at.len().saturating_sub(1)).unwrap_or_default();
    value >= 0 && (digits >= 21 || value < 1 << (3 * digits))
}

fn put(block: &mut [u8; BLOCK], at: Range<usize>, bytes: &[u8]) {
    let len = bytes.len().min(at.len());
    if let (Some(field), Some(bytes)) = (block.get_mut(at.start..at.start + len), bytes.get(..len)) {
        field.copy_from_slice(bytes);
    }
}

fn put_octal(block: &mut [u8; BLOCK], at: Range<usize>, value: i64) {
    let mut value = if fits_octal(&at, value) { value.unsigned_abs() } else { 0 };
    if let Some((_nul, digits)) = block.get_mut(at).and_then(<[u8]>::split_last_mut) {
        for digit in digits.iter_mut().rev() {
            let [low, ..] = value.to_le_bytes();
            *digit = b'0' + (low & 7);
            value >>= 3;
        }
    }
}

fn put_name(block: &mut [u8; BLOCK], at: Range<usize>, name: &[u8]) {
    if name.is_ascii() {
        put(block, at.clone(), name);
    } else {
        let ascii: Vec<u8> = name.iter().copied().filter(u8::is_ascii).collect();
        put(block, at.clone(), &ascii);
    }
    // Some readers take a file whose cut name ends in a slash for a directory, even with a PAX
    // record.
    let is_cut = name.len() > at.len();
    if is_cut && field(block, at.clone()).ends_with(b"/") {
        let kept = field(block, at.clone()).iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        if let Some(byte) = block.get_mut(at.start + kept) {
            *byte = 0;
        }
    }
}

/// Name field of a block, valid header or not. Messages print it.
pub(super) fn name(block: &[u8; BLOCK]) -> &[u8] {
    until_nul(field(block, NAME))
}

/// Bytes before the first NUL, or all of them.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// True when no data follows a header of type `kind`, whatever size it announces: Go, GNU tar,
/// libarchive and Python agree about these.
///
/// They disagree about hard links in POSIX headers: POSIX lets them have data, and libarchive reads
/// it.
fn has_no_body(kind: u8, dialect: Dialect) -> bool {
    match kind {
        b'1' => matches!(dialect, Dialect::V7 | Dialect::Gnu),
        b'2' | b'5' => true,
        _ => false,
    }
}

/// Prefix of a GNU header, which should hold times instead.
///
/// Go before 1.8 put a POSIX prefix into GNU headers. Go's reader takes the bytes for a prefix when
/// a time is no number and the text is ASCII. So does this one, because containerd extracts with
/// Go.
fn mistaken_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let is_time = |field: &[u8]| field.first() == Some(&0) || number::go_reads(field);
    let prefix = until_nul(field(block, PREFIX));
    let are_times = is_time(field(block, GNU_ATIME)) && is_time(field(block, GNU_CTIME));
    if are_times || !prefix.is_ascii() { &[] } else { prefix }
}

/// Bytes of a field. The ranges above are constants within a block, so this cannot fail.
fn field(block: &[u8; BLOCK], at: Range<usize>) -> &[u8] {
    block.get(at).unwrap_or_default()
}

fn numeric(block: &[u8; BLOCK], name: &'static str, at: Range<usize>) -> Result<i64, Problem> {
    let field = field(block, at);
    number::numeric(field).ok_or_else(|| Problem::Number { field: name, found: field.to_vec() })
}

/// True when the header in a metadata file has the place of the data in its field for the device major: by its type
/// alone, because the name may stand in a header before it.
fn has_place(block: &[u8; BLOCK]) -> bool {
    matches!(block.get(TYPE), Some(0 | b'0' | b'7'))
}

/// Puts the place of its data into the header of a file.
pub(super) fn put_place(block: &mut [u8; BLOCK], place: u64) {
    if has_place(block) {
        put(block, DEVICE_MAJOR, &place.to_le_bytes());
    }
}

/// Takes the place of its data out of the header of a file, which has no device.
pub(super) fn take_place(block: &mut [u8; BLOCK]) -> Option<u64> {
    if !has_place(block) {
        return None;
    }
    let place = block.get(DEVICE_MAJOR)?.first_chunk().copied().map(u64::from_le_bytes);
    put(block, DEVICE_MAJOR, &[0; 8]);
    place
}

/// Writes the correct checksum into a block that is not zero.
pub(super) fn mend_checksum(block: &mut [u8; BLOCK]) {
    if *block == [0; BLOCK] {
        return;
    }
    if let Some(own) = block.get_mut(CHECKSUM) {
        own.fill(b' ');
    }
    let sum = sum(block);
    if let Some(own) = block.get_mut(CHECKSUM) {
        own.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Compares the checksum field with the sum of all bytes, counting the field itself as spaces.
fn verify_checksum(block: &[u8; BLOCK]) -> Result<(), Problem> {
    let own = field(block, CHECKSUM);
    let own_sum: u32 = own.iter().map(|byte| u32::from(*byte)).sum();
    let computed = sum(block) - own_sum + 8 * u32::from(b' ');
    let stored = number::octal(own);
    // Some old writers summed signed characters; each byte above 127 then counts 256 less.
    let high = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(byte >> 7)).sum::<u32>();
    let is_signed_sum = |stored: u64| {
        u64::from(computed).checked_sub(stored) == Some(u64::from(256 * (high(block) - high(own))))
    };
    match stored {
        Some(stored) if stored == u64::from(computed) || is_signed_sum(stored) => Ok(()),
        _ => {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(own);
            Err(Problem::Checksum { stored: bytes, computed })
        }
    }
}

/// Sum of a block's bytes.
///
/// Adds eight bytes at a time, in four lanes of 16 bits. A lane gets two bytes of each of 64 words,
/// so it holds at most 2 * 64 * 255 and never overflows into the next. Byte by byte with overflow
/// checks, this sum took half the time of reading an archive of small files.
fn sum(block: &[u8; BLOCK]) -> u32 {
    const LANES: u64 = 0x00ff_00ff_00ff_00ff;
    let lanes = block.as_chunks::<8>().0.iter().fold(0_u64, |lanes, word| {
        let word = u64::from_le_bytes(*word);
        lanes.wrapping_add(word & LANES).wrapping_add((word >> 8) & LANES)
    });
    let [a, b, c, d, e, f, g, h] = lanes.to_le_bytes();
    [[a, b], [c, d], [e, f], [g, h]].into_iter().map(|lane| u32::from(u16::from_le_bytes(lane))).sum()
}

fn dialect(block: &[u8; BLOCK]) -> Result<Dialect, Problem> {
    match field(block, MAGIC) {
        // POSIX requires the version "00", but no reader checks it.
        [b'u', b's', b't', b'a', b'r', 0, _, _] => {
            Ok(if field(block, STAR_MARK) == b"tar\0" { Dialect::Star } else { Dialect::Posix })
        }
        b"ustar  \0" => Ok(Dialect::Gnu),
        [0, 0, 0, 0, 0, 0, 0, 0] => Ok(Dialect::V7),
        other => {
            let mut found = [0; 8];
            found.copy_from_slice(other);
            Err(Problem::Magic { found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(usize, &[u8])]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        for (at, bytes) in fields {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn every_dialect_has_its_own_idea_of_prefix_and_devices() {
        let prefix: Vec<u8> = vec![b'p'; 155];
        let decode = |fields: &[(usize, &[u8])]| {
            let mut all: Vec<(usize, &[u8])> =
                vec![(0, b"name"), (329, b"0000007\0"), (337, b"0000011\0"), (345, &prefix)];
            all.extend_from_slice(fields);
            let block = block(&all);
            let header = Header::decode(&block).unwrap();
            assert_eq!(header.name, b"name");
            (header.prefix.len(), header.device)
        };
        assert_eq!(decode(&[(257, b"ustar\x0000")]), (155, (7, 9)));
        assert_eq!(decode(&[(257, b"ustar\0\0\0")]), (155, (7, 9)));
        assert_eq!(decode(&[(257, b"ustar\x0000"), (508, b"tar\0")]), (131, (7, 9)));
        let times = b"14000000000\x0014000000000\0";
        assert_eq!(decode(&[(257, b"ustar  \0"), (345, times)]), (0, (7, 9)));
        assert_eq!(decode(&[(257, b"ustar  \0"), (345, times), (508, b"tar\0")]), (0, (7, 9)));
        assert_eq!(decode(&[]), (0, (0, 0)));
    }

    #[test]
    fn a_gnu_header_has_a_prefix_where_its_times_are_no_numbers() {
        for (at_345, want) in [
            (&b"some/dir"[..], &b"some/dir"[..]),
            (b"777\0", b""),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\x05", b""),
            // The second time alone is no number. The text ends at the first NUL.
            (b"00000000000\0rubbish", b"00000000000"),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0rubbish", b""),
            (b"d/\xc3\xbc", b""),
            (&[b'p'; 155], &[b'p'; 155]),
        ] {
            let block = block(&[(0, b"name"), (257, b"ustar  \0"), (345, at_345)]);
            assert_eq!(Header::decode(&block).unwrap().prefix, want, "{}", at_345.escape_ascii());
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let header = Header {
            kind: b'3',
            mode: 0o7755,
            uid: 0o7_777_777,
            gid: 0,
            size_bytes: 0o77_777_777_777,
            mtime: 0o77_777_777_777,
            device: (4095, 0xf_ffff),
            name: &[b'n'; 100],
            prefix: b"",
            link_name: b"target",
        };
        let block = header.encode();
        let read = Header::decode(&block).unwrap();
        assert_eq!(format!("{read:?}"), format!("{header:?}"));
        assert_eq!(&block[100..108], b"0007755\0");
        assert_eq!(&block[257..265], b"ustar\x0000");
        assert_eq!(&block[154..156], b"\0 ", "six digits, NUL, space");
    }

    #[test]
    fn what_does_not_fit_is_left_to_a_record() {
        let mut header = Header {
            kind: b'0',
            mode: 0o644,
            uid: 0o10_000_000,
            gid: -1,
            size_bytes: 1 << 33,
            mtime: -1,
            device: (0, 0),
            name: b"gr\xc3\xbcn",
            prefix: b"",
            link_name: b"",
        };
        let block = header.encode();
        let read = Header::decode(&block).unwrap();
        assert_eq!((read.uid, read.gid, read.size_bytes, read.mtime), (0, 0, 0, 0));
        assert_eq!(read.name, b"grn");
        assert!(!holds_name(header.name) && !holds_owner(header.uid) && !holds_owner(-1));
        assert!(!holds_size(1 << 33) && !holds_size(-1) && holds_size((1 << 33) - 1));

        let long = [&[b'd'; 97][..], b"//", b"/file"].concat();
        header.name = &long;
        assert_eq!(Header::decode(&header.encode()).unwrap().name, [b'd'; 97], "no slash at the cut");
        assert!(holds_name(&[b'n'; 100]) && !holds_name(&[b'n'; 101]));
    }

    #[test]
    fn other_magics_are_refused() {
        for magic in [&b"ustar 00"[..], b"USTAR\x0000", b"ustar   ", b"\0\0\0\0\0\x0000", b"ustar  0"] {
            let block = block(&[(0, b"a"), (257, magic)]);
            assert_eq!(Header::decode(&block).unwrap_err().reason(), "tar.magic", "{}", magic.escape_ascii());
        }
    }

    #[test]
    fn the_checksum_may_be_summed_unsigned_or_signed() {
        let mut unsigned = block(&[(0, b"gr\xc3\xb6\xc3\x9fe"), (257, b"ustar\x0000")]);
        assert!(Header::decode(&unsigned).is_ok());
        let sum = number::octal(&unsigned[CHECKSUM]).unwrap();
        unsigned[CHECKSUM].copy_from_slice(format!("{:06o}\0 ", sum - 4 * 256).as_bytes());
        assert!(Header::decode(&unsigned).is_ok());
        for wrong in [sum - 256, sum - 5 * 256, sum + 1, sum - 1, 0] {
            unsigned[CHECKSUM].copy_from_slice(format!("{wrong:06o}\0 ").as_bytes());
            assert_eq!(Header::decode(&unsigned).unwrap_err().reason(), "tar.checksum");
        }
        unsigned[CHECKSUM].copy_from_slice(b"\x80\0\0\0\0\0\0\0");
        assert_eq!(Header::decode(&unsigned).unwrap_err().reason(), "tar.checksum");
    }

    #[test]
    fn a_sum_of_words_is_the_sum_of_bytes() {
        assert_eq!((sum(&[0; BLOCK]), sum(&[255; BLOCK])), (0, 512 * 255));
        let block: [u8; BLOCK] = std::array::from_fn(|at| (at * 7 % 256).to_le_bytes()[0]);
        assert_eq!(sum(&block), block.iter().map(|byte| u32::from(*byte)).sum::<u32>());
    }

    #[test]
    fn names_end_at_the_first_nul_or_at_the_end_of_the_field() {
        let full = block(&[(0, &[b'n'; 100]), (157, &[b'l'; 100]), (257, b"ustar\x0000")]);
        let header = Header::decode(&full).unwrap();
        assert_eq!((header.name.len(), header.link_name.len()), (100, 100));
        let cut = block(&[(0, b"a\0b"), (157, b"\0c"), (257, b"ustar\x0000")]);
        let header = Header::decode(&cut).unwrap();
        assert_eq!((header.name, header.link_name), (&b"a"[..], &b""[..]));
    }

    #[test]
    fn every_numeric_field_is_checked_and_named() {
        for (at, name) in [
            (100, "mode"),
            (108, "uid"),
            (116, "gid"),
            (124, "size"),
            (136, "mtime"),
            (329, "devmajor"),
            (337, "devminor"),
        ] {
            let block = block(&[(0, b"a"), (257, b"ustar\x0000"), (at, b"9")]);
            let problem = Header::decode(&block).unwrap_err();
            assert_eq!(problem.reason(), "tar.number");
            assert!(matches!(problem, Problem::Number { field, .. } if field == name), "{name}");
        }
        let negative = block(&[(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")]);
        assert_eq!(Header::decode(&negative).unwrap_err(), Problem::Size { found: -1 });
        let largest = block(&[(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")]);
        assert_eq!(Header::decode(&largest).unwrap().size_bytes, (1 << 63) - 1);
        let old = block(&[(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe")]);
        assert_eq!(Header::decode(&old).unwrap().mtime, -2);
    }

    #[test]
    fn only_the_twelve_permission_bits_of_the_mode_count() {
        let decode = |mode: &[u8]| Header::decode(&block(&[(100, mode)])).unwrap().mode;
        assert_eq!(decode(b"0104755\0"), 0o4755);
        assert_eq!(decode(b"7777777\0"), 0o7777);
        assert_eq!(decode(b"\xff\xff\xff\xff\xff\xff\xff\xff"), 0o7777);
    }
}
