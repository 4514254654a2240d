//! `plywood stargz`: the metadata of an eStargz layer, made of its table of contents, and its data.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    files::{directory, require_other},
    image::{ImageFile, open_file},
    indexed, output,
    report::Bar,
    store::{self, Address},
};
use crate::{
    call::{Cancel, Progress, Work},
    descriptor::Descriptor,
    digest::{Algorithm, Digest, Hasher},
    error::{Error, Kind, Result},
    format::{ReadAt, Sequential, Sink as _},
    image::{options::Options, platform::Platform, unpack},
    limits::Limits,
    pipeline::{Resources, helpers::Helpers},
    snapshot::NewFile,
    stargz::{
        BlobId, StargzLayer, is_stargz_data_layer, prepare_stargz_meta_layer, prepare_with_device,
        write_whole,
    },
    store::ContentStore as _,
};

/// Bytes of a layer read at a time.
const PIECE: usize = 1 << 20;

/// Arguments of `plywood stargz`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The metadata of a layer, as the nydus snapshotter keeps it:
    plywood stargz layer.esgz -o /tmp/layer
  From the table of contents alone:
    plywood stargz stargz.index.json --blob-id HEX -o /tmp/layer
  The metadata and its data device, to mount both:
    plywood stargz layer.esgz --data -o /tmp/layer
    mount -t erofs -o device=/tmp/layer/HEX.blob.data /tmp/layer/HEX /mnt
  Both in one file, which is mounted by itself:
    plywood stargz layer.esgz --whole /tmp/layer.boot
    mount -t erofs /tmp/layer.boot /mnt
  A layer that containerd has, and what the image says about it:
    plywood stargz --content sha256:HEX --of alpine -o /tmp/layer")]
pub struct Arguments {
    /// An eStargz layer, or a table of contents alone: stargz.index.json
    #[arg(required_unless_present = "content", conflicts_with = "content")]
    pub layer: Option<PathBuf>,
    /// Directory for the metadata. If the layer's is there already, nothing is done
    #[arg(short, long, value_name = "DIRECTORY", required_unless_present = "whole")]
    pub output: Option<PathBuf>,
    /// Also write the data device, filled, beside the metadata. An existing one stays
    #[arg(long, requires = "output")]
    pub data: bool,
    /// Write the metadata and the data into one file, which is mounted by itself. An existing file is replaced
    #[arg(long, value_name = "FILE")]
    pub whole: Option<PathBuf>,
    /// The table of contents of LAYER, if it is in another file: JSON, or the layer that holds it
    #[arg(long, value_name = "FILE")]
    pub toc: Option<PathBuf>,
    /// SHA-256 of the layer, 64 hexadecimal digits. Without it the layer is read to find out
    #[arg(long, value_name = "HEX", conflicts_with = "content")]
    pub blob_id: Option<String>,
    /// Take the layer from containerd's content store
    #[arg(long, value_name = "DIGEST")]
    pub content: Option<Digest>,
    /// Image of containerd with the layer. What it says about the table of contents must be so
    #[arg(long, value_name = "IMAGE", requires = "content")]
    pub of: Option<String>,
    /// Platform of the image [default: that of this machine]
    #[arg(long, value_name = "OS/ARCHITECTURE", requires = "of")]
    pub platform: Option<Platform>,
    /// containerd.
    #[command(flatten)]
    pub containerd: Address,
}

/// Runs the command. Errors: those of the layer, with its name, and of the output.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(whole) = &arguments.whole {
        let read = [&arguments.layer, &arguments.toc];
        require_other(whole, read.into_iter().flatten().map(PathBuf::as_path))?;
    }
    let cancel = Cancel::new();
    let (name, text) = match (&arguments.content, &arguments.layer) {
        (Some(digest), _) => (digest.to_string(), from_store(arguments, digest, &cancel)),
        (None, Some(path)) => (path.display().to_string(), from_file(arguments, path, &cancel)),
        (None, None) => return Err(output::usage("no layer is given")),
    };
    output::result(&text.map_err(|error| error.context(name))?)
}

fn from_file(arguments: &Arguments, path: &Path, cancel: &Cancel) -> Result<String> {
    let file = open_file(path)?;
    let is_table = indexed::is_json(&file);
    let id = match &arguments.blob_id {
        Some(hex) => BlobId::parse(hex).ok_or_else(|| {
            output::usage(format!("--blob-id {hex}: not 64 hexadecimal digits in lower case"))
        })?,
        None if is_table => {
            return Err(output::usage("a table of contents alone takes --blob-id: the digest of its layer"));
        }
        None => digest_of(&file, cancel)?,
    };
    if is_table {
        return make(arguments, &StargzLayer::<ImageFile>::of_table(indexed::json_of(&file)?), id, cancel);
    }
    make(arguments, &open(arguments, file, &BTreeMap::new())?, id, cancel)
}

/// The SHA-256 of a file.
fn digest_of(file: &ImageFile, cancel: &Cancel) -> Result<BlobId> {
    let (mut hasher, mut piece) = (Hasher::new(Algorithm::Sha256), vec![0; PIECE]);
    let mut blob = Sequential::new(file);
    loop {
        cancel.check()?;
        match blob.read(&mut piece).map_err(Error::disk)? {
            0 => break,
            read => hasher.update(piece.get(..read).unwrap_or_default()),
        }
    }
    Ok(blob_id(&hasher.finish()))
}

fn blob_id(digest: &Digest) -> BlobId {
    BlobId::parse(digest.hex()).expect("a SHA-256 has 64 digits")
}

fn open<R: ReadAt>(
    arguments: &Arguments,
    blob: R,
    annotations: &BTreeMap<String, String>,
) -> Result<StargzLayer<R>> {
    let layer = is_stargz_data_layer(blob, annotations)?;
    Ok(match &arguments.toc {
        Some(path) => {
            let json =
                indexed::json_beside(path).map_err(|error| error.context(path.display().to_string()))?;
            layer.with_table(json)
        }
        None => layer,
    })
}

/// The layer `digest` of containerd's content store.
fn from_store(arguments: &Arguments, digest: &Digest, cancel: &Cancel) -> Result<String> {
    if digest.algorithm() != Algorithm::Sha256 {
        return Err(output::usage("--content: blobs of indexed layers have SHA-256 digests"));
    }
    let runtime = store::runtime(cancel)?;
    let connection = arguments.containerd.connect(&runtime, cancel);
    let (client, call) = (&connection.client, &connection.call);
    let descriptor = match &arguments.of {
        Some(name) => {
            let options = Options::of_containerd(arguments.platform.as_ref());
            let image = unpack::find(client, call, name, &options)?;
            let found = image.layers.into_iter().find(|layer| layer.descriptor.digest == *digest);
            found.ok_or_else(|| output::usage(format!("{} has no such layer", image.name)))?.descriptor
        }
        None => {
            let size = client.blob_bytes(call, digest)?;
            let size = size.ok_or_else(|| {
                let message = "containerd has no such blob";
                Error::new(Kind::NotFound, "store.not-found", message)
            })?;
            Descriptor::of("application/octet-stream", digest.clone(), size)
        }
    };
    let mut blob = client.open(call, &descriptor)?;
    let id = blob_id(digest);
    let opened = blob.file().map(File::try_clone).transpose().map_err(Error::disk)?;
    match opened {
        Some(file) => make(arguments, &open(arguments, file, &descriptor.annotations)?, id, cancel),
        None => {
            let file = downloaded(arguments, &mut blob, digest)?;
            make(arguments, &open(arguments, file, &descriptor.annotations)?, id, cancel)
        }
    }
}

/// A blob of a store that has no file for it, in a file without a name where the output will be.
fn downloaded(arguments: &Arguments, blob: &mut impl io::Read, digest: &Digest) -> Result<NewFile> {
    let beside = arguments.whole.as_deref().map_or(Path::new("."), directory);
    let room = arguments.output.as_deref().unwrap_or(beside);
    let mut file = NewFile::scratch(room, &Limits::without_reserve())?;
    let (mut hasher, mut piece, mut at) = (Hasher::new(Algorithm::Sha256), vec![0; PIECE], 0);
    loop {
        let read = blob.read(&mut piece);
        let read = read.map_err(|error| Error::from_io(error, Kind::Unavailable, "store.read"))?;
        let bytes = piece.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        file.write_at(at, bytes).map_err(Error::disk)?;
        at += bytes.len() as u64;
    }
    let found = hasher.finish();
    if found != *digest {
        let message = format!("the store's bytes have the digest {found}");
        return Err(Error::new(Kind::DataLoss, "store.digest", message));
    }
    Ok(file)
}

/// Makes what the arguments ask for. Returns the lines to print.
fn make<R: ReadAt + Sync>(
    arguments: &Arguments,
    layer: &StargzLayer<R>,
    id: BlobId,
    cancel: &Cancel,
) -> Result<String> {
    let resources = Resources::new(Limits::default(), Helpers::default_threads());
    let progress = Progress::default();
    let work = Work { cancel, progress: &progress };
    let mut text = String::new();
    if let Some(storage) = &arguments.output {
        let (prepared, device_bytes) = match arguments.data {
            true => {
                let _bar = Bar::show(&progress);
                prepare_with_device(layer, id, storage, &resources, work)?
            }
            false => (prepare_stargz_meta_layer(layer, id, storage, None)?, None),
        };
        match prepared {
            Some(made) => {
                for (name, bytes) in made.files {
                    text += &format!("{name}: {bytes} bytes\n");
                }
                text += &format!("data device: {} bytes\n", made.data_bytes);
            }
            None => text += &format!("{id}: it is there already\n"),
        }
        if let Some(bytes) = device_bytes {
            text += &format!("{id}.blob.data: {bytes} bytes\n");
        }
    }
    if let Some(path) = &arguments.whole {
        let _bar = Bar::show(&progress);
        let bytes = write_whole(layer, id, path, &resources, work)?;
        text += &format!("{}: {bytes} bytes\n", path.display());
    }
    Ok(text)
}
