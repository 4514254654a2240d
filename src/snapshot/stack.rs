//! The layers that a mount list stacks, opened without mounting any.
//!
//! Source: docs/formats/containerd.md, "From a list to a stack".

use std::{fs::File, io, path::PathBuf, sync::Arc};

use rustix::{fs::FileType, thread::CapabilitySet};

use super::{
    block::{self, Upper},
    device::DeviceDir,
    error::{MountError, quote},
    ids::IdMaps,
    layout::{Leaf, UPPER_IN_BLOCK},
    list::MountList,
    mount::Mount,
    plan::{Item, Plan, id_maps, plan},
    resolve::{check_known, check_options},
    roots::{Home, Opened, Roots, Trusted, check_owner, refusal},
};
use crate::{
    digest::Digest,
    sys::{
        capabilities,
        dir::{Dir, Status, status},
        file::has_verity,
    },
};

/// The layers of one snapshot. There are none for a view of nothing, and for a list without mounts.
#[derive(Debug, Default)]
pub struct Stack {
    /// Newest first.
    pub layers: Vec<StackLayer>,
    /// Number of the layers, from the bottom on, that merged metadata stands for.
    pub merged: usize,
    /// Whether dm-verity or fs-verity protects a layer.
    pub is_verified: bool,
}

/// One layer of a stack.
#[derive(Debug)]
pub struct StackLayer {
    /// The path of the directory or image. For messages: no file is opened by this path.
    pub path: PathBuf,
    /// Device and inode number of the directory or image. A layer has the same key in all stacks, an ext4 image
    /// also while it is mounted.
    pub key: (u64, u64),
    /// The maps from owners on disk to owners inside the container.
    pub ids: IdMaps,
    /// The open directory or image.
    pub source: LayerSource,
}

/// The open directory or image of a layer.
#[derive(Debug)]
pub enum LayerSource {
    /// A directory, which a container may be writing to.
    Directory {
        /// The layer's root.
        dir: Dir,
        /// The mount has overlayfs keep its attributes in `user.overlay.` instead of `trusted.overlay.`.
        user_xattr: bool,
    },
    /// A device of the overlaybd snapshotter, which holds the layers below as well.
    Device {
        /// The snapshot.
        dir: Arc<DeviceDir>,
        /// Decides how much of it can be read.
        state: DeviceState,
    },
    /// An EROFS image and the further devices it names.
    Erofs {
        /// The image. It may be longer than its file system: a hash tree can follow.
        image: File,
        /// In the order of its device table.
        devices: Vec<File>,
    },
    /// An ext4 image that is mounted nowhere, and a directory in it.
    Ext4 {
        /// The image.
        image: File,
        /// Path of the layer's root below that of the file system; empty for that root itself.
        root: &'static str,
        /// As for a directory.
        user_xattr: bool,
    },
}

/// The state of a device of the overlaybd snapshotter.
#[derive(Debug)]
pub enum DeviceState {
    /// All layers are committed, and the device is not mounted.
    Committed,
    /// All layers are committed, and the device is mounted: this is the root of its tree. The layers may be in a registry.
    Mounted(Dir),
    /// A container has written to it: the layer is the one that it has written.
    Writable,
}

impl LayerSource {
    /// The writable layer in the `image` of a container in block mode: its directory `upper`, beside which
    /// overlayfs has its work directory.
    pub fn writable(image: File, user_xattr: bool) -> Self {
        Self::Ext4 { image, root: UPPER_IN_BLOCK, user_xattr }
    }
}

impl Roots {
    /// Opens the layers that `mounts` stack, the newest first, for reading. No mounts are a stack without layers.
    ///
    /// Errors of kind `NotImplemented` mean that the list is for another differ, or of a form no snapshotter emits.
    /// Where the newest layer lies is decided before anything is looked at on disk. Reading the directories
    /// takes [`capabilities::reading`], and reading ext4 images a [`Stack::watch`].
    pub fn stack(&self, mounts: &[Mount]) -> Result<Stack, MountError> {
        self.layers(mounts, |_| true)
    }

    /// Opens the layers below the one that is to be written, like [`Roots::stack`]. Empty when the list shows
    /// none: there are none, or layers are unpacked side by side.
    pub fn parents(&self, mounts: &[Mount]) -> Result<Stack, MountError> {
        self.layers(mounts, |item| !matches!(item, Item::Upper(_) | Item::Block(_)))
    }

    /// Opens the layers of `mounts` that are `wanted`.
    fn layers(&self, mounts: &[Mount], wanted: fn(&Item<'_>) -> bool) -> Result<Stack, MountError> {
        // BuildKit sends no mounts for the parent of a base layer, and for nothing as the newer side.
        if mounts.is_empty() {
            return Ok(Stack::default());
        }
        let list = MountList::read(mounts)?;
        let plan = plan(&list)?;
        let [top, ..] = plan.items.as_slice() else {
            return Err(MountError::Form("a list without layers"));
        };
        let (path, leaf) = match plan.merged.first() {
            Some(&(metadata, layer)) if layer == top.path() => (metadata, Leaf::Merged),
            _ => (top.path(), top.leaf()),
        };
        let mut home = None;
        self.find(path, leaf)?.enter(&mut home, path)?;
        let mut places = Vec::with_capacity(plan.items.len());
        for item in &plan.items {
            let path = item.path();
            let place = self.find(path, item.leaf()).map_err(|error| match error {
                MountError::Outside(path) => MountError::Foreign(path),
                error => error,
            })?;
            place.enter(&mut home, path)?;
            if let Some(layout) = home.map(|home| home.root.layout)
                && !layout.keeps.contains(&item.leaf())
            {
                return Err(MountError::Path { path: quote(path), leaves: layout.names(Leaf::Upper) });
            }
            places.push(place);
        }
        let mut reading =
            Reading { roots: self, home, plan: &plan, ids: IdMaps::default(), sees_trusted: false };
        let spelling = home.map_or("", |home| home.spelling);
        check_options(&list, home.map(|home| home.spot()), &|path| self.is_shared(path))?;
        check_known(&list)?;
        reading.check_merged()?;
        if let Some(maps) = plan.maps {
            reading.ids = id_maps(maps)?;
        }
        // The owner of an upper directory is the container's choice.
        let refused = |source| refusal(spelling, source);
        let open = || {
            let is_able = capabilities::are_effective(CapabilitySet::SYS_ADMIN).map_err(refused)?;
            reading.sees_trusted = self.owner != 0 || is_able;
            let mut layers = Vec::with_capacity(plan.items.len());
            for (item, place) in plan.items.iter().zip(places).filter(|(item, _)| wanted(item)) {
                if let Some(device) = reading.device(item, place)? {
                    layers.push(device);
                    break;
                }
                layers.extend(reading.open(item, place)?);
            }
            let merged = plan.merged.first().map_or(0, |(_, top)| {
                plan.items.iter().rev().position(|item| item.path() == *top).map_or(0, |below| below + 1)
            });
            let mut is_verified = list.entries().any(|entry| entry.is_verified);
            for layer in &layers {
                if let LayerSource::Erofs { image, .. } = &layer.source {
                    is_verified |= has_verity(image).map_err(refused)?;
                }
            }
            Ok(Stack { layers, merged, is_verified })
        };
        capabilities::reading(open).map_err(refused)?
    }

    /// Finds where a path of a list lies, by its spelling.
    fn find<'a>(&'a self, path: &'a str, leaf: Leaf) -> Result<Location<'a>, MountError> {
        if leaf == Leaf::Layer
            && let Some((dir, below)) = shared_place(&self.shared, path)
        {
            return match is_shared_name(below) {
                true => Ok(Location::Shared { dir, below }),
                false => Err(MountError::SharedName(quote(path))),
            };
        }
        self.locate(path, leaf).map(Location::Snapshot)
    }

    /// Whether `path` is spelled like an image among the shared layers.
    pub(super) fn is_shared(&self, path: &str) -> bool {
        shared_place(&self.shared, path).is_some_and(|(_, below)| is_shared_name(below))
    }
}

/// The place of a layer.
#[derive(Clone, Copy)]
enum Location<'a> {
    /// In the directory of a snapshot.
    Snapshot(Home<'a>),
    /// Among the shared layers, mounted where it is instead of through a link (containerd 2.4).
    Shared { dir: &'a Trusted, below: &'a str },
}

impl<'a> Location<'a> {
    /// Makes the first snapshot of a list its `home`: the others must be below the same root.
    fn enter(self, home: &mut Option<Home<'a>>, path: &str) -> Result<(), MountError> {
        let Self::Snapshot(found) = self else { return Ok(()) };
        match home {
            Some(home) if !std::ptr::eq(home.root, found.root) => Err(MountError::Foreign(quote(path))),
            Some(_) => Ok(()),
            None => {
                *home = Some(found);
                Ok(())
            }
        }
    }
}

/// Finds the directory of shared layers that `path` is below, and the rest of the path.
fn shared_place<'a>(shared: &'a [Trusted], path: &'a str) -> Option<(&'a Trusted, &'a str)> {
    shared.iter().find_map(|root| {
        let below = |spelling: &String| path.strip_prefix(spelling.as_str())?.strip_prefix('/');
        root.spellings.iter().find_map(below).map(|below| (root, below))
    })
}

/// Whether a path is `ALGORITHM/XX/HEX.erofs`, with a digest's hex that begins with XX.
fn is_shared_name(below: &str) -> bool {
    let mut parts = below.split('/');
    let (Some(algorithm), Some(first), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Some(hex) = name.strip_suffix(".erofs") else { return false };
    first.len() == 2 && hex.starts_with(first) && format!("{algorithm}:{hex}").parse::<Digest>().is_ok()
}

/// A list whose layers are below one root, or among the shared ones.
struct Reading<'a> {
    roots: &'a Roots,
    /// `None` when all layers are shared.
    home: Option<Home<'a>>,
    plan: &'a Plan<'a>,
    /// The maps of the upper directory.
    ids: IdMaps,
    /// Whether attributes in `trusted.overlay.` can be read. For a process without the capability they do not
    /// exist, and an opaque directory looks like any other. Also true where the daemon is not root's: no setting
    /// would give it the capability.
    sees_trusted: bool,
}

/// An open image, with its path, and its device and inode number.
struct Image {
    path: String,
    file: File,
    key: (u64, u64),
}

impl<'a> Reading<'a> {
    /// Finds where a path of the list lies that is not a layer of its own.
    fn find(&self, path: &'a str, leaf: Leaf) -> Result<Location<'a>, MountError> {
        let found = match self.roots.find(path, leaf) {
            Err(MountError::Outside(path)) => return Err(MountError::Foreign(path)),
            found => found?,
        };
        let mut home = self.home;
        found.enter(&mut home, path)?;
        Ok(found)
    }

    /// Checks that merged metadata stands for the layer beside it and those below.
    fn check_merged(&self) -> Result<(), MountError> {
        for (metadata, top) in &self.plan.merged {
            match (self.find(metadata, Leaf::Merged)?, self.find(top, Leaf::Layer)?) {
                (Location::Snapshot(of_metadata), Location::Snapshot(of_top))
                    if of_metadata.id != of_top.id =>
                {
                    let option = quote(&format!("device={top}"));
                    return Err(MountError::Option {
                        option,
                        why: "not the layer beside the merged metadata",
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens the device that a layer of an overlaybd snapshotter is, with all layers below; `None` for another one.
    fn device(&self, item: &Item<'a>, place: Location<'a>) -> Result<Option<StackLayer>, MountError> {
        let Location::Snapshot(home) = place else { return Ok(None) };
        if home.root.layout.device.is_none() {
            return Ok(None);
        }
        let is_writable = home.is_device() && matches!(item, Item::Upper(_));
        let dir = DeviceDir::of(home, self.roots.owner)?;
        if is_writable {
            // Also refuses a device that is in use.
            dir.writable()?;
        } else if let Some((root, path)) = dir.mounted()? {
            if matches!(item, Item::Upper(_)) {
                return Err(MountError::DeviceMounted(path));
            }
            let Status { device, inode, .. } = root.status().map_err(|source| refusal(&path, source))?;
            return Ok(Some(of_device(dir, path, (device, inode), DeviceState::Mounted(root))));
        } else if dir.config()?.is_none() {
            return match home.is_device() {
                true => Err(MountError::NoDevice(dir.path().to_owned(), DeviceDir::CONFIG)),
                false => Ok(None),
            };
        }
        // A layer that is being written is no device yet, whatever is in its directory.
        if !is_writable && matches!(item, Item::Upper(_)) {
            return Ok(None);
        }
        let (path, key) = (dir.path().to_owned(), dir.key());
        let state = if is_writable { DeviceState::Writable } else { DeviceState::Committed };
        Ok(Some(of_device(dir, path, key, state)))
    }

    /// Opens a layer; `None` when there is nothing in it.
    fn open(&self, item: &Item<'a>, place: Location<'a>) -> Result<Option<StackLayer>, MountError> {
        let home = match place {
            Location::Snapshot(home) => home,
            Location::Shared { dir, below } => {
                return self.image_layer(self.shared_image(dir, below, item.path())?, item).map(Some);
            }
        };
        let snapshot = home.root.opened(home.id, self.roots.owner)?;
        // The directory of a view has no marker of its own.
        if !matches!(item, Item::Viewed(_) | Item::ViewedBlock(_)) {
            snapshot.check_marker(self.roots.owner)?;
        }
        let keeps_images = snapshot.layout.keeps.contains(&Leaf::Layer);
        if keeps_images && let Some(image) = self.image(&snapshot, Leaf::Layer)? {
            return self.image_layer(image, item).map(Some);
        }
        match item {
            Item::Image { .. } => {
                Err(MountError::Missing(format!("{}/{}", snapshot.path, snapshot.layout.layer)))
            }
            Item::Upper(_) | Item::Lower(_) => self.directory(&snapshot, item).map(Some),
            // An empty directory is the layer of a view of nothing, but not where every layer is a directory.
            Item::Viewed(_) if !keeps_images => self.directory(&snapshot, item).map(Some),
            Item::Viewed(_) => {
                let layer = self.directory(&snapshot, item)?;
                let LayerSource::Directory { dir, .. } = &layer.source else { return Ok(Some(layer)) };
                let is_empty =
                    dir.names().map_err(|source| refusal(&snapshot.path, source))?.next().is_none();
                Ok((!is_empty).then_some(layer))
            }
            Item::Block(_) | Item::ViewedBlock(_) => self.block(&snapshot),
        }
    }

    fn image_layer(&self, image: Image, item: &Item<'a>) -> Result<StackLayer, MountError> {
        let devices = match item {
            Item::Image { devices, .. } => self.devices(devices)?,
            _ => Vec::new(),
        };
        let Image { path, file, key } = image;
        let source = LayerSource::Erofs { image: file, devices };
        Ok(StackLayer { path: path.into(), key, ids: IdMaps::default(), source })
    }

    /// Opens the upper directory of a snapshot. Its owner and mode are the container's choice.
    fn directory(&self, snapshot: &Opened, item: &Item<'_>) -> Result<StackLayer, MountError> {
        let name = snapshot.layout.upper;
        let path = format!("{}/{name}", snapshot.path);
        let refuse = |source| refusal(&path, source);
        let dir = snapshot.dir.open_beneath(name).map_err(refuse)?;
        let Status { device, inode, .. } = dir.status().map_err(refuse)?;
        let ids = if matches!(item, Item::Upper(_)) { self.ids.clone() } else { IdMaps::default() };
        let source = self.readable(dir, &path)?;
        Ok(StackLayer { path: path.into(), key: (device, inode), ids, source })
    }

    fn readable(&self, dir: Dir, path: &str) -> Result<LayerSource, MountError> {
        let user_xattr = self.plan.user_xattr;
        match self.sees_trusted || user_xattr {
            true => Ok(LayerSource::Directory { dir, user_xattr }),
            false => Err(MountError::Privileges(path.to_owned())),
        }
    }

    /// Opens the directory `upper` in a snapshot's ext4 image. `None` before there is an image, or that directory.
    fn block(&self, snapshot: &Opened) -> Result<Option<StackLayer>, MountError> {
        let Some(Image { path, file, key }) = self.image(snapshot, Leaf::Block)? else { return Ok(None) };
        let user_xattr = self.plan.user_xattr;
        let (path, source) = match block::upper(&path, &file)? {
            Upper::None => return Ok(None),
            Upper::Live(dir, path) => {
                let source = self.readable(dir, &path)?;
                (path, source)
            }
            Upper::Idle => (path, LayerSource::writable(file, user_xattr)),
        };
        Ok(Some(StackLayer { path: path.into(), key, ids: self.ids.clone(), source }))
    }

    fn devices(&self, paths: &[&'a str]) -> Result<Vec<File>, MountError> {
        let open = |path: &&'a str| {
            let image = match self.find(path, Leaf::Layer)? {
                Location::Snapshot(Home { root, id, .. }) => {
                    self.image(&root.opened(id, self.roots.owner)?, Leaf::Layer)?
                }
                Location::Shared { dir, below } => Some(self.shared_image(dir, below, path)?),
            };
            image.map(|image| image.file).ok_or_else(|| MountError::Missing(quote(path)))
        };
        paths.iter().map(open).collect()
    }

    /// Opens an image of a snapshot. A layer may be a link to a shared one. `None` without an image.
    fn image(&self, snapshot: &Opened, leaf: Leaf) -> Result<Option<Image>, MountError> {
        let [name] = *snapshot.layout.names(leaf) else { return Ok(None) };
        let path = format!("{}/{name}", snapshot.path);
        let refuse = |source| refusal(&path, source);
        let file = match snapshot.dir.status_of(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(refuse(source)),
            Ok(found) if found.file_type == FileType::Symlink && leaf == Leaf::Layer => {
                self.shared(snapshot, name, &path)?
            }
            // Opening a fifo or a device could block, or have an effect.
            Ok(found) if found.file_type != FileType::RegularFile => return Err(MountError::File(path)),
            Ok(_) => snapshot.dir.open_file_beneath(name).map_err(refuse)?,
        };
        self.checked(file, path).map(Some)
    }

    /// Opens an image among the shared layers that the list names itself.
    fn shared_image(&self, dir: &Trusted, below: &str, path: &str) -> Result<Image, MountError> {
        let file = dir.dir.open_file_beneath(below).map_err(|source| refusal(path, source))?;
        self.checked(file, path.to_owned())
    }

    /// Checks that nobody else can change an image.
    fn checked(&self, file: File, path: String) -> Result<Image, MountError> {
        let found = status(&file).map_err(|source| refusal(&path, source))?;
        if found.file_type != FileType::RegularFile {
            return Err(MountError::File(path));
        }
        check_owner(&found, &path, self.roots.owner)?;
        Ok(Image { path, file, key: (found.device, found.inode) })
    }

    /// Opens the shared layer that the link `name`, which is at `path`, leads to.
    fn shared(&self, snapshot: &Opened, name: &str, path: &str) -> Result<File, MountError> {
        let target = snapshot.dir.link_target(name).map_err(|source| refusal(path, source))?;
        let stranger = || MountError::Shared {
            path: path.to_owned(),
            target: quote(&String::from_utf8_lossy(target.to_bytes())),
        };
        let text = target.to_str().map_err(|_not_utf8| stranger())?;
        let (root, below) = shared_place(&self.roots.shared, text).ok_or_else(stranger)?;
        if below.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(stranger());
        }
        root.dir.open_file_beneath(below).map_err(|source| refusal(path, source))
    }
}

fn of_device(dir: DeviceDir, path: String, key: (u64, u64), state: DeviceState) -> StackLayer {
    let source = LayerSource::Device { dir: Arc::new(dir), state };
    StackLayer { path: path.into(), key, ids: IdMaps::default(), source }
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
