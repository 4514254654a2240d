//! The types of layers that a Diff can write.
//!
//! Source: containerd `plugins/diff/walking/differ.go` for what a differ is asked for; OCI image
//! specification, media-types.md; `docs/formats/containerd.md`, "Diff", for the native EROFS types.

use crate::codec::Coding;

/// What the bytes of a layer are, before they are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A tar archive.
    Tar,
    /// An EROFS image.
    Erofs,
}

/// A type of layer that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Its media type.
    pub media_type: &'static str,
    /// What it is.
    pub container: Container,
    /// How it is compressed.
    pub coding: Coding,
}

const fn form(media_type: &'static str, container: Container, coding: Coding) -> Form {
    Form { media_type, container, coding }
}

impl Form {
    /// What is written when nothing is asked for: clients that commit a container take it to be this.
    pub const DEFAULT: Self =
        form("application/vnd.oci.image.layer.v1.tar+gzip", Container::Tar, Coding::Gzip);

    /// Every form. No Docker types: containerd's own differs decline them as well, and its clients rename
    /// the types of what they got.
    pub const ALL: [Self; 7] = [
        Self::DEFAULT,
        form("application/vnd.oci.image.layer.v1.tar", Container::Tar, Coding::Plain),
        form("application/vnd.oci.image.layer.v1.tar+zstd", Container::Tar, Coding::Zstd),
        form("application/vnd.erofs.layer.v1", Container::Erofs, Coding::Plain),
        form("application/vnd.erofs.layer.v1+zstd", Container::Erofs, Coding::Zstd),
        form("application/vnd.oci.image.layer.v1.erofs", Container::Erofs, Coding::Plain),
        form("application/vnd.oci.image.layer.v1.erofs+zstd", Container::Erofs, Coding::Zstd),
    ];

    /// The form that `media_type` asks for; `None` for one that another differ may know.
    ///
    /// ```
    /// use plywood::{codec::Coding, compare::Form};
    /// assert_eq!(Form::of(""), Some(Form::DEFAULT));
    /// assert_eq!(Form::of("application/vnd.oci.image.layer.v1.tar+zstd").map(|form| form.coding), Some(Coding::Zstd));
    /// assert_eq!(Form::of("application/vnd.erofs.layer.v1+gzip"), None);
    /// ```
    pub fn of(media_type: &str) -> Option<Self> {
        if media_type.is_empty() {
            return Some(Self::DEFAULT);
        }
        Self::ALL.into_iter().find(|form| form.media_type == media_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::LayerType;

    #[test]
    fn what_is_written_can_be_applied() {
        for form in Form::ALL {
            let applied = LayerType::of(form.media_type).unwrap();
            match form.container {
                Container::Tar => assert_eq!(applied, LayerType::Tar),
                Container::Erofs => {
                    let zstd = form.coding == Coding::Zstd;
                    assert!(matches!(applied, LayerType::NativeErofs { zstd: found, .. } if found == zstd));
                }
            }
            assert_eq!(Form::of(form.media_type), Some(form));
        }
    }

    #[test]
    fn anything_else_is_left_to_others() {
        for media_type in [
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zip",
            "application/vnd.erofs.layer.v1+gzip",
            " ",
        ] {
            assert_eq!(Form::of(media_type), None, "{media_type}");
        }
    }
}
