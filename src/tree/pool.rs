//! Extended attributes of directories, each stored once for all directories that have it.
//!
//! Files pass their attributes to the image as they come. Directories keep theirs until the end,
//! because a later entry may add to them. On a labelled system every directory has the same few.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::{Xattr, arena::Slab};
use crate::limits;

/// Stored attribute with the number of sets that hold it.
#[derive(Debug)]
struct Pooled {
    xattr: Xattr,
    users: u32,
}

/// Attributes by number, with counted users.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pooled: Slab<Pooled>,
    table: HashTable<u32>,
    hasher: RandomState,
    text_bytes: usize,
}

/// Attributes of one directory: numbers in a [`Pool`], sorted by name.
#[derive(Debug, Default)]
pub(super) struct Set {
    numbers: Box<[u32]>,
    encoded_bytes: u32,
}

/// Bytes of an attribute that count towards [`limits::XATTR_SUM_BYTES`]: its text and a record
/// header.
fn weight(xattr: &Xattr) -> usize {
    (4 + xattr.name.len() + xattr.value.len()).next_multiple_of(4)
}

impl Pool {
    fn intern(&mut self, xattr: &Xattr) -> u32 {
        let Self { pooled, table, hasher, text_bytes } = self;
        let hash = hasher.hash_one(xattr);
        if let Some(number) = table.find(hash, |number| pooled.get(*number).xattr == *xattr) {
            pooled.get_mut(*number).users += 1;
            return *number;
        }
        *text_bytes += xattr.name.len() + xattr.value.len();
        let number = pooled.insert(Pooled { xattr: xattr.clone(), users: 1 });
        table.insert_unique(hash, number, |other| hasher.hash_one(&pooled.get(*other).xattr));
        number
    }

    fn release(&mut self, number: u32) {
        let Self { pooled, table, hasher, text_bytes } = self;
        let entry = pooled.get_mut(number);
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        if let Ok(found) = table.find_entry(hasher.hash_one(&entry.xattr), |it| *it == number) {
            found.remove();
        }
        *text_bytes -= entry.xattr.name.len() + entry.xattr.value.len();
        entry.xattr = Xattr { name: Vec::new(), value: Vec::new() };
        pooled.release(number);
    }

    /// Adds `xattrs` to `set`, replacing those with the same name. Returns false, with nothing
    /// changed, when their sum would exceed [`limits::XATTR_SUM_BYTES`].
    #[must_use]
    pub fn merge(&mut self, set: &mut Set, xattrs: &[Xattr]) -> bool {
        if xattrs.is_empty() {
            return true;
        }
        let place = |numbers: &[u32], pooled: &Slab<Pooled>, name: &[u8]| {
            numbers.binary_search_by(|number| pooled.get(*number).xattr.name.as_slice().cmp(name))
        };
        let mut sum = usize::try_from(set.encoded_bytes).unwrap_or(usize::MAX);
        let mut added: Vec<&Xattr> = Vec::new();
        for xattr in xattrs {
            sum += weight(xattr);
            match place(&set.numbers, &self.pooled, &xattr.name) {
                Ok(at) => {
                    let replaced = set.numbers.get(at).map(|number| &self.pooled.get(*number).xattr);
                    sum -= replaced.map_or(0, weight);
                }
                Err(_) => added.push(xattr),
            }
        }
        if sum > limits::XATTR_SUM_BYTES {
            return false;
        }
        for xattr in xattrs {
            if let Ok(at) = place(&set.numbers, &self.pooled, &xattr.name) {
                let number = self.intern(xattr);
                if let Some(slot) = set.numbers.get_mut(at) {
                    self.release(std::mem::replace(slot, number));
                }
            }
        }
        if !added.is_empty() {
            added.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let old = std::mem::take(&mut set.numbers);
            let mut numbers = Vec::with_capacity(old.len() + added.len());
            let mut copied = 0;
            for xattr in added {
                // The place is searched for each attribute, so that one more costs a copy and not a
                // sort.
                let at = place(&old, &self.pooled, &xattr.name).unwrap_or_else(|at| at);
                numbers.extend_from_slice(old.get(copied..at).unwrap_or_default());
                numbers.push(self.intern(xattr));
                copied = at;
            }
            numbers.extend_from_slice(old.get(copied..).unwrap_or_default());
            set.numbers = numbers.into_boxed_slice();
        }
        set.encoded_bytes = u32::try_from(sum).unwrap_or(u32::MAX);
        true
    }

    /// Empties `set` when its directory is removed.
    pub fn clear(&mut self, set: &mut Set) {
        for number in &std::mem::take(set).numbers {
            self.release(*number);
        }
    }

    /// Iterates over the attributes of `set`, sorted by name.
    pub fn attributes<'a>(&'a self, set: &'a Set) -> impl Iterator<Item = &'a Xattr> {
        set.numbers.iter().map(|number| &self.pooled.get(*number).xattr)
    }

    /// Memory held by the pool in bytes, without the sets.
    pub fn memory_bytes(&self) -> usize {
        self.pooled.memory_bytes() + self.text_bytes + self.table.capacity() * (size_of::<u32>() + 1)
    }
}

impl Set {
    /// Memory held in bytes, without the set's own fields.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.into(), value: value.into() }
    }

    fn listed(pool: &Pool, set: &Set) -> Vec<Xattr> {
        pool.attributes(set).cloned().collect()
    }

    #[test]
    fn a_merge_adds_and_replaces_by_name() {
        let mut pool = Pool::default();
        let mut set = Set::default();
        assert!(pool.merge(&mut set, &[xattr("user.b", b"1"), xattr("user.a", b"2")]));
        assert!(pool.merge(&mut set, &[xattr("user.b", b"3"), xattr("user.c", b"")]));
        assert_eq!(listed(&pool, &set), [xattr("user.a", b"2"), xattr("user.b", b"3"), xattr("user.c", b"")]);
    }

    #[test]
    fn equal_attributes_are_stored_once_and_freed_with_their_last_user() {
        let mut pool = Pool::default();
        let label = [xattr("security.selinux", &[b'x'; 5000])];
        let mut sets: Vec<Set> = (0..100).map(|_| Set::default()).collect();
        for set in &mut sets {
            assert!(pool.merge(set, &label));
        }
        assert!(pool.memory_bytes() < 10_000);
        sets.iter_mut().for_each(|set| pool.clear(set));
        assert_eq!((pool.pooled.live(), pool.text_bytes), (0, 0));
    }

    #[test]
    fn the_sum_of_one_set_is_bounded_and_a_refused_merge_changes_nothing() {
        let mut pool = Pool::default();
        let mut set = Set::default();
        for number in 0..3 {
            assert!(pool.merge(&mut set, &[xattr(&format!("user.{number}"), &[0; 65_535])]));
        }
        let before = listed(&pool, &set);
        assert!(!pool.merge(&mut set, &[xattr("user.3", &[0; 65_535])]));
        assert_eq!(listed(&pool, &set), before);
        assert!(pool.merge(&mut set, &[xattr("user.0", &[1; 65_535])]), "replacing takes no more room");
    }
}
