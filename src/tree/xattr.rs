//! Extended attributes of a layer: which names reach the image, and how large they may be.
//!
//! The image is mounted below overlayfs by root, so a layer must not be able to forge what overlayfs
//! or EROFS keep in attributes of their own; only this program writes those. How an attribute is
//! spelled on disk is the writer's part.
//!
//! Source: Linux `include/uapi/linux/xattr.h` and `limits.h`, `fs/overlayfs/overlayfs.h` (names that
//! overlayfs trusts), `fs/erofs/xattr.h` (namespaces that EROFS can store).

use super::Xattr;
use crate::{
    error::{Classify, Kind, Quoted},
    limits,
};

/// Namespaces that an image can hold; a name needs at least one byte more.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Names outside those namespaces that an image can hold.
const NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Names that steer a file system instead of describing a file.
///
/// overlayfs reads the first (and, mounted with `userxattr`, the second). The third holds the content
/// fingerprints by which EROFS shares page cache between images: a forged one would make two files
/// share pages. Images written here configure no other fingerprint name, so no other can take effect.
const CONTROL: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"trusted.erofs."];

/// Bytes of an encoded attribute besides its name and value.
const ENTRY_HEADER_BYTES: usize = 4;

/// Why a layer's extended attribute is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrError {
    /// The name does not fit.
    #[error(
        "the name of extended attribute {} has {} bytes, more than {}",
        Quoted(name), name.len(), limits::XATTR_NAME_BYTES
    )]
    Name {
        /// The full name.
        name: Vec<u8>,
    },
    /// The value does not fit.
    #[error(
        "extended attribute {} has {size_bytes} bytes, more than {}",
        Quoted(name),
        limits::XATTR_VALUE_BYTES
    )]
    Value {
        /// The full name.
        name: Vec<u8>,
        /// Length of the value in bytes.
        size_bytes: usize,
    },
    /// All attributes of one file together do not fit.
    #[error("the extended attributes take {size_bytes} bytes, more than {}", limits::XATTR_SUM_BYTES)]
    Sum {
        /// Their encoded size in bytes.
        size_bytes: usize,
    },
}

impl Classify for XattrError {
    fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } | Self::Value { .. } => Kind::Malformed,
            Self::Sum { .. } => Kind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } => "xattr.name",
            Self::Value { .. } => "xattr.value",
            Self::Sum { .. } => "limit.xattrs",
        }
    }
}

/// Whether an attribute of a layer reaches the image; the others are dropped and counted.
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

/// Brings the attributes of one file into their normal form: sorted by name, each name once, the last
/// of equal names wins. Errors: [`XattrError::Sum`] when what remains is too large for one inode.
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

/// Size of one attribute in an inode: a header, the name without its namespace, the value, padding.
fn encoded_bytes(xattr: &Xattr) -> usize {
    let namespace = NAMESPACES.iter().find(|namespace| xattr.name.starts_with(namespace));
    // The two names outside those namespaces are encoded as a number alone.
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
        // 4 bytes of header, 1 of name and the value: a multiple of four.
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
    fn fifty_thousand_attributes_take_no_quadratic_time() {
        let mut xattrs: Vec<_> = (0..50_000).map(|n| xattr(&format!("user.{}", n % 7), b"v")).collect();
        settle(&mut xattrs).unwrap();
        assert_eq!(xattrs.len(), 7);
    }
}
