//! The change stream as text, for tests.

use std::fmt::Write as _;

use super::{Counts, Options, write as write_changes};
use crate::{
    call::Cancel,
    compare::output::Output,
    error::Result,
    tree::{Attributes, Body, Entry, Extent, Timestamp},
    view::{
        View,
        fixture::{Entries, erofs, respelled},
    },
};

/// Everything that reached the output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) entries: Vec<(Entry, Vec<u8>)>,
    open: bool,
}

impl Output for Recorded {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        assert!(!self.open, "the last file was not ended before {:?}", entry.path.escape_ascii().to_string());
        self.open = matches!(entry.body, Body::Regular { .. });
        self.entries.push((entry.clone(), Vec::new()));
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert!(self.open && !bytes.is_empty());
        let (entry, data) = self.entries.last_mut().unwrap();
        let Body::Regular { size_bytes, extents } = &entry.body else { panic!("data of {entry:?}") };
        let whole = vec![Extent { offset: 0, len: *size_bytes }];
        let mut before = 0;
        // The data comes in order, so its length so far gives the place of the next byte.
        let next = extents.as_ref().unwrap_or(&whole).iter().find_map(|extent| {
            let inside = (data.len() as u64).checked_sub(before).filter(|inside| *inside < extent.len);
            before += extent.len;
            inside.map(|inside| (extent.offset + inside, extent.len - inside))
        });
        let (want, room) = next.expect("no more data than extents");
        assert_eq!(offset, want);
        assert!(bytes.len() as u64 <= room);
        data.extend_from_slice(bytes);
        Ok(())
    }

    fn end_entry(&mut self) -> Result<()> {
        assert!(std::mem::take(&mut self.open));
        let (entry, data) = self.entries.last().unwrap();
        let Body::Regular { size_bytes, extents } = &entry.body else { panic!("end of {entry:?}") };
        let want = extents.as_ref().map_or(*size_bytes, |list| list.iter().map(|extent| extent.len).sum());
        assert_eq!(data.len() as u64, want);
        Ok(())
    }
}

impl Recorded {
    /// One line per entry; what is as usual is left out.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (entry, data) in &self.entries {
            let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
            let Attributes { mode, uid, gid, mtime } = entry.attributes;
            let path = show(&entry.path);
            let (line, usual) = match &entry.body {
                Body::Directory => (format!("dir {path}"), 0o755),
                Body::Regular { size_bytes: 0, .. } if mode == 0 => (format!("mark {path}"), 0),
                Body::Regular { extents: None, .. } => (format!("file {path} {:?}", show(data)), 0o644),
                Body::Regular { size_bytes, extents: Some(extents) } => {
                    let list = extents.iter().map(|extent| format!("{}+{}", extent.offset, extent.len));
                    let list = list.collect::<Vec<_>>().join(",");
                    (format!("sparse {path} {size_bytes} [{list}] {:?}", show(data)), 0o644)
                }
                Body::Symlink { target } => (format!("symlink {path} {}", show(target)), 0o777),
                Body::HardLink { target } => (format!("link {path} {}", show(target)), 0o644),
                Body::CharDevice(device) => (format!("char {path} {}:{}", device.major, device.minor), 0o644),
                Body::BlockDevice(device) => {
                    (format!("block {path} {}:{}", device.major, device.minor), 0o644)
                }
                Body::Fifo => (format!("fifo {path}"), 0o644),
            };
            out += &line;
            if mode != usual {
                write!(out, " {mode:o}").unwrap();
            }
            if (uid, gid) != (0, 0) {
                write!(out, " {uid}:{gid}").unwrap();
            }
            if mtime != Timestamp::default() {
                write!(out, " @{}.{}", mtime.seconds, mtime.nanoseconds).unwrap();
            }
            for xattr in &entry.xattrs {
                write!(out, " {}={}", show(&xattr.name), show(&xattr.value)).unwrap();
            }
            out.push('\n');
        }
        out
    }
}

/// Compares two stacks, the newest layer first.
pub(crate) fn compare(
    lower: &[&dyn View],
    upper: &[&dyn View],
    options: &Options,
) -> Result<(Recorded, Counts)> {
    let mut recorded = Recorded::default();
    let counts = write_changes(lower, upper, options, &Cancel::new(), &mut |_| Ok(()), &mut recorded)?;
    assert!(!recorded.open);
    Ok((recorded, counts))
}

/// The changes of one layer on top of others, all in images, the newest layer first.
pub(crate) fn on_top(layers: &[&Entries]) -> Result<String> {
    // The writer marks directories by itself; these marks are not its own.
    let image = |entries: &&Entries| respelled(entries.image(), "overlaX.", "overlay.");
    let images: Vec<_> = layers.iter().map(image).collect();
    let layers: Vec<_> = (0..).zip(&images).map(|(key, image)| erofs(image, key)).collect();
    let layers: Vec<&dyn View> = layers.iter().map(|layer| layer as &dyn View).collect();
    let (_, lower) = layers.split_first().unwrap();
    Ok(compare(lower, &layers, &Options::default())?.0.text())
}
