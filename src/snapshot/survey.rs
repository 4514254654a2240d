//! One look at a root: the directories in it, the snapshotter's records, and what belongs into every directory.
//!
//! A survey works by numbers, where requests bring mounts. It spells the mounts that the snapshotter would, so that what
//! is opened and published by them passes the same checks.
//!
//! Source: containerd `plugins/snapshots/erofs`; accelerated-container-image `pkg/snapshot`.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FileType, IFlags, Mode},
    io::Errno,
};

use super::{
    device::DeviceDir,
    directory::SnapshotDir,
    error::{MountError, PublishError},
    layout::{FileSet, LAYER_NAME, Leaf, MERGED_NAME, OVERLAYBD_NAME, SNAPSHOTS, TAR_NAME},
    mount::{Mount, decimal},
    new_file::is_temporary,
    numbers::{self, Numbered},
    publication::Publication,
    roots::{Root, Roots, refusal},
};
use crate::{
    error::{Error, Kind, Result},
    limits::{self, Limits},
    sys::{
        dir::{Dir, Status},
        file,
    },
};

/// Mode of a snapshot's directory and of the directory in it that the layer is mounted on, as the snapshotter makes them.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
const UPPER_MODE: Mode = Mode::from_raw_mode(0o755);
/// Mode of a marker.
const MARKER_MODE: Mode = Mode::from_raw_mode(0o644);
/// Side file with the root hash of a layer that dm-verity protects.
const VERITY_NAME: &str = "layer.erofs.dmverity";

/// Snapshots below one root.
#[derive(Clone, Copy)]
pub struct Survey<'a> {
    roots: &'a Roots,
    root: &'a Root,
}

/// Kind of a root's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// EROFS images.
    Images,
    /// Files of block devices.
    Devices,
}

/// An entry of the directory that the snapshots of a root are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name, as messages show it.
    pub name: String,
    /// Number of the snapshot; `None` for what is none by its name or type.
    pub id: Option<u64>,
    /// Type, in a word.
    pub what: &'static str,
    /// Device and inode number.
    pub key: (u64, u64),
}

/// A file that a process which was killed has left in a snapshot's directory, or that a process is writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Temporary {
    /// Name of the file.
    pub name: String,
    /// A process holds its lock.
    pub is_live: bool,
}

impl Roots {
    /// Returns the roots in whose snapshots layers are published.
    pub fn surveys(&self) -> impl Iterator<Item = Survey<'_>> {
        self.writable().map(|root| Survey { roots: self, root })
    }

    /// Whether there are directories of layers that several snapshots share.
    pub fn shares_layers(&self) -> bool {
        !self.shared.is_empty()
    }
}

impl Survey<'_> {
    /// Path of the root, as configured.
    pub fn path(&self) -> &str {
        let [path, _] = &self.root.at.spellings;
        path
    }

    /// Paths under which mounts may name the root.
    pub fn spellings(&self) -> &[String; 2] {
        &self.root.at.spellings
    }

    /// Kind of the layers.
    pub fn holds(&self) -> Holds {
        match self.root.layout.device {
            Some(_) => Holds::Devices,
            None => Holds::Images,
        }
    }

    /// Path of a snapshot's directory. For messages.
    pub fn directory(&self, id: u64) -> PathBuf {
        Path::new(self.path()).join(SNAPSHOTS).join(id.to_string())
    }

    /// Path of the file that a snapshot's layer is in. For messages.
    pub fn layer(&self, id: u64) -> PathBuf {
        self.directory(id).join(match self.holds() {
            Holds::Images => LAYER_NAME,
            Holds::Devices => OVERLAYBD_NAME,
        })
    }

    /// Paths in a snapshot's directory that may be below an overlay.
    pub fn lowers(&self) -> &'static [&'static str] {
        self.root.layout.uppers
    }

    /// Names of the images in a snapshot's directory that the kernel may have mounted.
    pub fn images(&self) -> &'static [&'static str] {
        self.root.layout.images
    }

    /// The snapshotter's records, in the order of the numbers. `None` without any.
    pub fn records(&self) -> Result<Option<Vec<Numbered>>> {
        let failed = |error: Error| error.context(format!("{}/{}", self.path(), numbers::RECORDS));
        let file = numbers::open(&self.root.at.dir).map_err(|error| failed(Error::disk(error)))?;
        file.map(|file| numbers::read(&file).map_err(failed)).transpose()
    }

    /// Lists the directory that the snapshots are in, sorted by name. Errors: more than a million names.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let failed = |error| Error::disk(error).context(format!("{}/{SNAPSHOTS}", self.path()));
        let directory = match self.root.at.dir.open_beneath(SNAPSHOTS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            outcome => outcome.map_err(failed)?,
        };
        let mut listed = Vec::new();
        for name in directory.names().map_err(failed)? {
            let name = name.map_err(failed)?;
            let Status { file_type, device, inode, .. } = match directory.status_of(&*name) {
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                outcome => outcome.map_err(failed)?,
            };
            let number = name.to_str().ok().and_then(decimal).filter(|number| *number > 0);
            let id = number.filter(|_| file_type == FileType::Directory);
            let name = name.to_bytes().escape_ascii().to_string();
            listed.push(Listed { name, id, what: word(file_type), key: (device, inode) });
            if listed.len() > limits::SNAPSHOTS {
                let message = format!("more than {} names", limits::SNAPSHOTS);
                return Err(Error::new(Kind::Exhausted, "limit.snapshots", message)
                    .context(format!("{}/{SNAPSHOTS}", self.path())));
            }
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// Mounts of a view of the layer of a snapshot alone.
    pub fn view(&self, id: u64) -> Vec<Mount> {
        match self.holds() {
            Holds::Images => vec![self.image(id)],
            Holds::Devices => vec![mount("bind", self.leaf(id, self.root.layout.upper), &["ro", "rbind"])],
        }
    }

    /// Mounts of the snapshot while its layer was applied: those of an active one on top of `parents`, the nearest
    /// first.
    pub fn active(&self, id: u64, parents: &[u64]) -> Vec<Mount> {
        let upper = self.leaf(id, self.root.layout.upper);
        if parents.is_empty() {
            return vec![mount("bind", upper, &["rw", "rbind"])];
        }
        let (work, upper) =
            (format!("workdir={}", self.leaf(id, self.root.layout.work)), format!("upperdir={upper}"));
        if self.holds() == Holds::Devices {
            let lower: Vec<_> = parents.iter().map(|id| self.leaf(*id, self.root.layout.upper)).collect();
            let lower = format!("lowerdir={}", lower.join(":"));
            return vec![mount("overlay", "overlay".to_owned(), &[&work, &upper, &lower])];
        }
        let mut mounts: Vec<_> = parents.iter().map(|id| self.image(*id)).collect();
        let lower = match parents.len() {
            1 => "lowerdir={{ mount 0 }}".to_owned(),
            layers => format!("lowerdir={{{{ overlay 0 {} }}}}", layers - 1),
        };
        mounts.push(mount("format/mkdir/overlay", "overlay".to_owned(), &[&work, &upper, &lower]));
        mounts
    }

    fn image(&self, id: u64) -> Mount {
        mount("erofs", self.leaf(id, LAYER_NAME), &["ro", "loop"])
    }

    fn leaf(&self, id: u64, name: &str) -> String {
        format!("{}/{SNAPSHOTS}/{id}/{name}", self.path())
    }

    /// Whether `mounts` name the directory of the snapshot `id` below this root.
    pub fn is_in(&self, mounts: &[Mount], id: u64) -> bool {
        let names = |text: &str| {
            self.spellings().iter().any(|root| text.contains(&format!("{root}/{SNAPSHOTS}/{id}/")))
        };
        mounts.iter().any(|mount| names(&mount.source) || mount.options.iter().any(|option| names(option)))
    }

    /// Opens the device of a snapshot.
    pub fn device(&self, id: u64) -> Result<DeviceDir, MountError> {
        let path = self.leaf(id, self.root.layout.upper);
        DeviceDir::of(self.roots.locate(&path, Leaf::Upper)?, self.roots.owner)
    }

    /// The directories and files besides the layer that a committed snapshot has to have and that are missing, or are
    /// something else. Without its directory, that alone.
    pub fn missing(&self, id: u64) -> Result<Vec<&'static str>, MountError> {
        let opened = match self.root.opened(&id.to_string(), self.roots.owner) {
            Err(MountError::Missing(_)) => return Ok(vec![""]),
            outcome => outcome?,
        };
        let layout = self.root.layout;
        let mut missing = Vec::new();
        let expected = [(Some(layout.upper), FileType::Directory), (layout.marker, FileType::RegularFile)];
        for (name, file_type) in expected.into_iter().filter_map(|(name, file_type)| Some((name?, file_type)))
        {
            match opened.dir.status_of(name) {
                Ok(found) if found.file_type == file_type => {}
                Ok(_) => missing.push(name),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(name),
                Err(source) => return Err(refusal(&opened.path, source)),
            }
        }
        Ok(missing)
    }

    /// Makes what [`Survey::missing`] found. Errors: something else has the name.
    pub fn mend(&self, id: u64, missing: &[&'static str]) -> Result<()> {
        let path = self.directory(id);
        let failed =
            |name: &str, error: io::Error| Error::disk(error).context(path.join(name).display().to_string());
        let above = self.root.at.dir.open_beneath(SNAPSHOTS).map_err(|error| failed("", error))?;
        let number = id.to_string();
        let mut missing = missing.to_vec();
        if missing == [""] {
            make_directory(&above, &number, DIRECTORY_MODE).map_err(|error| failed("", error))?;
            missing = [Some(self.root.layout.upper), self.root.layout.marker].into_iter().flatten().collect();
        }
        let dir = above.open_beneath(&*number).map_err(|error| failed("", error))?;
        for name in missing {
            let made = if name == self.root.layout.upper {
                make_directory(&dir, name, UPPER_MODE)
            } else {
                file::create_new(&dir, name, MARKER_MODE).and_then(|marker| {
                    // Whatever the umask says.
                    rustix::fs::fchmod(&marker, MARKER_MODE)?;
                    file::sync(&marker)
                })
            };
            made.map_err(|error| failed(name, error))?;
        }
        file::sync(&dir).and_then(|()| file::sync(&above)).map_err(|error| failed("", error))
    }

    /// Lists our temporary files in a snapshot's directory. None where there is no directory.
    pub fn temporaries(&self, id: u64) -> Result<Vec<Temporary>, MountError> {
        let opened = match self.root.opened(&id.to_string(), self.roots.owner) {
            Err(MountError::Missing(_)) => return Ok(Vec::new()),
            outcome => outcome?,
        };
        let failed = |source| refusal(&opened.path, source);
        let mut found = Vec::new();
        for name in opened.dir.names().map_err(failed)? {
            let name = name.map_err(failed)?;
            if !is_temporary(&name) {
                continue;
            }
            let is_file = |status: Status| status.file_type == FileType::RegularFile;
            if !opened.dir.status_of(&*name).is_ok_and(is_file) {
                continue;
            }
            let Ok(file) = opened.dir.open_file_beneath(&*name) else { continue };
            let is_live = !file::lock_exclusive(&file).map_err(failed)?;
            found.push(Temporary { name: name.to_bytes().escape_ascii().to_string(), is_live });
        }
        Ok(found)
    }

    /// Whether a file `name` is in the snapshot's directory.
    pub fn has(&self, id: u64, name: &str) -> bool {
        let path = format!("{SNAPSHOTS}/{id}/{name}");
        self.root.at.dir.handle_beneath(path).is_ok()
    }

    /// Whether the layer of a snapshot has a side file for dm-verity.
    pub fn has_verity(&self, id: u64) -> bool {
        self.holds() == Holds::Images && self.has(id, VERITY_NAME)
    }

    /// Whether the first files of a device's layer are there without the last: what a crash leaves, or an archive that
    /// the snapshotter has yet to convert.
    pub fn is_half(&self, id: u64) -> bool {
        self.holds() == Holds::Devices && self.has(id, TAR_NAME) && !self.has(id, OVERLAYBD_NAME)
    }

    /// Opens the merged metadata in a snapshot's directory. `None` without any, and for an empty file, which the snapshotter
    /// passes over.
    pub fn merged(&self, id: u64) -> Result<Option<File>, MountError> {
        if self.holds() != Holds::Images || !self.has(id, MERGED_NAME) {
            return Ok(None);
        }
        let opened = self.root.opened(&id.to_string(), self.roots.owner)?;
        let path = format!("{}/{MERGED_NAME}", opened.path);
        let failed = |source| refusal(&path, source);
        let status = opened.dir.status_of(MERGED_NAME).map_err(failed)?;
        if status.file_type != FileType::RegularFile {
            return Err(MountError::File(path));
        }
        let file = opened.dir.open_file_beneath(MERGED_NAME).map_err(failed)?;
        Ok((file.metadata().map_err(failed)?.len() > 0).then_some(file))
    }

    /// Removes the merged metadata in a snapshot's directory: from then on its layers are mounted one by one. Returns
    /// whether there was any.
    pub fn forget_merged(&self, id: u64) -> Result<bool> {
        let failed =
            |error| Error::disk(error).context(self.directory(id).join(MERGED_NAME).display().to_string());
        let dir = match self.root.at.dir.open_beneath(format!("{SNAPSHOTS}/{id}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            outcome => outcome.map_err(failed)?,
        };
        if dir.status_of(MERGED_NAME).is_err() {
            return Ok(false);
        }
        file::remove(&dir, MERGED_NAME).and_then(|()| file::sync(&dir)).map_err(failed)?;
        Ok(true)
    }

    /// Releases the mount of a snapshot's layer inside its own directory, where the snapshotter of containerd 2.1 keeps
    /// one. The snapshotter makes it again when it needs it. Returns the number of mounts released.
    pub fn release(&self, id: u64) -> Result<usize> {
        let path = PathBuf::from(self.leaf(id, self.root.layout.upper));
        let mut released = 0;
        loop {
            match rustix::mount::unmount(&path, rustix::mount::UnmountFlags::NOFOLLOW) {
                Ok(()) => released += 1,
                // No mount, no more of them, or no directory.
                Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(released),
                Err(error) => return Err(Error::disk(error.into()).context(path.display().to_string())),
            }
        }
    }
}

impl SnapshotDir {
    /// Begins files like those of a publication, which are never published: for a comparison with those that are there.
    pub fn rehearse(&self, set: &'static FileSet, limits: &Limits) -> Publication {
        Publication::rehearsal(&self.dir, &self.path, set, limits)
    }

    /// Takes the mark from the layer's image that forbids to replace it, if it has one: the snapshotter may set it.
    /// Returns the image as it was; [`Frozen::again`] marks the new one.
    pub fn thaw(&self) -> Result<Frozen, PublishError> {
        let path = self.path.join(LAYER_NAME);
        let failed = |what| {
            let path = path.clone();
            move |source: io::Error| PublishError::Io { what, path, source }
        };
        let none = Frozen { old: None };
        let is_file = |found: Status| found.file_type == FileType::RegularFile;
        if !self.dir.status_of(LAYER_NAME).is_ok_and(is_file) {
            return Ok(none);
        }
        let old = self.dir.open_file_beneath(LAYER_NAME).map_err(failed("open"))?;
        // Not every file system has marks.
        let Ok(flags) = rustix::fs::ioctl_getflags(&old) else { return Ok(none) };
        if !flags.contains(IFlags::IMMUTABLE) {
            return Ok(none);
        }
        let without = flags.difference(IFlags::IMMUTABLE);
        rustix::fs::ioctl_setflags(&old, without)
            .map_err(|error| failed("take its immutable mark")(error.into()))?;
        Ok(Frozen { old: Some((Arc::clone(&self.dir), old)) })
    }
}

/// The mark that [`SnapshotDir::thaw`] took from an image.
#[derive(Debug)]
pub struct Frozen {
    old: Option<(Arc<Dir>, File)>,
}

impl Frozen {
    /// Marks the image that has the name now, if the one before was marked. Failures are logged: the mark guards
    /// against mistakes, and the layer is whole without.
    pub fn again(self) {
        let Some((dir, old)) = self.old else { return };
        let mark = |file: &File| {
            let flags = rustix::fs::ioctl_getflags(file)?;
            rustix::fs::ioctl_setflags(file, flags.union(IFlags::IMMUTABLE))
        };
        let marked = match dir.open_file_beneath(LAYER_NAME) {
            Ok(file) => mark(&file),
            Err(_) => mark(&old),
        };
        if let Err(error) = marked {
            tracing::warn!(%error, "the layer stays without its immutable mark");
        }
    }
}

fn make_directory(dir: &Dir, name: &str, mode: Mode) -> io::Result<()> {
    rustix::fs::mkdirat(dir, name, mode)?;
    let made = dir.open_beneath(name)?;
    // Whatever the umask says.
    Ok(rustix::fs::fchmod(&made, mode)?)
}

fn mount(kind: &str, source: String, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { kind: kind.to_owned(), source, target: String::new(), options }
}

fn word(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Directory => "a directory",
        FileType::RegularFile => "a file",
        FileType::Symlink => "a link",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something",
    }
}

#[cfg(test)]
#[path = "survey_tests.rs"]
mod tests;
