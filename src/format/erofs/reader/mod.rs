//! Reads an EROFS image: inodes, directories, attributes and file data, from any source of blocks.
//!
//! Everything uncompressed is read, wherever it lies: plain, inline and chunk-based data, holes, extra
//! devices, block sizes from 512 bytes to 64 KiB, inodes before the metadata start. The bytes may be
//! The bytes may be hostile: no read panics, recurses, or holds more than a block and the
//! attributes of one inode. Structural faults are errors here. Features that are sound but not
//! acceptable in a layer are for [`super::check`] to refuse.
//!
//! Described in `docs/formats/erofs.md`. Source: Linux `fs/erofs/` (`super.c`, `inode.c`, `data.c`, `dir.c`,
//! `namei.c`, `xattr.c`).

mod compressed;
mod data;
mod devices;
mod directory;
mod error;
mod prefix;
#[cfg(test)]
mod tests;
mod window;
mod xattrs;

use std::cell::RefCell;

pub use self::{
    compressed::{CompressedExtent, CompressedExtents, Compression, Source},
    data::{Extent, Extents, Place},
    directory::{DirEntry, Directory},
    error::{DirectoryFault, MapFault, NodeFault, ReadError, XattrFault},
    xattrs::{XattrEntry, XattrName, Xattrs},
};
use self::{devices::Devices, prefix::LongPrefix, window::Window};
use super::{
    BlockBits, Nid,
    device::DeviceSlot,
    inode::{Data, Form, Inode, Layout, TimeBase},
    superblock::{self, Superblock, compat, incompat},
    xattr,
};
use crate::format::ReadAt;

/// An opened image over `R`, the file or files that hold it.
///
/// Reads of metadata go through an inner window of at most 1 MiB. An image therefore belongs to one
/// thread; open one for each thread.
#[derive(Debug)]
pub struct Image<R> {
    devices: Devices<R>,
    superblock: Superblock,
    /// Size of the primary file in bytes, read once when the image is opened.
    size_bytes: u64,
    prefixes: Vec<LongPrefix>,
    window: RefCell<Window>,
}

/// Inode and its place in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Inode number that led here.
    pub nid: Nid,
    /// Fields of the record, in either form.
    pub inode: Inode,
    /// Form of the record, 32 or 64 bytes.
    pub form: Form,
    /// Byte of the image at which the record starts.
    pub position: u64,
}

impl Node {
    /// Byte of the image at which the attributes start, right after the record.
    pub fn xattr_start(&self) -> u64 {
        self.position + self.form.record_len()
    }

    /// Byte of the image after the attributes, at which an inline tail starts.
    pub fn xattr_end(&self) -> u64 {
        self.xattr_start() + xattr::body_len(self.inode.xattr_icount)
    }
}

/// Incompatible features with which every uncompressed file is still found: all but METABOX, whose
/// inodes lie in a file that may be compressed.
const READABLE: u32 = incompat::KNOWN & !incompat::METABOX;

impl<R: ReadAt> Image<R> {
    /// Opens an image that lies in one file, together with the devices it may have.
    ///
    /// Errors: [`ReadError`] when the superblock, the device table or the name prefixes are malformed,
    /// the checksum is wrong or a feature is not supported.
    pub fn open(file: R) -> Result<Self, ReadError> {
        Self::open_parts(file, Vec::new(), true)
    }

    /// Opens an image whose devices are files of their own, in the order of their slots.
    ///
    /// Errors: as for [`Self::open`], and [`ReadError::DeviceCount`].
    pub fn open_with_devices(file: R, devices: Vec<R>) -> Result<Self, ReadError> {
        Self::open_parts(file, devices, true)
    }

    /// Opens an image even if its checksum is wrong, to show what is in it.
    pub fn open_despite_checksum(file: R, devices: Vec<R>) -> Result<Self, ReadError> {
        Self::open_parts(file, devices, false)
    }

    fn open_parts(file: R, devices: Vec<R>, checksum: bool) -> Result<Self, ReadError> {
        let size_bytes = file.size_bytes();
        let mut record = [0; Superblock::LEN];
        if size_bytes < Superblock::OFFSET + Superblock::LEN as u64 {
            return Err(ReadError::Truncated { size_bytes });
        }
        let mut image = Self {
            devices: Devices::none(file),
            superblock: Superblock::new(BlockBits::DEFAULT),
            size_bytes,
            prefixes: Vec::new(),
            window: RefCell::new(Window::new()),
        };
        image.read_at(Superblock::OFFSET, &mut record, "superblock")?;
        image.superblock = Superblock::decode(&record)?;
        image.accept_superblock()?;
        if checksum
            && let Some((stored, computed)) = image.checksum()?
            && stored != computed
        {
            return Err(ReadError::Checksum { stored, computed });
        }
        let slots = image.device_slots()?;
        image.devices.attach(slots, devices)?;
        image.prefixes = image.long_prefixes()?;
        Ok(image)
    }

    fn accept_superblock(&self) -> Result<(), ReadError> {
        let superblock = &self.superblock;
        let unknown = superblock.feature_incompat & !READABLE;
        if unknown != 0 {
            return Err(ReadError::Feature { bits: unknown });
        }
        if superblock.directory_block_bits != 0 {
            return Err(ReadError::Field {
                field: "dirblkbits",
                found: superblock.directory_block_bits.into(),
                want: "not 0",
            });
        }
        let end = Superblock::LEN + usize::from(superblock.extension_slots) * Superblock::SLOT_LEN;
        // The kernel reads the superblock from one page, of at least 4 KiB, at byte 0.
        if end as u64 > 4096 - Superblock::OFFSET {
            return Err(ReadError::Field {
                field: "sb_extslots",
                found: superblock.extension_slots.into(),
                want: "more than fits the first page",
            });
        }
        Ok(())
    }

    /// Superblock, as decoded when the image was opened.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Size of the file that holds the metadata, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Device slots in order; the first is device 1.
    pub fn slots(&self) -> &[DeviceSlot] {
        self.devices.slots()
    }

    /// Size in bytes of the file that holds `device`; `None` when there is no such device.
    ///
    /// Devices without a file of their own lie in the image's, after its own blocks.
    pub fn device_size_bytes(&self, device: u16) -> Option<u64> {
        self.devices.size_bytes(device)
    }

    /// True when the devices are separate files.
    pub fn has_device_files(&self) -> bool {
        self.devices.has_files()
    }

    /// True when the file goes on where the first device has its place: its data is in the same file.
    pub fn holds_devices(&self) -> bool {
        let file_blocks = self.superblock.block_bits.block_of(self.size_bytes);
        self.devices.first_on_line().is_some_and(|first| first < file_blocks)
    }

    /// Blocks of the image itself, without those of its devices. The superblock declares them, but that of RAFS metadata
    /// counts the blocks of the data instead: there the image ends where its file does, or its first device begins.
    pub(super) fn own_blocks(&self) -> u64 {
        if !self.superblock.has_compat(compat::RAFS) {
            return self.superblock.blocks;
        }
        let file_blocks = self.superblock.block_bits.block_of(self.size_bytes);
        self.devices.first_on_line().map_or(file_blocks, |first| file_blocks.min(first))
    }

    /// True when the superblock, or a slot of the device table, declares the blocks `start..end` of
    /// the file of `device`.
    pub(super) fn declares(&self, device: u16, start: u64, end: u64) -> bool {
        (device == 0 && end <= self.own_blocks()) || self.devices.declare(device, start, end)
    }

    /// Stored and computed checksum; `None` when the image has no checksum.
    ///
    /// Errors: [`ReadError::Outside`] when the file ends inside the first block.
    pub fn checksum(&self) -> Result<Option<(u32, u32)>, ReadError> {
        if !self.superblock.has_compat(compat::SB_CHKSUM) {
            return Ok(None);
        }
        let mut covered = vec![0; Superblock::checksummed_len(self.superblock.block_bits)];
        self.read_at(Superblock::OFFSET, &mut covered, "first block")?;
        Ok(Some((self.superblock.checksum, superblock::checksum(&covered))))
    }

    /// Reads the inode of the root directory. Errors: as [`Self::node`].
    pub fn root(&self) -> Result<Node, ReadError> {
        let root = self.node(self.superblock.root)?;
        if root.inode.file_type != crate::tree::FileType::Directory {
            return Err(ReadError::Node { nid: root.nid, fault: NodeFault::NotDirectory });
        }
        Ok(root)
    }

    /// Reads the inode `nid`.
    ///
    /// Errors: [`ReadError`] when it lies outside the image or its record has no meaning.
    pub fn node(&self, nid: Nid) -> Result<Node, ReadError> {
        // Refused even where the rest of the number leads to an inode: kernels since 6.17 look for
        // this inode in the metabox, which readable images do not have.
        if nid.in_metabox() {
            return Err(ReadError::Node { nid, fault: NodeFault::Metabox });
        }
        let position = nid.byte_offset(self.superblock.meta_start());
        self.node_at(nid, position).map(|(node, _)| node)
    }

    /// Reads the inode `nid` at byte `position`. Returns the bytes of its record too, of which the
    /// first 32 or 64 count.
    pub(super) fn node_at(
        &self,
        nid: Nid,
        position: u64,
    ) -> Result<(Node, [u8; Inode::EXTENDED_LEN]), ReadError> {
        let mut record = [0; Inode::EXTENDED_LEN];
        let (head, rest) = record.split_at_mut(Inode::COMPACT_LEN);
        self.read_at(position, head, "inode")?;
        let form = Form::of([*head.first().unwrap_or(&0), 0]);
        if form == Form::Extended {
            self.read_at(position + Inode::COMPACT_LEN as u64, rest, "inode")?;
        }
        // A compact record cannot cross a block: its length and its alignment are both 32 bytes.
        let base = TimeBase { epoch: self.superblock.epoch, nanoseconds: self.superblock.fixed_nsec };
        let (inode, form) =
            Inode::decode(&record, base).map_err(|source| ReadError::Inode { nid, source })?;
        let node = Node { nid, inode, form, position };
        let (start, len) = (node.xattr_start(), xattr::body_len(inode.xattr_icount));
        if start.checked_add(len).is_none_or(|end| end > self.size_bytes) {
            return Err(self.outside("extended attributes", start, len));
        }
        Ok((node, record))
    }

    /// Reads the target of a symbolic link: 1 to 4095 bytes without NUL.
    pub fn symlink_target(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let fault = |fault| ReadError::Node { nid: node.nid, fault };
        if node.inode.file_type != crate::tree::FileType::Symlink {
            return Err(fault(NodeFault::NotSymlink));
        }
        let len = node.inode.size_bytes;
        let buffer_len = usize::try_from(len)
            .ok()
            .filter(|len| (1..=crate::limits::LINK_TARGET_BYTES).contains(len))
            .ok_or_else(|| fault(NodeFault::LinkLength { len }))?;
        let mut target = vec![0; buffer_len];
        self.read_data(node, 0, &mut target)?;
        if target.contains(&0) {
            return Err(fault(NodeFault::LinkNul));
        }
        Ok(target)
    }

    /// Fills `buf` from byte `offset` of the primary file, through the window.
    pub(in crate::format) fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        what: &'static str,
    ) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size_bytes) {
            return Err(self.outside(what, offset, len));
        }
        self.window.borrow_mut().read(self.devices.primary(), offset, buf).map_err(|source| ReadError::Io {
            offset,
            len,
            source,
        })
    }

    /// Says that the inodes at the bytes `positions`, in ascending order, will be read soon.
    pub(in crate::format::erofs) fn will_need(&self, positions: impl Iterator<Item = u64>) {
        // A hint is a system call, and mostly a request to the disk.
        const NEAR: u64 = 16 << 10;
        const PAGE: u64 = 4096;
        let file = self.devices.primary();
        let mut run = (0, 0);
        for position in positions {
            let start = position - position % PAGE;
            if start > run.1 + NEAR {
                file.will_need(run.0, run.1 - run.0);
                run.0 = start;
            }
            run.1 = run.1.max(start + PAGE);
        }
        file.will_need(run.0, run.1 - run.0);
    }

    fn outside(&self, what: &'static str, offset: u64, len: u64) -> ReadError {
        ReadError::Outside { what, device: 0, offset, len, size_bytes: self.size_bytes }
    }

    fn device_slots(&self) -> Result<Vec<DeviceSlot>, ReadError> {
        let mut slots = Vec::new();
        if !self.superblock.has_incompat(incompat::DEVICE_TABLE) {
            return Ok(slots);
        }
        let wide = self.superblock.has_incompat(incompat::WIDE);
        let mut offset = u64::from(self.superblock.device_slot_offset) * DeviceSlot::LEN as u64;
        for _ in 0..self.superblock.extra_devices {
            let mut record = [0; DeviceSlot::LEN];
            self.read_at(offset, &mut record, "device slot")?;
            slots.push(DeviceSlot::decode(&record, wide));
            offset += DeviceSlot::LEN as u64;
        }
        Ok(slots)
    }

    /// Refuses a file whose layout is compressed.
    pub(super) fn uncompressed(node: &Node) -> Result<(), ReadError> {
        match node.inode.data.layout() {
            Layout::CompressedFull | Layout::CompressedCompact => {
                Err(ReadError::Node { nid: node.nid, fault: NodeFault::Compressed })
            }
            Layout::Plain | Layout::Inline | Layout::Chunks => match node.inode.data {
                Data::Device(_) | Data::None => {
                    Err(ReadError::Node { nid: node.nid, fault: NodeFault::NoData })
                }
                _ => Ok(()),
            },
        }
    }
}
