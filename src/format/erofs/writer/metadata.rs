//! Places of inodes: bins of one block each, of which a few are open at a time.
//!
//! A record (inode, attributes, inline tail) lies within one block. It goes to the fullest open bin
//! that has room. With sixteen open bins this is as dense as sorting all records by size, which a
//! writer that sees each file once cannot do. Full bins wait until there are enough for one large
//! write, and only then get their place in the image. Until then inodes are addressed by the number
//! of their bin; directories, which alone name inodes, are written at the end.
//!
//! Source: `docs/formats/erofs.md`, "How an image is written".

use super::{WriterError, stream::Stream};
use crate::format::{
    Sink,
    erofs::{BlockBits, Nid, SLOT_LEN, inode::Inode},
};

/// Bins open for more records at a time. Sixteen come within 0.5 % of the density of sorting all
/// records; one would waste 1 to 2 %.
const OPEN_BINS: usize = 16;
/// Bytes of full bins that are written at once: large writes cost a third of small ones, see `stream.rs`.
const GROUP: usize = 1 << 20;
/// Place of a bin that has none yet.
const UNPLACED: u32 = u32::MAX;

/// Place of a record: slot number, counted through all bins in the order of their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Slot(pub u32);

/// Decides which bin takes a record, and in which order bins are closed. Holds no bytes of records.
#[derive(Clone, Debug)]
pub(super) struct Packer {
    bits: BlockBits,
    /// Open bins, sorted by number.
    open: Vec<Bin>,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Bin {
    number: u32,
    used: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub bin: u32,
    /// Byte offset of the record in the bin.
    pub offset: u32,
    /// Bin to close before the record is added, and bin to close after it.
    pub closed: [Option<u32>; 2],
}

impl Packer {
    pub fn new(bits: BlockBits) -> Self {
        Self { bits, open: Vec::with_capacity(OPEN_BINS + 1), next: 0 }
    }

    fn block_len(&self) -> u32 {
        1 << self.bits.get()
    }

    /// Chooses the bin for a record of at most a block.
    pub fn place(&mut self, len: u32) -> Placed {
        let block_len = self.block_len();
        let slot = u32::try_from(SLOT_LEN).unwrap_or(u32::MAX);
        let fits = |bin: &&mut Bin| block_len - bin.used >= len;
        // The first of equally full bins, so that the image depends on the entries alone.
        let fullest = self.open.iter_mut().filter(fits).reduce(|a, b| if b.used > a.used { b } else { a });
        let mut closed = [None; 2];
        let (bin, offset) = match fullest {
            Some(bin) => {
                let offset = bin.used;
                bin.used = (offset + len).next_multiple_of(slot);
                (bin.number, offset)
            }
            None => {
                if self.open.len() == OPEN_BINS {
                    closed[0] = self.close_fullest();
                }
                let number = self.take_number();
                self.open.push(Bin { number, used: len.next_multiple_of(slot) });
                (number, 0)
            }
        };
        // The rest is too small for any inode.
        let smallest = u32::try_from(Inode::EXTENDED_LEN).unwrap_or(u32::MAX);
        if let Some(at) =
            self.open.iter().position(|open| open.number == bin && open.used + smallest > block_len)
        {
            closed[1] = Some(self.open.remove(at).number);
        }
        Placed { bin, offset, closed }
    }

    /// Takes the next number, for a record with blocks of its own.
    fn take_number(&mut self) -> u32 {
        let number = self.next;
        // `Metadata` refuses numbers whose slots need more than 32 bits.
        self.next = self.next.saturating_add(1);
        number
    }

    fn close_fullest(&mut self) -> Option<u32> {
        let (at, _) = self.open.iter().enumerate().reduce(|a, b| if b.1.used > a.1.used { b } else { a })?;
        Some(self.open.remove(at).number)
    }

    /// Closes the open bin with the lowest number, unless it is empty.
    fn close_first(&mut self) -> Option<u32> {
        let first = self.open.iter().position(|bin| bin.used > 0)?;
        Some(self.open.remove(first).number)
    }

    /// Marks all of an open bin as free again.
    fn empty(&mut self, number: u32) {
        if let Some(bin) = self.open.iter_mut().find(|bin| bin.number == number) {
            bin.used = 0;
        }
    }
}

/// Bins with their bytes, until these are written.
#[derive(Debug)]
pub(super) struct Metadata {
    packer: Packer,
    open: Vec<(u32, Vec<u8>)>,
    /// Bytes of the bins in `full_bins`, in the same order.
    full: Vec<u8>,
    full_bins: Vec<(u32, u32)>,
    /// Block of each bin; [`UNPLACED`] until it is written or planned.
    places: Vec<u32>,
    /// Number of records in each bin that were not discarded.
    live: Vec<u16>,
    /// Empty buffers for further bins.
    spare: Vec<Vec<u8>>,
}

impl Metadata {
    pub fn new(bits: BlockBits) -> Self {
        Self {
            packer: Packer::new(bits),
            open: Vec::new(),
            full: Vec::new(),
            full_bins: Vec::new(),
            places: Vec::new(),
            live: Vec::new(),
            spare: Vec::new(),
        }
    }

    fn bits(&self) -> BlockBits {
        self.packer.bits
    }

    /// Adds a record of at most a block, given in two parts. Returns its place.
    pub fn add(
        &mut self,
        stream: &mut Stream,
        sink: &mut impl Sink,
        head: &[u8],
        tail: &[u8],
    ) -> Result<Slot, WriterError> {
        let len = u32::try_from(head.len() + tail.len()).map_err(WriterError::internal)?;
        let placed = self.packer.place(len);
        let slot = slot_at(self.bits(), placed.bin, placed.offset)?;
        self.count_record(placed.bin);
        self.close(placed.closed[0]);
        let offset = usize::try_from(placed.offset).map_err(WriterError::internal)?;
        let bin = self.open.iter().position(|(number, _)| *number == placed.bin).unwrap_or_else(|| {
            self.open.push((placed.bin, self.spare.pop().unwrap_or_default()));
            self.open.len() - 1
        });
        let (_, block) = self.open.get_mut(bin).expect("it was found or pushed just now");
        block.resize(offset, 0);
        block.extend_from_slice(head);
        block.extend_from_slice(tail);
        self.close(placed.closed[1]);
        if self.full.len() >= GROUP {
            self.flush(stream, sink)?;
        }
        Ok(slot)
    }

    /// Adds a record that needs blocks of its own. Returns its place.
    pub fn add_long(
        &mut self,
        stream: &mut Stream,
        sink: &mut impl Sink,
        record: &[u8],
    ) -> Result<Slot, WriterError> {
        let number = self.packer.take_number();
        let slot = slot_at(self.bits(), number, 0)?;
        self.count_record(number);
        let blocks = self.bits().blocks_for(record.len() as u64);
        self.full.extend_from_slice(record);
        self.full.resize(self.full.len().next_multiple_of(self.bits().buffer_len()), 0);
        self.full_bins.push((number, u32::try_from(blocks).map_err(WriterError::internal)?));
        if self.full.len() >= GROUP {
            self.flush(stream, sink)?;
        }
        Ok(slot)
    }

    /// Registers a record that the caller writes at the start of `block`. Returns its place.
    pub fn add_placed(&mut self, block: u32) -> Result<Slot, WriterError> {
        let number = self.packer.take_number();
        let slot = slot_at(self.bits(), number, 0)?;
        self.count_record(number);
        self.set_place(number, block);
        Ok(slot)
    }

    fn close(&mut self, bin: Option<u32>) {
        let Some(at) = bin.and_then(|bin| self.open.iter().position(|(number, _)| *number == bin)) else {
            return;
        };
        let (number, mut block) = self.open.remove(at);
        self.full.extend_from_slice(&block);
        self.full.resize(self.full.len().next_multiple_of(self.bits().buffer_len()), 0);
        self.full_bins.push((number, 1));
        block.clear();
        self.spare.push(block);
    }

    fn set_place(&mut self, number: u32, block: u32) {
        set_place(&mut self.places, number, block);
    }

    fn count_record(&mut self, number: u32) {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        if self.live.len() <= at {
            self.live.resize(at + 1, 0);
        }
        if let Some(live) = self.live.get_mut(at) {
            *live += 1;
        }
    }

    fn is_live(&self, number: u32) -> bool {
        usize::try_from(number).ok().and_then(|at| self.live.get(at)).is_some_and(|live| *live > 0)
    }

    /// Removes full bins without a live record before they are written.
    fn drop_dead_bins(&mut self) {
        if self.full_bins.iter().all(|(number, _)| self.is_live(*number)) {
            return;
        }
        let (mut bins, mut at) = (std::mem::take(&mut self.full_bins), 0);
        let mut kept = Vec::new();
        bins.retain(|(number, blocks)| {
            let len = usize::try_from(*blocks).unwrap_or(usize::MAX) * self.bits().buffer_len();
            let live = self.is_live(*number);
            if live {
                kept.extend_from_slice(self.full.get(at..at + len).unwrap_or_default());
            }
            at += len;
            live
        });
        (self.full, self.full_bins) = (kept, bins);
    }

    /// Writes the full bins to the next free blocks.
    fn flush(&mut self, stream: &mut Stream, sink: &mut impl Sink) -> Result<(), WriterError> {
        let bits = self.bits();
        self.drop_dead_bins();
        let mut block = stream.append(sink, bits, &self.full)?;
        for (number, blocks) in std::mem::take(&mut self.full_bins) {
            self.set_place(number, block);
            block += blocks;
        }
        self.full.clear();
        Ok(())
    }

    /// Closes and writes all bins.
    pub fn finish(&mut self, stream: &mut Stream, sink: &mut impl Sink) -> Result<(), WriterError> {
        while let Some(bin) = self.packer.close_first() {
            self.close(Some(bin));
        }
        self.flush(stream, sink)
    }

    /// Inode number of a record, with nid 0 at byte 0; `None` while its bin has no place.
    pub fn nid(&self, slot: Slot) -> Option<Nid> {
        Nid::at_byte_offset(self.byte_offset(slot)?, 0)
    }

    fn byte_offset(&self, slot: Slot) -> Option<u64> {
        let (number, offset) = bin_of(self.bits(), slot);
        let block = *self.places.get(usize::try_from(number).ok()?)?;
        (block != UNPLACED).then(|| (u64::from(block) << self.bits().get()) + offset)
    }

    /// Bytes `offset..offset + len` of a record; `None` once they are written.
    fn held(&mut self, slot: Slot, offset: u64, len: u64) -> Option<&mut [u8]> {
        let (number, start) = bin_of(self.bits(), slot);
        let start = usize::try_from(start + offset).ok()?;
        let len = usize::try_from(len).ok()?;
        if let Some((_, block)) = self.open.iter_mut().find(|(open, _)| *open == number) {
            return block.get_mut(start..)?.get_mut(..len);
        }
        let mut blocks = 0;
        for (full, count) in &self.full_bins {
            if *full == number {
                let bin = blocks * self.packer.bits.buffer_len();
                return self.full.get_mut(bin + start..)?.get_mut(..len);
            }
            blocks += usize::try_from(*count).ok()?;
        }
        None
    }

    /// Zeroes a record, and gives back the blocks of its bin when no record is left in it.
    pub fn discard(
        &mut self,
        stream: &mut Stream,
        sink: &mut impl Sink,
        slot: Slot,
        len: u64,
    ) -> Result<(), WriterError> {
        let (number, within) = bin_of(self.bits(), slot);
        let live = usize::try_from(number).ok().and_then(|at| self.live.get_mut(at));
        let live = live.ok_or(WriterError::Order("a record is nowhere"))?;
        *live = live.saturating_sub(1);
        let last = *live == 0;
        if let Some((_, block)) = self.open.iter_mut().find(|(open, _)| *open == number && last) {
            block.clear();
            self.packer.empty(number);
            return Ok(());
        }
        if let Some(record) = self.held(slot, 0, len) {
            record.fill(0);
            return Ok(());
        }
        let start = self.byte_offset(slot).ok_or(WriterError::Order("a record is nowhere"))?;
        if last {
            // Whole blocks, because a file system cannot free half a block.
            let blocks = self.bits().blocks_for(within + len);
            return stream.discard(sink, start - within, blocks << self.bits().get());
        }
        stream.discard(sink, start, len)
    }

    /// Changes bytes of a record from byte `offset` of it on, whether written or not.
    pub fn patch(
        &mut self,
        stream: &mut Stream,
        sink: &mut impl Sink,
        slot: Slot,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), WriterError> {
        if let Some(record) = self.held(slot, offset, bytes.len() as u64) {
            record.copy_from_slice(bytes);
            return Ok(());
        }
        let start = self.byte_offset(slot).ok_or(WriterError::Order("a record is nowhere"))?;
        stream.patch(sink, start + offset, bytes)
    }

    /// Starts a plan of the records that are still to be added, all in a row and without data
    /// between them.
    pub fn plan(&mut self, stream: &Stream) -> Plan {
        self.drop_dead_bins();
        let mut plan =
            Plan { packer: self.packer.clone(), next_block: stream.next_block(), places: Vec::new() };
        for (number, blocks) in &self.full_bins {
            plan.closed(*number, u64::from(*blocks));
        }
        plan
    }

    /// Adopts the places of a plan. The records added from now on have to be the planned ones.
    pub fn follow(&mut self, plan: Plan) -> Result<(), WriterError> {
        for (number, block) in plan.places {
            self.set_place(number, u32::try_from(block).map_err(WriterError::internal)?);
        }
        Ok(())
    }

    /// Memory held until the image is finished, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.places.len() * size_of::<u32>() + self.live.len() * size_of::<u16>()) as u64
    }
}

fn set_place(places: &mut Vec<u32>, number: u32, block: u32) {
    let at = usize::try_from(number).unwrap_or(usize::MAX);
    if places.len() <= at {
        places.resize(at + 1, UNPLACED);
    }
    if let Some(place) = places.get_mut(at) {
        debug_assert!(*place == UNPLACED || *place == block, "what is added is what was rehearsed");
        *place = block;
    }
}

fn slot_at(bits: BlockBits, bin: u32, offset: u32) -> Result<Slot, WriterError> {
    let slots = (u64::from(bin) << bits.get()) / SLOT_LEN + u64::from(offset) / SLOT_LEN;
    // The slots of the bin's last record have to fit into 32 bits too.
    let end = slots + bits.size() / SLOT_LEN;
    if end > u64::from(u32::MAX) {
        return Err(WriterError::Inodes);
    }
    u32::try_from(slots).map(Slot).map_err(WriterError::internal)
}

/// Splits a slot into the number of its bin and the byte offset in it.
fn bin_of(bits: BlockBits, slot: Slot) -> (u32, u64) {
    let byte = u64::from(slot.0) * SLOT_LEN;
    (u32::try_from(bits.block_of(byte)).unwrap_or(u32::MAX), bits.within(byte))
}

/// Plan of the remaining records: finds their places before the first is written, because
/// directories name inodes that come after them.
#[derive(Debug)]
pub(super) struct Plan {
    packer: Packer,
    next_block: u64,
    places: Vec<(u32, u64)>,
}

impl Plan {
    fn closed(&mut self, number: u32, blocks: u64) {
        self.places.push((number, self.next_block));
        self.next_block += blocks;
    }

    /// Plans [`Metadata::add`], or [`Metadata::add_long`] for a record longer than a block.
    pub fn add(&mut self, len: u64) -> Result<Slot, WriterError> {
        let bits = self.packer.bits;
        if len > bits.size() {
            let number = self.packer.take_number();
            self.closed(number, bits.blocks_for(len));
            return slot_at(bits, number, 0);
        }
        let placed = self.packer.place(u32::try_from(len).map_err(WriterError::internal)?);
        for number in placed.closed.into_iter().flatten() {
            self.closed(number, 1);
        }
        slot_at(bits, placed.bin, placed.offset)
    }

    /// Plans [`Metadata::finish`]. Returns the first block after all records.
    pub fn finish(&mut self) -> u64 {
        while let Some(number) = self.packer.close_first() {
            self.closed(number, 1);
        }
        self.next_block
    }
}
