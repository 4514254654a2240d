//! Cache of recently read stretches, so that records of some bytes do not cost a read each.
//!
//! Metadata is read in pieces of 12 to 64 bytes. A read that goes on where a stretch ends is twice as
//! long as that stretch. A read elsewhere is as long as its like before it were worth: our images
//! have their metadata in one place, those of mkfs.erofs between the data of files. So a walk in the
//! order of the disk becomes large reads, and a walk in any other order reads little that it does
//! not need.
//!
//! Described in `docs/formats/erofs.md`, "Reading".

use std::io;

use crate::format::ReadAt;

/// Smallest read, in bytes.
const PAGE: u64 = 4096;
/// Largest read, in bytes. Larger requests bypass the window.
const LARGEST: u64 = 64 << 10;
/// First read at a new place, in bytes: what most images of layers have in one place.
const JUMP: u64 = 32 << 10;
/// Stretches kept. A walk needs one each for directory, inodes and shared attributes; the others
/// serve metadata that lies out of order.
const STRETCHES: usize = 16;

/// Cached stretches, together at most 1 MiB.
#[derive(Debug)]
pub(super) struct Window {
    stretches: Vec<Stretch>,
    /// Counts uses, to find the least recently used stretch.
    clock: u64,
    /// Length of the next read at a new place, in bytes.
    jump: u64,
    /// The stretch of the last such read, and its start.
    jumped: Option<(usize, u64)>,
}

#[derive(Debug)]
struct Stretch {
    start: u64,
    bytes: Vec<u8>,
    /// End of the bytes that were asked for.
    asked: usize,
    used: u64,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { stretches: Vec::new(), clock: 0, jump: JUMP, jumped: None }
    }

    /// Fills `buf` from byte `offset` of `source`, from the cache where possible.
    pub(super) fn read(
        &mut self,
        source: &impl ReadAt,
        mut offset: u64,
        mut buf: &mut [u8],
    ) -> io::Result<()> {
        if buf.len() as u64 >= LARGEST {
            return source.read_exact_at(offset, buf);
        }
        while !buf.is_empty() {
            let index = self.find(offset).map_or_else(|| self.fill(source, offset), Ok)?;
            let stretch = self.stretches.get_mut(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let skip = usize::try_from(offset - stretch.start).map_err(io::Error::other)?;
            let bytes = stretch.bytes.get(skip..).unwrap_or_default();
            let (now, later) = buf.split_at_mut(bytes.len().min(buf.len()));
            stretch.asked = stretch.asked.max(skip + now.len());
            now.copy_from_slice(bytes.split_at(now.len()).0);
            offset += now.len() as u64;
            buf = later;
        }
        Ok(())
    }

    fn find(&mut self, offset: u64) -> Option<usize> {
        let holds = |stretch: &Stretch| {
            offset.checked_sub(stretch.start).is_some_and(|skip| skip < stretch.bytes.len() as u64)
        };
        let index = self.stretches.iter().position(holds)?;
        self.clock += 1;
        self.stretches.get_mut(index)?.used = self.clock;
        Some(index)
    }

    /// Reads a stretch that starts at or before `offset` and returns its index.
    fn fill(&mut self, source: &impl ReadAt, offset: u64) -> io::Result<usize> {
        let start = offset - offset % PAGE;
        let before =
            self.stretches.iter().find(|stretch| stretch.start + stretch.bytes.len() as u64 == start);
        let (is_jump, want) = match before {
            Some(before) => (false, (before.bytes.len() as u64 * 2).min(LARGEST)),
            // The superblock, whatever else is there.
            None if start == 0 => (false, PAGE),
            None => (true, self.jump()),
        };
        let len = want.min(source.size_bytes().saturating_sub(start));
        if offset - start >= len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let oldest = self.stretches.iter().enumerate().min_by_key(|(_, stretch)| stretch.used);
        let index = match oldest {
            Some((index, _)) if self.stretches.len() == STRETCHES => index,
            _ => {
                self.stretches.push(Stretch { start: 0, bytes: Vec::new(), asked: 0, used: 0 });
                self.stretches.len() - 1
            }
        };
        let stretch = self.stretches.get_mut(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        stretch.bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        // A failed read leaves the stretch empty, never half old and half new.
        (stretch.start, stretch.asked) = (start, 0);
        if let Err(error) = source.read_exact_at(start, &mut stretch.bytes) {
            stretch.bytes.clear();
            return Err(error);
        }
        self.clock += 1;
        stretch.used = self.clock;
        if is_jump {
            self.jumped = Some((index, start));
        }
        Ok(index)
    }

    /// Length of a read at a new place.
    fn jump(&mut self) -> u64 {
        let last = self.jumped.and_then(|(index, start)| {
            self.stretches.get(index).filter(|stretch| stretch.start == start && !stretch.bytes.is_empty())
        });
        self.jump = match last {
            Some(last) if last.asked * 2 > last.bytes.len() => (self.jump * 2).min(LARGEST),
            Some(_) => (self.jump / 2).max(PAGE),
            None => self.jump,
        };
        self.jump
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// A source that counts its reads.
    struct Counted(Vec<u8>, Cell<u32>);

    impl ReadAt for Counted {
        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.1.set(self.1.get() + 1);
            self.0.as_slice().read_exact_at(offset, buf)
        }
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
    }

    #[test]
    fn reads_in_order_become_few() {
        let source = Counted(bytes(1 << 20), Cell::new(0));
        let mut window = Window::new();
        let mut record = [0; 64];
        for offset in (0..1 << 20).step_by(64) {
            window.read(&source, offset, &mut record).unwrap();
        }
        assert!(source.1.get() < 24, "{} reads", source.1.get());
    }

    #[test]
    fn streams_side_by_side_become_few_reads_each() {
        let source = Counted(bytes(1 << 20), Cell::new(0));
        let mut window = Window::new();
        let mut record = [0; 64];
        for offset in (0..1 << 19).step_by(64) {
            window.read(&source, offset, &mut record).unwrap();
            window.read(&source, (1 << 19) + offset, &mut record).unwrap();
        }
        assert!(source.1.get() < 30, "{} reads", source.1.get());
    }

    #[test]
    fn reads_far_apart_become_short() {
        struct Lengths(Cell<u64>);
        impl ReadAt for Lengths {
            fn read_exact_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
                self.0.set(self.0.get() + buf.len() as u64);
                Ok(())
            }
            fn size_bytes(&self) -> u64 {
                1 << 40
            }
        }
        let (source, mut window) = (Lengths(Cell::new(0)), Window::new());
        for number in 1..=1000 {
            window.read(&source, number << 20, &mut [0; 64]).unwrap();
        }
        assert!(source.0.get() < 1000 * PAGE + (64 << 10), "{} bytes", source.0.get());
    }

    #[test]
    fn the_end_of_the_source_is_the_end() {
        let source = bytes(5000);
        let mut window = Window::new();
        let mut record = [0; 8];
        window.read(&source.as_slice(), 4992, &mut record).unwrap();
        assert_eq!(record[..], source[4992..]);
        for offset in [4993, 5000, 9000, u64::MAX - 8] {
            let error = window.read(&source.as_slice(), offset, &mut record).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn every_read_gives_the_bytes_of_the_source(
            reads in prop::collection::vec((0_usize..200_000, 0_usize..70_000), 1..40),
        ) {
            let source = bytes(300_000);
            let mut window = Window::new();
            for (offset, len) in reads {
                let mut buf = vec![0; len];
                window.read(&source.as_slice(), offset as u64, &mut buf).unwrap();
                prop_assert_eq!(&buf, &source[offset..offset + len]);
            }
        }
    }
}
