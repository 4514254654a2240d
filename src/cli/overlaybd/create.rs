//! `plywood overlaybd create`: creates the files of a writable layer.
//!
//! Also `overlaybd-create`, with the arguments of the upstream tool.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::{
    cli::output,
    error::{Error, Kind, Result},
    format::lsmt::{NewUpper, Uuid},
    overlaybd::life::{self, Pair},
};

/// Bytes of the unit in which device sizes are given.
pub(super) const GIB: u64 = 1 << 30;

/// Arguments of `plywood overlaybd create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  A writable layer for a device of 64 GiB:
    plywood overlaybd create data index 64
  In a directory, in the place of an older one:
    plywood overlaybd create dir 64")]
pub struct Arguments {
    /// Data file, index file, and size of the device in GiB. Or a directory, for files with the usual names, and the size.
    /// 0 takes the size of the layers below
    #[arg(value_names = ["DATA", "INDEX", "VSIZE_GB"], num_args = 2..=3, required = true)]
    pub files: Vec<OsString>,
    /// Keep the data at its place on the device, in a file with holes
    #[arg(short = 's')]
    pub sparse: bool,
    /// Create the files of a turboOCI layer
    #[arg(long = "turboOCI", visible_alias = "fastoci")]
    pub turbo: bool,
    /// Identity of the layer below
    #[arg(short = 'u', value_name = "UUID")]
    pub parent_uuid: Option<String>,
    /// Create a plain file of that size as DATA, and an empty INDEX
    #[arg(long, conflicts_with_all = ["sparse", "turbo"])]
    pub raw: bool,
    /// Make an ext4 file system. Not supported: the command fails, and creates nothing
    #[arg(long)]
    pub mkfs: bool,
    /// Taken for the sake of scripts, without effect
    #[arg(long, hide = true)]
    pub verbose: bool,
}

/// Runs the command. Errors: a file exists already; those of the disk.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (in_directory, files, size) = match arguments.files.as_slice() {
        [dir, size] => (Some(Path::new(dir)), Pair::in_directory(Path::new(dir)), size),
        [data, index, size] => (None, Pair { data: PathBuf::from(data), index: PathBuf::from(index) }, size),
        _ => return Err(output::usage("a data file, an index file and a size are needed")),
    };
    if arguments.mkfs {
        let message = "making an ext4 file system is not supported; layers with EROFS need none";
        return Err(Error::new(Kind::NotImplemented, "overlaybd.ext4", message));
    }
    let gib = size.to_str().and_then(|size| size.parse::<u64>().ok());
    let virtual_size = gib
        .and_then(|gib| gib.checked_mul(GIB))
        .ok_or_else(|| output::usage(format!("{}: not the size of a device in GiB", size.display())))?;
    if arguments.raw {
        files.create_raw(virtual_size)?;
    } else {
        let new = NewUpper {
            kind: life::kind(arguments.sparse, arguments.turbo),
            virtual_size,
            uuid: life::random_uuid()?,
            parent_uuid: uuid_or_none(arguments.parent_uuid.as_deref()).unwrap_or(Uuid::NULL),
        };
        match in_directory {
            Some(dir) => life::create(dir, new)?,
            None => files.create(new)?,
        }
    }
    output::result(&format!("{}, {}: created\n", files.data.display(), files.index.display()))
}

/// Identity in an option. Upstream's tools take text that is none for no identity, and so do scripts that call them.
pub(super) fn uuid_or_none(text: Option<&str>) -> Option<Uuid> {
    let uuid = Uuid::parse(text?);
    if uuid.is_none() {
        output::note("plywood: an identity that is no UUID counts as none");
    }
    uuid
}
