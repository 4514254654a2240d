//! Cache of recently read stretches, so that records of some bytes do not cost a read each.
//!
//! Metadata is read in pieces of 12 to 64 bytes. Reads that follow each other grow their stretch;
//! reads that jump stay at one page. A walk in the order of the disk becomes large reads, and a
//! walk in any other order reads little that it does not need.
//!
//! Described in `docs/formats/erofs.md`, "Reading".

use std::io;

use crate::format::ReadAt;

/// Smallest read, in bytes.
const PAGE: u64 = 4096;
/// Largest read, in bytes. Larger requests bypass the window.
const LARGEST: u64 = 64 << 10;
/// Stretches kept. A walk needs one each for directory, inodes and shared attributes; the others
/// serve metadata that lies out of order.
const STRETCHES: usize = 16;

/// Cached stretches, together at most 1 MiB.
#[derive(Debug)]
pub(super) struct Window {
    stretches: Vec<Stretch>,
    /// Counts uses, to find the least recently used stretch.
    clock: u64,
    /// End of the last read from the image, and its length in bytes.
    last: (u64, u64),
}

#[derive(Debug)]
struct Stretch {
    start: u64,
    bytes: Vec<u8>,
    used: u64,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { stretches: Vec::new(), clock: 0, last: (u64::MAX, 0) }
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
            let stretch = self.stretches.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let skip = usize::try_from(offset - stretch.start).map_err(io::Error::other)?;
            let bytes = stretch.bytes.get(skip..).unwrap_or_default();
            let (now, later) = buf.split_at_mut(bytes.len().min(buf.len()));
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
        let (end, len) = self.last;
        let want = if start == end { (len * 2).min(LARGEST) } else { PAGE };
        let len = want.min(source.size_bytes().saturating_sub(start));
        if offset - start >= len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let oldest = self.stretches.iter().enumerate().min_by_key(|(_, stretch)| stretch.used);
        let index = match oldest {
            Some((index, _)) if self.stretches.len() == STRETCHES => index,
            _ => {
                self.stretches.push(Stretch { start: 0, bytes: Vec::new(), used: 0 });
                self.stretches.len() - 1
            }
        };
        let stretch = self.stretches.get_mut(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        stretch.bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        // A failed read leaves the stretch empty, never half old and half new.
        stretch.start = start;
        if let Err(error) = source.read_exact_at(start, &mut stretch.bytes) {
            stretch.bytes.clear();
            return Err(error);
        }
        self.clock += 1;
        stretch.used = self.clock;
        self.last = (start + len, want);
        Ok(index)
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
