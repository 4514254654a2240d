//! From a mount list to the one path that names its snapshot directory, by text alone.
//!
//! Nothing here touches the file system: a list that is not ours must be passed on to the next differ
//! without a trace. What is below a configured root but misspelt is refused for good.
//!
//! Source: docs/formats/containerd.md, "Mount lists"; containerd `plugins/snapshots/erofs`.

use super::{
    error::MountError,
    mount::{Mount, decimal, mount_template, overlay_template},
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
    /// What the leaf must be.
    pub(super) leaves: &'static [&'static str],
    /// What the mounts allow.
    pub(super) access: Access,
}

/// Last component of a path to an overlay's upper directory, or to a bind mount's source.
pub(super) const UPPER: &[&str] = &["fs"];
/// Last component of an EROFS mount's source.
const IMAGE: &[&str] = &["layer.erofs", "fsmeta.erofs"];
/// Last component of the writable image in block mode.
pub(super) const BLOCK: &[&str] = &["rwlayer.img"];

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
        return Ok(Claim { path: &first.source, leaves: BLOCK, access });
    }
    match last.base() {
        "bind" => match mount_template(&last.source) {
            Some(number) => match mounts.get(number) {
                Some(named) if named.base() == "erofs" => {
                    Ok(Claim { path: &named.source, leaves: IMAGE, access: Access::View })
                }
                _ => Err(MountError::Form("a bind mount's template names no EROFS mount of the list")),
            },
            None if is_template(&last.source) => Err(MountError::Form("a bind mount of an unknown template")),
            None => {
                let access = if last.has_flag("ro") { Access::View } else { Access::Active };
                Ok(Claim { path: &last.source, leaves: UPPER, access })
            }
        },
        "erofs" => Ok(Claim { path: &last.source, leaves: IMAGE, access: Access::View }),
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
        return Ok(Claim { path: upper, leaves: UPPER, access });
    }
    let lower = last.values("lowerdir").next().ok_or(MountError::Form("an overlay without directories"))?;
    if overlay_template(lower).is_some() || mount_template(lower).is_some() {
        if first.base() != "erofs" {
            return Err(MountError::Form("an overlay over templates whose first mount is no EROFS image"));
        }
        return Ok(Claim { path: &first.source, leaves: IMAGE, access: Access::View });
    }
    if is_template(lower) {
        return Err(MountError::Form("a lower directory in an unknown template"));
    }
    let nearest = lower.split(':').next().unwrap_or_default();
    Ok(Claim { path: nearest, leaves: UPPER, access: Access::View })
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

/// Where a path lies with respect to one root.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    /// Not below it.
    Outside,
    /// Below it, but not a snapshot's file of the expected name.
    Odd,
    /// The file of the snapshot with this id.
    Snapshot(&'p str),
}

/// Compares `path` with `<root>/snapshots/<id>/<leaf>`, byte by byte.
pub(super) fn place<'p>(root: &str, path: &'p str, leaves: &[&str]) -> Place<'p> {
    let Some(rest) = path.strip_prefix(root) else { return Place::Outside };
    let Some(rest) = rest.strip_prefix('/') else {
        return if rest.is_empty() { Place::Odd } else { Place::Outside };
    };
    let mut parts = rest.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("snapshots"), Some(id), Some(leaf), None)
            if decimal(id).is_some_and(|number| number > 0) && leaves.contains(&leaf) =>
        {
            Place::Snapshot(id)
        }
        _ => Place::Odd,
    }
}

/// Looks for contradictions in a list whose directory is `<root>/snapshots/<id>`, as `home` has both, or whose
/// layers are all shared.
///
/// Only called once the list is known to be ours: another snapshotter's oddities are not our matter.
pub(super) fn check_options(
    mounts: &[Mount],
    home: Option<(&str, &str)>,
    is_shared: &dyn Fn(&str) -> bool,
) -> Result<(), MountError> {
    let placed =
        |value, leaf: &'static str| home.map_or(Place::Outside, |(root, _)| place(root, value, &[leaf]));
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
            if home.is_none_or(|(_, id)| placed(value, "work") != Place::Snapshot(id)) {
                return refuse("workdir", value, "not beside the upper directory");
            }
        }
        for value in mount.values("device") {
            if !matches!(placed(value, "layer.erofs"), Place::Snapshot(_)) && !is_shared(value) {
                return refuse("device", value, "not a layer below the same root, nor a shared one");
            }
        }
    }
    Ok(())
}

/// A text from outside for a message: escaped, and cut at 256 bytes.
pub(super) fn quote(text: &str) -> String {
    let mut end = text.len().min(256);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (shown, rest) = text.split_at(end);
    if rest.is_empty() { format!("{shown:?}") } else { format!("{shown:?}...") }
}
