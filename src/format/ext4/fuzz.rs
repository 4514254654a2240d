//! Fuzz entry: everything readable in an image is consistent.
//!
//! Described in `docs/formats/ext4.md`, "Errors".

use super::{
    reader::{Image, Node, Place, ReadError},
    superblock::ro_compat,
};
use crate::tree::FileType;

/// Most names of an image that are read. Fuzzers find small images.
const NAMES: u64 = 256;
/// Most bytes read of each file.
const DATA: u64 = 1 << 20;
/// Most extents read of each file.
const EXTENTS: usize = 4096;

/// Reads all of `data` as a file system, once as it is and once without its checksums, so that a
/// fuzzer gets past them.
///
/// # Panics
///
/// When two ways to read the same thing differ.
pub fn fuzz_image(data: &[u8]) {
    // A malformed image ends the walk with an error, which is no finding.
    let _ = read_all(data);
    let mut mended = data.to_vec();
    drop_checksums(&mut mended);
    if mended != data {
        let _ = read_all(&mended);
    }
}

fn drop_checksums(image: &mut [u8]) {
    let [low, high, ..] = (ro_compat::METADATA_CSUM | ro_compat::GDT_CSUM).to_le_bytes();
    if let Some([first, second]) = image.get_mut(1024 + 0x64..1024 + 0x66) {
        *first &= !low;
        *second &= !high;
    }
}

/// Walks the whole tree. Returns the number of names, at most 256.
///
/// Errors: the first one of the walk.
pub fn read_all(data: &[u8]) -> Result<u64, ReadError> {
    let image = Image::open(data)?;
    let mut open = vec![image.root()?];
    let mut names = 0;
    while let Some(node) = open.pop() {
        image.xattrs(&node)?;
        match node.inode.file_type {
            FileType::Directory => {
                let index = image.names(&node)?;
                let mut walk = image.directory(&node)?;
                let mut count = 0;
                while let Some(entry) = walk.next_child()? {
                    count += 1;
                    let found = index.lookup(&image, entry.name)?;
                    assert_eq!(found, Some((entry.inode, entry.file_type)), "a name leads to its inode");
                    let child = image.named(node.number, &entry)?;
                    names += 1;
                    if names >= NAMES {
                        return Ok(names);
                    }
                    open.push(child);
                }
                assert_eq!(count, index.len(), "each name is there once");
            }
            FileType::Regular => file(&image, &node)?,
            FileType::Symlink => {
                let target = image.symlink_target(&node)?;
                assert_eq!(target.len() as u64, node.inode.size_bytes, "a target has its length");
            }
            _ => {}
        }
    }
    Ok(names)
}

fn file(image: &Image<&[u8]>, node: &Node) -> Result<(), ReadError> {
    let size = node.inode.size_bytes;
    let mut end = 0;
    for extent in image.extents(node, 0).take(EXTENTS) {
        let extent = extent?;
        assert_eq!(extent.offset, end, "extents follow each other");
        assert!(extent.len > 0, "no extent is empty");
        end += extent.len;
        if extent.place == Place::Hole {
            let mut byte = [1];
            image.read_data(node, extent.offset, &mut byte)?;
            assert_eq!(byte, [0], "holes read as zeros");
        }
    }
    assert!(end <= size, "extents end with the file");
    for start in [0, size.saturating_sub(DATA)] {
        let mut buf = vec![1; usize::try_from((size - start).min(DATA)).unwrap_or_default()];
        image.read_data(node, start, &mut buf)?;
    }
    assert!(image.read_data(node, size, &mut [0]).is_err(), "nothing is behind the end");
    Ok(())
}
