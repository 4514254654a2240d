//! The check of a whole metadata image: its tables, and that every file agrees with them.
//!
//! Source: `docs/formats/rafs.md`, "Checking".

use super::{error::TableError, tables::Tables};
use crate::{
    format::{ReadAt, erofs::reader::Image},
    tree::FileType,
};

/// Checks `image`, a sound EROFS image, in at most `max_bytes` of memory. Returns its tables.
///
/// Errors: the first rule that it breaks.
pub fn verify<R: ReadAt>(image: &Image<R>, max_bytes: u64) -> Result<Tables, TableError> {
    let tables = Tables::read(image, max_bytes)?;
    let root = image.root()?;
    // Directories have one name each, so each is read once.
    let mut open = vec![root.nid];
    let mut seen = 1_u64;
    while let Some(nid) = open.pop() {
        let directory = image.node(nid)?;
        let mut names = image.directory(&directory)?;
        while let Some(child) = names.next_child()? {
            let node = image.node(child.nid)?;
            match node.inode.file_type {
                FileType::Directory => {
                    seen += 1;
                    if seen > image.superblock().inos {
                        let fault = "directories have more names than there are inodes";
                        return Err(TableError::File { nid: nid.0, fault });
                    }
                    open.push(child.nid);
                }
                FileType::Regular => drop(tables.chunks_of(image, &node)?),
                _ => {}
            }
        }
    }
    Ok(tables)
}
