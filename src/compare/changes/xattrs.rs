//! The filter for extended attributes that are written to a layer.
//!
//! Described in `docs/formats/containerd.md`, "Diff".

use super::error::ChangesError;
use crate::tree::{FileType, Xattr, xattr};

/// Beginnings of the names that belong to the host of a file, and never to an image: labels of security modules
/// and their signatures.
const HOST: [&[u8]; 5] =
    [b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor", b"security.SMACK64"];

/// Filter for extended attributes: those on its list are written. Never written, even if listed, are overlayfs's
/// own, with either prefix, and the labels that a host's security modules keep.
///
/// ```
/// use plywood::compare::changes::XattrFilter;
/// assert!(XattrFilter::new(["user.*", "security.capability"]).is_ok());
/// assert!(XattrFilter::new(["no-namespace"]).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrFilter {
    names: Vec<Vec<u8>>,
    prefixes: Vec<Vec<u8>>,
}

impl XattrFilter {
    /// Patterns of the default filter.
    pub const DEFAULT: [&str; 4] = ["user.*", "trusted.*", "security.capability", "system.posix_acl_*"];

    /// A filter for `patterns`: names, and beginnings of names followed by `*`. Errors: [`ChangesError::Pattern`].
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, ChangesError> {
        let mut filter = Self { names: Vec::new(), prefixes: Vec::new() };
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let (text, into) = match pattern.strip_suffix('*') {
                Some(prefix) => (prefix, &mut filter.prefixes),
                None => (pattern, &mut filter.names),
            };
            // "*" alone matches everything; a name has a namespace, which ends in a dot.
            if text.contains(['*', '\0']) || (!text.contains('.') && pattern != "*") {
                return Err(ChangesError::Pattern(pattern.to_owned()));
            }
            into.push(text.into());
        }
        Ok(filter)
    }

    /// Whether the attribute `name` is written.
    fn keeps(&self, name: &[u8]) -> bool {
        let listed = self.names.iter().any(|kept| kept == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix));
        listed && xattr::is_kept(name) && !HOST.iter().any(|label| name.starts_with(label))
    }

    /// The attributes of `xattrs` that are written for a file of type `file_type`. Images of other tools may hold
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
        let none = XattrFilter::new([""; 0]).unwrap();
        assert!(!none.keeps(b"user.mime_type"));
    }

    #[test]
    fn lists_that_mean_nothing_are_refused() {
        for pattern in ["", "user", "user*", "user.*.a", "user.\0"] {
            let error = XattrFilter::new([pattern]).unwrap_err();
            assert_eq!(error, ChangesError::Pattern(pattern.to_owned()));
        }
    }
}
