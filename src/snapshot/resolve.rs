//! From a mount list to the one path that names its snapshot directory, by text alone.
//!
//! Nothing here touches the file system: a list of another snapshotter must be passed on to the next differ
//! without a trace. A path below a configured root that is misspelt is refused for good.
//!
//! Source: docs/formats/containerd.md, "Mount lists"; containerd `plugins/snapshots/erofs`.

use super::{
    error::{MountError, quote},
    layout::Leaf,
    list::{Entry, MountList, Word},
    place::{Place, Spot},
};

/// Whether a snapshot may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An active snapshot: a layer may be applied.
    Active,
    /// A view, or a committed layer seen through one: it may only be read.
    View,
}

impl Access {
    fn of(is_read_only: bool) -> Self {
        if is_read_only { Self::View } else { Self::Active }
    }
}

/// The path in a mount list that names the directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim<'m> {
    /// `<root>/snapshots/<id>/<leaf>`, if the snapshot is one that is served.
    pub(super) path: &'m str,
    /// The kind of entry that the path must name.
    pub(super) leaf: Leaf,
    /// The access that the mounts allow.
    pub(super) access: Access,
}

/// Picks the path that names the directory.
///
/// | list | path |
/// |---|---|
/// | the first type begins with `mkfs/` | source of the first mount |
/// | the last type ends in `bind` or `erofs` | its source |
/// | `format/bind` of `{{ mount N }}` | source of mount N |
/// | `overlay` with `upperdir` | the upper directory |
/// | `overlay` without, `lowerdir` a template | source of the first mount |
/// | `overlay` without, `lowerdir` a list | its first component |
pub(super) fn claim<'m>(list: &MountList<'m>) -> Result<Claim<'m>, MountError> {
    let (first, last) = (list.first(), &list.last);
    if first.makes.is_some() {
        let access = Access::of(first.is_read_only || last.is_read_only);
        return Ok(Claim { path: first.path, leaf: Leaf::Block, access });
    }
    match last.base {
        "bind" => match last.source {
            Word::Path(path) => Ok(Claim { path, leaf: Leaf::Upper, access: Access::of(last.is_read_only) }),
            Word::Mount(number) => match list.before.get(number) {
                Some(named) if named.base == "erofs" => {
                    Ok(Claim { path: named.path, leaf: Leaf::Image, access: Access::View })
                }
                _ => Err(MountError::Form("a bind mount's template names no EROFS mount of the list")),
            },
            _ => Err(MountError::Form("a bind mount of an unknown template")),
        },
        "erofs" => Ok(Claim { path: last.path, leaf: Leaf::Image, access: Access::View }),
        "overlay" => overlay(first, last),
        _ => Err(MountError::Form("a list that ends in no bind, overlay or EROFS mount")),
    }
}

fn overlay<'m>(first: &Entry<'m>, last: &Entry<'m>) -> Result<Claim<'m>, MountError> {
    if let Some(upper) = last.upper.first {
        let Word::Path(path) = Word::of(upper) else {
            return Err(MountError::Form("an upper directory in a template without a block image"));
        };
        return Ok(Claim { path, leaf: Leaf::Upper, access: Access::of(last.is_read_only) });
    }
    let lower = last.lower.first.ok_or(MountError::Form("an overlay without directories"))?;
    match Word::of(lower) {
        Word::Path(paths) => {
            let nearest = paths.split(':').next().unwrap_or_default();
            Ok(Claim { path: nearest, leaf: Leaf::Upper, access: Access::View })
        }
        Word::Mount(_) | Word::Overlay(..) if first.base == "erofs" => {
            Ok(Claim { path: first.path, leaf: Leaf::Image, access: Access::View })
        }
        Word::Mount(_) | Word::Overlay(..) => {
            Err(MountError::Form("an overlay over templates whose first mount is no EROFS image"))
        }
        _ => Err(MountError::Form("a lower directory in an unknown template")),
    }
}

/// Looks for contradictions in a list of the snapshot `home`, or, without one, of shared layers alone.
///
/// Called for lists below a configured root only: oddities of other snapshotters are left to other differs.
pub(super) fn check_options(
    list: &MountList<'_>,
    home: Option<Spot<'_>>,
    is_shared: &dyn Fn(&str) -> bool,
) -> Result<(), MountError> {
    let placed = |value, leaf| home.map_or(Place::Outside, |home| home.place(value, leaf));
    let refuse = |name: &str, value: &str, why| {
        Err(MountError::Option { option: quote(&format!("{name}={value}")), why })
    };
    for entry in list.entries() {
        for (name, values) in [("upperdir", entry.upper), ("workdir", entry.work), ("lowerdir", entry.lower)]
        {
            let Some(value) = values.first else { continue };
            if let Some(second) = values.second {
                return refuse(name, second, "given twice");
            }
            if value.contains([',', '\\']) {
                return refuse(name, value, "a comma or an escape in a path");
            }
        }
        if let Some(Word::Path(value)) = entry.work.first.map(Word::of)
            && home.is_none_or(|home| home.place(value, Leaf::Work) != Place::Snapshot(home.id))
        {
            return refuse("workdir", value, "not beside the upper directory");
        }
        for &value in &entry.devices {
            if !matches!(placed(value, Leaf::Layer), Place::Snapshot(_)) && !is_shared(value) {
                return refuse("device", value, "not a layer below the same root, nor a shared one");
            }
        }
    }
    Ok(())
}

/// Looks for options whose effect on the layers is not known.
pub(super) fn check_known(list: &MountList<'_>) -> Result<(), MountError> {
    match list.entries().find_map(|entry| entry.unknown) {
        Some(option) => Err(MountError::UnknownOption(quote(option))),
        None => Ok(()),
    }
}
