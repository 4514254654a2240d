//! Extended attributes of a layer: which names reach the image, and how large they may be.
//!
//! Root mounts the image below overlayfs. So a layer must not be able to forge what overlayfs or
//! EROFS keep in attributes of their own; only this program writes those. Writers decide how an
//! attribute is spelled on disk.
//!
//! Source: Linux `include/uapi/linux/xattr.h` and `limits.h`, `fs/overlayfs/overlayfs.h` (names that
//! overlayfs trusts), `fs/erofs/xattr.h` (namespaces that EROFS can store), `fs/xattr.c`, `fs/posix_acl.c` and
//! `security/commoncap.c` (what can be set on which file); containerd `pkg/archive/tar.go` (what of that is
//! ignored).

use super::{FileType, Xattr};
use crate::{
    error::{Classify, Kind, Quoted},
    limits,
};

/// Namespaces that an image can store. A name needs at least one byte more.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Names outside those namespaces that an image can store.
const NAMES: [&[u8]; 2] = [ACL_ACCESS, ACL_DEFAULT];

/// Names that steer a file system instead of describing a file.
///
/// overlayfs reads the first (and, mounted with `userxattr`, the second). The third holds the content
/// fingerprints by which EROFS shares page cache between images: a forged one would make two files
/// share pages. Images written here configure no other fingerprint name, so no other can take effect.
const CONTROL: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"trusted.erofs."];

/// Bytes of an encoded attribute without name and value.
const ENTRY_HEADER_BYTES: usize = 4;

/// Refusal of an extended attribute of a layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrError {
    /// The name is longer than 255 bytes.
    #[error(
        "the name of extended attribute {} has {} bytes, more than {}",
        Quoted(name), name.len(), limits::XATTR_NAME_BYTES
    )]
    Name {
        /// Full name of the attribute.
        name: Vec<u8>,
    },
    /// The value is longer than 65 535 bytes.
    #[error(
        "extended attribute {} has {size_bytes} bytes, more than {}",
        Quoted(name),
        limits::XATTR_VALUE_BYTES
    )]
    Value {
        /// Full name of the attribute.
        name: Vec<u8>,
        /// Length of the value in bytes.
        size_bytes: usize,
    },
    /// The kernel would refuse to set it: a container that copies the file up, or reads the
    /// attribute, would fail.
    #[error("extended attribute {} is not valid: {detail}", Quoted(name))]
    Invalid {
        /// Full name of the attribute.
        name: Vec<u8>,
        /// Rule of the kernel that it breaks, in words.
        detail: &'static str,
    },
    /// All attributes of one file are together larger than 240 KiB.
    #[error("the extended attributes take {size_bytes} bytes, more than {}", limits::XATTR_SUM_BYTES)]
    Sum {
        /// Sum of their encoded sizes in bytes.
        size_bytes: usize,
    },
}

impl Classify for XattrError {
    fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } | Self::Value { .. } | Self::Invalid { .. } => Kind::Malformed,
            Self::Sum { .. } => Kind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } => "xattr.name",
            Self::Value { .. } => "xattr.value",
            Self::Invalid { .. } => "xattr.invalid",
            Self::Sum { .. } => "limit.xattrs",
        }
    }
}

/// True when an attribute of a layer reaches the image. Others are dropped and counted.
///
/// ```
/// use plywood::tree::xattr::is_kept;
/// assert!(is_kept(b"security.capability"));
/// assert!(!is_kept(b"trusted.overlay.opaque"));
/// ```
pub fn is_kept(name: &[u8]) -> bool {
    let in_namespace =
        NAMESPACES.iter().any(|namespace| name.len() > namespace.len() && name.starts_with(namespace));
    (in_namespace || NAMES.contains(&name)) && !CONTROL.iter().any(|control| name.starts_with(control))
}

/// Checks the lengths of one attribute that is kept.
pub fn check(name: &[u8], value: &[u8]) -> Result<(), XattrError> {
    if name.len() > limits::XATTR_NAME_BYTES {
        return Err(XattrError::Name { name: name.to_vec() });
    }
    if value.len() > limits::XATTR_VALUE_BYTES {
        return Err(XattrError::Value { name: name.to_vec(), size_bytes: value.len() });
    }
    Ok(())
}

/// True when a file of type `file_type` can have an attribute that [`is_kept`].
///
/// False where containerd, which sets attributes by system calls, continues without the attribute:
/// `user.*` on anything but files and directories, access-control lists on symbolic links, lists of
/// another version, and lists without entries, by which the kernel removes one.
///
/// Errors: [`XattrError::Invalid`] where the kernel refuses the attribute with an error that fails
/// containerd's unpacking.
///
/// ```
/// use plywood::tree::{FileType, xattr::is_settable};
/// assert_eq!(is_settable(b"user.a", b"", FileType::Regular), Ok(true));
/// assert_eq!(is_settable(b"user.a", b"", FileType::Symlink), Ok(false));
/// assert!(is_settable(b"security.capability", b"all", FileType::Regular).is_err());
/// ```
pub fn is_settable(name: &[u8], value: &[u8], file_type: FileType) -> Result<bool, XattrError> {
    let settable = match name {
        ACL_ACCESS | ACL_DEFAULT => acl_is_settable(name == ACL_DEFAULT, value, file_type),
        b"security.capability" if is_capability(value) => Ok(true),
        b"security.capability" => Err("it holds no capabilities of version 2 or 3"),
        _ if name.starts_with(b"user.") => Ok(matches!(file_type, FileType::Regular | FileType::Directory)),
        _ => Ok(true),
    };
    settable.map_err(|detail| XattrError::Invalid { name: name.to_vec(), detail })
}

/// Checks a capability like Linux `security/commoncap.c`, `validheader` and `cap_convert_nscap`.
fn is_capability(value: &[u8]) -> bool {
    const VERSION_2: u32 = 0x0200_0000;
    const VERSION_3: u32 = 0x0300_0000;
    const EFFECTIVE: u32 = 1;
    let word =
        |at: usize| value.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_le_bytes(*word));
    match (value.len(), word(0).map(|magic| magic & !EFFECTIVE)) {
        (20, Some(VERSION_2)) => true,
        // The last word is the user id of the namespace's root.
        (24, Some(VERSION_3)) => word(20) != Some(u32::MAX),
        _ => false,
    }
}

/// Checks an access-control list like Linux `fs/posix_acl.c`: `posix_acl_from_xattr`,
/// `set_posix_acl` and `posix_acl_valid`, in this order.
fn acl_is_settable(is_default: bool, value: &[u8], file_type: FileType) -> Result<bool, &'static str> {
    const VERSION: u32 = 2;
    if value.is_empty() {
        return Ok(false);
    }
    let (version, entries) = value.split_first_chunk().ok_or("the access-control list has no version")?;
    if u32::from_le_bytes(*version) != VERSION {
        return Ok(false);
    }
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return Err("the last entry of the access-control list is incomplete");
    }
    if entries.is_empty() {
        return Ok(false);
    }
    let entries = entries.iter().map(|[t0, t1, p0, p1, id @ ..]| {
        (u16::from_le_bytes([*t0, *t1]), u16::from_le_bytes([*p0, *p1]), u32::from_le_bytes(*id))
    });
    if entries
        .clone()
        .any(|(tag, _, id)| !AclTag::ALL.contains(&tag) || (AclTag::is_named(tag) && id == u32::MAX))
    {
        return Err("an entry of the access-control list is for nobody");
    }
    if file_type == FileType::Symlink {
        return Ok(false);
    }
    if is_default && file_type != FileType::Directory {
        return Err("only a directory has a default access-control list");
    }
    // Place in the kernel's order of tags. Named users and groups, and the mask, may be left out.
    let (mut next, mut needs_mask) = (AclTag::OWNER, false);
    for (tag, permissions, _) in entries {
        if permissions > 7 {
            return Err("an entry of the access-control list grants unknown permissions");
        }
        needs_mask |= AclTag::is_named(tag);
        next = match (tag, next) {
            (AclTag::OWNER, AclTag::OWNER) | (AclTag::USER, AclTag::USER) => AclTag::USER,
            (AclTag::OWNING_GROUP, AclTag::USER) | (AclTag::GROUP, AclTag::GROUP) => AclTag::GROUP,
            (AclTag::MASK, AclTag::GROUP) => AclTag::OTHER,
            (AclTag::OTHER, AclTag::OTHER) => AclTag::NONE,
            (AclTag::OTHER, AclTag::GROUP) if !needs_mask => AclTag::NONE,
            _ => return Err("the access-control list has no mask, or its entries are out of order"),
        };
    }
    if next == AclTag::NONE { Ok(true) } else { Err("the access-control list is incomplete") }
}

/// Tags of the entries of an access-control list.
struct AclTag;

impl AclTag {
    const NONE: u16 = 0;
    const OWNER: u16 = 0x01;
    const USER: u16 = 0x02;
    const OWNING_GROUP: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    const ALL: [u16; 6] = [Self::OWNER, Self::USER, Self::OWNING_GROUP, Self::GROUP, Self::MASK, Self::OTHER];

    /// True when the entry holds the id of a user or group.
    fn is_named(tag: u16) -> bool {
        tag == Self::USER || tag == Self::GROUP
    }
}

/// Normalises the attributes of one file: sorted by name, each name once, the last of equal names
/// kept. Errors: [`XattrError::Sum`] when the result is too large for one inode.
pub fn settle(xattrs: &mut Vec<Xattr>) -> Result<(), XattrError> {
    if xattrs.len() > 1 {
        // A stable sort of the reversed list puts the last of equal names first, where dedup keeps it.
        xattrs.reverse();
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        xattrs.dedup_by(|later, first| later.name == first.name);
    }
    let size_bytes = xattrs.iter().map(encoded_bytes).sum();
    if size_bytes > limits::XATTR_SUM_BYTES {
        return Err(XattrError::Sum { size_bytes });
    }
    Ok(())
}

/// Size of one attribute in an inode, in bytes: header, name without its namespace, value, padding.
fn encoded_bytes(xattr: &Xattr) -> usize {
    let namespace = NAMESPACES.iter().find(|namespace| xattr.name.starts_with(namespace));
    // The two ACL names are encoded as a number without a text.
    let name_bytes = namespace.map_or(0, |namespace| xattr.name.len() - namespace.len());
    (ENTRY_HEADER_BYTES + name_bytes + xattr.value.len()).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.into(), value: value.to_vec() }
    }

    #[test]
    fn only_names_an_image_can_hold_and_nothing_that_steers_a_file_system_is_kept() {
        for (name, want) in [
            ("user.a", true),
            ("user.", false),
            ("user", false),
            ("users.a", false),
            ("trusted.a", true),
            ("trusted.overlay", true),
            ("trusted.overlay.opaque", false),
            ("trusted.overlay.overlay.opaque", false),
            ("trusted.overlays", true),
            ("user.overlay.whiteout", false),
            ("user.overlayed", true),
            ("trusted.erofs.fingerprint", false),
            ("security.capability", true),
            ("security.selinux", true),
            ("security.", false),
            ("system.posix_acl_access", true),
            ("system.posix_acl_default", true),
            ("system.posix_acl_access2", false),
            ("system.nfs4_acl", false),
            ("lustre.lov", false),
            ("com.apple.quarantine", false),
            ("", false),
        ] {
            assert_eq!(is_kept(name.as_bytes()), want, "{name:?}");
        }
    }

    #[test]
    fn lengths_are_limited_at_their_last_fitting_value() {
        let name = |len: usize| [b"user.".as_slice(), &vec![b'n'; len - 5]].concat();
        assert_eq!(check(&name(255), b""), Ok(()));
        let error = check(&name(256), b"").unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "xattr.name"));
        assert_eq!(check(b"user.a", &[0; 65_535]), Ok(()));
        let error = check(b"user.a", &[0; 65_536]).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "xattr.value"));
    }

    #[test]
    fn the_last_of_equal_names_wins_and_the_rest_is_sorted() {
        let mut xattrs = vec![xattr("user.b", b"1"), xattr("user.a", b"2"), xattr("user.b", b"3")];
        settle(&mut xattrs).unwrap();
        assert_eq!(xattrs, [xattr("user.a", b"2"), xattr("user.b", b"3")]);
        let mut empty = Vec::new();
        settle(&mut empty).unwrap();
        assert_eq!(empty, []);
    }

    #[test]
    fn the_sum_of_one_file_is_limited_after_equal_names_are_joined() {
        // 4 bytes of header, 1 of name, and the value: together a multiple of four.
        let fitting = |name: &str| xattr(name, &[0; 61_440 - 5]);
        let mut xattrs: Vec<_> =
            ["user.a", "user.b", "user.c", "user.d", "user.a"].into_iter().map(fitting).collect();
        settle(&mut xattrs).unwrap();
        assert_eq!(xattrs.iter().map(encoded_bytes).sum::<usize>(), limits::XATTR_SUM_BYTES);
        xattrs.push(xattr("system.posix_acl_access", b""));
        let error = settle(&mut xattrs).unwrap_err();
        assert_eq!(error, XattrError::Sum { size_bytes: limits::XATTR_SUM_BYTES + 4 });
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.xattrs"));
    }

    #[test]
    fn attributes_are_dropped_or_refused_by_type_and_by_value() {
        let acl = |entries: &[(u16, u16, u32)]| {
            let mut value = 2_u32.to_le_bytes().to_vec();
            for (tag, permissions, id) in entries {
                value.extend(tag.to_le_bytes());
                value.extend(permissions.to_le_bytes());
                value.extend(id.to_le_bytes());
            }
            value
        };
        let (owner, group, mask, other) = ((1, 7, 0), (4, 5, 0), (16, 5, 0), (32, 0, 0));
        let minimal = acl(&[owner, group, other]);
        let full = acl(&[owner, (2, 4, 1000), group, (8, 4, 5), mask, other]);
        let capability = |version: u32, words: usize, last: u32| {
            [version.to_le_bytes().to_vec(), vec![0; 4 * words - 4], last.to_le_bytes().to_vec()].concat()
        };
        let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
        use FileType::{BlockDevice, CharDevice, Directory, Fifo, Regular, Symlink};
        for (name, value, file_type, want) in [
            ("user.a", vec![1], Regular, Some(true)),
            ("user.a", vec![1], Directory, Some(true)),
            ("user.a", vec![1], Symlink, Some(false)),
            ("user.a", vec![1], CharDevice, Some(false)),
            ("user.a", vec![1], BlockDevice, Some(false)),
            ("user.a", vec![1], Fifo, Some(false)),
            ("trusted.a", vec![1], Symlink, Some(true)),
            (access, minimal.clone(), Regular, Some(true)),
            (access, full.clone(), Fifo, Some(true)),
            (access, full.clone(), Symlink, Some(false)),
            (default, full.clone(), Directory, Some(true)),
            (default, full.clone(), Regular, None),
            (default, acl(&[]), Regular, Some(false)),
            (access, vec![], Regular, Some(false)),
            (access, vec![2, 0, 0], Regular, None),
            (access, vec![1, 0, 0, 0, 9], Regular, Some(false)),
            (access, minimal[..minimal.len() - 1].to_vec(), Symlink, None),
            (access, acl(&[owner, (2, 4, 1000), group, other]), Regular, None),
            (access, acl(&[owner, group, mask]), Regular, None),
            (access, acl(&[group, owner, other]), Regular, None),
            (access, acl(&[owner, group, other, other]), Regular, None),
            (access, acl(&[owner, (4, 8, 0), other]), Regular, None),
            (access, acl(&[owner, (2, 4, u32::MAX), group, mask, other]), Regular, None),
            (access, acl(&[owner, (64, 4, 1), group, mask, other]), Symlink, None),
            ("security.capability", capability(0x0200_0001, 4, 0), Regular, Some(true)),
            ("security.capability", capability(0x0300_0000, 5, 1000), Regular, Some(true)),
            ("security.capability", capability(0x0300_0000, 5, u32::MAX), Regular, None),
            ("security.capability", capability(0x0200_0000, 5, 0), Regular, None),
            ("security.capability", capability(0x0200_0002, 4, 0), Regular, None),
            ("security.capability", capability(0x0100_0000, 2, 0), Regular, None),
            ("security.capability", vec![], Regular, None),
        ] {
            let found = is_settable(name.as_bytes(), &value, file_type);
            assert_eq!(found.clone().ok(), want, "{name} {value:?} {file_type:?}: {found:?}");
            if let Err(error) = found {
                assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "xattr.invalid"));
            }
        }
    }

    #[test]
    fn fifty_thousand_attributes_take_no_quadratic_time() {
        let mut xattrs: Vec<_> = (0..50_000).map(|n| xattr(&format!("user.{}", n % 7), b"v")).collect();
        settle(&mut xattrs).unwrap();
        assert_eq!(xattrs.len(), 7);
    }
}
