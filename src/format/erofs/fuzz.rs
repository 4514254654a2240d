//! Fuzz entry: an image that the check accepts can be read to its last byte.
//!
//! Described in `docs/formats/erofs.md`, "Checking".

use super::{
    BlockBits,
    check::{Policy, Report, verify},
    dump::{self, Entry},
    inode::Layout,
    reader::Image,
    superblock::{self, Superblock},
    tar_index,
};
use crate::tree::FileType;

/// Most names of an image that is read in full. Fuzzers find small images.
const NAMES: u64 = 256;
/// Largest file that is read, in bytes.
const DATA: u64 = 1 << 20;

/// Dumps and checks `data` as an image, once as it is and once with its checksum corrected, so that
/// a fuzzer gets past the checksum. An accepted image has to be readable to its last byte.
///
/// # Panics
///
/// When an accepted image cannot be read, or differs from its report.
pub fn fuzz_image(data: &[u8]) {
    examine(data);
    let mut mended = data.to_vec();
    mend_checksum(&mut mended);
    if mended != data {
        examine(&mended);
    }
}

fn mend_checksum(image: &mut [u8]) {
    let start = 1024;
    let bits = image.get(start + 0x0C).copied().and_then(BlockBits::new);
    let covered = bits.and_then(|bits| image.get_mut(start..start + Superblock::checksummed_len(bits)));
    if let Some(covered) = covered {
        superblock::seal(covered);
    }
}

fn examine(data: &[u8]) {
    tar_index::examine(data);
    if let Ok(image) = Image::open_despite_checksum(data, Vec::new()) {
        let lines: usize = dump::facts(&image).iter().map(|fact| fact.value.to_string().len()).sum();
        assert!(lines > 0, "facts have values");
        if let Ok(root) = image.root() {
            let mut left = NAMES;
            // An unreadable image ends the walk early, with an error.
            let _ = dump::walk(&image, root, b"", |entry| {
                assert!(!entry.to_string().contains('\n'), "a name is a line");
                left -= 1;
                if left == 0 { Err(()) } else { Ok(()) }
            });
        }
    }
    for policy in [Policy::layer(), Policy::any()] {
        let policy = Policy { max_nodes: NAMES, max_memory_bytes: 16 << 20, ..policy };
        if let Ok(report) = verify(data, &policy) {
            accepted(data, &report);
        }
    }
}

/// Reads everything in an accepted image.
fn accepted(data: &[u8], report: &Report) {
    let image = Image::open(data).expect("an accepted image opens");
    let root = image.root().expect("an accepted image has a root");
    let mut names = 0;
    let done = dump::walk(&image, root, b"", |entry| {
        names += 1;
        readable(&image, entry);
        Ok::<(), ()>(())
    });
    assert!(done.is_ok(), "nothing ends the walk");
    assert_eq!(names, report.names + 1, "the names counted are those there are, and the root");
}

fn readable(image: &Image<&[u8]>, entry: &Entry) {
    let details = entry.inode.as_ref().expect("an accepted inode can be read");
    assert!(details.data_error.is_none(), "accepted data is inside the image: {entry}");
    let found = image.find(&entry.path).expect("accepted directories can be searched");
    assert_eq!(found.map(|node| node.position), Some(details.node.position), "{entry} is found by name");
    for xattr in &details.xattrs {
        let value = image.xattr(&details.node, &xattr.name).expect("accepted attributes can be read");
        assert_eq!(value.as_ref(), Some(&xattr.value), "{entry} has each attribute once");
    }
    let inode = &details.node.inode;
    let compressed = matches!(inode.data.layout(), Layout::CompressedFull | Layout::CompressedCompact);
    if inode.file_type == FileType::Regular && !compressed {
        let mut buf = vec![0; usize::try_from(inode.size_bytes.min(DATA)).expect("at most a MiB")];
        let start = inode.size_bytes - buf.len() as u64;
        image.read_data(&details.node, start, &mut buf).expect("accepted data can be read");
    }
}
