//! Extended attributes: the body after an inode, its entries, name prefixes and the name filter.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`,
//! `struct erofs_xattr_long_prefix`; `fs/erofs/xattr.c`.

use xxhash_rust::xxh32::xxh32;

use crate::format::record::{get, put};

/// The header of an inode's attributes, little-endian, 12 bytes; `shared_count` ids of shared entries
/// (4 bytes each) and then the inline entries follow.
///
/// | offset | size | field          | unit and meaning                                      |
/// |-------:|-----:|----------------|-------------------------------------------------------|
/// |      0 |    4 | h_name_filter  | bit n is 0 when a name may hash to n, see [`filter_bit`] |
/// |      4 |    1 | h_shared_count | shared entries                                        |
/// |      5 |    7 | reserved       | 0                                                     |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyHeader {
    /// Bits of names that no attribute has. Valid only with the feature `xattr_filter`.
    pub name_filter: u32,
    /// Number of shared ids after the header.
    pub shared_count: u8,
}

impl BodyHeader {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 12;
    /// Length of the id of a shared entry, in bytes.
    pub const ID_LEN: usize = 4;

    /// Reads the header.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        let [shared_count] = get::<4, _, _>(record);
        Self { name_filter: u32::from_le_bytes(get::<0, _, _>(record)), shared_count }
    }

    /// Spells the header; the reserved bytes are 0.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut record = [0; Self::LEN];
        put::<0, _, _>(&mut record, self.name_filter.to_le_bytes());
        put::<4, _, _>(&mut record, [self.shared_count]);
        record
    }
}

/// Length in bytes of an attribute body with this i_xattr_icount.
///
/// A count of 1 is a header without attributes, which kernels refuse.
pub fn body_len(icount: u16) -> u64 {
    match icount {
        0 => 0,
        count => BodyHeader::LEN as u64 + UNIT * (u64::from(count) - 1),
    }
}

/// i_xattr_icount of a body of `len` bytes, header included. `None` when the length is no multiple
/// of 4, shorter than a header, or above 12 + 4 · 65534.
pub fn icount(len: u64) -> Option<u16> {
    if len == 0 {
        return Some(0);
    }
    let entries = len.checked_sub(BodyHeader::LEN as u64)?;
    if !entries.is_multiple_of(UNIT) {
        return None;
    }
    u16::try_from(entries / UNIT + 1).ok()
}

/// Unit of attribute bodies, entries and shared ids, in bytes.
pub const UNIT: u64 = 4;

/// The head of an entry, inline or shared, little-endian, 4 bytes; name and value follow, then zeros up
/// to a multiple of 4.
///
/// | offset | size | field        | unit and meaning                      |
/// |-------:|-----:|--------------|---------------------------------------|
/// |      0 |    1 | e_name_len   | bytes of the name without its prefix  |
/// |      1 |    1 | e_name_index | the prefix, see [`Prefix`]            |
/// |      2 |    2 | e_value_size | bytes of the value                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Length of the name without its prefix, in bytes.
    pub name_len: u8,
    /// Number of a [`Prefix`], or [`LONG_PREFIX`] plus the number of a long one.
    pub name_index: u8,
    /// Length of the value in bytes.
    pub value_size: u16,
}

/// Bit of a name index that selects a long prefix.
pub const LONG_PREFIX: u8 = 0x80;

impl EntryHeader {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 4;
    /// Four zero bytes in an inode's own attributes: reserved space, as `mkfs.erofs
    /// --root-xattr-isize` leaves it.
    pub const RESERVED: Self = Self { name_len: 0, name_index: 0, value_size: 0 };

    /// Reads the head from its 4 bytes.
    pub fn decode(record: &[u8; Self::LEN]) -> Self {
        let [name_len, name_index, v0, v1] = *record;
        Self { name_len, name_index, value_size: u16::from_le_bytes([v0, v1]) }
    }

    /// Spells the head as 4 bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [v0, v1] = self.value_size.to_le_bytes();
        [self.name_len, self.name_index, v0, v1]
    }

    /// Length of the whole entry without and with its padding, in bytes.
    pub fn entry_len(&self) -> EntryLen {
        let exact = Self::LEN as u64 + u64::from(self.name_len) + u64::from(self.value_size);
        EntryLen { exact, padded: exact.next_multiple_of(UNIT) }
    }
}

/// Length of an entry with and without padding, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryLen {
    /// Head, name and value.
    pub exact: u64,
    /// Head, name and value, with zeros up to a multiple of 4.
    pub padded: u64,
}

/// Name prefix that needs no table in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// `user.`, number 1.
    User,
    /// `system.posix_acl_access`, the whole name, number 2.
    AclAccess,
    /// `system.posix_acl_default`, the whole name, number 3.
    AclDefault,
    /// `trusted.`, number 4.
    Trusted,
    /// `lustre.`, number 5, which no Linux kernel reads.
    Lustre,
    /// `security.`, number 6.
    Security,
}

impl Prefix {
    /// All prefixes, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::User, Self::AclAccess, Self::AclDefault, Self::Trusted, Self::Lustre, Self::Security];

    /// Number of the prefix in an entry, 1 to 6.
    pub fn index(self) -> u8 {
        match self {
            Self::User => 1,
            Self::AclAccess => 2,
            Self::AclDefault => 3,
            Self::Trusted => 4,
            Self::Lustre => 5,
            Self::Security => 6,
        }
    }

    /// Prefix with the number `index`; `None` outside 1 to 6.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|prefix| prefix.index() == index)
    }

    /// Bytes that the number stands for.
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::User => b"user.",
            Self::AclAccess => b"system.posix_acl_access",
            Self::AclDefault => b"system.posix_acl_default",
            Self::Trusted => b"trusted.",
            Self::Lustre => b"lustre.",
            Self::Security => b"security.",
        }
    }

    /// True for the two prefixes that are whole names, with nothing after them.
    pub fn is_whole_name(self) -> bool {
        matches!(self, Self::AclAccess | Self::AclDefault)
    }

    /// Splits a full name into prefix and rest; `None` for names that EROFS cannot store.
    pub fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL.into_iter().find_map(|prefix| {
            let rest = name.strip_prefix(prefix.as_bytes())?;
            (prefix.is_whole_name() == rest.is_empty()).then_some((prefix, rest))
        })
    }
}

/// Bit of the name filter for a name, given its base prefix and the rest of the name.
///
/// A set bit means absence: a writer starts with all ones and clears this bit for each attribute.
pub fn filter_bit(base_index: u8, after_base: &[u8]) -> u32 {
    1 << (xxh32(after_base, FILTER_SEED.wrapping_add(u32::from(base_index))) % 32)
}

// The kernel's `EROFS_XATTR_FILTER_SEED`.
const FILTER_SEED: u32 = 0x25BB_E08F;

/// Head of a long prefix, little-endian, 3 bytes. `infix_len` bytes follow; the next head is
/// aligned to 4.
///
/// | offset | size | field      | unit and meaning                      |
/// |-------:|-----:|------------|---------------------------------------|
/// |      0 |    2 | length     | bytes after this field: 1 + the infix |
/// |      2 |    1 | base_index | a [`Prefix`]                          |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongPrefixHeader {
    /// Number of a [`Prefix`], 1 to 6.
    pub base_index: u8,
    /// Length of the bytes between the base prefix and the rest of the name.
    pub infix_len: u16,
}

impl LongPrefixHeader {
    /// Length of the encoded record, in bytes.
    pub const LEN: usize = 3;

    /// Reads the head; `None` when its length does not cover the index byte.
    pub fn decode(record: &[u8; Self::LEN]) -> Option<Self> {
        let [l0, l1, base_index] = *record;
        let infix_len = u16::from_le_bytes([l0, l1]).checked_sub(1)?;
        Some(Self { base_index, infix_len })
    }

    /// Spells the head; an infix above 65534 bytes is cut to that length.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [l0, l1] = self.infix_len.saturating_add(1).to_le_bytes();
        [l0, l1, self.base_index]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filter_bits_are_those_of_the_kernel() {
        for (name, bit) in [
            ("system.posix_acl_access", 30),
            ("system.posix_acl_default", 21),
            ("trusted.overlay.opaque", 20),
            ("trusted.overlay.origin", 18),
            ("security.capability", 29),
            ("security.selinux", 11),
            ("user.foo", 12),
        ] {
            let (prefix, rest) = Prefix::split(name.as_bytes()).unwrap();
            assert_eq!(filter_bit(prefix.index(), rest), 1 << bit, "{name}");
        }
    }

    #[test]
    fn names_without_a_prefix_or_a_rest_cannot_be_stored() {
        for name in [
            "",
            "user.",
            "user",
            "security.",
            "system.posix_acl_access2",
            "system.posix_acl_acces",
            "system.x",
            "btrfs.compression",
        ] {
            assert_eq!(Prefix::split(name.as_bytes()), None, "{name}");
        }
        assert_eq!(Prefix::split(b"system.posix_acl_access"), Some((Prefix::AclAccess, &b""[..])));
        assert_eq!(Prefix::split(b"user.user."), Some((Prefix::User, &b"user."[..])));
    }

    #[test]
    fn the_largest_body_takes_the_largest_count() {
        assert_eq!((icount(0), icount(12), icount(16)), (Some(0), Some(1), Some(2)));
        assert_eq!((icount(4), icount(13), icount(11)), (None, None, None));
        let largest = body_len(u16::MAX);
        assert_eq!(largest, 12 + 4 * 65534);
        assert_eq!((icount(largest), icount(largest + 4)), (Some(u16::MAX), None));
    }

    #[test]
    fn entries_are_padded_to_four() {
        let entry = EntryHeader { name_len: 14, name_index: 4, value_size: 0 };
        assert_eq!(entry.entry_len(), EntryLen { exact: 18, padded: 20 });
        let largest = EntryHeader { name_len: 255, name_index: 1, value_size: u16::MAX };
        assert_eq!(largest.entry_len(), EntryLen { exact: 65794, padded: 65796 });
    }

    proptest! {
        #[test]
        fn records_round_trip(
            entry in any::<[u8; 4]>(),
            mut body in any::<[u8; 12]>(),
            prefix in any::<[u8; 3]>(),
            count in any::<u16>(),
        ) {
            prop_assert_eq!(EntryHeader::decode(&entry).encode(), entry);
            body[5..].fill(0);
            prop_assert_eq!(BodyHeader::decode(&body).encode(), body);
            if let Some(header) = LongPrefixHeader::decode(&prefix) {
                prop_assert_eq!(header.encode(), prefix);
            }
            prop_assert_eq!(icount(body_len(count)), Some(count));
        }

        #[test]
        fn split_names_join_to_the_same(rest in "[a-z.]{0,9}", index in 0_usize..6) {
            let mut name = Prefix::ALL[index].as_bytes().to_vec();
            name.extend_from_slice(rest.as_bytes());
            if let Some((prefix, rest)) = Prefix::split(&name) {
                prop_assert_eq!(Prefix::from_index(prefix.index()), Some(prefix));
                prop_assert_eq!([prefix.as_bytes(), rest].concat(), name);
            }
        }
    }
}
