//! The two spellings of overlayfs's own attributes.
//!
//! Source: Linux `fs/overlayfs/overlayfs.h`, `OVL_XATTR_TRUSTED_PREFIX` and `OVL_XATTR_USER_PREFIX`.

/// Namespace in which overlayfs keeps its own attributes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// `trusted.overlay.`, which takes CAP_SYS_ADMIN to see.
    Trusted,
    /// `user.overlay.`, of overlays mounted with `userxattr`.
    User,
}

impl Control {
    /// Prefix of the attributes' names.
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }
}
