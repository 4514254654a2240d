//! From a mount list to the one path that names its snapshot directory, by text alone.
//!
//! Nothing here touches the file system: a list that is not ours must be passed on to the next differ
//! without a trace. What is below a configured root but misspelt is refused for good.
//!
//! Source: docs/formats/containerd.md, "Mount lists"; containerd `plugins/snapshots/erofs`.

use super::{
    error::{MountError, quote},
    layout::Leaf,
    mount::{Mount, mount_template, overlay_template},
    place::{Place, Spot},
};
use crate::limits;

/// Whether a snapshot may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An active snapshot: a layer may be applied.
    Active,
    /// A view, or a committed layer seen through one: only to be read.
    View,
}

/// The path in a mount list that names the directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim<'m> {
    /// `<root>/snapshots/<id>/<leaf>`, if it is ours.
    pub(super) path: &'m str,
    /// The kind of entry that the path must name.
    pub(super) leaf: Leaf,
    /// What the mounts allow.
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
pub(super) fn claim(mounts: &[Mount]) -> Result<Claim<'_>, MountError> {
    let (first, last) = ends(mounts)?;
    if first.kind.starts_with("mkfs/") {
        let access = if first.has_flag("ro") || last.has_flag("ro") { Access::View } else { Access::Active };
        return Ok(Claim { path: &first.source, leaf: Leaf::Block, access });
    }
    match last.base() {
        "bind" => match mount_template(&last.source) {
            Some(number) => match mounts.get(number) {
                Some(named) if named.base() == "erofs" => {
                    Ok(Claim { path: &named.source, leaf: Leaf::Image, access: Access::View })
                }
                _ => Err(MountError::Form("a bind mount's template names no EROFS mount of the list")),
            },
            None if is_template(&last.source) => Err(MountError::Form("a bind mount of an unknown template")),
            None => {
                let access = if last.has_flag("ro") { Access::View } else { Access::Active };
                Ok(Claim { path: &last.source, leaf: Leaf::Upper, access })
            }
        },
        "erofs" => Ok(Claim { path: &last.source, leaf: Leaf::Image, access: Access::View }),
        "overlay" => overlay(first, last),
        _ => Err(MountError::Form("a list that ends in no bind, overlay or EROFS mount")),
    }
}

/// The first and the last mount of a list of sane size, all of whose types are known.
pub(super) fn ends(mounts: &[Mount]) -> Result<(&Mount, &Mount), MountError> {
    let bytes = mounts.iter().map(Mount::len_bytes).fold(0, usize::saturating_add);
    if mounts.len() > limits::MOUNTS || bytes > limits::MOUNT_BYTES {
        return Err(MountError::TooLarge { count: mounts.len(), bytes });
    }
    let ([first, ..], [.., last]) = (mounts, mounts) else { return Err(MountError::Empty) };
    match mounts.iter().find(|mount| !is_known(&mount.kind)) {
        Some(unknown) => Err(MountError::Type(quote(&unknown.kind))),
        None => Ok((first, last)),
    }
}

fn overlay<'m>(first: &'m Mount, last: &'m Mount) -> Result<Claim<'m>, MountError> {
    if let Some(upper) = last.values("upperdir").next() {
        if is_template(upper) {
            return Err(MountError::Form("an upper directory in a template without a block image"));
        }
        let access = if last.has_flag("ro") { Access::View } else { Access::Active };
        return Ok(Claim { path: upper, leaf: Leaf::Upper, access });
    }
    let lower = last.values("lowerdir").next().ok_or(MountError::Form("an overlay without directories"))?;
    if overlay_template(lower).is_some() || mount_template(lower).is_some() {
        if first.base() != "erofs" {
            return Err(MountError::Form("an overlay over templates whose first mount is no EROFS image"));
        }
        return Ok(Claim { path: &first.source, leaf: Leaf::Image, access: Access::View });
    }
    if is_template(lower) {
        return Err(MountError::Form("a lower directory in an unknown template"));
    }
    let nearest = lower.split(':').next().unwrap_or_default();
    Ok(Claim { path: nearest, leaf: Leaf::Upper, access: Access::View })
}

pub(super) fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// Whether a type is one the EROFS snapshotter uses: a file system behind any of its prefixes.
fn is_known(kind: &str) -> bool {
    if let Some(file_system) = kind.strip_prefix("mkfs/") {
        return !file_system.is_empty() && file_system.bytes().all(|b| b.is_ascii_alphanumeric());
    }
    let mut parts = kind.rsplit('/');
    matches!(parts.next(), Some("bind" | "overlay" | "erofs"))
        && parts.all(|prefix| matches!(prefix, "format" | "mkdir"))
}

/// Looks for contradictions in a list of the snapshot `home`, or, without one, of shared layers alone.
///
/// Only for lists below a configured root: oddities of other snapshotters are left to other differs.
pub(super) fn check_options(
    mounts: &[Mount],
    home: Option<Spot<'_>>,
    is_shared: &dyn Fn(&str) -> bool,
) -> Result<(), MountError> {
    let placed = |value, leaf| home.map_or(Place::Outside, |home| home.place(value, leaf));
    let refuse = |name: &str, value: &str, why| {
        Err(MountError::Option { option: quote(&format!("{name}={value}")), why })
    };
    for mount in mounts {
        for name in ["upperdir", "workdir", "lowerdir"] {
            let mut values = mount.values(name);
            let Some(value) = values.next() else { continue };
            if let Some(second) = values.next() {
                return refuse(name, second, "given twice");
            }
            if value.contains([',', '\\']) {
                return refuse(name, value, "a comma or an escape in a path");
            }
        }
        for value in mount.values("workdir").filter(|value| !is_template(value)) {
            if home.is_none_or(|home| home.place(value, Leaf::Work) != Place::Snapshot(home.id)) {
                return refuse("workdir", value, "not beside the upper directory");
            }
        }
        for value in mount.values("device") {
            if !matches!(placed(value, Leaf::Layer), Place::Snapshot(_)) && !is_shared(value) {
                return refuse("device", value, "not a layer below the same root, nor a shared one");
            }
        }
    }
    Ok(())
}
