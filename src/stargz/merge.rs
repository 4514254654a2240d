//! The merged metadata of an image, as files.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    check::check,
    files::NewFiles,
    layer::BlobId,
    prepare::{MODE, TOC_NAME, context_name},
};
use crate::{
    call::Cancel,
    error::{Error, Kind, Result},
    format::{
        ReadAt,
        erofs::reader::Image,
        rafs::{self, Tables},
        stargz::{self, Toc},
    },
    limits::{self, Limits},
    merge,
    pipeline::budget::Budget,
    view::ErofsView,
};

/// Name of the merged metadata.
const MERGED_NAME: &str = "image.boot";

/// Metadata of one layer, and the files that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// The metadata.
    pub image: PathBuf,
    /// Table of contents of the layer, if there is one.
    pub table: Option<PathBuf>,
}

impl LayerFile {
    /// The metadata `image`. A table of contents beside it is the layer's if no other metadata is there: its name does
    /// not tell.
    pub fn at(image: &Path) -> Self {
        let directory = match image.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let table = directory.join(TOC_NAME);
        let is_alone = names_of_blobs(directory).is_ok_and(|names| names.len() < 2);
        Self { image: image.to_owned(), table: (is_alone && table.exists()).then_some(table) }
    }
}

/// Merges the metadata of the parents of a snapshot, whose directories `upper_paths` are listed from the topmost down,
/// into `image.boot` in the topmost, and copies the compression contexts of the others there.
///
/// Returns its number of files and directories; `None` if it was there already, or is the copy of a single layer. Errors:
/// [`merge_layers`]; `stargz.parent` for a parent without metadata. Then nothing is left.
pub fn merge_stargz_meta_layer(
    upper_paths: &[PathBuf],
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Option<u64>> {
    let Some(top) = upper_paths.first() else { return Err(merge::MergeError::Layers { count: 0 }.into()) };
    let merged = top.join(MERGED_NAME);
    if merged.exists() {
        return Ok(None);
    }
    let layers = upper_paths.iter().rev().map(|directory| {
        let none = |why| {
            let message = format!("{}: {why}", directory.display());
            Error::new(Kind::NotFound, "stargz.parent", message)
        };
        let names = names_of_blobs(directory).map_err(|error| none(error.to_string()))?;
        let name = names.last().ok_or_else(|| none("no metadata of a layer is there".to_owned()))?;
        let table = directory.join(TOC_NAME);
        Ok(LayerFile { image: directory.join(name), table: table.exists().then_some(table) })
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    merge_layers(&layers, &merged, limits, cancel)
}

/// Names in a directory that are those of blobs, sorted.
fn names_of_blobs(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        names.extend(name.to_str().filter(|name| BlobId::parse(name).is_some()).map(ToOwned::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Whether a file is RAFS metadata.
pub fn is_rafs_file(path: &Path) -> Result<bool> {
    let file = open(path)?;
    // What is no image at all is refused where it is merged.
    Ok(Image::open(&file).is_ok_and(|image| rafs::is_rafs(&image)))
}

/// Merges the metadata `layers`, the bottom one first, into the file `output`, and copies the compression contexts beside
/// them beside it. A single layer is copied.
///
/// Returns the number of files and directories, unless it is a copy. Errors: those of [`merge::write_rafs`], and of the
/// files; then no new file is left.
pub fn merge_layers(
    layers: &[LayerFile],
    output: &Path,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Option<u64>> {
    if layers.is_empty() || layers.len() > limits::MOUNTS {
        return Err(merge::MergeError::Layers { count: layers.len() }.into());
    }
    let mut opened = Vec::with_capacity(layers.len());
    let mut contexts = Vec::new();
    for LayerFile { image: path, table } in layers {
        let file = open(path)?;
        let found = file.metadata().map_err(Error::disk)?;
        let name = path.display().to_string();
        let view = ErofsView::open(file, Vec::new(), (found.dev(), found.ino()), name.clone(), cancel)?;
        let tables = Tables::read(view.image(), limits.metadata_bytes);
        let tables = tables.map_err(|error| Error::from(error).context(name))?;
        let ids = tables.blobs.iter().map(|(blob, _)| context_name(&rafs::id_text(&blob.id)));
        contexts.extend(ids.map(|name| path.with_file_name(name)));
        opened.push(merge::Layer { view, explicit: table.as_deref().and_then(explicit) });
    }
    let budget = Budget::new(limits);
    let lease = budget.lease(cancel)?;
    let mut files = NewFiles::default();
    for from in contexts {
        copy_context(&mut files, &from, output)?;
    }
    let nodes = match layers {
        [only] => {
            copy(&mut files, &only.image, output, Some(MODE))?;
            None
        }
        _ => Some(files.add(output, Some(MODE), |mut file| {
            let nodes = merge::write_rafs(opened, limits, &lease, cancel, &mut file)?;
            check(&file, limits)?;
            Ok((file, nodes))
        })?),
    };
    files.keep();
    Ok(nodes)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::disk(error).context(path.display().to_string()))
}

/// Paths of the directories that a table of contents lists. A table that cannot be read says nothing.
fn explicit(table: &Path) -> Option<HashSet<Vec<u8>>> {
    let file = File::open(table).ok()?;
    let size = ReadAt::size_bytes(&file);
    let mut json = vec![0; usize::try_from(size).ok().filter(|_| size <= limits::STARGZ_TOC_BYTES)?];
    ReadAt::read_exact_at(&file, 0, &mut json).ok()?;
    let toc = Toc::read(&json, i64::MAX.unsigned_abs()).ok()?;
    let directories = toc.entries().iter().filter(|entry| entry.body == stargz::Body::Directory);
    Some(directories.map(|entry| entry.path.clone()).collect())
}

/// Copies the compression context `from` beside `output`, if there is one and it is not there.
fn copy_context(files: &mut NewFiles, from: &Path, output: &Path) -> Result<()> {
    let to = output.with_file_name(from.file_name().unwrap_or_default());
    if to.exists() || !from.exists() {
        return Ok(());
    }
    copy(files, from, &to, None)
}

/// Copies a file, with its mode unless another is given. The blocks are shared where the file system can.
fn copy(files: &mut NewFiles, from: &Path, to: &Path, mode: Option<u32>) -> Result<()> {
    let source = open(from)?;
    let found = source.metadata().map_err(Error::disk)?;
    let mode = mode.unwrap_or(found.permissions().mode() & 0o7777);
    files.add(to, Some(mode), |mut file| {
        file.copy_from(&source, found.len(), |_| Ok(())).map_err(Error::disk)?;
        Ok((file, ()))
    })
}
