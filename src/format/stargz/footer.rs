//! Footers: the last bytes of an indexed layer, which point at its table of contents.
//!
//! Those of gzip are empty members with an extra field, those of zstd skippable frames.
//!
//! Source: stargz-snapshotter `estargz/gzip.go`, `estargz/externaltoc/externaltoc.go`,
//! `estargz/zstdchunked/zstdchunked.go`; containers/storage `pkg/chunked/internal/minimal/compression.go`.

use crate::format::record::get;

/// Bytes from the end of a blob that a footer may take.
pub(super) const TAIL_BYTES: usize = 8 + 64;

/// A footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Footer {
    /// eStargz: 51 bytes.
    ///
    /// | offset | size | field  | meaning                                              |
    /// |-------:|-----:|--------|------------------------------------------------------|
    /// |      0 |   10 |        | gzip header with an extra field; time and system are ignored |
    /// |     10 |    2 | XLEN   | 26                                                   |
    /// |     12 |    2 | SI     | `SG`                                                 |
    /// |     14 |    2 | LEN    | 22                                                   |
    /// |     16 |   16 | offset | of the member with the table, in hexadecimal digits  |
    /// |     32 |    6 | magic  | `STARGZ`                                             |
    /// |     38 |   13 |        | an empty stored block, CRC-32 and length             |
    Estargz(u64),
    /// The older stargz: 47 bytes. The extra field holds offset and magic alone.
    Legacy(u64),
    /// eStargz whose table is in another blob: 46 bytes. The subfield holds `STARGZEXTERNALTOC`.
    External,
    /// zstd:chunked.
    Zstd(ZstdFooter),
}

/// The footer of zstd:chunked, the payload of a skippable frame. Every field has eight bytes, little-endian.
///
/// | stargz tools | containers tools | field                                         |
/// |-------------:|-----------------:|-----------------------------------------------|
/// |            0 |                0 | offset of the table, behind its frame's header |
/// |            8 |                8 | length of the table, compressed               |
/// |           16 |               16 | length of the table, uncompressed             |
/// |           24 |               24 | type of the table, 1                          |
/// |              |               32 | offset and lengths of the data of tar-split   |
/// |           32 |               56 | magic number: `GnUlInUx` or `GNUlInUx`        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZstdFooter {
    pub(super) is_containers: bool,
    pub(super) place: Position,
    /// Place of the tar-split data.
    pub(super) tar_split: Option<Position>,
    /// Byte of the footer from the end of the blob on, its frame's header included.
    pub(super) footer_bytes: u64,
}

/// Place of a compressed table in a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) offset: u64,
    pub(super) compressed_bytes: u64,
    pub(super) uncompressed_bytes: u64,
}

impl Position {
    /// The only type of a table that is defined.
    pub(super) const TOC_TYPE: u64 = 1;
}

const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

impl Footer {
    pub(super) const ESTARGZ_BYTES: usize = 51;
    pub(super) const LEGACY_BYTES: usize = 47;
    pub(super) const EXTERNAL_BYTES: usize = 46;

    /// The footer of an eStargz layer.
    pub(super) fn encode(offset: u64) -> Vec<u8> {
        let digits = format!("{offset:016x}");
        let parts: [&[u8]; 5] = [
            &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0],
            digits.as_bytes(),
            b"STARGZ",
            &[1, 0, 0, 0xff, 0xff],
            &[0; 8],
        ];
        parts.concat()
    }

    /// The frames behind the payload of a zstd:chunked layer of the stargz tools.
    pub(super) fn encode_zstd(packed: &[u8], place: Position) -> Vec<u8> {
        let Position { offset, compressed_bytes, uncompressed_bytes } = place;
        let fields = [offset, compressed_bytes, uncompressed_bytes, Position::TOC_TYPE].map(u64::to_le_bytes);
        let footer = [fields.as_flattened(), b"GnUlInUx"].concat();
        [skippable(packed), skippable(&footer)].concat()
    }

    /// The footer of a zstd:chunked layer of the containers tools, in its frame. `toc` and `tar_split` are the places behind
    /// the headers of their frames.
    pub(super) fn encode_containers(toc: Position, tar_split: Position) -> Vec<u8> {
        let place = |place: Position| [place.offset, place.compressed_bytes, place.uncompressed_bytes];
        let fields = [&place(toc)[..], &[Position::TOC_TYPE], &place(tar_split)].concat();
        let mut footer: Vec<u8> = fields.into_iter().flat_map(u64::to_le_bytes).collect();
        footer.extend_from_slice(b"GNUlInUx");
        skippable(&footer)
    }

    /// The footer at the end of `tail`, the last bytes of a blob: up to [`TAIL_BYTES`].
    pub(super) fn decode(tail: &[u8]) -> Option<Self> {
        None.or_else(|| estargz(tail.last_chunk()?))
            .or_else(|| legacy(tail.last_chunk()?))
            .or_else(|| external(tail.last_chunk()?))
            .or_else(|| zstd_stargz(tail.last_chunk()?))
            .or_else(|| zstd_containers(tail.last_chunk()?))
    }
}

fn estargz(bytes: &[u8; Footer::ESTARGZ_BYTES]) -> Option<Footer> {
    let is_one = is_member(bytes, 26)
        && get::<12, 4, _>(bytes) == [b'S', b'G', 22, 0]
        && get::<32, 6, _>(bytes) == *b"STARGZ";
    is_one.then(|| hexadecimal(get::<16, 16, _>(bytes)).map(Footer::Estargz))?
}

fn legacy(bytes: &[u8; Footer::LEGACY_BYTES]) -> Option<Footer> {
    let is_one = is_member(bytes, 22) && get::<28, 6, _>(bytes) == *b"STARGZ";
    is_one.then(|| hexadecimal(get::<12, 16, _>(bytes)).map(Footer::Legacy))?
}

fn external(bytes: &[u8; Footer::EXTERNAL_BYTES]) -> Option<Footer> {
    let is_one = is_member(bytes, 21)
        && get::<12, 4, _>(bytes) == [b'S', b'G', 17, 0]
        && get::<16, 17, _>(bytes) == *b"STARGZEXTERNALTOC";
    is_one.then_some(Footer::External)
}

/// Whether these bytes are an empty gzip member with an extra field of `extra` bytes.
fn is_member<const N: usize>(bytes: &[u8; N], extra: u16) -> bool {
    bytes.starts_with(&[0x1f, 0x8b, 8, 4]) && get::<10, 2, _>(bytes) == extra.to_le_bytes()
}

/// The number that Go's `%016x` has written: digits in lower case.
fn hexadecimal(digits: [u8; 16]) -> Option<u64> {
    let digit = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_uppercase());
    digits.into_iter().try_fold(0, |value, byte| Some(value << 4 | u64::from(digit(byte)?)))
}

fn zstd_stargz(bytes: &[u8; 48]) -> Option<Footer> {
    let is_one = is_skippable(bytes, 40) && get::<40, 8, _>(bytes) == *b"GnUlInUx";
    zstd(is_one, get::<8, 32, _>(bytes), None, 48)
}

fn zstd_containers(bytes: &[u8; 72]) -> Option<Footer> {
    let is_one = is_skippable(bytes, 64) && get::<64, 8, _>(bytes) == *b"GNUlInUx";
    zstd(is_one, get::<8, 32, _>(bytes), Some(get::<40, 24, _>(bytes)), 72)
}

fn is_skippable<const N: usize>(bytes: &[u8; N], len: u32) -> bool {
    get::<0, 4, _>(bytes) == SKIPPABLE && get::<4, 4, _>(bytes) == len.to_le_bytes()
}

fn skippable(body: &[u8]) -> Vec<u8> {
    [&skippable_header(body), body].concat()
}

/// The header of a frame that decoders skip, with `body` in it.
pub(super) fn skippable_header(body: &[u8]) -> [u8; 8] {
    // Tables end far below 4 GiB.
    let [l0, l1, l2, l3] = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    let [m0, m1, m2, m3] = SKIPPABLE;
    [m0, m1, m2, m3, l0, l1, l2, l3]
}

fn zstd(is_one: bool, fields: [u8; 32], tar_split: Option<[u8; 24]>, footer_bytes: u64) -> Option<Footer> {
    let place = position(get::<0, 24, _>(&fields));
    let is_toc = u64::from_le_bytes(get::<24, 8, _>(&fields)) == Position::TOC_TYPE;
    // Layers from before there was such data have zeros there.
    let tar_split = tar_split.map(position);
    let is_containers = tar_split.is_some();
    let tar_split = tar_split.filter(|place| place.offset > 0);
    (is_one && is_toc).then_some(Footer::Zstd(ZstdFooter { is_containers, place, tar_split, footer_bytes }))
}

fn position(fields: [u8; 24]) -> Position {
    Position {
        offset: u64::from_le_bytes(get::<0, 8, _>(&fields)),
        compressed_bytes: u64::from_le_bytes(get::<8, 8, _>(&fields)),
        uncompressed_bytes: u64::from_le_bytes(get::<16, 8, _>(&fields)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTARGZ: &[u8] = include_bytes!("../../../tests/fixtures/stargz/footer-estargz.bin");
    const LEGACY: &[u8] = include_bytes!("../../../tests/fixtures/stargz/footer-legacy.bin");
    const EXTERNAL: &[u8] = include_bytes!("../../../tests/fixtures/stargz/footer-external.bin");
    const OFFSET: u64 = 0x1_2345_6789;

    #[test]
    fn the_three_footers_of_gzip_are_told_apart() {
        assert_eq!(Footer::decode(ESTARGZ), Some(Footer::Estargz(OFFSET)));
        assert_eq!(Footer::decode(LEGACY), Some(Footer::Legacy(OFFSET)));
        assert_eq!(Footer::decode(EXTERNAL), Some(Footer::External));
        for footer in [ESTARGZ, LEGACY, EXTERNAL] {
            let whole = [&[7; 40], footer].concat();
            let tail = &whole[whole.len().saturating_sub(TAIL_BYTES)..];
            assert_eq!(Footer::decode(tail), Footer::decode(footer), "whatever comes before");
            assert_eq!(Footer::decode(&footer[1..]), None);
        }
    }

    #[test]
    fn what_is_written_is_what_other_tools_write() {
        assert_eq!(Footer::encode(OFFSET), ESTARGZ);
        let place = Position { offset: 8, compressed_bytes: 3, uncompressed_bytes: 9 };
        let end = Footer::encode_zstd(b"abc", place);
        assert_eq!(end[..11], *b"\x50\x2a\x4d\x18\x03\0\0\0abc");
        let found = ZstdFooter { is_containers: false, place, tar_split: None, footer_bytes: 48 };
        assert_eq!(Footer::decode(&end), Some(Footer::Zstd(found)));
        let split = Position { offset: 20, compressed_bytes: 4, uncompressed_bytes: 70 };
        let found = ZstdFooter { is_containers: true, place, tar_split: Some(split), footer_bytes: 72 };
        assert_eq!(Footer::decode(&Footer::encode_containers(place, split)), Some(Footer::Zstd(found)));
    }

    #[test]
    fn a_footer_with_one_wrong_byte_is_none() {
        for footer in [ESTARGZ, LEGACY, EXTERNAL] {
            // Time, flags and system of the header, and what is behind the extra field, are of no account.
            let extra = 12 + usize::from(footer[10]);
            for at in (0..4).chain(10..extra) {
                let mut wrong = footer.to_vec();
                wrong[at] = b'x';
                assert_eq!(Footer::decode(&wrong), None, "byte {at} of {}", footer.len());
            }
        }
        let mut upper = ESTARGZ.to_vec();
        upper[16..32].copy_from_slice(b"00000000000ABCDE");
        assert_eq!(Footer::decode(&upper), None, "writers use lower case");
    }

    #[test]
    fn both_dialects_of_zstd_are_told_apart_by_their_magic_numbers() {
        let footer = |magic: &[u8; 8], more: usize, kind: u64| {
            let len = u32::try_from(40 + more).unwrap();
            let mut bytes = [&SKIPPABLE[..], &len.to_le_bytes()].concat();
            for field in [100, 20, 300, kind] {
                bytes.extend(u64::to_le_bytes(field));
            }
            bytes.extend(vec![9; more]);
            bytes.extend(magic);
            bytes
        };
        let place = Position { offset: 100, compressed_bytes: 20, uncompressed_bytes: 300 };
        let nines = u64::from_le_bytes([9; 8]);
        let split = Position { offset: nines, compressed_bytes: nines, uncompressed_bytes: nines };
        let found = |is_containers, tar_split, footer_bytes| {
            Some(Footer::Zstd(ZstdFooter { is_containers, place, tar_split, footer_bytes }))
        };
        assert_eq!(Footer::decode(&footer(b"GnUlInUx", 0, 1)), found(false, None, 48));
        assert_eq!(Footer::decode(&footer(b"GNUlInUx", 24, 1)), found(true, Some(split), 72));
        assert_eq!(Footer::decode(&footer(b"GNUlInUx", 0, 1)), None);
        assert_eq!(Footer::decode(&footer(b"GnUlInUx", 24, 1)), None);
        assert_eq!(Footer::decode(&footer(b"GnUlInUx", 0, 2)), None, "another type of table");
    }
}
