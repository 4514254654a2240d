//! `plywood stargz`: the metadata of an indexed layer, made of its table of contents alone.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    image::{ImageFile, open_file},
    indexed, output,
};
use crate::{
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    format::{
        Sequential, Sink as _, rafs,
        stargz::{Declared, Layout, Toc},
    },
    snapshot::{Durability, LAYER_NAME, Publication},
};

/// Mode of the files, as the nydus snapshotter leaves them.
const MODE: u32 = 0o440;
/// Bytes of a layer read at a time.
const PIECE: usize = 1 << 20;
/// Name of the table of contents beside the metadata.
const TOC_NAME: &str = "stargz.index.json";

/// Arguments of `plywood stargz`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The metadata of a layer, as the nydus snapshotter keeps it:
    plywood stargz layer.esgz -o /tmp/layer
  From the table of contents alone:
    plywood stargz stargz.index.json --blob-id HEX -o /tmp/layer")]
pub struct Arguments {
    /// An eStargz layer, or a table of contents alone: stargz.index.json
    pub layer: PathBuf,
    /// Directory for the files. Those that are there already stay as they are
    #[arg(short, long, value_name = "DIRECTORY")]
    pub output: PathBuf,
    /// The table of contents of LAYER, if it is in another file: JSON, or the layer that holds it
    #[arg(long, value_name = "FILE")]
    pub toc: Option<PathBuf>,
    /// SHA-256 of the layer, 64 hexadecimal digits. Without it the layer is read to find out
    #[arg(long, value_name = "HEX")]
    pub blob_id: Option<String>,
}

/// Runs the command. Errors: those of the layer, with its name, and of the output.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (made, data_bytes) =
        make(arguments).map_err(|error| error.context(arguments.layer.display().to_string()))?;
    for (name, bytes) in &made {
        let path = arguments.output.join(name);
        write(&path, bytes).map_err(|error| error.context(path.display().to_string()))?;
    }
    let lines = made.iter().map(|(name, bytes)| format!("{name}: {} bytes\n", bytes.len()));
    output::result(&format!("{}data device: {data_bytes} bytes\n", lines.collect::<String>()))
}

/// A file to be written: its name, and what is in it.
type Made = (String, Vec<u8>);

/// The files, and the size of the data device in bytes.
fn make(arguments: &Arguments) -> Result<(Vec<Made>, u64)> {
    let file = open_file(&arguments.layer)?;
    let (json, payload_end) = table(&file, arguments.toc.as_deref())?;
    let toc = Toc::read(&json, payload_end)?;
    let id = blob_id(&file, arguments)?;
    let spelled = String::from_utf8_lossy(&id).into_owned();
    let rafs::Metadata { image, context, data_bytes } = rafs::write(&toc, id)?;
    let context = context.map(|context| (format!("{spelled}.blob.meta"), context));
    let image = (spelled, image);
    let files = [Some((TOC_NAME.to_owned(), json)), context, Some(image)];
    Ok((files.into_iter().flatten().collect(), data_bytes))
}

/// The table of contents, and the end of the payload that it is about.
fn table(file: &ImageFile, beside: Option<&Path>) -> Result<(Vec<u8>, u64)> {
    if indexed::is_json(file) {
        return Ok((indexed::json_of(file)?, indexed::UNKNOWN_END));
    }
    let declared = Declared::default();
    let refuse = |message: String| Error::new(Kind::NotImplemented, "rafs.form", message);
    let layout = Layout::find(file, &declared)?.ok_or_else(|| refuse("it is no indexed layer".to_owned()))?;
    if layout.form.is_zstd() {
        return Err(refuse(format!("it is {}, and only eStargz has such metadata", layout.form.as_str())));
    }
    let json = match beside {
        Some(path) => {
            Some(indexed::json_beside(path).map_err(|error| error.context(path.display().to_string()))?)
        }
        None => layout.read_toc(file, &declared)?,
    };
    let json = json.ok_or_else(|| output::usage("its table of contents is in another file: --toc FILE"))?;
    Ok((json, layout.payload_end))
}

fn blob_id(file: &ImageFile, arguments: &Arguments) -> Result<[u8; 64]> {
    let hex = match &arguments.blob_id {
        Some(hex) => hex.clone(),
        None if indexed::is_json(file) => {
            return Err(output::usage("a table of contents alone takes --blob-id: the digest of its layer"));
        }
        None => {
            let (mut hasher, mut piece) = (Hasher::new(Algorithm::Sha256), vec![0; PIECE]);
            let mut blob = Sequential::new(file);
            loop {
                match blob.read(&mut piece).map_err(Error::disk)? {
                    0 => break hasher.finish().hex().to_owned(),
                    read => hasher.update(piece.get(..read).unwrap_or_default()),
                }
            }
        }
    };
    let is_digest = format!("sha256:{hex}").parse::<Digest>().is_ok();
    let id = hex.as_bytes().try_into().ok().filter(|_| is_digest);
    id.ok_or_else(|| output::usage(format!("--blob-id {hex}: not 64 hexadecimal digits in lower case")))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let publication = Publication::beside(path)?;
    let mut file = publication.file(LAYER_NAME)?;
    file.write_at(0, bytes).map_err(Error::disk)?;
    publication.commit([file], Durability::Request, false)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(Error::disk)
}
