//! Which extended attributes of a file belong to the image, and what overlayfs's own say.
//!
//! Source: Linux `fs/overlayfs/overlayfs.h` and `Documentation/filesystems/overlayfs.rst`.

use super::ChangesError;
use crate::tree::{FileType, Xattr, xattr};

/// What belongs to the host a file happens to lie on, and never to an image: labels of its security
/// modules and their signatures.
const HOST: [&[u8]; 5] =
    [b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor", b"security.SMACK64"];

/// Which extended attributes are written: those on the list that belong to an image at all. Never are
/// overlayfs's own, with either prefix, nor the labels that a host's security modules keep.
///
/// ```
/// use plywood::compare::changes::XattrFilter;
/// let filter = XattrFilter::default();
/// assert!(filter.keeps(b"user.mime_type") && filter.keeps(b"security.capability"));
/// assert!(!filter.keeps(b"trusted.overlay.opaque") && !filter.keeps(b"security.selinux"));
/// let none = XattrFilter::new([""; 0]).unwrap();
/// assert!(!none.keeps(b"user.mime_type"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrFilter {
    names: Vec<Vec<u8>>,
    prefixes: Vec<Vec<u8>>,
}

impl XattrFilter {
    /// What is written when nothing else is asked for.
    pub const DEFAULT: [&str; 4] = ["user.*", "trusted.*", "security.capability", "system.posix_acl_*"];

    /// Names, and beginnings of names followed by `*`. Errors: [`ChangesError::Pattern`].
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, ChangesError> {
        let mut filter = Self { names: Vec::new(), prefixes: Vec::new() };
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let (text, into) = match pattern.strip_suffix('*') {
                Some(prefix) => (prefix, &mut filter.prefixes),
                None => (pattern, &mut filter.names),
            };
            // "*" alone is everything; a name has a namespace, which ends in a dot.
            if text.contains(['*', '\0']) || (!text.contains('.') && pattern != "*") {
                return Err(ChangesError::Pattern(pattern.to_owned()));
            }
            into.push(text.into());
        }
        Ok(filter)
    }

    /// Whether the attribute `name` is written.
    pub fn keeps(&self, name: &[u8]) -> bool {
        let listed = self.names.iter().any(|kept| kept == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix));
        listed && xattr::is_kept(name) && !HOST.iter().any(|label| name.starts_with(label))
    }

    /// Those of `xattrs` that are written for a file of type `file_type`. An image that others made may hold
    /// some that no file can have, and that Apply would refuse.
    pub(super) fn kept(&self, xattrs: &[Xattr], file_type: FileType) -> Vec<Xattr> {
        let kept = |xattr: &&Xattr| {
            self.keeps(&xattr.name)
                && xattr::is_settable(&xattr.name, &xattr.value, file_type).unwrap_or(false)
        };
        xattrs.iter().filter(kept).cloned().collect()
    }
}

impl Default for XattrFilter {
    fn default() -> Self {
        let text = |prefix: &str| prefix.as_bytes().to_vec();
        Self {
            names: vec![text("security.capability")],
            prefixes: ["user.", "trusted.", "system.posix_acl_"].map(text).into(),
        }
    }
}

/// What overlayfs's own attributes of a file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    /// A directory that hides all lower ones.
    pub opaque: bool,
    /// A directory that may hold whiteouts in the form of an attribute.
    pub holds_whiteouts: bool,
    /// An empty file that is such a whiteout, in a directory that may hold some.
    pub whiteout: bool,
    /// The name under which layers below are searched, or a path from the root when it begins with a slash.
    pub redirect: Option<Vec<u8>>,
    /// Whether the data is that of a lower file.
    pub metacopy: Metacopy,
}

/// Whether a file's data is that of a lower one: `struct ovl_metacopy`.
///
/// | offset | size | field       | meaning                              |
/// |-------:|-----:|-------------|--------------------------------------|
/// |      0 |    1 | version     | 0                                    |
/// |      1 |    1 | len         | bytes of all, the digest included    |
/// |      2 |    1 | flags       | 0                                    |
/// |      3 |    1 | digest_algo | 0 for none, else one of fs-verity's  |
/// |      4 |      | digest      | of the lower file                    |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Metacopy {
    /// It has data of its own.
    #[default]
    None,
    /// It is; the usual attribute has no value at all.
    Plain,
    /// It is, and must have a certain digest.
    Digest,
    /// The attribute is none that the kernel writes.
    Malformed,
}

impl Metacopy {
    fn read(value: &[u8]) -> Self {
        match value {
            [] => Self::Plain,
            [0, len, 0, 0] if usize::from(*len) == value.len() => Self::Plain,
            [0, len, 0, 1..=u8::MAX, _, ..] if usize::from(*len) == value.len() => Self::Digest,
            _ => Self::Malformed,
        }
    }
}

impl Control {
    /// Reads them; `prefix` is what their names begin with.
    pub fn read(xattrs: &[Xattr], prefix: &[u8]) -> Self {
        let mut control = Self::default();
        for Xattr { name, value } in xattrs {
            match (name.strip_prefix(prefix), value.as_slice()) {
                (Some(b"opaque"), b"y") => control.opaque = true,
                (Some(b"opaque"), b"x") => control.holds_whiteouts = true,
                (Some(b"whiteout"), _) => control.whiteout = true,
                (Some(b"redirect"), target) => control.redirect = Some(target.to_vec()),
                (Some(b"metacopy"), value) => control.metacopy = Metacopy::read(value),
                _ => {}
            }
        }
        control
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_overlayfs_or_to_the_host_is_never_written() {
        let all = XattrFilter::new(["*"]).unwrap();
        for (name, default, everything) in [
            ("user.a", true, true),
            ("trusted.a", true, true),
            ("security.capability", true, true),
            ("security.capability2", false, true),
            ("security.other", false, true),
            ("system.posix_acl_access", true, true),
            ("system.posix_acl_default", true, true),
            ("system.nfs4_acl", false, false),
            ("trusted.overlay.opaque", false, false),
            ("trusted.overlay.overlay.opaque", false, false),
            ("user.overlay.opaque", false, false),
            ("user.overlay.anything", false, false),
            ("trusted.erofs.fingerprint", false, false),
            ("security.selinux", false, false),
            ("security.ima", false, false),
            ("security.evm", false, false),
            ("security.SMACK64EXEC", false, false),
            ("security.apparmor", false, false),
        ] {
            assert_eq!(XattrFilter::default().keeps(name.as_bytes()), default, "{name}");
            assert_eq!(all.keeps(name.as_bytes()), everything, "{name}");
        }
        assert_eq!(XattrFilter::new(XattrFilter::DEFAULT), Ok(XattrFilter::default()));
    }

    #[test]
    fn lists_that_mean_nothing_are_refused() {
        for pattern in ["", "user", "user*", "user.*.a", "user.\0"] {
            let error = XattrFilter::new([pattern]).unwrap_err();
            assert_eq!(error, ChangesError::Pattern(pattern.to_owned()));
        }
    }

    #[test]
    fn control_data_is_what_has_the_layer_s_own_prefix() {
        let xattr = |name: &str, value: &str| Xattr { name: name.into(), value: value.into() };
        let xattrs = [
            xattr("trusted.overlay.opaque", "y"),
            xattr("trusted.overlay.origin", "\0"),
            xattr("user.overlay.metacopy", ""),
            xattr("user.overlay.opaque", "x"),
        ];
        let trusted = Control { opaque: true, ..Control::default() };
        assert_eq!(Control::read(&xattrs, b"trusted.overlay."), trusted);
        let user = Control { metacopy: Metacopy::Plain, holds_whiteouts: true, ..Control::default() };
        assert_eq!(Control::read(&xattrs, b"user.overlay."), user);
        let odd = [xattr("trusted.overlay.opaque", "yes"), xattr("trusted.overlay.opaqu", "y")];
        assert_eq!(Control::read(&odd, b"trusted.overlay."), Control::default());
    }

    #[test]
    fn a_metacopy_has_no_value_or_the_kernel_s_header_and_a_digest() {
        for (value, want) in [
            (&b""[..], Metacopy::Plain),
            (&[0, 4, 0, 0], Metacopy::Plain),
            (&[0, 6, 0, 1, 7, 7], Metacopy::Digest),
            (&[0, 5, 0, 1, 7, 7], Metacopy::Malformed),
            (&[0, 4, 0, 1], Metacopy::Malformed),
            (&[1, 4, 0, 0], Metacopy::Malformed),
            (&[0, 4, 1, 0], Metacopy::Malformed),
            (&[0, 4, 0], Metacopy::Malformed),
        ] {
            assert_eq!(Metacopy::read(value), want, "{value:?}");
        }
    }
}
