//! From a mount list to the layers it stacks, by text alone.
//!
//! Templates are compared with the forms that the snapshotters emit and looked up in the list itself;
//! nothing is evaluated, and no disk is touched. Which roots the paths are below is not known here.
//!
//! Source: docs/formats/containerd.md, "From a list to a stack"; containerd `plugins/snapshots/erofs`,
//! `plugins/snapshots/overlay`, `core/mount/manager`.

use super::{
    error::{MountError, quote},
    ids::{IdMap, IdMaps},
    layout::{Leaf, is_merged},
    mount::{Mount, mount_template, overlay_template},
    resolve::{ends, is_template},
};
use crate::limits;

/// The layers of a list, the newest first, as paths of which nothing is known yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan<'m> {
    /// Newest first.
    pub(super) items: Vec<Item<'m>>,
    /// Merged metadata, and the topmost layer it stands for: they must lie side by side.
    pub(super) merged: Vec<(&'m str, &'m str)>,
    /// Overlayfs keeps its attributes in `user.overlay.`.
    pub(super) user_xattr: bool,
    /// The overlay with an upper directory, whose maps hold for it.
    pub(super) overlay: Option<&'m Mount>,
}

/// One layer of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'m> {
    /// `D/fs`, which a container may be writing to.
    Upper(&'m str),
    /// `X/fs`, bound read-only: a layer, or the empty directory of a view of nothing.
    Viewed(&'m str),
    /// `P/fs`, a lower directory.
    Lower(&'m str),
    /// `P/layer.erofs`, and the further devices it names.
    Image { path: &'m str, devices: Vec<&'m str> },
    /// `D/rwlayer.img`, in whose directory `upper` a container may be writing.
    Block(&'m str),
    /// A block image to be mounted read-only: a view of nothing, which never gets an image.
    ViewedBlock(&'m str),
}

impl<'m> Item<'m> {
    pub(super) fn path(&self) -> &'m str {
        match self {
            Self::Upper(path)
            | Self::Viewed(path)
            | Self::Lower(path)
            | Self::Image { path, .. }
            | Self::Block(path)
            | Self::ViewedBlock(path) => path,
        }
    }

    /// The kind of entry that the path must name.
    pub(super) fn leaf(&self) -> Leaf {
        match self {
            Self::Upper(_) | Self::Viewed(_) | Self::Lower(_) => Leaf::Upper,
            Self::Image { .. } => Leaf::Layer,
            Self::Block(_) | Self::ViewedBlock(_) => Leaf::Block,
        }
    }
}

/// Reads a list. The last entry says what is seen in the end; every other one must be part of that.
pub(super) fn plan(mounts: &[Mount]) -> Result<Plan<'_>, MountError> {
    let (_, last) = ends(mounts)?;
    let mut list = Reading { mounts, used: vec![false; mounts.len()], plan: Plan::default() };
    list.used.last_mut().into_iter().for_each(|used| *used = true);
    match last.kind.as_str() {
        kind if kind.starts_with("mkfs/") => {
            return Err(MountError::Form("a list that ends in a block image"));
        }
        _ if last.base() == "bind" => list.bind(last)?,
        _ if last.base() == "overlay" => list.overlay(last)?,
        _ => list.image(last),
    }
    if list.used.contains(&false) {
        return Err(MountError::Form("a mount that the last one of the list does not use"));
    }
    let devices = |item: &Item<'_>| match item {
        Item::Image { devices, .. } => devices.len(),
        _ => 0,
    };
    // All of them will be open at a time.
    let files = list.plan.items.iter().map(devices).sum::<usize>() + list.plan.items.len();
    if files > limits::MOUNTS {
        let bytes = mounts.iter().map(Mount::len_bytes).fold(0, usize::saturating_add);
        return Err(MountError::TooLarge { count: files, bytes });
    }
    Ok(list.plan)
}

struct Reading<'m> {
    mounts: &'m [Mount],
    /// Which entries have become part of the plan.
    used: Vec<bool>,
    plan: Plan<'m>,
}

impl<'m> Reading<'m> {
    fn bind(&mut self, last: &'m Mount) -> Result<(), MountError> {
        let source = last.source.as_str();
        if !is_template(source) {
            // A bind mount with a map shows the ids on disk as the host's: on disk they are the container's.
            let item = if last.has_flag("ro") { Item::Viewed(source) } else { Item::Upper(source) };
            self.plan.items.push(item);
            return Ok(());
        }
        formatted(last)?;
        match block_template(source, "/upper") {
            Some(number) => self.block(last, number),
            None => match mount_template(source) {
                Some(number) => self.lower_image(number),
                None => Err(MountError::Form("a bind mount of an unknown template")),
            },
        }
    }

    fn overlay(&mut self, last: &'m Mount) -> Result<(), MountError> {
        self.plan.user_xattr = last.has_flag("userxattr");
        let upper = last.values("upperdir").next();
        if let Some(upper) = upper {
            self.plan.overlay = Some(last);
            if is_template(upper) {
                formatted(last)?;
                let unknown = MountError::Form("an upper directory in an unknown template");
                self.block(last, block_template(upper, "/upper").ok_or(unknown)?)?;
            } else {
                self.plan.items.push(Item::Upper(upper));
            }
        }
        match last.values("lowerdir").next() {
            Some(lower) => lower.split(':').try_for_each(|part| self.lower(last, part)),
            // Layers that are unpacked side by side: what is below them is not known yet.
            None if upper.is_some() => Ok(()),
            None => Err(MountError::Form("an overlay without directories")),
        }
    }

    /// One component of `lowerdir`.
    fn lower(&mut self, last: &'m Mount, part: &'m str) -> Result<(), MountError> {
        if part.is_empty() {
            return Err(MountError::Form("an empty lower directory"));
        }
        if !is_template(part) {
            self.plan.items.push(Item::Lower(part));
            return Ok(());
        }
        formatted(last)?;
        if let Some(number) = mount_template(part) {
            return self.lower_image(number);
        }
        let (first, end) =
            overlay_template(part).ok_or(MountError::Form("a lower directory in an unknown template"))?;
        // Each entry can be used once only, so that large numbers end soon.
        if first <= end {
            (first..=end).try_for_each(|number| self.lower_image(number))
        } else {
            (end..=first).rev().try_for_each(|number| self.lower_image(number))
        }
    }

    /// The entry `number`, an EROFS image.
    fn lower_image(&mut self, number: usize) -> Result<(), MountError> {
        let mount = self.take(number)?;
        if mount.base() != "erofs" || mount.kind.starts_with("mkfs/") {
            return Err(MountError::Form("a template that should name an EROFS mount and names another"));
        }
        self.image(mount);
        Ok(())
    }

    /// The entry `number`, an image whose upper directory `last` shows.
    fn block(&mut self, last: &'m Mount, number: usize) -> Result<(), MountError> {
        let mount = self.take(number)?;
        if mount.kind != "mkfs/ext4" {
            return Err(MountError::Form("an upper directory in something else than an ext4 image"));
        }
        let is_view = mount.has_flag("ro") || last.has_flag("ro");
        let item = if is_view { Item::ViewedBlock } else { Item::Block };
        self.plan.items.push(item(&mount.source));
        Ok(())
    }

    fn take(&mut self, number: usize) -> Result<&'m Mount, MountError> {
        match (self.mounts.get(number), self.used.get_mut(number)) {
            (Some(mount), Some(used)) if !*used => {
                *used = true;
                Ok(mount)
            }
            _ => Err(MountError::Form(
                "a template of no mount before it, or of one that has its place already",
            )),
        }
    }

    /// An EROFS mount: one layer, or all those that merged metadata stands for.
    fn image(&mut self, mount: &'m Mount) {
        let devices: Vec<_> = mount.values("device").collect();
        let path = mount.source.as_str();
        match devices.last() {
            Some(top) if is_merged(path) => {
                self.plan.merged.push((path, top));
                // The list has the bottom layer first.
                let layers = devices.iter().rev().map(|path| Item::Image { path, devices: Vec::new() });
                self.plan.items.extend(layers);
            }
            _ => self.plan.items.push(Item::Image { path, devices }),
        }
    }
}

/// The entry N of `{{ mount N }}` followed by `below`.
fn block_template(text: &str, below: &str) -> Option<usize> {
    mount_template(text.strip_suffix(below)?)
}

fn formatted(mount: &Mount) -> Result<(), MountError> {
    match mount.is_formatted() {
        true => Ok(()),
        false => Err(MountError::Form("a template in a mount whose type does not begin with format/")),
    }
}

/// The maps of an overlay; like containerd, only when both are there.
pub(super) fn id_maps(overlay: &Mount) -> Result<IdMaps, MountError> {
    let value = |name| {
        let mut values = overlay.values(name);
        match (values.next(), values.next()) {
            (_, Some(second)) => Err(refuse(name, second, "given twice")),
            (first, None) => Ok(first),
        }
    };
    let parse = |name, text| IdMap::parse(text).map_err(|why| refuse(name, text, why));
    match (value("uidmap")?, value("gidmap")?) {
        (Some(users), Some(groups)) => {
            Ok(IdMaps { users: parse("uidmap", users)?, groups: parse("gidmap", groups)? })
        }
        _ => Ok(IdMaps::default()),
    }
}

fn refuse(name: &str, value: &str, why: &'static str) -> MountError {
    MountError::Option { option: quote(&format!("{name}={value}")), why }
}

/// Options of any mount that say nothing about what the layers hold.
const HARMLESS: [&str; 32] = [
    "ro",
    "rw",
    "bind",
    "rbind",
    "loop",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "silent",
    "defaults",
    "nosymfollow",
];
/// The same with a value.
const HARMLESS_VALUES: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];
/// Options of an overlay whose effect is known: on how it is written, or on attributes that tell of themselves.
const OVERLAY: [&str; 6] =
    ["volatile", "userxattr", "default_permissions", "override_creds", "nooverride_creds", "direct-io"];
/// The same with a value.
const OVERLAY_VALUES: [&str; 13] = [
    "upperdir",
    "workdir",
    "lowerdir",
    "uidmap",
    "gidmap",
    "index",
    "xino",
    "redirect_dir",
    "metacopy",
    "nfs_export",
    "uuid",
    "verity",
    "fsync",
];
/// Options of an EROFS or ext4 mount that say nothing about its content.
const IMAGE: [&str; 8] =
    ["acl", "noacl", "user_xattr", "nouser_xattr", "direct-io", "discard", "nodiscard", "directio"];
/// The same with a value.
const IMAGE_VALUES: [&str; 4] = ["device", "cache_strategy", "dax", "errors"];
/// What a bind mount's map does is said in [`Reading::bind`].
const BIND_VALUES: [&str; 2] = ["uidmap", "gidmap"];

/// Looks for options whose effect on the layers is not known.
pub(super) fn check_known(mounts: &[Mount]) -> Result<(), MountError> {
    for mount in mounts {
        let (flags, values): (&[&str], &[&str]) = match mount.base() {
            "overlay" => (&OVERLAY, &OVERLAY_VALUES),
            // After an overlay of merged metadata alone was made a bind mount, the overlay's are left over.
            "bind" if mount.is_formatted() => (&OVERLAY, &OVERLAY_VALUES),
            "bind" => (&[], &BIND_VALUES),
            _ => (&IMAGE, &IMAGE_VALUES),
        };
        for option in mount.each_option().filter(|option| !option.starts_with("X-containerd.")) {
            let known = match option.split_once('=') {
                None => HARMLESS.contains(&option) || flags.contains(&option),
                Some((name, _)) => HARMLESS_VALUES.contains(&name) || values.contains(&name),
            };
            if !known {
                return Err(MountError::UnknownOption(quote(option)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
