//! Storage of the tree: slots that are numbered and reused, and the bytes of many short strings.
//!
//! A layer may have millions of entries, and most are a few dozen bytes of facts. One allocation
//! each, or a pointer where a number does, would double what a tree takes.

/// Numbered slots; freed numbers are given out again.
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

/// How a slot's number looks into a vector; lossless on every machine the daemon runs on.
pub(super) fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<T> Slab<T> {
    /// Stores `item` and returns its number. The caller bounds how many there are ([`super::Limits`]).
    pub fn insert(&mut self, item: T) -> u32 {
        if let Some(number) = self.free.pop() {
            *self.get_mut(number) = item;
            return number;
        }
        let number = u32::try_from(self.items.len()).expect("the tree's node limit is below 2^31");
        self.items.push(item);
        number
    }

    /// Gives `number` back; the item stays until its slot is used again.
    pub fn release(&mut self, number: u32) {
        self.free.push(number);
    }

    /// The item with `number`, which came from [`Slab::insert`].
    pub fn get(&self, number: u32) -> &T {
        self.items.get(index(number)).expect("the number came from this slab")
    }

    /// The item with `number`, to change it.
    pub fn get_mut(&mut self, number: u32) -> &mut T {
        self.items.get_mut(index(number)).expect("the number came from this slab")
    }

    /// Slots that hold a live item.
    pub fn live(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Every slot, the freed ones too.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }

    /// Every slot with its number, the freed ones too.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.items)
    }

    /// Memory held, in bytes, without what the items own.
    pub fn memory_bytes(&self) -> usize {
        self.items.len() * size_of::<T>() + self.free.capacity() * size_of::<u32>()
    }
}

/// Bytes of many strings, one behind the other; their owner remembers offset and length.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
    garbage: usize,
}

impl Bytes {
    /// Garbage that is never worth a rewrite, in bytes.
    const SLACK: usize = 1 << 20;

    /// Appends `text` and returns its offset; `None` beyond 4 GiB.
    pub fn push(&mut self, text: &[u8]) -> Option<u32> {
        let offset = u32::try_from(self.bytes.len()).ok()?;
        self.bytes.extend_from_slice(text);
        Some(offset)
    }

    /// The string at `offset`, which came from [`Bytes::push`] with that length.
    pub fn get(&self, offset: u32, len: usize) -> &[u8] {
        let rest = self.bytes.get(index(offset)..).and_then(|rest| rest.get(..len));
        rest.expect("offset and length came from this store")
    }

    /// Says that a string of `len` bytes is used no more.
    pub fn release(&mut self, len: usize) {
        self.garbage += len;
    }

    /// Whether more than half is garbage, so that a rewrite pays for itself.
    pub fn is_wasteful(&self) -> bool {
        self.garbage > Self::SLACK && self.garbage > self.bytes.len() / 2
    }

    /// An empty store with room for what lives in this one.
    pub fn successor(&self) -> Self {
        Self { bytes: Vec::with_capacity(self.bytes.len() - self.garbage), garbage: 0 }
    }

    /// Memory held, in bytes.
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
