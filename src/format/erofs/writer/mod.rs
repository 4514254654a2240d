//! The single-pass writer of EROFS images: entries and their data in, a mountable image out.
//!
//! File data goes to its final place as it arrives and is never kept. Inodes of files follow in
//! groups between the data. Only names, directories and a few numbers per file stay in memory. At
//! the end the directories are written, then the first block, without which the file is no image.
//!
//! The bytes depend on the entries, their data and the [`Options`] alone.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written".

mod attributes;
mod below;
mod directory;
mod elsewhere;
mod error;
mod finish;
mod inodes;
mod merged;
mod metadata;
mod plan;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use self::{
    attributes::Shared,
    below::Borrowed,
    metadata::{Metadata, Slot},
    sparse::Chunks,
    stream::Stream,
};
pub(in crate::format) use self::{
    attributes::encode as encode_xattr,
    directory::{Blocks, Extent, with_dots},
    stream::{GAP, Window},
};
pub use self::{
    elsewhere::{Records, is_mappable},
    error::WriterError,
    merged::{LayerDevice, Referred},
};
use super::{BlockBits, Nid, device::DeviceSlot, inode::Data, superblock::Superblock};
use crate::{
    error::Quoted,
    format::Sink,
    tree::{self, Below, Device, Entry, FileId, FileType, Inserted, Tree},
};

/// The layout of an image. Configuration, command line, Apply and Diff all hand this struct to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// Block size. 4096 bytes mount everywhere; smaller ones need Linux 6.4, larger ones pages as large.
    pub block_bits: BlockBits,
    /// Longest tail of a file that is stored beside its inode instead of in a block, in bytes. With
    /// 0 every regular file has its data in whole blocks.
    pub inline_limit: u16,
}

impl WriteOptions {
    /// Layout of images for which nothing else is asked.
    pub const DEFAULT: Self = Self {
        block_bits: BlockBits::DEFAULT,
        // Measured on package trees: 1024 saves a quarter of node_modules for a fifth more time
        // on a cold walk of all inodes; 2048 saves 2 % more and doubles the walk.
        inline_limit: 1024,
    };

    /// The layout with blocks of `block_size` bytes; `None` unless that is a block size and `inline_limit` fits into
    /// a block.
    pub fn of_bytes(block_size: u32, inline_limit: u32) -> Option<Self> {
        let bits = u8::try_from(block_size.trailing_zeros()).ok().and_then(BlockBits::new)?;
        let fits = bits.size() == u64::from(block_size) && inline_limit <= block_size;
        let inline_limit = u16::try_from(inline_limit).unwrap_or(u16::MAX);
        fits.then_some(Self { block_bits: bits, inline_limit })
    }
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Layout, identity and bounds of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Layout.
    pub image: WriteOptions,
    /// Identifier of the image; all zero for none.
    pub uuid: [u8; 16],
    /// Most nodes: entries, implied directories and whiteouts.
    pub max_nodes: u64,
    /// Largest memory for names, directories and inode numbers, in bytes.
    pub max_metadata_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        let limits = crate::limits::Limits::default();
        Self {
            image: WriteOptions::DEFAULT,
            uuid: [0; 16],
            max_nodes: limits.nodes,
            max_metadata_bytes: limits.metadata_bytes,
        }
    }
}

/// Counts and size of a finished image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Size of the file that holds the image, in bytes.
    pub size_bytes: u64,
    /// Inodes: files, directories and whiteouts. A file with several names counts once.
    pub nodes: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Regular files, each inode once.
    pub regular_files: u64,
    /// Symbolic links, each inode once.
    pub symlinks: u64,
    /// Whiteouts: character devices 0:0.
    pub whiteouts: u64,
    /// Devices except whiteouts, and fifos.
    pub special_files: u64,
    /// Names in all directories; the root has none.
    pub names: u64,
    /// Directories with an opaque mark, which hides everything below them.
    pub opaque_directories: u64,
}

/// Use of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A layer for overlayfs.
    Layer,
    /// A layer for overlayfs whose file data is in the layer's archive, the image's extra device.
    Index,
    /// The file system of a block device: a whole tree, which nothing is laid over.
    Device,
    /// The merged tree of layers, which are the image's extra devices and have all data of files.
    Merged,
}

/// Place of a file in the image, kept in the tree.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    slot: Slot,
    /// Length of inode, attributes and inline tail or chunk array, in bytes.
    record_len: u32,
    data_start: u32,
    data_blocks: u32,
}

impl Place {
    /// First block of files that the file system below has: no data begins there.
    const BELOW: u32 = u32::MAX;

    /// A file of the file system below: that of the hard link `number`.
    fn borrowed(number: u32) -> Self {
        Self { slot: Slot(number), data_start: Self::BELOW, ..Self::default() }
    }

    /// Number of the hard link whose file it is, for a file of the file system below.
    fn link(self) -> Option<usize> {
        (self.data_start == Self::BELOW).then(|| usize::try_from(self.slot.0).unwrap_or(usize::MAX))
    }
}

/// Regular file whose data is being written.
#[derive(Debug)]
struct OpenFile {
    id: FileId,
    place: Place,
    /// Bytes of data still to come.
    missing: u64,
    /// Lowest offset that the next data may have.
    next_offset: u64,
    size_bytes: u64,
    stored: Stored,
}

/// Origin of a file's data.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// It follows the entry, and the image stores it.
    Follows,
    /// It is in the archive from this byte on, and the image refers to it there.
    Archive(u64),
    /// Blocks are set aside for it, and something else fills them.
    Reserved,
}

/// Destination of a file's data.
#[derive(Debug)]
enum Stored {
    /// Consecutive blocks for the first `body_len` bytes; the rest goes to the tail after the
    /// inode.
    Flat { body_len: u64 },
    /// Chunks with data, one after the other.
    Chunks(Chunks),
}

/// Destination of the data that follows an entry.
#[derive(Debug)]
enum Open {
    /// No data is expected.
    Nothing,
    /// Data of a marker or a hard link, which is dropped.
    Ignored,
    /// Data of a regular file.
    File(OpenFile),
    /// Data of a file that the image only refers to; it may come all the same.
    Elsewhere,
}

/// Writer of one image into a sink.
#[derive(Debug)]
pub struct Writer<S> {
    options: Options,
    role: Role,
    sink: S,
    /// Superblock of the file system that the device has already.
    below: Option<Superblock>,
    /// Block from which on room is set aside for shared attributes.
    reserved_area: Option<u32>,
    tree: Tree<Place>,
    /// Hard links to files of the file system below.
    borrowed: Borrowed,
    stream: Stream,
    metadata: Metadata,
    shared: Shared,
    open: Open,
    /// Current record: inode, attributes and chunk array. Empty once it is written.
    head: Vec<u8>,
    /// Inline tail of the current file.
    tail: Vec<u8>,
    freed: Vec<Place>,
    next_ino: u32,
    /// Cost of the holes of sparse files so far, in bytes.
    hole_bytes: u64,
    /// Slots of the chunk-based files: without any, the image does not need the feature bit.
    chunked: HashSet<Slot>,
    /// Extra devices. Their places on the unified line follow from the size of the image.
    devices: Vec<DeviceSlot>,
    /// Files that begin in blocks of a device, with the first one: counted from the first block of the first device,
    /// as if the devices lay one behind the other.
    on_line: HashMap<Slot, u32>,
}

/// Room in bytes that the root's inode has at least, with its attributes and its names.
const ROOT_ROOM: u64 = 2816;

/// Byte at which the root's inode lies: right after the superblock and the device slots.
fn root_offset(devices: usize) -> u64 {
    Superblock::OFFSET + (Superblock::LEN + devices * DeviceSlot::LEN) as u64
}

/// Length in bytes of the superblock with the device slots and the root's inode behind it, which are written last. One
/// block, or as many small ones as have the same room; more for many slots.
fn head_len(bits: BlockBits, devices: usize) -> u64 {
    (root_offset(devices) + ROOT_ROOM).next_multiple_of(bits.size().max(4096))
}

impl<S: Sink> Writer<S> {
    /// Starts the image of a layer in `sink`, which has to read as zeros wherever nothing is written.
    pub fn new(sink: S, options: Options) -> Self {
        Self::for_role(sink, options, Role::Layer, Vec::new())
    }

    fn for_role(sink: S, options: Options, role: Role, devices: Vec<DeviceSlot>) -> Self {
        let bits = options.image.block_bits;
        let limits = tree::Limits { nodes: options.max_nodes, memory_bytes: options.max_metadata_bytes };
        Self {
            sink,
            tree: Tree::new(limits),
            stream: Stream::new(bits.blocks_for(head_len(bits, devices.len())), role.gap(bits)),
            metadata: Metadata::new(bits),
            shared: Shared::unlimited(),
            below: None,
            borrowed: Borrowed::default(),
            reserved_area: None,
            open: Open::Nothing,
            head: Vec::new(),
            tail: Vec::new(),
            freed: Vec::new(),
            next_ino: 1,
            hole_bytes: 0,
            chunked: HashSet::new(),
            devices,
            on_line: HashMap::new(),
            options,
            role,
        }
    }

    /// Takes the next entry. [`Writer::data`] takes the data of a regular file afterwards and
    /// [`Writer::end_entry`] ends it. After entries without data in the image both calls do
    /// nothing.
    ///
    /// Errors: [`WriterError`]. After an error the writer cannot be used.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), WriterError> {
        self.place(entry, Source::Follows)
    }

    fn place(&mut self, entry: &Entry, source: Source) -> Result<(), WriterError> {
        if matches!(self.open, Open::File(_)) {
            return Err(WriterError::Order("an entry began before the last file's end"));
        }
        self.open = Open::Nothing;
        let inserted = self.tree.insert(entry, &mut self.freed);
        let inserted =
            inserted.map_err(|source| WriterError::Tree { path: Quoted(&entry.path).to_string(), source })?;
        for place in std::mem::take(&mut self.freed) {
            self.discard(place)?;
        }
        match inserted {
            Inserted::Nothing => self.open = Open::Ignored,
            // Nothing lies below a whole tree.
            Inserted::Whiteout(_) if !self.role.is_layer() => self.open = Open::Ignored,
            Inserted::Whiteout(id) => {
                // Overlayfs ignores attributes of whiteouts.
                self.special(
                    id,
                    FileType::CharDevice,
                    entry.attributes,
                    &[],
                    Data::Device(Device::WHITEOUT),
                )?;
                self.open = Open::Ignored;
            }
            Inserted::Borrowed(id) => {
                self.tree.set_payload(id, Place::borrowed(self.borrowed.add(entry)?));
                self.open = Open::Ignored;
            }
            Inserted::File(id) => self.file(id, entry, source)?,
        }
        let limit = self.options.max_metadata_bytes;
        if self.metadata_bytes() > limit { Err(WriterError::Memory { limit }) } else { Ok(()) }
    }

    /// Takes data of the current entry: `bytes` at byte `offset` of the file. Offsets ascend. Gaps
    /// are holes of a sparse file.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriterError> {
        let file = match &mut self.open {
            Open::File(file) => file,
            Open::Ignored | Open::Elsewhere => return Ok(()),
            Open::Nothing => return Err(WriterError::Order("data came without an entry")),
        };
        let len = bytes.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= file.size_bytes);
        let end = end.ok_or(WriterError::Order("data lies behind the end of its file"))?;
        if offset < file.next_offset {
            return Err(WriterError::Order("data came twice"));
        }
        file.next_offset = end;
        file.missing = file.missing.checked_sub(len).ok_or(WriterError::Order("a file has too much data"))?;
        let start = u64::from(file.place.data_start) << self.options.image.block_bits.get();
        match &file.stored {
            Stored::Flat { body_len } => {
                let in_body = body_len.saturating_sub(offset).min(len);
                let (body, tail) = bytes.split_at(usize::try_from(in_body).map_err(WriterError::internal)?);
                if !body.is_empty() {
                    self.stream.write(&mut self.sink, start + offset, body)?;
                }
                if !tail.is_empty() {
                    let at =
                        usize::try_from(offset.saturating_sub(*body_len)).map_err(WriterError::internal)?;
                    let place = self.tail.get_mut(at..).and_then(|rest| rest.get_mut(..tail.len()));
                    place.ok_or(WriterError::Order("a tail is too long"))?.copy_from_slice(tail);
                }
            }
            Stored::Chunks(chunks) => {
                let (mut offset, mut rest) = (offset, bytes);
                while !rest.is_empty() {
                    let (place, together) =
                        chunks.locate(offset).ok_or(WriterError::Order("data lies in a hole"))?;
                    let len = usize::try_from(together).unwrap_or(usize::MAX).min(rest.len());
                    let (part, behind) = rest.split_at(len);
                    self.stream.write(&mut self.sink, start + place, part)?;
                    (offset, rest) = (offset + len as u64, behind);
                }
            }
        }
        Ok(())
    }

    /// Ends the data of the current entry. Errors: [`WriterError::Order`] when data is missing.
    pub fn end_entry(&mut self) -> Result<(), WriterError> {
        let Open::File(file) = std::mem::replace(&mut self.open, Open::Nothing) else { return Ok(()) };
        if file.missing > 0 {
            return Err(WriterError::Order("a file has too little data"));
        }
        self.end_file(file)
    }

    /// Writes the record of a file whose data is where it belongs.
    fn end_file(&mut self, mut file: OpenFile) -> Result<(), WriterError> {
        if !self.head.is_empty() {
            file.place.slot = self.add_record()?;
        }
        if let Stored::Chunks(_) = file.stored {
            self.chunked.insert(file.place.slot);
        }
        self.tree.set_payload(file.id, file.place);
        Ok(())
    }

    /// Number of directories that only names imply, see [`Tree::implied_directories`].
    pub fn implied_directories(&self) -> u64 {
        self.tree.implied_directories()
    }

    /// Gives implied directories the attributes of those below, see [`Tree::inherit`]. Call after
    /// the last entry.
    pub fn inherit<B: Below>(&mut self, below: &mut B) -> Result<u64, B::Error> {
        self.tree.inherit(below)
    }

    /// Takes inherited attributes back, see [`Tree::disinherit`].
    pub fn disinherit(&mut self) {
        self.tree.disinherit();
    }

    /// Replaces the identifier of the image. It is written last, so it may depend on the whole
    /// input.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.options.uuid = uuid;
    }

    /// Memory held for names and other metadata, and by the sink, in bytes. Buffers for writing, below 4 MiB, are
    /// not counted.
    pub fn metadata_bytes(&self) -> u64 {
        let chunked = self.chunked.capacity() * (size_of::<Slot>() + 1);
        let on_line = self.on_line.capacity() * (size_of::<(Slot, u32)>() + 1);
        let parts = [
            self.tree.memory_bytes(),
            self.metadata.memory_bytes(),
            self.shared.memory_bytes(),
            self.borrowed.memory_bytes(),
            self.sink.memory_bytes(),
        ];
        parts.iter().sum::<u64>() + (chunked + on_line) as u64
    }

    /// Size of the image laid out so far, in bytes. Directories are added at the end.
    pub fn image_bytes(&self) -> u64 {
        self.stream.next_block() << self.options.image.block_bits.get()
    }

    /// Sink that the image is written to.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    fn bits(&self) -> BlockBits {
        self.options.image.block_bits
    }

    fn root_offset(&self) -> u64 {
        root_offset(self.devices.len())
    }

    fn head_len(&self) -> u64 {
        head_len(self.bits(), self.devices.len())
    }

    fn root_nid(&self) -> Result<Nid, WriterError> {
        Nid::at_byte_offset(self.root_offset(), 0).ok_or(WriterError::Order("the root is off a slot"))
    }

    fn take_ino(&mut self) -> u32 {
        let ino = self.next_ino;
        self.next_ino = self.next_ino.wrapping_add(1);
        ino
    }

    /// Removes a file's record and data from the image.
    fn discard(&mut self, place: Place) -> Result<(), WriterError> {
        // A whiteout in a whole tree has no record, nor has a file of the file system below.
        if place.record_len == 0 {
            return Ok(());
        }
        let Self { metadata, stream, sink, options, .. } = self;
        let bits = options.image.block_bits.get();
        self.chunked.remove(&place.slot);
        self.on_line.remove(&place.slot);
        if place.data_blocks > 0 {
            let (start, blocks) = (u64::from(place.data_start), u64::from(place.data_blocks));
            stream.discard(sink, start << bits, blocks << bits)?;
        }
        metadata.discard(stream, sink, place.slot, u64::from(place.record_len))
    }
}

impl Role {
    /// Whether overlayfs lays the tree over others, so that deletions are in it as overlayfs stores them.
    fn is_layer(self) -> bool {
        matches!(self, Self::Layer | Self::Index)
    }

    /// Longest gap between two writes that is filled with zeros, in bytes. On a device what was written counts, and
    /// gaps of a block or more may be mapped; shorter ones are filled, because runs are fewer then.
    fn gap(self, bits: BlockBits) -> u64 {
        if self == Self::Device { bits.size() - 1 } else { GAP }
    }
}
