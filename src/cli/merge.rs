//! `plywood merge`: one metadata image over the images of layers.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use indicatif::{HumanBytes, HumanCount};

use super::{
    files::{directory, open_regular, require_apart, require_other},
    output,
};
use crate::{
    call::Cancel,
    error::{Error, Result},
    format::{
        ReadAt, Sink as _,
        erofs::{reader::Image, writer::Summary},
    },
    limits::Limits,
    merge,
    pipeline::{budget::Budget, image},
    snapshot::{Durability, LAYER_NAME, NewFile, Publication},
    stargz::{LayerFile, is_rafs_file, merge_layers, merge_stargz_meta_layer},
    view::ErofsView,
};

/// Arguments of `plywood merge`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Mount an image of three layers as one file system, without overlayfs:
    plywood merge 1.erofs 2.erofs 3.erofs -o fsmeta.erofs
    mount -t erofs -o device=1.erofs,device=2.erofs,device=3.erofs \\
      fsmeta.erofs /mnt
  One read-only disk of all layers for a virtual machine:
    plywood merge 1.erofs 2.erofs 3.erofs -o fsmeta.erofs --disk image.vmdk
    qemu-system-x86_64 -drive file=image.vmdk,format=vmdk,readonly=on ...
  The metadata of eStargz layers, made by `plywood stargz`:
    plywood merge 1/HEX 2/HEX 3/HEX -o image.boot
  The same in the directories of snapshots, as the nydus snapshotter does it:
    plywood merge snapshots/1/fs snapshots/2/fs snapshots/3/fs")]
pub struct Arguments {
    /// Images of the layers, the bottom one first. They stay as they are, and are mounted as devices in this order. Or their
    /// RAFS metadata; or directories with one layer's metadata each, as `plywood stargz` makes them
    #[arg(required = true, value_name = "LAYER")]
    pub layers: Vec<PathBuf>,
    /// File for the merged metadata. An existing one is replaced once the new one is complete. For directories it is
    /// image.boot in the last of them, which is respected if it is there
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Format of the merged metadata [default: fsmeta for images with data, rafs for RAFS metadata]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,
    /// Also describe the flat disk of the merged metadata and all layers, one behind the other, as a VMDK descriptor. It
    /// names the files by their whole paths, or by their names where they are beside it
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
}

/// Forms of merged metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// An image with the layers as devices, of layers that are images with data: fsmeta.erofs
    Fsmeta,
    /// RAFS metadata of layers that are RAFS metadata: image.boot. The compression contexts that are beside the layers are
    /// copied beside it
    Rafs,
}

/// Runs the command. Errors: those of the layers, with their names, and of the output.
pub fn run(arguments: &Arguments) -> Result<()> {
    let is_directory = |path: &PathBuf| path.is_dir();
    if arguments.layers.iter().all(is_directory) {
        return run_directories(arguments);
    }
    let Some(file_path) = &arguments.output else {
        return Err(output::usage("-o FILE is missing: only directories have a place for merged metadata"));
    };
    let open = |path: &PathBuf| named(open_regular(path, "image.open"), path);
    let files = arguments.layers.iter().map(open).collect::<Result<Vec<_>>>()?;
    for to in [Some(file_path), arguments.disk.as_ref()].into_iter().flatten() {
        require_other(to, arguments.layers.iter().map(PathBuf::as_path))?;
    }
    if let Some(disk) = &arguments.disk {
        require_apart(file_path, disk)?;
    }
    let format = match (arguments.format, arguments.layers.first()) {
        (Some(format), _) => format,
        (None, Some(bottom)) if named(is_rafs_file(bottom), bottom)? => Format::Rafs,
        (None, _) => Format::Fsmeta,
    };
    if format == Format::Rafs {
        return run_rafs(arguments, file_path);
    }
    let (file, summary) = named(merged(arguments, &files, file_path), file_path)?;
    let description = arguments.disk.as_deref().map(|disk| {
        let image = Image::open(&file).map_err(Error::from)?;
        let beside = |path: &PathBuf| place(disk, path);
        let layers = arguments.layers.iter().map(beside).collect::<Result<Vec<_>>>()?;
        let layers: Vec<_> = layers.iter().map(PathBuf::as_path).collect();
        Ok(merge::describe(&image, &place(disk, file_path)?, &layers)?)
    });
    let described = description.transpose().and_then(|text| {
        let (Some(text), Some(disk)) = (text, arguments.disk.as_deref()) else { return Ok(None) };
        let publication = Publication::beside(disk)?;
        let mut description = publication.file(LAYER_NAME)?;
        description.write_at(0, text.as_bytes()).map_err(Error::disk)?;
        Ok(Some((publication, description)))
    });
    let described = match &arguments.disk {
        Some(disk) => named(described, disk)?,
        None => None,
    };
    let size_bytes = file.size_bytes();
    Publication::beside(file_path)?.commit([file], Durability::Request, false)?;
    if let Some((publication, description)) = described {
        publication.commit([description], Durability::Request, false)?;
    }
    output::result(&format!(
        "{}: {}, {} files and directories of {} layers\n",
        file_path.display(),
        HumanBytes(size_bytes),
        HumanCount(summary.nodes),
        files.len(),
    ))
}

/// Merges the metadata in directories of snapshots.
fn run_directories(arguments: &Arguments) -> Result<()> {
    if arguments.output.is_some() || arguments.disk.is_some() || arguments.format == Some(Format::Fsmeta) {
        return Err(output::usage(
            "directories are merged into image.boot in the last of them, and into that alone",
        ));
    }
    let upper_paths: Vec<_> = arguments.layers.iter().rev().cloned().collect();
    let nodes = merge_stargz_meta_layer(&upper_paths, &Limits::default(), &Cancel::new())?;
    let what = match nodes {
        Some(nodes) => format!("{} files and directories of {} layers", HumanCount(nodes), upper_paths.len()),
        None => "it is there already, or is a copy of the only layer's".to_owned(),
    };
    output::result(&format!("image.boot: {what}\n"))
}

/// Merges RAFS metadata.
fn run_rafs(arguments: &Arguments, to: &Path) -> Result<()> {
    if arguments.disk.is_some() {
        return Err(output::usage("--disk: RAFS metadata has no layers that could follow it on a disk"));
    }
    let layers: Vec<_> = arguments.layers.iter().map(|path| LayerFile::at(path)).collect();
    let nodes = merge_layers(&layers, to, &Limits::default(), &Cancel::new())?;
    let what = match nodes {
        Some(nodes) => format!("{} files and directories of {} layers", HumanCount(nodes), layers.len()),
        None => "a copy of the only layer".to_owned(),
    };
    output::result(&format!("{}: {what}\n", to.display()))
}

/// Merges the layers and checks the result.
fn merged(arguments: &Arguments, files: &[File], to: &Path) -> Result<(NewFile, Summary)> {
    let (cancel, limits) = (Cancel::new(), Limits::default());
    let budget = Budget::new(&limits);
    let lease = budget.lease(&cancel)?;
    let views = files.iter().zip(&arguments.layers).map(|(file, path)| {
        let found = file.metadata().map_err(Error::disk)?;
        let file: &dyn ReadAt = file;
        let key = (found.dev(), found.ino());
        ErofsView::open(file, Vec::new(), key, path.display().to_string(), &cancel)
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let file = Publication::beside(to)?.file(LAYER_NAME)?;
    let (file, summary) = merge::write(&views, file, &limits, &lease, &cancel)?;
    drop(views);
    let devices: Vec<&dyn ReadAt> = files.iter().map(|file| file as &dyn ReadAt).collect();
    image::verify_own(&file, &devices, &limits, &lease, &cancel)?;
    Ok((file, summary))
}

/// The name of a file in a description at `disk`.
fn place(disk: &Path, path: &Path) -> Result<PathBuf> {
    let resolved =
        |path: &Path| path.canonicalize().map_err(|error| output::unreadable(&error, "merge.path"));
    let (from, to) = (resolved(directory(disk))?, resolved(directory(path))?);
    let name = path.file_name().unwrap_or_default();
    Ok(if from == to { PathBuf::from(name) } else { to.join(name) })
}

fn named<T>(outcome: Result<T>, path: &Path) -> Result<T> {
    outcome.map_err(|error| error.context(path.display().to_string()))
}
