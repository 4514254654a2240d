//! Whether two files of different layers are the same.

use super::xattrs::XattrFilter;
use crate::{
    call::Cancel,
    error::Result,
    tree::{Extent, FileType},
    view::{
        At, View,
        stack::{Found, Layers, Place},
    },
};

/// Bytes of each file that are compared at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Whether no difference shows between the files `a` and `b` of `layers`, each with its place.
pub(super) fn same_file(
    layers: Layers<'_>,
    [(a, a_place), (b, b_place)]: [(&Found, Place<'_>); 2],
    filter: &XattrFilter,
    cancel: &Cancel,
) -> Result<bool> {
    let shown =
        |found: &Found| (found.node.file_type, found.node.device, found.node.size_bytes, links(found));
    if shown(a) != shown(b) || a.node.attributes != b.node.attributes {
        return Ok(false);
    }
    let path = a_place.path;
    let ((xattrs, marks), (other_xattrs, other_marks)) = (layers.xattrs(a, path)?, layers.xattrs(b, path)?);
    let file_type = a.node.file_type;
    if filter.kept(&xattrs, file_type) != filter.kept(&other_xattrs, file_type) {
        return Ok(false);
    }
    let (a, b) = (layers.data(a_place, a, &marks)?, layers.data(b_place, b, &other_marks)?);
    if a.is(&b) {
        return Ok(true);
    }
    let (a, b) = ((layers.of(&a), a.at(path)), (layers.of(&b), b.at(path)));
    match a.1.node.file_type {
        FileType::Symlink => Ok(a.0.symlink_target(a.1)? == b.0.symlink_target(b.1)?),
        FileType::Regular => same_data(a, b, cancel),
        _ => Ok(true),
    }
}

/// Number of names. A file that gained or lost one counts as changed, so that its names stay together.
fn links(found: &Found) -> u64 {
    found.node.links.max(1)
}

/// Whether two regular files of one size hold the same bytes.
pub fn same_data(a: (&dyn View, At<'_>), b: (&dyn View, At<'_>), cancel: &Cancel) -> Result<bool> {
    let size_bytes = a.1.node.size_bytes;
    let extents = |(view, at): (&dyn View, At<'_>)| -> Result<Vec<Extent>> {
        let whole = || if size_bytes > 0 { vec![Extent { offset: 0, len: size_bytes }] } else { Vec::new() };
        Ok(view.extents(at)?.unwrap_or_else(whole))
    };
    // Where neither file has data, both have zeros.
    for extent in union(extents(a)?, extents(b)?) {
        let (mut offset, end) = (extent.offset, extent.offset + extent.len);
        while offset < end {
            cancel.check()?;
            let piece = Extent { offset, len: PIECE_BYTES.min(end - offset) };
            let read = |(view, at): (&dyn View, At<'_>)| -> Result<Vec<u8>> {
                let mut bytes = Vec::new();
                view.read(at, &[piece], &mut |_, more| {
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
