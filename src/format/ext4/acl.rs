//! POSIX access control lists: from the form that ext4 stores to the one that the kernel shows.
//!
//! Source: Linux `fs/ext4/acl.h`, `fs/ext4/acl.c` (`ext4_acl_from_disk`);
//! `include/uapi/linux/posix_acl.h`, `posix_acl_xattr.h`.

/// Fault of a stored access control list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AclFault {
    /// Version other than 1, the only one that ext4 stores.
    #[error("has version {found}, not 1")]
    Version {
        /// Version of the list.
        found: u32,
    },
    /// Entry that is cut off, or whose tag is unknown.
    #[error("has an entry with tag {tag:#x} that is cut or unknown")]
    Entry {
        /// Tag of the entry; 0 when it is cut off inside the tag.
        tag: u16,
    },
}

/// Tags of entries, numbered as in `posix_acl.h`.
mod tag {
    pub const OWNER: u16 = 0x01;
    pub const USER: u16 = 0x02;
    pub const OWNING_GROUP: u16 = 0x04;
    pub const GROUP: u16 = 0x08;
    pub const MASK: u16 = 0x10;
    pub const OTHER: u16 = 0x20;
}

/// Converts a stored list to the value of `system.posix_acl_*` as the kernel shows it; empty for a
/// list without entries.
///
/// | form   | head              | entry for one user or group | other entries          |
/// |--------|-------------------|-----------------------------|------------------------|
/// | stored | u32 version 1     | u16 tag, u16 bits, u32 id   | u16 tag, u16 bits      |
/// | shown  | u32 version 2     | u16 tag, u16 bits, u32 id   | the same, id all ones  |
///
/// Errors: [`AclFault`] for another version, or an entry that is cut off or has an unknown tag.
///
/// ```
/// use plywood::format::ext4::acl::to_xattr;
/// let stored = [1, 0, 0, 0, 0x01, 0, 7, 0];
/// assert_eq!(to_xattr(&stored).unwrap(), [2, 0, 0, 0, 0x01, 0, 7, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
/// ```
pub fn to_xattr(stored: &[u8]) -> Result<Vec<u8>, AclFault> {
    let Some((version, mut rest)) = stored.split_first_chunk() else {
        return Err(AclFault::Version { found: 0 });
    };
    let version = u32::from_le_bytes(*version);
    if version != 1 {
        return Err(AclFault::Version { found: version });
    }
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    let mut shown = 2_u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let Some((head, after)) = rest.split_first_chunk::<4>() else {
            return Err(AclFault::Entry { tag: 0 });
        };
        let [t0, t1, ..] = *head;
        let tag = u16::from_le_bytes([t0, t1]);
        shown.extend_from_slice(head);
        rest = after;
        match tag {
            tag::USER | tag::GROUP => {
                let (id, after) = rest.split_first_chunk::<4>().ok_or(AclFault::Entry { tag })?;
                shown.extend_from_slice(id);
                rest = after;
            }
            tag::OWNER | tag::OWNING_GROUP | tag::MASK | tag::OTHER => shown.extend_from_slice(&[0xFF; 4]),
            tag => return Err(AclFault::Entry { tag }),
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_users_and_groups_have_an_id_on_disk() {
        let stored = [
            &[1, 0, 0, 0][..],
            &[1, 0, 6, 0],
            &[2, 0, 7, 0, 0xE8, 3, 0, 0],
            &[4, 0, 4, 0],
            &[8, 0, 1, 0, 0, 0, 1, 0],
            &[0x10, 0, 7, 0],
            &[0x20, 0, 0, 0],
        ];
        let shown = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF],
            &[2, 0, 7, 0, 0xE8, 3, 0, 0],
            &[4, 0, 4, 0, 0xFF, 0xFF, 0xFF, 0xFF],
            &[8, 0, 1, 0, 0, 0, 1, 0],
            &[0x10, 0, 7, 0, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0x20, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF],
        ];
        assert_eq!(to_xattr(&stored.concat()).unwrap(), shown.concat());
    }

    #[test]
    fn what_is_cut_or_unknown_is_refused() {
        assert_eq!(to_xattr(&[1, 0, 0, 0]), Ok(Vec::new()), "no entries are no list");
        assert_eq!(to_xattr(&[]), Err(AclFault::Version { found: 0 }));
        assert_eq!(to_xattr(&[2, 0, 0, 0]), Err(AclFault::Version { found: 2 }));
        assert_eq!(to_xattr(&[1, 0, 0, 0, 1, 0]), Err(AclFault::Entry { tag: 0 }));
        assert_eq!(to_xattr(&[1, 0, 0, 0, 2, 0, 7, 0, 1]), Err(AclFault::Entry { tag: 2 }));
        assert_eq!(to_xattr(&[1, 0, 0, 0, 3, 0, 7, 0]), Err(AclFault::Entry { tag: 3 }));
    }
}
