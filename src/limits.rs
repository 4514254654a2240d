//! All caps on the cost of a request, with the reasons for their values.
//!
//! The constants bound formats and are fixed. [`Limits`] holds those that an operator may change.
//! No limit can be switched off.

use std::time::Duration;

/// Longest path of a layer entry, in bytes: `PATH_MAX` without its NUL.
pub const PATH_BYTES: usize = 4095;
/// Longest path component, in bytes: `NAME_MAX`, and the longest EROFS directory record name.
pub const NAME_BYTES: usize = 255;
/// Longest symbolic link target, in bytes: the most that the kernel follows.
pub const LINK_TARGET_BYTES: usize = 4095;
/// Longest extended attribute name, in bytes: `XATTR_NAME_MAX`.
pub const XATTR_NAME_BYTES: usize = 255;
/// Largest extended attribute value, in bytes: the widest EROFS value size.
pub const XATTR_VALUE_BYTES: usize = 65_535;
/// Largest encoded sum of one inode's attributes, in bytes: below EROFS's own 256 KiB body.
pub const XATTR_SUM_BYTES: usize = 240 << 10;
/// Largest body of one tar extension header, and of all those of one entry, in bytes.
pub const TAR_EXTENSION_BYTES: usize = 1 << 20;
/// Most tar extension headers before one entry; writers emit at most four.
pub const TAR_EXTENSION_HEADERS: u32 = 16;
/// Most regions of one sparse file.
pub const SPARSE_REGIONS: usize = 65_536;
/// Most bytes that holes may cost one image: zeros stored between data, and chunk arrays. Sparse
/// files in the wild cost kilobytes; a few lines of a header can ask for terabytes.
pub const SPARSE_OVERHEAD_BYTES: u64 = 1 << 30;
/// Largest file, in bytes: the kernel rounds sizes up to blocks of 4096 in 63 bits.
pub const FILE_BYTES: u64 = (1 << 63) - 4096;
/// Most symbolic links followed while one parent is resolved: the kernel's `MAXSYMLINKS`.
pub const SYMLINK_HOPS: u32 = 40;
/// Longest gzip header string (file name, comment, extra field), in bytes; skipped while reading.
pub const GZIP_HEADER_BYTES: u64 = 1 << 20;
/// Most points of a gzip index, at 40 bytes each: a stream of 4 TiB with one every MiB.
pub const GZIP_INDEX_POINTS: u64 = 4 << 20;
/// Most checkpoints of a zTOC, at 24 bytes each: a stream of 1 TiB with one every 4 MiB, as SOCI chooses them.
pub const ZTOC_CHECKPOINTS: u64 = 1 << 18;
/// Largest table of contents of an indexed layer, in bytes, compressed or not. Those of layers with 300 000 files have
/// about 100 MB.
pub const STARGZ_TOC_BYTES: u64 = 150 << 20;
/// Most entries and chunks of such a table, at about 250 bytes each.
pub const STARGZ_ENTRIES: usize = 2 << 20;
/// Largest tar-split data of a layer that is checked, in bytes, compressed: as much as a table may have, beside which it is
/// smaller always. That of a layer with 300 000 files has some 10 MB.
pub const STARGZ_TAR_SPLIT_BYTES: u64 = 150 << 20;
/// Largest device major that EROFS and the kernel encode.
pub const DEVICE_MAJOR: u32 = (1 << 12) - 1;
/// Largest device minor that EROFS and the kernel encode.
pub const DEVICE_MINOR: u32 = (1 << 20) - 1;
/// Deepest directory that a reader follows; twice what a path of 4095 bytes can name.
pub const DIRECTORY_DEPTH: u32 = 4096;
/// Largest directory of an ext4 file system, in bytes. Kernels make no larger one by default; it
/// holds a few hundred million names.
pub const DIRECTORY_BYTES: u64 = 1 << 32;
/// Most names of one ext4 directory in the index, at 16 bytes each.
pub const DIRECTORY_NAMES: usize = 4 << 20;
/// Most blocks of one journal in the index; mkfs makes no journal with more than 2^18 blocks by
/// default.
pub const JOURNAL_ENTRIES: usize = 1 << 20;
/// Most lookups in the layers below one layer, each of one name in one directory: two minutes of
/// work. A layer with 100 000 unlisted directories on top of 127 others takes a fifth of it.
pub const PARENT_LOOKUPS: u64 = 1 << 26;
/// Most layers of a device below its writable one: upstream's bound.
pub const LSMT_LAYERS: usize = 255;
/// Most index entries of one read-only LSMT layer, unused ones included: upstream's bound, 16 MB of index.
pub const LSMT_ENTRIES: u64 = 1_000_000;
/// Most index entries of a stack of LSMT layers, and records of a writable layer: upstream's bound.
pub const LSMT_STACK_ENTRIES: u64 = 128_000_000;
/// Largest device, in bytes: the largest file of ext4, so that a flattened one has a place. Layers are for devices of
/// 64 to 256 GiB.
pub const LSMT_DEVICE_BYTES: u64 = 1 << 44;
/// Most snapshots of one root that are looked at together: some hundred times those of a busy node.
pub const SNAPSHOTS: usize = 1 << 20;
/// Most mounts in one request.
pub const MOUNTS: usize = 512;
/// Largest sum of all strings of a mount list, in bytes.
pub const MOUNT_BYTES: usize = 256 << 10;

/// Largest gRPC message, in bytes: containerd's own bound.
pub const GRPC_MESSAGE_BYTES: usize = 16 << 20;
/// Largest sum of a gRPC request's headers, in bytes; containerd's have less than one KiB.
pub const GRPC_HEADER_BYTES: u32 = 16 << 10;
/// Largest ttrpc message, in bytes: the protocol's own bound.
pub const TTRPC_MESSAGE_BYTES: usize = 4 << 20;
/// Longest time between accepting a connection and its first complete frame.
pub const FIRST_FRAME: Duration = Duration::from_secs(5);
/// Longest lease id that is forwarded, in bytes.
pub const LEASE_BYTES: usize = 255;
/// Longest ingest reference that is forwarded, in bytes; clients use a few words and a digest.
pub const REFERENCE_BYTES: usize = 4096;
/// Most labels of one request; clients set a handful.
pub const LABELS: usize = 256;
/// Most annotations of one descriptor; images have a handful.
pub const ANNOTATIONS: usize = 256;
/// Largest sum of the keys and values of a descriptor's annotations, in bytes. Keys of an encrypted layer take a few
/// hundred bytes for each recipient; a manifest ends at 4 MiB with all its layers.
pub const ANNOTATION_BYTES: usize = 256 << 10;
/// Most payloads of one request; clients send one for each stream processor.
pub const PAYLOADS: usize = 64;
/// Largest sum of the names, types and values of a request's payloads, in bytes. Keys and certificates take some
/// ten KiB.
pub const PAYLOAD_BYTES: usize = 256 << 10;
/// Longest JSON document of an image: manifest, index, configuration. Registries refuse longer ones.
pub const DOCUMENT_BYTES: usize = 4 << 20;
/// Longest manifest of a separated set, in bytes: that of the program that writes them.
pub const SET_MANIFEST_BYTES: usize = 10 << 20;
/// Most layers of an image. Kernels mount a few hundred at most, and clients refuse more than 127.
pub const IMAGE_LAYERS: usize = 1024;
/// Most images of one archive, and most entries of one index.
pub const INDEX_ENTRIES: usize = 1024;
/// Deepest nesting of indexes.
pub const INDEX_DEPTH: usize = 4;
/// Largest sum of the documents of all images of one command, in bytes: they are held in memory until the layers are
/// there.
pub const IMAGE_DOCUMENTS_BYTES: usize = 64 << 20;
/// Most members of an archive of images. A layer has one to three.
pub const ARCHIVE_MEMBERS: u64 = 100_000;
/// Largest sum of the names of an archive's members that are kept, in bytes: 160 for each of the most.
pub const ARCHIVE_NAME_BYTES: usize = 16 << 20;
/// Documents of a compressed archive that are kept from its first reading, in bytes. Others are read once more.
pub const ARCHIVE_KEPT_BYTES: usize = 16 << 20;
/// Most readings of a compressed archive after the first. One is for the layers; each of the others for a document that
/// the first has not kept.
pub const ARCHIVE_PASSES: u32 = 64;
/// Longest chain of links from member to member of an archive; those in use have one.
pub const ARCHIVE_LINKS: usize = 40;
/// Longest status message, in bytes. Percent-encoded twice over, it stays within the header size
/// that HTTP/2 clients accept.
pub const STATUS_MESSAGE_BYTES: usize = 2048;

/// Limits that an operator may change; one key each in the configuration's `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest compressed blob, in bytes.
    pub blob_bytes: u64,
    /// Largest uncompressed stream, in bytes, all bytes after the end of the archive included.
    pub stream_bytes: u64,
    /// Largest ratio of uncompressed to compressed bytes, checked from 1 GiB of output on.
    pub expansion_ratio: u64,
    /// Free space that stays on the target file system, in bytes, unless `reserve_percent` of it is
    /// more.
    pub reserve_bytes: u64,
    /// Free space that stays, in percent of the file system's size. The larger of the two holds.
    pub reserve_percent: u64,
    /// Most nodes of one layer: entries, implied directories and whiteouts.
    pub nodes: u64,
    /// Largest metadata of one request in memory, in bytes.
    pub metadata_bytes: u64,
    /// Largest metadata of all requests together, in bytes. Further requests wait.
    pub total_metadata_bytes: u64,
    /// Largest zstd window, in bytes.
    pub zstd_window_bytes: u64,
    /// Longest time without progress from the store or the disk, after which a request fails.
    pub stall: Duration,
}

impl Limits {
    /// The limits of commands, which keep no part of the disk free: it is the caller's to fill.
    pub fn without_reserve() -> Self {
        Self { reserve_bytes: 0, reserve_percent: 0, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob_bytes: 1 << 40,
            stream_bytes: 1 << 40,
            // The densest real layers stay below 100:1; deflate itself ends at 1032:1.
            expansion_ratio: 250,
            reserve_bytes: 2 << 30,
            reserve_percent: 5,
            nodes: 8 << 20,
            metadata_bytes: 9 << 28,
            total_metadata_bytes: 3 << 30,
            // The window of `zstd --long=27`, the largest that decoders accept by default.
            zstd_window_bytes: 128 << 20,
            stall: Duration::from_secs(120),
        }
    }
}
