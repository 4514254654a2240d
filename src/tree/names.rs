//! The names of a tree, found by hash and listed by chains, one for each directory.
//!
//! One table holds the names of all directories, keyed by directory and name, so that neither wide
//! nor deep trees cost more per lookup. The hash is seeded per tree: a layer cannot choose names
//! that collide. Nothing depends on the order of the table; lists are sorted by name before
//! anything is written.

use std::hash::{BuildHasher, Hasher, RandomState};

use hashbrown::HashTable;

use super::arena::{Bytes, Slab};

/// End of a chain, in place of a number.
pub(super) const NONE: u32 = u32::MAX;

/// Number of the directory or file that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Directory(u32),
    File(u32),
}

/// Name in one directory.
#[derive(Debug)]
pub(super) struct Name {
    /// Number of the directory that holds the name.
    pub parent: u32,
    /// Next name of the same directory, or [`NONE`].
    pub next: u32,
    /// Number of the directory or file named.
    node: u32,
    offset: u32,
    /// Length of the name in bytes; 0 for a freed slot.
    len: u8,
    is_directory: bool,
    /// True when the layer has a whiteout marker for this name.
    pub whited_out: bool,
}

impl Name {
    pub fn target(&self) -> Target {
        if self.is_directory { Target::Directory(self.node) } else { Target::File(self.node) }
    }

    pub fn set_target(&mut self, target: Target) {
        (self.node, self.is_directory) = match target {
            Target::Directory(number) => (number, true),
            Target::File(number) => (number, false),
        };
    }
}

/// All names of one tree.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Slab<Name>,
    bytes: Bytes,
    /// Lower half of the hash, and the number of the name. With half a hash in the table, growing
    /// it does not visit every name, which would cost more than everything else in a large layer.
    table: HashTable<(u32, u32)>,
    hasher: RandomState,
}

fn half_hash(hasher: &RandomState, parent: u32, name: &[u8]) -> u32 {
    let mut state = hasher.build_hasher();
    state.write_u32(parent);
    state.write(name);
    let [a, b, c, d, ..] = state.finish().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Hash for the table, which uses the lowest and the highest bits.
fn whole(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

fn spelled<'a>(bytes: &'a Bytes, name: &Name) -> &'a [u8] {
    bytes.get(name.offset, usize::from(name.len))
}

impl Names {
    /// Number of live names.
    pub fn len(&self) -> usize {
        self.names.live()
    }

    pub fn get(&self, number: u32) -> &Name {
        self.names.get(number)
    }

    pub fn get_mut(&mut self, number: u32) -> &mut Name {
        self.names.get_mut(number)
    }

    /// Iterates over the chain that begins with `first`.
    pub fn chain(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |number: u32| (number != NONE).then_some(number);
        std::iter::successors(some(first), move |at| some(self.get(*at).next))
    }

    /// Bytes of the name `number`.
    pub fn spelling(&self, number: u32) -> &[u8] {
        spelled(&self.bytes, self.names.get(number))
    }

    pub fn find(&self, parent: u32, spelling: &[u8]) -> Option<u32> {
        let Self { names, bytes, table, hasher } = self;
        let half = half_hash(hasher, parent, spelling);
        let is_it = |(other, number): &(u32, u32)| {
            *other == half && {
                let name = names.get(*number);
                name.parent == parent && spelled(bytes, name) == spelling
            }
        };
        table.find(whole(half), is_it).map(|(_, number)| *number)
    }

    /// Adds a name that [`Names::find`] does not find, in front of the chain that begins with
    /// `next`. `spelling` is 1 to 255 bytes. `None` when 4 GiB of names are used up.
    pub fn insert(&mut self, parent: u32, spelling: &[u8], target: Target, next: u32) -> Option<u32> {
        let offset = self.bytes.push(spelling)?;
        let len = u8::try_from(spelling.len()).expect("components are at most 255 bytes");
        let mut name = Name { parent, next, node: 0, offset, len, is_directory: false, whited_out: false };
        name.set_target(target);
        let number = self.names.insert(name);
        let half = half_hash(&self.hasher, parent, spelling);
        self.table.insert_unique(whole(half), (half, number), |(half, _)| whole(*half));
        Some(number)
    }

    /// Removes a name and frees its slot. The caller takes it out of its chain.
    pub fn remove(&mut self, number: u32) {
        let Self { names, bytes, table, hasher } = self;
        let name = names.get(number);
        let half = half_hash(hasher, name.parent, spelled(bytes, name));
        if let Ok(entry) = table.find_entry(whole(half), |(_, it)| *it == number) {
            entry.remove();
        }
        bytes.release(usize::from(name.len));
        names.get_mut(number).len = 0;
        names.release(number);
    }

    /// Rewrites the spellings when most of their store belongs to removed names.
    pub fn tidy(&mut self) {
        if !self.bytes.is_wasteful() {
            return;
        }
        let mut rewritten = self.bytes.successor();
        for name in self.names.slots_mut().filter(|name| name.len > 0) {
            name.offset = rewritten.push(spelled(&self.bytes, name)).expect("it is smaller than its source");
        }
        self.bytes = rewritten;
    }

    /// Sorts the chain that begins with `first` by unsigned bytes. Returns the new first name.
    pub fn sort_chain(&mut self, first: u32) -> u32 {
        let mut chain: Vec<(u64, u32)> = Vec::new();
        let mut shared: Option<&[u8]> = None;
        for number in self.chain(first) {
            let spelling = self.spelling(number);
            shared = Some(shared.map_or(spelling, |shared| common_prefix(shared, spelling)));
            chain.push((0, number));
        }
        // Names in one directory often share a prefix, and spellings are far apart in memory. Eight
        // bytes after the shared prefix decide nearly every comparison without reading the
        // spellings.
        let shared = shared.unwrap_or_default().len();
        for (key, number) in &mut chain {
            *key = eight_bytes(self.spelling(*number).get(shared..).unwrap_or_default());
        }
        chain.sort_unstable_by(|(a_key, a), (b_key, b)| {
            a_key.cmp(b_key).then_with(|| self.spelling(*a).cmp(self.spelling(*b)))
        });
        let mut next = NONE;
        for (_, number) in chain.into_iter().rev() {
            self.get_mut(number).next = next;
            next = number;
        }
        next
    }

    /// Memory held by names and table, in bytes.
    pub fn memory_bytes(&self) -> usize {
        // A bucket has one control byte. Tables are at most 7/8 full.
        let buckets = self.table.capacity() / 7 * 8;
        self.names.memory_bytes() + self.bytes.memory_bytes() + buckets * (size_of::<(u32, u32)>() + 1)
    }
}

fn common_prefix<'a>(a: &'a [u8], b: &[u8]) -> &'a [u8] {
    let len = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    a.get(..len).unwrap_or(a)
}

/// First eight bytes as a number that sorts like them; a shorter string is padded with zeros.
fn eight_bytes(text: &[u8]) -> u64 {
    let mut key = [0; 8];
    for (to, from) in key.iter_mut().zip(text) {
        *to = *from;
    }
    u64::from_be_bytes(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(names: &Names, first: u32) -> Vec<Vec<u8>> {
        names.chain(first).map(|number| names.spelling(number).to_vec()).collect()
    }

    #[test]
    fn a_name_belongs_to_one_directory() {
        let mut names = Names::default();
        let a = names.insert(1, b"a", Target::File(7), NONE).unwrap();
        assert_eq!((names.find(1, b"a"), names.find(2, b"a"), names.find(1, b"b")), (Some(a), None, None));
        names.remove(a);
        assert_eq!((names.find(1, b"a"), names.len()), (None, 0));
    }

    #[test]
    fn spellings_survive_a_rewrite_of_their_store() {
        let mut names = Names::default();
        let kept = names.insert(0, b"kept", Target::Directory(1), NONE).unwrap();
        let mut gone = Vec::new();
        for number in 0..10_000_u32 {
            let spelling = format!("{number:0>200}");
            gone.push(names.insert(0, spelling.as_bytes(), Target::File(number), NONE).unwrap());
        }
        let before = names.memory_bytes();
        gone.into_iter().for_each(|number| names.remove(number));
        names.tidy();
        assert_eq!((names.spelling(kept), names.find(0, b"kept")), (&b"kept"[..], Some(kept)));
        assert!(names.memory_bytes() + 1_900_000 < before);
    }

    proptest! {
        #[test]
        fn chains_are_sorted_by_unsigned_bytes(
            spellings in prop::collection::btree_set(prop::collection::vec(1_u8.., 1..12), 0..40),
            prefix in prop::collection::vec(1_u8.., 0..12),
            seed in any::<usize>(),
        ) {
            let mut spellings: Vec<_> = spellings.into_iter().map(|s| [&prefix[..], &s].concat()).collect();
            let sorted = spellings.clone();
            let len = spellings.len().max(1);
            for at in 0..spellings.len() {
                spellings.swap(at, seed.wrapping_mul(at + 7) % len);
            }
            let mut names = Names::default();
            let first = spellings.iter().fold(NONE, |next, spelling| {
                names.insert(3, spelling, Target::File(0), next).unwrap()
            });
            let first = names.sort_chain(first);
            prop_assert_eq!(listed(&names, first), sorted);
        }
    }
}
