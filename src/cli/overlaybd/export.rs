//! `plywood overlaybd export`: the metadata of an archive, and the index of its gzip blob.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::HumanBytes;

use super::produce::produce;
use crate::{
    call::{Cancel, Progress, Work},
    cli::{
        files::{require_apart, require_other},
        output,
        report::Bar,
    },
    codec::Coding,
    error::{Error, Result},
    format::{ReadAt as _, Sequential},
    limits::Limits,
    overlaybd::{
        blob::Blob,
        export::{self, Exported},
    },
    pipeline::{Plan, Resources, Source, helpers::Helpers},
};

/// Arguments of `plywood overlaybd export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Write the metadata of a layer, and the index of its gzip blob:
    plywood overlaybd export layer.tar.gz layer.tar.meta
  The index somewhere else:
    plywood overlaybd export layer.tgz layer.meta --gz_index_path layer.idx")]
pub struct Arguments {
    /// The layer: a tar archive, plain, compressed with gzip or zstd, or in a ZFile
    pub tar: PathBuf,
    /// File for the metadata. An existing one is replaced once the new one is complete
    pub output: PathBuf,
    /// File for the index of a layer that is gzip
    #[arg(long = "gz_index_path", alias = "gz-index-path", value_name = "FILE", default_value = "gzip.meta")]
    pub gz_index_path: PathBuf,
}

/// Exports the files and prints what they are. Errors: those of the export, with the name of the layer.
pub fn run(arguments: &Arguments) -> Result<()> {
    let exported =
        export(arguments).map_err(|error| error.context(format!("export {}", arguments.tar.display())))?;
    let mut text = format!(
        "{}: {} of {} uncompressed\n",
        arguments.output.display(),
        HumanBytes(exported.metadata_bytes),
        HumanBytes(exported.facts.stream_bytes),
    );
    if let Some(index) = &exported.index {
        let (path, size) = (arguments.gz_index_path.display(), HumanBytes(index.file_bytes));
        text += &format!("{path}: {size}, {} points\n", index.points);
    }
    output::result(&text)
}

fn export(arguments: &Arguments) -> Result<Exported> {
    let (mut input, size_bytes) = open(&arguments.tar)?;
    let mut head = Vec::new();
    input.by_ref().take(Coding::PREFIX_LEN as u64).read_to_end(&mut head).map_err(Error::disk)?;
    let is_gzip = Coding::detect(&head) == Coding::Gzip;
    let mut input = head.chain(input);

    let input_path = [arguments.tar.as_path()];
    require_other(&arguments.output, input_path)?;
    if is_gzip {
        require_other(&arguments.gz_index_path, input_path)?;
        require_apart(&arguments.output, &arguments.gz_index_path)?;
    }
    let resources = Resources::new(Limits::default(), Helpers::default_threads());
    let (cancel, progress) = (Cancel::new(), Progress::expecting(size_bytes));
    let lease = resources.budget.lease(&cancel)?;
    let plan =
        Plan { resources: &resources, lease: &lease, work: Work { cancel: &cancel, progress: &progress } };
    let source = Source { reader: &mut input, size_bytes, digest: None };
    let _bar = Bar::show(&progress);

    produce(&arguments.output, true, |metadata| match is_gzip {
        true => {
            produce(&arguments.gz_index_path, true, |index| export::metadata(source, plan, metadata, index))
        }
        // The file for the index is not touched, nor its directory, when there will be none.
        false => export::metadata(source, plan, metadata, Vec::new()),
    })
}

/// The archive, as bytes from its start on, and how many there are, if that is known.
fn open(path: &Path) -> Result<(Box<dyn Read>, Option<u64>)> {
    let unreadable = |error: io::Error| output::unreadable(&error, "overlaybd.input");
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Ok((Box::new(file), None));
    }
    let archive = Blob::target(file)?;
    let size_bytes = archive.size_bytes();
    Ok((Box::new(Sequential::new(archive)), Some(size_bytes)))
}
