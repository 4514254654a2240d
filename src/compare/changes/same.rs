//! Whether two files of different layers are the same.

use super::{
    merged::{Found, Layers, Place},
    xattrs::XattrFilter,
};
use crate::{
    call::Cancel,
    compare::layer::{At, Layer},
    error::Result,
    tree::{Extent, FileType},
};

/// Bytes of each file that are compared at a time.
const PIECE_BYTES: u64 = 1 << 20;

impl Layers<'_> {
    /// Whether the files `a` and `b`, each with its place, cannot be told apart.
    pub(super) fn same_file(
        &self,
        [(a, a_place), (b, b_place)]: [(&Found, Place<'_>); 2],
        filter: &XattrFilter,
        cancel: &Cancel,
    ) -> Result<bool> {
        let what =
            |found: &Found| (found.node.file_type, found.node.device, found.node.size_bytes, links(found));
        if what(a) != what(b) || a.node.attributes != b.node.attributes {
            return Ok(false);
        }
        let path = a_place.path;
        let ((xattrs, control), (other_xattrs, other_control)) =
            (self.xattrs(a, path)?, self.xattrs(b, path)?);
        let file_type = a.node.file_type;
        if filter.kept(&xattrs, file_type) != filter.kept(&other_xattrs, file_type) {
            return Ok(false);
        }
        let (a, b) = (self.data(a_place, a, &control)?, self.data(b_place, b, &other_control)?);
        if a.is(&b) {
            return Ok(true);
        }
        let (a, b) = ((self.of(&a), a.at(path)), (self.of(&b), b.at(path)));
        match a.1.node.file_type {
            FileType::Symlink => Ok(a.0.symlink_target(a.1)? == b.0.symlink_target(b.1)?),
            FileType::Regular => same_data(a, b, cancel),
            _ => Ok(true),
        }
    }
}

/// A file that gained or lost a hard link is another one, lest its names fall apart.
fn links(found: &Found) -> u64 {
    found.node.links.max(1)
}

/// Whether two files of one size hold the same bytes.
fn same_data(a: (&dyn Layer, At<'_>), b: (&dyn Layer, At<'_>), cancel: &Cancel) -> Result<bool> {
    let size_bytes = a.1.node.size_bytes;
    let extents = |(layer, at): (&dyn Layer, At<'_>)| -> Result<Vec<Extent>> {
        let whole = || if size_bytes > 0 { vec![Extent { offset: 0, len: size_bytes }] } else { Vec::new() };
        Ok(layer.extents(at)?.unwrap_or_else(whole))
    };
    // Where neither has data, both have zeros.
    for extent in union(extents(a)?, extents(b)?) {
        let (mut offset, end) = (extent.offset, extent.offset + extent.len);
        while offset < end {
            cancel.check()?;
            let piece = Extent { offset, len: PIECE_BYTES.min(end - offset) };
            let read = |(layer, at): (&dyn Layer, At<'_>)| -> Result<Vec<u8>> {
                let mut bytes = Vec::new();
                layer.read(at, &[piece], &mut |_, more| {
                    bytes.extend_from_slice(more);
                    Ok(())
                })?;
                Ok(bytes)
            };
            if read(a)? != read(b)? {
                return Ok(false);
            }
            offset += piece.len;
        }
    }
    Ok(true)
}

/// The extents that are in either list.
fn union(a: Vec<Extent>, b: Vec<Extent>) -> Vec<Extent> {
    let mut all = [a, b].concat();
    all.sort_unstable_by_key(|extent| extent.offset);
    let mut joined: Vec<Extent> = Vec::with_capacity(all.len());
    for extent in all {
        match joined.last_mut() {
            Some(last) if extent.offset <= last.offset + last.len => {
                last.len = last.len.max(extent.offset + extent.len - last.offset);
            }
            _ => joined.push(extent),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_union_of_extents_covers_both_and_no_more() {
        let list = |pairs: &[(u64, u64)]| {
            pairs.iter().map(|(offset, len)| Extent { offset: *offset, len: *len }).collect::<Vec<_>>()
        };
        for (a, b, want) in [
            (list(&[]), list(&[]), list(&[])),
            (list(&[(0, 4)]), list(&[]), list(&[(0, 4)])),
            (list(&[(0, 4), (8, 4)]), list(&[(4, 2), (7, 9)]), list(&[(0, 6), (7, 9)])),
            (list(&[(0, 100)]), list(&[(10, 1), (200, 1)]), list(&[(0, 100), (200, 1)])),
        ] {
            assert_eq!(union(a.clone(), b.clone()), want);
            assert_eq!(union(b, a), want);
        }
    }
}
