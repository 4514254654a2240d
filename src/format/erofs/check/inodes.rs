//! The second pass: reads every inode once, in the order of the disk.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

use super::{
    CheckError, Notes, Policy, Report, Rule,
    ranges::Ranges,
    tree::{Record, Tree},
    xattrs::XattrCheck,
};
use crate::{
    format::{
        ReadAt,
        erofs::{
            Nid, SLOT_LEN,
            inode::{Data, Form, Inode, Layout},
            reader::{Image, Node, NodeFault, Place, ReadError, Source},
            superblock::incompat,
            xattr::{EntryHeader, UNIT},
        },
    },
    limits::LINK_TARGET_BYTES,
    tree::{Device, FileType},
};

/// Bits by which a device number is shifted in the set of data. Block numbers take the 48 bits
/// below.
const DEVICE_SHIFT: u32 = 48;

/// Bit of i_format: a directory without `.`, or a file with a link count of 1.
const SHORT_FORM: u8 = 0x10;

/// Most records whose inodes the disk may read before they are looked at.
const AHEAD: usize = 4096;

/// Largest size of a file, in bytes: the kernel rounds it up to blocks in a signed 64-bit number.
const LARGEST_FILE: u64 = i64::MAX as u64 - 4095;

pub(super) struct Inodes<'i, R> {
    image: &'i Image<R>,
    policy: &'i Policy,
    tree: Tree,
    report: Report,
    /// Metadata in use, in bytes of the image, tables included.
    metadata: Ranges,
    /// File data in use, in blocks; the device number in the upper 16 bits.
    data: Ranges,
    /// Compressed extents in the image's own file that are not whole blocks, in bytes.
    encoded: Ranges,
    xattrs: XattrCheck,
    /// Byte after the previous inode's body.
    end: u64,
    chunked: bool,
    /// Buffer for the target of a symbolic link.
    target: Vec<u8>,
}

impl<'i, R: ReadAt> Inodes<'i, R> {
    pub(super) fn new(image: &'i Image<R>, policy: &'i Policy, tree: Tree, tables: Ranges) -> Self {
        Self {
            image,
            policy,
            tree,
            report: Report::default(),
            metadata: tables,
            data: Ranges::default(),
            encoded: Ranges::default(),
            xattrs: XattrCheck::new(image.superblock()),
            end: 0,
            chunked: false,
            target: Vec::new(),
        }
    }

    /// Reads every inode, then looks for bytes that are in use twice.
    pub(super) fn check(mut self, notes: &mut Notes) -> Result<Report, CheckError> {
        let mut records = std::mem::take(&mut self.tree.records);
        records.sort_unstable();
        self.report.names = records.len() as u64 - 1;
        let (mut done, mut hinted) = (0, 0);
        for same in records.chunk_by(|a, b| a.position() == b.position()) {
            if done + AHEAD / 2 >= hinted {
                let next = records.get(hinted..).unwrap_or_default().iter().take(AHEAD);
                hinted += next.len();
                self.image.will_need(next.map(|record| record.position()));
            }
            done += same.len();
            self.inode(same, notes)?;
            let held = (records.capacity() * size_of::<Record>()) as u64;
            let held = held + self.metadata.memory_bytes() + self.data.memory_bytes();
            let held = held + self.encoded.memory_bytes();
            if held + self.tree.blocks.memory_bytes() + self.xattrs.memory_bytes()
                > self.policy.max_memory_bytes
            {
                return Err(CheckError::Memory { limit: self.policy.max_memory_bytes });
            }
        }
        drop(records);
        self.packed(notes)?;
        self.shared_xattrs()?;
        self.overlaps(notes)?;
        self.totals(notes);
        Ok(self.report)
    }

    /// Checks one inode; `records` are all directory records that name it.
    fn inode(&mut self, records: &[Record], notes: &mut Notes) -> Result<(), CheckError> {
        let Some(record) = records.first() else { return Ok(()) };
        let position = record.position();
        let nid = Nid::at_byte_offset(position, self.image.superblock().meta_start()).unwrap_or(Nid(0));
        let (node, raw) = self.image.node_at(nid, position)?;
        if let Some(other) = records.iter().find(|record| !record.claims(node.inode.file_type)) {
            let detail = format!("a record has another type than the inode's {:?}", node.inode.file_type);
            debug_assert!(other.position() == position, "records of one inode");
            return Err(CheckError::inode(Rule::EntryType, nid, detail));
        }
        if position < self.end {
            let detail =
                format!("it starts at byte {position}, within the inode before, which ends at {}", self.end);
            return Err(CheckError::inode(Rule::Overlap, nid, detail));
        }
        self.count(&node, records.len() as u64, notes)?;
        self.content(&node, &raw, notes)
    }

    /// Checks the packed file, which no directory lists.
    fn packed(&mut self, notes: &mut Notes) -> Result<(), CheckError> {
        let Some(packed) = self.image.packed()? else { return Ok(()) };
        let (node, raw) = self.image.node_at(packed.nid, packed.position)?;
        self.content(&node, &raw, notes)
    }

    /// Checks an inode and the bytes that follow it.
    fn content(
        &mut self,
        node: &Node,
        raw: &[u8; Inode::EXTENDED_LEN],
        notes: &mut Notes,
    ) -> Result<(), CheckError> {
        let nid = node.nid;
        self.fields(node, raw)?;
        reserved(node, raw, notes);
        if node.inode.xattr_icount != 0 {
            let any = self.xattrs.check(self.image, self.policy, node, notes)?;
            if any && node.inode.data == Data::Device(Device::WHITEOUT) {
                notes.lint(Rule::Whiteout, Some(nid), || "a whiteout has attributes".into());
            }
        }
        let end = match node.inode.data {
            Data::Device(_) | Data::None => self.special(node, raw, notes)?,
            _ => self.data(node, notes)?,
        };
        self.body(node, end, notes)
    }

    /// Refuses fields of a record that kernels misread.
    fn fields(&self, node: &Node, raw: &[u8; Inode::EXTENDED_LEN]) -> Result<(), CheckError> {
        let fault = |rule, detail| Err(CheckError::inode(rule, node.nid, detail));
        let [f0, ..] = *raw;
        // These forms came with 48-bit addresses; kernels without the one do not know the other.
        if f0 & SHORT_FORM != 0 && !self.image.superblock().has_incompat(incompat::WIDE) {
            return fault(Rule::Format, format!("format {f0:#04x} in an image without 48-bit addresses"));
        }
        let size = node.inode.size_bytes;
        if size > LARGEST_FILE {
            return fault(Rule::Size, format!("a size of {size} bytes is above {LARGEST_FILE}"));
        }
        let owner = node.inode.attributes;
        if owner.uid == u32::MAX || owner.gid == u32::MAX {
            return fault(Rule::Owner, format!("owner {}, group {}", owner.uid, owner.gid));
        }
        Ok(())
    }

    fn count(&mut self, node: &Node, names: u64, notes: &mut Notes) -> Result<(), CheckError> {
        let report = &mut self.report;
        report.inodes += 1;
        match node.inode.file_type {
            FileType::Directory => {
                report.directories += 1;
                if names > 1 {
                    let detail = format!("the directory is listed {names} times");
                    return Err(CheckError::inode(Rule::Twice, node.nid, detail));
                }
                return Ok(());
            }
            FileType::Regular => {
                report.files += 1;
                report.file_bytes = report.file_bytes.saturating_add(node.inode.size_bytes);
            }
            FileType::Symlink => report.symlinks += 1,
            FileType::CharDevice if node.inode.data == Data::Device(Device::WHITEOUT) => {
                report.whiteouts += 1
            }
            _ => report.specials += 1,
        }
        if u64::from(node.inode.nlink) != names {
            let found = node.inode.nlink;
            notes.lint(Rule::Links, Some(node.nid), || format!("link count {found} of {names} names"));
        }
        Ok(())
    }

    /// Checks a device, fifo or socket and returns where its body ends.
    fn special(
        &self,
        node: &Node,
        raw: &[u8; Inode::EXTENDED_LEN],
        notes: &mut Notes,
    ) -> Result<u64, CheckError> {
        let [f0, f1, ..] = *raw;
        match Layout::of([f0, f1]) {
            Ok(Layout::Plain) if node.inode.size_bytes == 0 => {}
            Ok(Layout::Plain | Layout::Inline) => {
                notes.lint(Rule::Special, Some(node.nid), || "a special file has a size or a layout".into());
            }
            // The kernel takes the device number for a chunk format, or looks for an algorithm.
            _ => return Err(CheckError::inode(Rule::Layout, node.nid, "a special file with data")),
        }
        Ok(node.xattr_end())
    }

    /// Checks the map of a compressed file and returns where its body ends.
    fn compressed(&mut self, node: &Node, notes: &mut Notes) -> Result<u64, CheckError> {
        // No writer compresses a symbolic link or a directory.
        if node.inode.file_type != FileType::Regular {
            return Err(ReadError::Node { nid: node.nid, fault: NodeFault::Compressed }.into());
        }
        self.report.compressed += 1;
        notes.lint(Rule::Unchecked, Some(node.nid), || "compressed data was not decoded".into());
        let bits = self.image.superblock().block_bits;
        let extents = self.image.compressed_extents(node)?;
        let end = extents.map_end();
        for extent in extents {
            let Source::Device { device, offset, len } = extent?.source else { continue };
            let (start, until) = (bits.block_of(offset), bits.blocks_for(offset + len));
            self.declared(node, device, start, until)?;
            if device == 0 && (bits.within(offset) != 0 || bits.within(len) != 0) {
                self.encoded.add(offset, offset + len);
            } else {
                self.data.add(data_key(device, start), data_key(device, until));
            }
            self.bounded()?;
        }
        Ok(end)
    }

    fn declared(&self, node: &Node, device: u16, start: u64, end: u64) -> Result<(), CheckError> {
        if self.image.declares(device, start, end) {
            return Ok(());
        }
        let detail = format!("blocks {start} to {end} of device {device} are not declared");
        Err(CheckError::inode(Rule::Undeclared, node.nid, detail))
    }

    fn bounded(&self) -> Result<(), CheckError> {
        let limit = self.policy.max_memory_bytes;
        let held = self.data.memory_bytes() + self.encoded.memory_bytes();
        if held > limit { Err(CheckError::Memory { limit }) } else { Ok(()) }
    }

    /// Checks the data of a file, directory or symbolic link, and returns where its body ends.
    fn data(&mut self, node: &Node, notes: &mut Notes) -> Result<u64, CheckError> {
        let bits = self.image.superblock().block_bits;
        let size = node.inode.size_bytes;
        let layout = node.inode.data.layout();
        let mut end = node.xattr_end();
        if matches!(layout, Layout::CompressedFull | Layout::CompressedCompact) {
            return self.compressed(node, notes);
        }
        if let Data::Chunks(format) = node.inode.data {
            if node.inode.file_type != FileType::Regular {
                let detail = format!("{:?} of layout chunks", node.inode.file_type);
                return Err(CheckError::inode(Rule::Layout, node.nid, detail));
            }
            self.chunked = true;
            let (start, len) = self.image.chunk_array(node, format)?;
            end = start + len;
        }
        if layout == Layout::Inline {
            if size > 0 && bits.within(size) == 0 {
                let detail = format!("{size} bytes leave no tail to store inline");
                return Err(CheckError::inode(Rule::WholeTail, node.nid, detail));
            }
            end += bits.within(size);
        }
        match node.inode.file_type {
            FileType::Symlink => self.symlink(node)?,
            // The first pass noted the blocks of directories.
            FileType::Directory => return Ok(end),
            _ => {}
        }
        for extent in self.image.extents(node, 0) {
            let extent = extent?;
            match extent.place {
                Place::Blocks { device, offset } => {
                    let start = bits.block_of(offset);
                    let end = start + bits.blocks_for(extent.len);
                    self.declared(node, device, start, end)?;
                    self.data.add(data_key(device, start), data_key(device, end));
                    self.bounded()?;
                }
                Place::Hole if layout != Layout::Chunks => {
                    notes.lint(Rule::FlatHole, Some(node.nid), || {
                        format!("a flat hole of {} bytes", extent.len)
                    });
                }
                Place::Hole | Place::Inline { .. } => {}
            }
        }
        Ok(end)
    }

    fn symlink(&mut self, node: &Node) -> Result<(), CheckError> {
        let fault = |fault| CheckError::Read(ReadError::Node { nid: node.nid, fault });
        let len = node.inode.size_bytes;
        let buffer_len = usize::try_from(len).ok().filter(|len| (1..=LINK_TARGET_BYTES).contains(len));
        self.target.resize(buffer_len.ok_or_else(|| fault(NodeFault::LinkLength { len }))?, 0);
        self.image.read_data(node, 0, &mut self.target)?;
        if self.target.contains(&0) {
            return Err(fault(NodeFault::LinkNul));
        }
        Ok(())
    }

    /// Notes the bytes of an inode and of everything after it, up to byte `end`.
    fn body(&mut self, node: &Node, end: u64, notes: &mut Notes) -> Result<(), CheckError> {
        if end > super::superblock::declared_bytes(self.image) {
            let detail = format!("it ends at byte {end}, behind the blocks that the superblock declares");
            return Err(CheckError::inode(Rule::Undeclared, node.nid, detail));
        }
        self.metadata.add(node.position, end);
        let slot_end = end.next_multiple_of(SLOT_LEN).min(self.image.size_bytes());
        let mut padding = [0; Inode::COMPACT_LEN];
        let len = usize::try_from(slot_end - end).unwrap_or(0);
        let padding = padding.get_mut(..len).unwrap_or_default();
        self.image.read_at(end, padding, "padding")?;
        if padding.iter().all(|byte| *byte == 0) {
            // Counting zero padding as used joins inodes that follow each other into one stretch.
            self.metadata.extend_last(end, slot_end);
        } else {
            notes.lint(Rule::Padding, Some(node.nid), || {
                format!("bytes from {end} to {slot_end} are not zero")
            });
        }
        self.end = end;
        Ok(())
    }

    /// Notes the bytes of the shared attributes in use.
    fn shared_xattrs(&mut self) -> Result<(), CheckError> {
        for id in self.xattrs.shared_ids() {
            let entry = self.image.shared_xattr(id)?;
            let end = entry.position + entry.header.entry_len().exact;
            if end > super::superblock::declared_bytes(self.image) {
                let detail = format!("shared xattr {id} ends at byte {end}, behind the declared blocks");
                return Err(CheckError::image(Rule::Undeclared, detail));
            }
            debug_assert!(
                entry.position.is_multiple_of(UNIT)
                    && entry.header.entry_len().exact >= EntryHeader::LEN as u64
            );
            self.metadata.add(entry.position, end);
        }
        Ok(())
    }

    fn overlaps(&mut self, notes: &mut Notes) -> Result<(), CheckError> {
        let twice = |what: &str, place: u64| {
            CheckError::image(Rule::Overlap, format!("{what} {place} is in use twice"))
        };
        if let Some(byte) = self.metadata.sort() {
            return Err(twice("byte", byte));
        }
        let metadata = self.metadata.in_units(self.image.superblock().block_bits.get());
        let directories = &mut self.tree.blocks;
        if let Some(block) = directories.sort().or_else(|| directories.meets(&metadata)) {
            return Err(twice("directory block", block));
        }
        // Compressed files may share a pcluster, or its first or last block.
        let _shared = self.encoded.sort();
        let encoded = self.encoded.in_units(self.image.superblock().block_bits.get());
        if let Some(block) = encoded.meets(&metadata).or_else(|| encoded.meets(directories)) {
            return Err(twice("as file data and as metadata, block", block));
        }
        let shared = self.data.sort().is_some();
        if let Some(block) = self.data.meets(&metadata).or_else(|| self.data.meets(directories)) {
            return Err(twice("as file data and as metadata, block", block));
        }
        if shared {
            let blocks = self.data.shared();
            notes
                .lint(Rule::Shared, None, || format!("{blocks} blocks of data belong to more than one file"));
        }
        Ok(())
    }

    fn totals(&self, notes: &mut Notes) {
        let superblock = self.image.superblock();
        let packed = superblock.has_incompat(incompat::FRAGMENTS) && superblock.packed_nid != 0;
        let inodes = self.report.inodes + u64::from(packed);
        if superblock.inos != inodes {
            let found = superblock.inos;
            notes.lint(Rule::Inos, None, || {
                format!("the superblock counts {found} inodes, there are {inodes}")
            });
        }
        // The reverse is no fault: on a device, a later layer may have removed the files.
        if self.chunked && !superblock.has_incompat(incompat::CHUNKED_FILE) {
            notes.lint(Rule::Unused, None, || "files in chunks, but not the feature chunked_file".into());
        }
    }
}

/// Key of block `block` of `device` in the set of data.
fn data_key(device: u16, block: u64) -> u64 {
    u64::from(device) << DEVICE_SHIFT | block
}

/// Lints reserved fields of an inode and its nanoseconds.
fn reserved(node: &Node, raw: &[u8; Inode::EXTENDED_LEN], notes: &mut Notes) {
    let (reserved, nanoseconds): (&[u8], [u8; 4]) = match node.form {
        Form::Compact => (raw.get(0x1C..0x20).unwrap_or_default(), [0; 4]),
        Form::Extended => {
            let field = raw.get(0x28..).and_then(|rest| rest.first_chunk());
            (raw.get(0x30..).unwrap_or_default(), *field.unwrap_or(&[0; 4]))
        }
    };
    if reserved.iter().any(|byte| *byte != 0) {
        notes.lint(Rule::Reserved, Some(node.nid), || "reserved bytes of the inode are not zero".into());
    }
    let nanoseconds = u32::from_le_bytes(nanoseconds);
    if nanoseconds >= 1_000_000_000 {
        notes.lint(Rule::Time, Some(node.nid), || format!("{nanoseconds} nanoseconds"));
    }
}
