//! The names of one directory, sorted, in little memory.

use super::error::ChangesError;
use crate::{error::Result, limits::NAME_BYTES, view::memory::Memory};

/// The names of a directory.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        // 32 bits fit usize wherever this runs.
        let start = usize::try_from(self.start).unwrap_or(usize::MAX);
        let len = usize::try_from(self.len).unwrap_or(0);
        bytes.get(start..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }
}

impl Names {
    /// Adds a name. Errors: [`ChangesError::Name`], [`ChangesError::Names`], or the memory's.
    pub fn push(&mut self, name: &[u8], memory: &mut Memory<'_>) -> Result<()> {
        let len = u32::try_from(name.len()).ok().filter(|_| name.len() <= NAME_BYTES);
        let len = len.ok_or(ChangesError::Name { len: name.len() })?;
        let start = u32::try_from(self.bytes.len()).map_err(|_too_long| ChangesError::Names)?;
        let before = self.memory_bytes();
        self.bytes.extend_from_slice(name);
        self.spans.push(Span { start, len });
        match self.memory_bytes() - before {
            0 => Ok(()),
            more => memory.add(more),
        }
    }

    /// Sorts the names in byte order, and drops repetitions.
    pub fn sort(&mut self) {
        let Self { bytes, spans } = self;
        spans.sort_unstable_by(|a, b| a.of(bytes).cmp(b.of(bytes)));
        spans.dedup_by(|a, b| a.of(bytes) == b.of(bytes));
    }

    /// The name at `index`, which counts in byte order after [`Names::sort`].
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        Some(self.spans.get(index)?.of(&self.bytes))
    }

    /// Index of `name` among sorted names.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.spans.binary_search_by(|span| span.of(&self.bytes).cmp(name)).ok()
    }

    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.spans.capacity() * size_of::<Span>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    #[test]
    fn names_come_out_in_byte_order_and_once() {
        let mut charge = |_| Ok(());
        let mut memory = Memory::new(&mut charge);
        let mut names = Names::default();
        for name in ["b", "a-b", "\u{e4}", "a", "B", "a/", "a"] {
            names.push(name.as_bytes(), &mut memory).unwrap();
        }
        names.sort();
        let sorted: Vec<_> = (0..).map_while(|index| names.get(index)).collect();
        assert_eq!(sorted, ["B", "a", "a-b", "a/", "b", "\u{e4}"].map(str::as_bytes));
        assert_eq!((names.find(b"a-b"), names.find(b"c")), (Some(2), None));
        assert_eq!(memory.used(), names.memory_bytes() as u64);
    }

    #[test]
    fn memory_is_charged_before_it_is_used_and_a_refusal_ends_the_gathering() {
        let mut most = 0;
        let mut charge = |bytes| {
            if bytes > 4 << 20 {
                return Err(Error::new(Kind::Exhausted, "limit.metadata", "too much"));
            }
            most = bytes;
            Ok(())
        };
        let mut memory = Memory::new(&mut charge);
        let mut names = Names::default();
        let refused = (0..1_000_000_u32).find_map(|n| names.push(&n.to_be_bytes(), &mut memory).err());
        assert_eq!(refused.unwrap().reason(), "limit.metadata");
        assert!(names.memory_bytes() < 9 << 20);
        assert!((2 << 20..=4 << 20).contains(&most), "{most}");
    }

    #[test]
    fn a_name_longer_than_any_file_system_s_is_refused() {
        let mut charge = |_| Ok(());
        let mut memory = Memory::new(&mut charge);
        let mut names = Names::default();
        names.push(&[b'n'; 255], &mut memory).unwrap();
        assert_eq!(names.push(&[b'n'; 256], &mut memory).unwrap_err().reason(), "compare.name");
    }
}
