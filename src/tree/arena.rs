//! Storage of the tree: numbered slots that are reused, and the bytes of many short strings.
//!
//! A layer may have millions of entries, most of them with a few dozen bytes of metadata. One
//! allocation for each, or a pointer instead of a number, would double the memory of a tree.

/// Numbered slots. Numbers of freed slots are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

/// Converts a slot's number to an index; lossless on every machine that the daemon runs on.
pub(super) fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<T> Slab<T> {
    /// Stores `item` and returns its number. The caller bounds the number of items
    /// ([`super::Limits`]).
    pub fn insert(&mut self, item: T) -> u32 {
        if let Some(number) = self.free.pop() {
            *self.get_mut(number) = item;
            return number;
        }
        let number = u32::try_from(self.items.len()).expect("the tree's node limit is below 2^31");
        self.items.push(item);
        number
    }

    /// Frees the slot `number`. The item stays until the slot is used again.
    pub fn release(&mut self, number: u32) {
        self.free.push(number);
    }

    /// Item with the number `number`, which came from [`Slab::insert`].
    pub fn get(&self, number: u32) -> &T {
        self.items.get(index(number)).expect("the number came from this slab")
    }

    /// Item with the number `number`, for changing it.
    pub fn get_mut(&mut self, number: u32) -> &mut T {
        self.items.get_mut(index(number)).expect("the number came from this slab")
    }

    /// Number of slots that hold a live item.
    pub fn live(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Iterates over all slots, freed ones included.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }

    /// Iterates over all slots with their numbers, freed ones included.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.items)
    }

    /// Memory held in bytes, without memory that the items own.
    pub fn memory_bytes(&self) -> usize {
        self.items.len() * size_of::<T>() + self.free.capacity() * size_of::<u32>()
    }
}

/// Bytes of many strings, one after the other. Users keep offset and length.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
    garbage: usize,
}

impl Bytes {
    /// Garbage in bytes below which a rewrite never pays.
    const SLACK: usize = 1 << 20;

    /// Appends `text` and returns its offset; `None` beyond 4 GiB.
    pub fn push(&mut self, text: &[u8]) -> Option<u32> {
        let offset = u32::try_from(self.bytes.len()).ok()?;
        self.bytes.extend_from_slice(text);
        Some(offset)
    }

    /// String at `offset`, which came from [`Bytes::push`] with that length.
    pub fn get(&self, offset: u32, len: usize) -> &[u8] {
        let rest = self.bytes.get(index(offset)..).and_then(|rest| rest.get(..len));
        rest.expect("offset and length came from this store")
    }

    /// Counts a string of `len` bytes as garbage.
    pub fn release(&mut self, len: usize) {
        self.garbage += len;
    }

    /// True when more than half is garbage, so that a rewrite pays.
    pub fn is_wasteful(&self) -> bool {
        self.garbage > Self::SLACK && self.garbage > self.bytes.len() / 2
    }

    /// Creates an empty store with room for the live strings of this one.
    pub fn successor(&self) -> Self {
        Self { bytes: Vec::with_capacity(self.bytes.len() - self.garbage), garbage: 0 }
    }

    /// Memory held by the strings, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_number_is_given_out_again() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        slab.release(a);
        assert_eq!((slab.insert('c'), slab.live()), (a, 2));
        assert_eq!((*slab.get(a), *slab.get(b)), ('c', 'b'));
    }

    #[test]
    fn a_store_asks_for_a_rewrite_when_most_of_it_is_garbage() {
        let mut bytes = Bytes::default();
        let half = vec![b'x'; Bytes::SLACK + 1];
        let first = bytes.push(&half).unwrap();
        let second = bytes.push(b"kept").unwrap();
        assert!(!bytes.is_wasteful());
        bytes.release(half.len());
        assert!(bytes.is_wasteful());
        assert_eq!(bytes.get(first, 1), b"x");
        let mut rewritten = bytes.successor();
        let moved = rewritten.push(bytes.get(second, 4)).unwrap();
        assert_eq!((rewritten.get(moved, 4), rewritten.memory_bytes()), (&b"kept"[..], 4));
    }
}
