//! From a mount list to the layers it stacks, by text alone.
//!
//! Entries that templates name are looked up in the list itself; no disk is touched. The roots are not known
//! here, so a path may lie anywhere.
//!
//! Source: docs/formats/containerd.md, "From a list to a stack"; containerd `plugins/snapshots/erofs`,
//! `plugins/snapshots/overlay`, `core/mount/manager`.

use super::{
    error::{MountError, quote},
    ids::{IdMap, IdMaps},
    layout::{Leaf, is_merged},
    list::{Entry, Maps, MountList, Value, Word},
};
use crate::limits;

/// The layers of a list as unchecked paths.
#[derive(Debug, Default)]
pub(super) struct Plan<'m> {
    /// Newest first.
    pub(super) items: Vec<Item<'m>>,
    /// Each merged metadata with the topmost layer it stands for. They must lie side by side.
    pub(super) merged: Vec<(&'m str, &'m str)>,
    /// Overlayfs keeps its attributes in `user.overlay.`.
    pub(super) user_xattr: bool,
    /// The maps of the overlay with an upper directory, which hold for that directory.
    pub(super) maps: Option<Maps<'m>>,
}

/// One layer of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'m> {
    /// `D/fs`, an upper directory. A container may be writing to it.
    Upper(&'m str),
    /// `X/fs`, bound read-only: a layer, or the empty directory of a view of nothing.
    Viewed(&'m str),
    /// `P/fs`, a lower directory.
    Lower(&'m str),
    /// `P/layer.erofs`, and the further devices it names.
    Image { path: &'m str, devices: Vec<&'m str> },
    /// `D/rwlayer.img`, an ext4 image with an upper directory. A container may be writing to it.
    Block(&'m str),
    /// `V/rwlayer.img`, to be mounted read-only: a view of nothing, for which the snapshotter makes no image.
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

/// Finds the layers of a list. The last entry shows the snapshot; every other one must be part of it.
pub(super) fn plan<'m>(list: &MountList<'m>) -> Result<Plan<'m>, MountError> {
    let last = &list.last;
    let mut reading =
        Reading { before: &list.before, used: vec![false; list.before.len()], plan: Plan::default() };
    match last.base {
        _ if last.makes.is_some() => {
            return Err(MountError::Form("a list that ends in a block image"));
        }
        "bind" => reading.bind(last)?,
        "overlay" => reading.overlay(last)?,
        _ => reading.image(last),
    }
    if reading.used.contains(&false) {
        return Err(MountError::Form("a mount that the last one of the list does not use"));
    }
    let devices = |item: &Item<'_>| match item {
        Item::Image { devices, .. } => devices.len(),
        _ => 0,
    };
    // All of them will be open at a time.
    let files = reading.plan.items.iter().map(devices).sum::<usize>() + reading.plan.items.len();
    if files > limits::MOUNTS {
        return Err(list.too_large(files));
    }
    Ok(reading.plan)
}

struct Reading<'l, 'm> {
    before: &'l [Entry<'m>],
    /// The entries that have become part of the plan.
    used: Vec<bool>,
    plan: Plan<'m>,
}

impl<'l, 'm> Reading<'l, 'm> {
    fn bind(&mut self, last: &Entry<'m>) -> Result<(), MountError> {
        if let Word::Path(path) = last.source {
            let item = if last.is_read_only { Item::Viewed(path) } else { Item::Upper(path) };
            self.plan.items.push(item);
            return Ok(());
        }
        formatted(last)?;
        match last.source {
            Word::UpperOf(number) => self.block(last, number),
            Word::Mount(number) => self.lower_image(number),
            _ => Err(MountError::Form("a bind mount of an unknown template")),
        }
    }

    fn overlay(&mut self, last: &Entry<'m>) -> Result<(), MountError> {
        self.plan.user_xattr = last.user_xattr;
        let upper = last.upper.first;
        if let Some(upper) = upper {
            self.plan.maps = Some(last.maps);
            match Word::of(upper) {
                Word::Path(path) => self.plan.items.push(Item::Upper(path)),
                word => {
                    formatted(last)?;
                    let Word::UpperOf(number) = word else {
                        return Err(MountError::Form("an upper directory in an unknown template"));
                    };
                    self.block(last, number)?;
                }
            }
        }
        match last.lower.first {
            Some(lower) => lower.split(':').try_for_each(|part| self.lower(last, part)),
            // Layers that are unpacked side by side: what is below them is not known yet.
            None if upper.is_some() => Ok(()),
            None => Err(MountError::Form("an overlay without directories")),
        }
    }

    /// Adds one component of `lowerdir`.
    fn lower(&mut self, last: &Entry<'m>, part: &'m str) -> Result<(), MountError> {
        if part.is_empty() {
            return Err(MountError::Form("an empty lower directory"));
        }
        let word = Word::of(part);
        if let Word::Path(path) = word {
            self.plan.items.push(Item::Lower(path));
            return Ok(());
        }
        formatted(last)?;
        match word {
            Word::Mount(number) => self.lower_image(number),
            // Each entry can be used once only, so that large numbers end soon.
            Word::Overlay(first, end) if first <= end => {
                (first..=end).try_for_each(|number| self.lower_image(number))
            }
            Word::Overlay(first, end) => (end..=first).rev().try_for_each(|number| self.lower_image(number)),
            _ => Err(MountError::Form("a lower directory in an unknown template")),
        }
    }

    /// Takes the entry `number`, an EROFS image.
    fn lower_image(&mut self, number: usize) -> Result<(), MountError> {
        let entry = self.take(number)?;
        if entry.base != "erofs" || entry.makes.is_some() {
            return Err(MountError::Form("a template that should name an EROFS mount and names another"));
        }
        self.image(entry);
        Ok(())
    }

    /// Takes the entry `number`, an image whose upper directory `last` shows.
    fn block(&mut self, last: &Entry<'m>, number: usize) -> Result<(), MountError> {
        let entry = self.take(number)?;
        if entry.makes != Some("ext4") {
            return Err(MountError::Form("an upper directory in something else than an ext4 image"));
        }
        let is_view = entry.is_read_only || last.is_read_only;
        let item = if is_view { Item::ViewedBlock } else { Item::Block };
        self.plan.items.push(item(entry.path));
        Ok(())
    }

    fn take(&mut self, number: usize) -> Result<&'l Entry<'m>, MountError> {
        match (self.before.get(number), self.used.get_mut(number)) {
            (Some(entry), Some(used)) if !*used => {
                *used = true;
                Ok(entry)
            }
            _ => Err(MountError::Form(
                "a template of no mount before it, or of one that has its place already",
            )),
        }
    }

    /// Adds an EROFS mount: one layer, or all those that merged metadata stands for.
    fn image(&mut self, entry: &Entry<'m>) {
        let Entry { path, devices, .. } = entry;
        match devices.last() {
            Some(top) if is_merged(path) => {
                self.plan.merged.push((path, top));
                // The list has the bottom layer first.
                let layers = devices.iter().rev().map(|path| Item::Image { path, devices: Vec::new() });
                self.plan.items.extend(layers);
            }
            _ => self.plan.items.push(Item::Image { path, devices: devices.clone() }),
        }
    }
}

fn formatted(entry: &Entry<'_>) -> Result<(), MountError> {
    match entry.is_formatted {
        true => Ok(()),
        false => Err(MountError::Form("a template in a mount whose type does not begin with format/")),
    }
}

/// Reads the maps of an overlay. Like containerd, it heeds them only when both are there.
pub(super) fn id_maps(maps: Maps<'_>) -> Result<IdMaps, MountError> {
    let value = |name, Value { first, second }| match second {
        Some(second) => Err(refuse(name, second, "given twice")),
        None => Ok(first),
    };
    let parse = |name, text| IdMap::parse(text).map_err(|why| refuse(name, text, why));
    match (value("uidmap", maps.users)?, value("gidmap", maps.groups)?) {
        (Some(users), Some(groups)) => {
            Ok(IdMaps { users: parse("uidmap", users)?, groups: parse("gidmap", groups)? })
        }
        _ => Ok(IdMaps::default()),
    }
}

fn refuse(name: &str, value: &str, why: &'static str) -> MountError {
    MountError::Option { option: quote(&format!("{name}={value}")), why }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
