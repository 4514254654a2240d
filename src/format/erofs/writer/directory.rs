//! Directory blocks: records and names in sorted order, block by block.
//!
//! Source: Linux `fs/erofs/erofs_fs.h`, `struct erofs_dirent`; `fs/erofs/namei.c`, whose binary search
//! needs the order to hold across blocks.

use crate::{
    format::erofs::{BlockBits, Nid, dirent::Dirent},
    tree::FileType,
};

/// Inserts `.` and `..` into the names of a directory at their sorted places. Names that begin with
/// a byte below the dot sort before them, and `.-` sorts between the two.
pub(in crate::format) fn with_dots<'a, T>(
    children: impl Iterator<Item = (&'a [u8], T)>,
    own: T,
    parent: T,
) -> impl Iterator<Item = (&'a [u8], T)> {
    let mut children = children.peekable();
    let mut dots = [(&b"."[..], own), (&b".."[..], parent)].into_iter().peekable();
    std::iter::from_fn(move || match (children.peek(), dots.peek()) {
        (Some((child, _)), Some((dot, _))) if child < dot => children.next(),
        (_, Some(_)) => dots.next(),
        (_, None) => children.next(),
    })
}

/// Size of a directory and its block boundaries, found without writing.
#[derive(Clone, Copy, Debug)]
pub(in crate::format) struct Extent {
    bits: BlockBits,
    full_blocks: u64,
    used: usize,
}

impl Extent {
    pub fn new(bits: BlockBits) -> Self {
        Self { bits, full_blocks: 0, used: 0 }
    }

    /// Adds a name. Returns true when it begins a new block.
    pub fn add(&mut self, name_len: usize) -> bool {
        let len = Dirent::LEN + name_len;
        let full = self.used + len > self.bits.buffer_len();
        if full {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += len;
        full
    }

    /// Exact size of the directory, in bytes.
    pub fn size_bytes(&self) -> u64 {
        (self.full_blocks << self.bits.get()) + self.used as u64
    }
}

/// Encoder of directory blocks, one block at a time.
#[derive(Debug)]
pub(in crate::format) struct Blocks {
    extent: Extent,
    records: Vec<(Nid, FileType, u16)>,
    names: Vec<u8>,
}

impl Blocks {
    pub fn new(bits: BlockBits) -> Self {
        Self { extent: Extent::new(bits), records: Vec::new(), names: Vec::new() }
    }

    /// Adds the next name. When it does not fit, appends the padded current block to `out` first.
    pub fn add(&mut self, name: &[u8], nid: Nid, file_type: FileType, out: &mut Vec<u8>) {
        if self.extent.add(name.len()) {
            let len = out.len() + self.extent.bits.buffer_len();
            self.close(out);
            out.resize(len, 0);
        }
        let len = u16::try_from(name.len()).expect("names are at most 255 bytes");
        self.records.push((nid, file_type, len));
        self.names.extend_from_slice(name);
    }

    /// Appends the last block to `out`, without padding, and starts over for the next directory.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.close(out);
        self.extent = Extent::new(self.extent.bits);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let mut name_offset = self.records.len() * Dirent::LEN;
        for (nid, file_type, name_len) in self.records.drain(..) {
            let offset =
                u16::try_from(name_offset).expect("the last name of a 64 KiB block begins below 64 KiB");
            out.extend_from_slice(&Dirent { nid, name_offset: offset, file_type }.encode());
            name_offset += usize::from(name_len);
        }
        out.append(&mut self.names);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(children: &[&'static [u8]]) -> Vec<&'static [u8]> {
        let children = children.iter().map(|name| (*name, ()));
        with_dots(children, (), ()).map(|(name, ())| name).collect()
    }

    #[test]
    fn dots_stand_where_their_bytes_sort() {
        assert_eq!(names(&[]), [&b"."[..], b".."]);
        assert_eq!(names(&[b"a"]), [&b"."[..], b"..", b"a"]);
        assert_eq!(
            names(&[b"!", b"-x", b".-", b"...", b".a", b"z"]),
            [&b"!"[..], b"-x", b".", b".-", b"..", b"...", b".a", b"z"]
        );
    }

    #[test]
    fn sizes_are_those_of_the_written_blocks_one_directory_after_the_other() {
        let mut blocks = Blocks::new(BlockBits::DEFAULT);
        for (count, name_len, size) in
            [(0, 0, 27), (100, 20, 3227), (200, 20, 6432), (15, 255, 4032), (16, 255, 4096 + 267)]
        {
            let names: Vec<Vec<u8>> = (0..count)
                .map(|n: usize| format!("x{n:0>width$}", width = name_len - 1).into_bytes())
                .collect();
            let children = names.iter().map(|name| (name.as_slice(), Nid(1)));
            let mut extent = Extent::new(BlockBits::DEFAULT);
            let mut out = Vec::new();
            for (name, nid) in with_dots(children, Nid(2), Nid(3)) {
                extent.add(name.len());
                blocks.add(name, nid, FileType::Regular, &mut out);
            }
            blocks.finish(&mut out);
            assert_eq!(
                (extent.size_bytes(), out.len() as u64),
                (size, size),
                "{count} names of {name_len} bytes"
            );
        }
    }
}
