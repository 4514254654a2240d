//! Why layers cannot be merged.

use crate::{
    error::{Classify, Kind, Quoted},
    limits,
};

/// Why layers cannot be merged. Paths begin at the root.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// There are no layers, or more than can be mounted together.
    #[error("{count} layers cannot be merged, only 1 to {}", limits::MOUNTS)]
    Layers {
        /// Number of layers.
        count: usize,
    },
    /// All devices of an image have its block size.
    #[error("{layer} has blocks of {found} bytes, the layers below it have {want}")]
    BlockSize {
        /// Name of the layer.
        layer: String,
        /// Its block size, in bytes.
        found: u64,
        /// Block size of the bottom layer, in bytes.
        want: u64,
    },
    /// RAFS metadata has no data, which would be behind a device of the merged image.
    #[error("{layer} is RAFS metadata, which merges into RAFS metadata alone")]
    Form {
        /// Name of the layer.
        layer: String,
    },
    /// All chunks of an image have one size.
    #[error("{layer} has chunks of {found} bytes, the layers below it have {want}")]
    ChunkSize {
        /// Name of the layer.
        layer: String,
        /// Size of its chunks, in bytes.
        found: u32,
        /// Size of the chunks of the lowest layer with data, in bytes.
        want: u32,
    },
    /// All chunks of an image are compressed in one way, and have digests of one kind.
    #[error(
        "{layer} has the flags {found:#x} of compression and digests, the layers below it have {want:#x}"
    )]
    Flags {
        /// Name of the layer.
        layer: String,
        /// Flags of the layer.
        found: u64,
        /// Flags of the bottom layer.
        want: u64,
    },
    /// Two layers have different tables of one blob.
    #[error("chunk {chunk} of blob {id} is another one in another layer")]
    Blob {
        /// Digest of the blob in hexadecimal.
        id: String,
        /// Place of the chunk.
        chunk: u32,
    },
    /// A layer has devices in files of their own, as merged metadata has.
    #[error(
        "{layer} has extra devices, which are not behind it in the same file; merged metadata is no layer"
    )]
    Devices {
        /// Name of the layer.
        layer: String,
    },
    /// Compressed data can be decoded only with the map of its own image.
    #[error("{} in {layer} is compressed: layers with compressed files are not merged", Quoted(path))]
    Compressed {
        /// Name of the layer.
        layer: String,
        /// The file.
        path: Vec<u8>,
    },
    /// An attribute by which overlayfs looks for data or names elsewhere.
    #[error(
        "{} in {layer} has overlayfs's attribute {attribute}, which a layer of an image never has",
        Quoted(path)
    )]
    Overlay {
        /// Name of the layer.
        layer: String,
        /// The file or directory.
        path: Vec<u8>,
        /// Name of the attribute, without its prefix.
        attribute: &'static str,
    },
    /// A name that means a deletion in an archive.
    #[error("{} in {layer} has a name that is reserved for whiteouts", Quoted(path))]
    Name {
        /// Name of the layer.
        layer: String,
        /// The file or directory.
        path: Vec<u8>,
    },
    /// The layers have more names in one directory than can be sorted at a time.
    #[error("{}: the layers have too many names in this directory", Quoted(path))]
    Names {
        /// The directory.
        path: Vec<u8>,
    },
    /// Sockets are in no image that is made of an archive.
    #[error("{} in {layer} is a socket", Quoted(path))]
    Socket {
        /// Name of the layer.
        layer: String,
        /// The socket.
        path: Vec<u8>,
    },
    /// A file name cannot be spelled in a description of a disk.
    #[error("{} cannot be named in a description of a disk: {why}", Quoted(name))]
    Extent {
        /// Name of the file.
        name: Vec<u8>,
        /// The obstacle.
        why: &'static str,
    },
}

impl Classify for MergeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Layers { .. } | Self::Extent { .. } => Kind::Malformed,
            Self::Names { .. } => Kind::Exhausted,
            _ => Kind::NotImplemented,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Layers { .. } => "merge.layers",
            Self::BlockSize { .. } => "merge.block-size",
            Self::Form { .. } => "merge.form",
            Self::ChunkSize { .. } => "merge.chunk-size",
            Self::Flags { .. } => "merge.flags",
            Self::Blob { .. } => "merge.blob",
            Self::Devices { .. } => "merge.devices",
            Self::Compressed { .. } => "merge.compressed",
            Self::Overlay { .. } => "merge.overlay",
            Self::Name { .. } => "merge.name",
            Self::Names { .. } => "merge.names",
            Self::Socket { .. } => "merge.socket",
            Self::Extent { .. } => "merge.extent",
        }
    }
}
