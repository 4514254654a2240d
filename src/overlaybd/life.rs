//! The life of a writable layer: created, sealed, committed. Each leaves the files behind that the upstream tools leave.
//!
//! | function | in directory D, to directory T |
//! |---|---|
//! | [`create`] | D/writable_data and D/writable_index, new ones |
//! | [`seal`] | D/writable_data becomes T/overlaybd.sealed, D/writable_index goes |
//! | [`commit`] | T/overlaybd.commit, of the writable files in D or of D/overlaybd.sealed; these stay |
//!
//! Described in `docs/formats/overlaybd.md`, "Writable layers".

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    blob::Blob,
    config::Mode,
    device::{self, DeviceLayer},
    wrap::{self, Wrapping, Written},
};
use crate::{
    call::{Phase, Work},
    error::{Error, Kind, Result},
    format::{
        Sink,
        lsmt::{CommitOptions, Committed, Layer, NewUpper, Targets, Upper, Uuid, Writable},
    },
    pipeline::helpers::Helpers,
    snapshot::{Durability, LAYER_NAME, Publication},
    sys::file,
    view::{DeviceFile, LayeredDevice},
};

/// Data and index of a writable layer in its directory.
const WRITABLE: [&str; 2] = ["writable_data", "writable_index"];
/// A sealed layer in its directory.
const SEALED: &str = "overlaybd.sealed";
/// A committed layer in its directory.
const COMMITTED: &str = "overlaybd.commit";

/// A new random identity.
pub fn random_uuid() -> Result<Uuid> {
    let hex = file::random_hex().map_err(Error::disk)?;
    let bits = u128::from_str_radix(&hex, 16).map_err(io::Error::other).map_err(Error::disk)?;
    Ok(Uuid::from_random(bits.to_be_bytes()))
}

/// The two files of a writable layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Data.
    pub data: PathBuf,
    /// Index.
    pub index: PathBuf,
}

impl Pair {
    /// The files of the layer in a directory.
    pub fn in_directory(dir: &Path) -> Self {
        let [data, index] = WRITABLE.map(|name| dir.join(name));
        Self { data, index }
    }

    /// Creates the files of a new layer. Errors: one of them exists already. After an error neither is left.
    pub fn create(&self, new: NewUpper) -> Result<()> {
        let data = create_new(&self.data)?;
        let made = create_new(&self.index).and_then(|index| {
            let made = Upper::create(new, data, index).map(drop).map_err(Error::from);
            made.inspect_err(|_| discard(&self.index))
        });
        made.inspect_err(|_| discard(&self.data))
    }

    /// Creates a plain file of `size_bytes` in the place of the data, and an empty index.
    pub fn create_raw(&self, size_bytes: u64) -> Result<()> {
        let data = create_new(&self.data)?;
        let made = data.set_len(size_bytes).map_err(|error| failed(&self.data, error));
        let made = made.and_then(|()| create_new(&self.index).map(drop));
        made.inspect_err(|_| discard(&self.data))
    }

    /// Makes the data file a read-only layer. The index file stays, and is not needed any more. A data file that was
    /// sealed already stays as it is: the process may have ended before it could say so.
    ///
    /// Errors: a turboOCI layer has no data file that could be one.
    pub fn seal(&self) -> Result<()> {
        let mut data = open(&self.data, Mode::Write)?;
        if Layer::is_sealed(&data) {
            return Ok(());
        }
        let again = data.try_clone().map_err(|error| failed(&self.data, error))?;
        let seal = self.opened(again)?.seal().map_err(|error| named(&self.data, error.into()))?;
        let end = seal.offset + seal.index.len() as u64;
        // The trailer makes it a sealed file, so all else is on disk before.
        for (offset, bytes) in [(seal.offset, seal.index), (end, seal.trailer)] {
            data.write_at(offset, &bytes).map_err(|error| failed(&self.data, error))?;
            file::sync(&data).map_err(|error| failed(&self.data, error))?;
        }
        Ok(())
    }

    fn opened(&self, data: File) -> Result<Layer<File>> {
        let index = open(&self.index, Mode::Read)?;
        device::writable(data, &index).map_err(|error| named(&self.data, error))
    }

    /// Opens the layer for reading. `turbo` says that it is a turboOCI layer, which its files do not; its target is not
    /// needed for committing.
    pub fn layer(&self, turbo: bool) -> Result<DeviceLayer> {
        let data = open(&self.data, Mode::Read)?;
        if turbo {
            let index = open(&self.index, Mode::Read)?;
            let (data, nothing): (Box<dyn DeviceFile>, Box<dyn DeviceFile>) =
                (Box::new(data), Box::new(Vec::new()));
            return Layer::open_turbo_pair(data, &index, nothing)
                .map_err(|error| named(&self.index, error.into()));
        }
        Ok(self.opened(data)?.map(|data| Box::new(data) as Box<dyn DeviceFile>))
    }
}

/// Opens a sealed or committed layer, whatever is around it.
pub fn read_only(path: &Path) -> Result<DeviceLayer> {
    let file = open(path, Mode::Read)?;
    let blob = Blob::layer(file).map_err(|error| named(path, error))?;
    Layer::open(Box::new(blob) as Box<dyn DeviceFile>).map_err(|error| named(path, error.into()))
}

/// Creates a writable layer in `dir`. Older ones are removed, unless the new one is refused.
pub fn create(dir: &Path, new: NewUpper) -> Result<()> {
    new.check()?;
    let pair = Pair::in_directory(dir);
    for path in [&pair.data, &pair.index] {
        remove(path)?;
    }
    pair.create(new)
}

/// Seals the writable layer in `dir`, and moves it to `to`. Called again after a crash, it completes what is left.
pub fn seal(dir: &Path, to: &Path) -> Result<()> {
    let (pair, sealed) = (Pair::in_directory(dir), to.join(SEALED));
    let is_done = || File::open(&sealed).is_ok_and(|file| Layer::is_sealed(&file));
    if pair.data.exists() || !is_done() {
        pair.seal()?;
        fs::rename(&pair.data, &sealed).map_err(|error| failed(&sealed, error))?;
        sync_directory(to)?;
    }
    remove(&pair.index)
}

/// Commits the layer in `dir` to `to`: the sealed one, or the writable one. An older committed layer is replaced.
pub fn commit(dir: &Path, to: &Path, sealed: bool, how: &Commit<'_>, work: Work<'_>) -> Result<Written> {
    let layer = match sealed {
        true => read_only(&dir.join(SEALED))?,
        false => Pair::in_directory(dir).layer(how.options.targets == Targets::Keep)?,
    };
    let publication = Publication::beside(&to.join(COMMITTED))?;
    let mut file = publication.file(LAYER_NAME)?;
    let device = LayeredDevice::new(vec![layer])?;
    let (_, written) = how.write(&device, &mut file, work)?;
    publication.commit([file], Durability::Always, false)?;
    Ok(written)
}

/// How a layer is committed.
#[derive(Clone, Debug)]
pub struct Commit<'a> {
    /// Identity of the new layer, and what becomes of targets.
    pub options: CommitOptions,
    /// What goes around it.
    pub wrapping: Wrapping,
    /// Threads that compress.
    pub helpers: &'a Arc<Helpers>,
}

impl Commit<'_> {
    /// Writes a device as one layer to `out`, which is empty.
    pub fn write(
        &self,
        device: &LayeredDevice,
        out: &mut impl Sink,
        work: Work<'_>,
    ) -> Result<(Committed, Written)> {
        work.progress.begin(Phase::Transfer, Some(device::data_bytes(device)));
        wrap::write(self.helpers, self.wrapping, out, |out| {
            Ok(device.commit(&self.options, &mut Counted { out, done: 0, work })?)
        })
    }
}

/// Counts what is written, and stops when the work is cancelled.
struct Counted<'a> {
    out: &'a mut dyn Write,
    done: u64,
    work: Work<'a>,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.work.cancel.check().map_err(|cancelled| Error::from(cancelled).into_io())?;
        let len = self.out.write(bytes)?;
        self.done += len as u64;
        self.work.progress.set_done(self.done);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The kind of a new writable layer that two options of the upstream tools choose.
pub fn kind(sparse: bool, turbo: bool) -> Writable {
    match (turbo, sparse) {
        (true, _) => Writable::Turbo,
        (false, true) => Writable::Sparse,
        (false, false) => Writable::Append,
    }
}

fn named(path: &Path, error: Error) -> Error {
    error.context(path.display().to_string())
}

fn failed(path: &Path, error: io::Error) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = named(path, Error::disk(error));
    if missing { error.with_kind(Kind::NotFound) } else { error }
}

fn open(path: &Path, mode: Mode) -> Result<File> {
    let opened = match mode {
        Mode::Read => file::open_without_waiting(path),
        Mode::Write => File::options().read(true).write(true).open(path),
    };
    let opened = opened.map_err(|error| failed(path, error))?;
    match opened.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(opened),
        Ok(_) => Err(named(path, Error::new(Kind::Malformed, "overlaybd.input", "not a regular file"))),
        Err(error) => Err(failed(path, error)),
    }
}

fn create_new(path: &Path) -> Result<File> {
    let created = File::options().read(true).write(true).create_new(true).open(path);
    created.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let message = format!("{} exists already", path.display());
            Error::new(Kind::Conflict, "overlaybd.output.exists", message)
        }
        _ => failed(path, error),
    })
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        _ => Ok(()),
    }
}

/// Takes back a file that was made for nothing.
fn discard(path: &Path) {
    // The error that led here is the one to report.
    let _best_effort = fs::remove_file(path);
}

fn sync_directory(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(|error| failed(path, error))?;
    file::sync(&dir).map_err(|error| failed(path, error))
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
