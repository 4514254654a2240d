//! ext4 as the kernel shows it, and as our reader does: the same tree.
//!
//! File systems are made on the spot by mkfs with one set of features each, filled by the kernel with
//! one of everything, and read by both. Those that are copied while they are mounted have to be read as
//! the kernel shows them after it replayed their journal. Needs root, mkfs.ext4 and loop devices.

mod disk;
mod fill;
mod fixtures;
mod journal;
mod layer;

use std::{collections::BTreeMap, env, fs::File, path::Path};

use libtest_mimic::Failed;
use plywood::{
    format::ext4::{
        InodeNumber,
        inode::Content,
        reader::{Image, Place},
    },
    tree::FileType,
};
use testkit::{Need, Suite};

use super::{
    layer_model::{Listed, Listing},
    listing,
};
use disk::{Disk, Mounted};

/// A file system to make: options of mkfs, and size in MiB.
#[derive(Clone, Copy)]
struct Made {
    name: &'static str,
    options: &'static [&'static str],
    size_mib: u64,
}

const fn made(name: &'static str, options: &'static [&'static str]) -> Made {
    Made { name, options, size_mib: 96 }
}

const SYSTEMS: &[Made] = &[
    made("defaults", &[]),
    made("no_checksums", &["-O", "^metadata_csum"]),
    made("group_checksums_only", &["-O", "^metadata_csum,uninit_bg"]),
    made("32_bit", &["-O", "^64bit"]),
    made("blocks_1k_small_inodes", &["-b", "1024", "-I", "128", "-J", "size=1"]),
    made("block_maps", &["-O", "^extent,^64bit"]),
    made("block_maps_1k", &["-b", "1024", "-O", "^extent,^64bit"]),
    made("ext2", &["-t", "ext2"]),
    made("ext3", &["-t", "ext3"]),
    made("first_revision", &["-t", "ext2", "-r", "0"]),
    made("blocks_1k", &["-b", "1024"]),
    made("blocks_2k", &["-b", "2048"]),
    made("small_inodes", &["-I", "128"]),
    made("large_inodes", &["-I", "1024"]),
    made("inline_data", &["-O", "inline_data"]),
    made("inline_data_1k_inodes", &["-O", "inline_data", "-I", "1024"]),
    Made {
        name: "spread_descriptors",
        options: &["-b", "1024", "-O", "meta_bg,^resize_inode"],
        size_mib: 512,
    },
    Made {
        name: "spread_32_bit_descriptors",
        options: &["-b", "1024", "-O", "meta_bg,^resize_inode,^64bit,^sparse_super"],
        size_mib: 512,
    },
    Made { name: "clusters", options: &["-O", "bigalloc", "-C", "65536"], size_mib: 1024 },
    made("clusters_of_1k_blocks", &["-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode", "-C", "16384"]),
    made("large_attributes", &["-O", "ea_inode"]),
    made("no_hash_trees", &["-O", "^dir_index"]),
    made("no_types", &["-O", "^filetype"]),
    made("no_flex", &["-O", "^flex_bg"]),
    made("two_backups", &["-O", "sparse_super2"]),
    made("stored_seed", &["-O", "metadata_csum_seed"]),
    made("orphan_file", &["-O", "orphan_file"]),
    made("large_directories", &["-b", "1024", "-O", "large_dir"]),
    made("no_journal", &["-O", "^has_journal"]),
    made("unused_encryption", &["-O", "encrypt,verity,stable_inodes"]),
    made("guarded", &["-O", "mmp"]),
];

/// File systems are made, and mounted through loop devices.
const NEEDS: [Need; 3] = [Need::Root, Need::Tool("mkfs.ext4"), Need::FileSystem("ext4")];

pub fn add(suite: &mut Suite) {
    for system in SYSTEMS {
        let name = format!("needs_root_and_mkfs_{}_reads_as_by_the_kernel", system.name);
        suite.test(name, &NEEDS, || unmounted(*system));
    }
    for (name, test) in [
        ("sparse_file_of_terabytes", sparse_terabytes as fn() -> Result<(), Failed>),
        ("file_in_thousands_of_pieces", thousands_of_pieces),
        ("blocks_of_every_size_filled_by_mkfs", by_mkfs),
    ] {
        suite.test(format!("needs_root_and_mkfs_{name}"), &NEEDS, test);
    }
    journal::add(suite);
    layer::add(suite);
    fixtures::add(suite);
}

/// Made, filled, unmounted, read.
fn unmounted(system: Made) -> Result<(), Failed> {
    let disk = Disk::new(system.size_mib, system.options)?;
    fill::everything(Mounted::new(&disk.path, "")?.root())?;
    // Mounted again, so that nothing is shown that was only remembered.
    let theirs = listing::by_kernel(Mounted::new(&disk.path, "ro")?.root());
    let image = Image::open(File::open(&disk.path)?)?;
    assert_eq!(image.replayed(), None, "it was unmounted");
    same(&of_image(&image), &theirs)
}

fn same(ours: &Listing, theirs: &Listing) -> Result<(), Failed> {
    for (name, listed) in theirs {
        let found = ours.get(name);
        if found != Some(listed) {
            // Data would fill the screen.
            let brief = |listed: &Listed| Listed { data: Vec::new(), ..listed.clone() };
            let same_data = found.is_some_and(|found| found.data == listed.data);
            let (name, found, theirs) = (name.escape_ascii(), found.map(brief), brief(listed));
            let message = format!("{name}: we read {found:?}, the kernel {theirs:?}, same data: {same_data}");
            return Err(message.into());
        }
    }
    let ours_only: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
    if ours_only.is_empty() { Ok(()) } else { Err(format!("only we read {ours_only:?}").into()) }
}

/// Our reading.
pub fn of_image(image: &Image<File>) -> Listing {
    let mut listing = Listing::new();
    let mut inodes = BTreeMap::new();
    let mut open: Vec<(Vec<u8>, InodeNumber)> = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, number)) = open.pop() {
        let node = image.node(number).unwrap();
        let inode = node.inode;
        let mut data = Vec::new();
        match inode.file_type {
            FileType::Directory => {
                let mut directory = image.directory(&node).unwrap();
                while let Some(child) = directory.next_child().unwrap() {
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    open.push(([&path, slash, child.name].concat(), child.inode));
                    image.named(number, &child).unwrap();
                }
            }
            FileType::Regular => {
                data.resize(usize::try_from(inode.size_bytes).unwrap(), 0);
                image.read_data(&node, 0, &mut data).unwrap();
                holes_are_zeros(image, &node, &data);
            }
            FileType::Symlink => data = image.symlink_target(&node).unwrap(),
            _ => {}
        }
        let xattrs = image.xattrs(&node).unwrap();
        let listed = Listed {
            file_type: inode.file_type,
            attributes: inode.attributes,
            nlink: inode.links.into(),
            size_bytes: if inode.file_type == FileType::Directory { 0 } else { inode.size_bytes },
            device: match inode.content() {
                Content::Device(device) => Some(device),
                _ => None,
            },
            data,
            xattrs: xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
            first_name: Vec::new(),
        };
        inodes.insert(path.clone(), u64::from(number.0));
        assert!(listing.insert(path, listed).is_none(), "a name is listed twice");
    }
    listing::join_names(&mut listing, &inodes);
    listing
}

/// Extents cover a file once, in order, and what is not in them is zero.
fn holes_are_zeros(image: &Image<File>, node: &plywood::format::ext4::reader::Node, data: &[u8]) {
    let mut end = 0;
    let mut before = None;
    for extent in image.extents(node, 0) {
        let extent = extent.unwrap();
        assert_eq!(extent.offset, end);
        assert!(extent.len > 0);
        end += extent.len;
        if extent.place == Place::Hole {
            assert!(before != Some(Place::Hole), "holes are joined");
            let hole = usize::try_from(extent.offset).unwrap()..usize::try_from(end).unwrap();
            assert!(data[hole].iter().all(|byte| *byte == 0));
        }
        before = Some(extent.place);
    }
    assert_eq!(end, data.len() as u64);
}

/// The ranges of a file that hold data, by the kernel: offset and length in bytes.
fn kernel_extents(path: &Path) -> Vec<(u64, u64)> {
    use rustix::fs::SeekFrom;
    let file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut next = 0;
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(next)) {
        next = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, next - start));
    }
    found
}

fn our_extents(image: &Image<File>, path: &str) -> Vec<(u64, u64)> {
    let node = image.find(path.as_bytes()).unwrap().unwrap();
    let mut found: Vec<(u64, u64)> = Vec::new();
    for extent in image.extents(&node, 0).map(Result::unwrap).filter(|extent| extent.place != Place::Hole) {
        match found.last_mut() {
            Some((start, len)) if *start + *len == extent.offset => *len += extent.len,
            _ => found.push((extent.offset, extent.len)),
        }
    }
    found
}

fn sparse_terabytes() -> Result<(), Failed> {
    use std::os::unix::fs::FileExt as _;
    for options in [&[][..], &["-O", "^extent,^64bit"]] {
        let disk = Disk::new(64, options)?;
        let theirs = {
            let mounted = Mounted::new(&disk.path, "")?;
            let path = mounted.root().join("sparse");
            let file = File::create(&path)?;
            // The last block a file can have is 2^32 - 2; maps reach 4 TiB, less a little.
            for at in [0, 1 << 20, 3 << 30, (3 << 40) + 4096] {
                file.write_all_at(format!("at {at}").as_bytes(), at)?;
            }
            file.set_len((3 << 40) + 12_345_678)?;
            file.sync_all()?;
            kernel_extents(&path)
        };
        let image = Image::open(File::open(&disk.path)?)?;
        assert_eq!(our_extents(&image, "sparse"), theirs, "{options:?}");
        let node = image.find(b"sparse")?.unwrap();
        assert_eq!(node.inode.size_bytes, (3 << 40) + 12_345_678);
        for at in [0, 1 << 20, 3 << 30, (3 << 40) + 4096_u64] {
            let want = format!("at {at}");
            let mut found = vec![0; want.len()];
            image.read_data(&node, at, &mut found)?;
            assert_eq!(String::from_utf8_lossy(&found), want);
        }
        let mut tail = [1; 4096];
        image.read_data(&node, node.inode.size_bytes - 4096, &mut tail)?;
        assert_eq!(tail, [0; 4096]);
        let error = image.read_data(&node, node.inode.size_bytes - 4095, &mut tail).unwrap_err();
        assert_eq!(plywood::error::Classify::reason(&error), "ext4.inode.end", "{error}");
    }
    Ok(())
}

fn thousands_of_pieces() -> Result<(), Failed> {
    use std::os::unix::fs::FileExt as _;
    // 84 entries fit a block: three levels, and for maps all of them.
    for options in [&["-b", "1024"][..], &["-b", "1024", "-O", "^extent,^64bit"]] {
        let disk = Disk::new(96, options)?;
        let theirs = {
            let mounted = Mounted::new(&disk.path, "")?;
            let path = mounted.root().join("pieces");
            let file = File::create(&path)?;
            for piece in 0..30_000_u64 {
                file.write_all_at(&[b'a' + u8::try_from(piece % 26).unwrap(); 700], piece * 3000)?;
            }
            file.sync_all()?;
            kernel_extents(&path)
        };
        assert!(theirs.len() > 20_000);
        let image = Image::open(File::open(&disk.path)?)?;
        assert_eq!(our_extents(&image, "pieces"), theirs, "{options:?}");
        let node = image.find(b"pieces")?.unwrap();
        let mut extents = image.extents(&node, 0);
        for piece in (0..30_000_u64).step_by(7) {
            let mut found = [0; 700];
            extents.read(piece * 3000, &mut found)?;
            assert_eq!(found, [b'a' + u8::try_from(piece % 26).unwrap(); 700]);
        }
    }
    Ok(())
}

/// Blocks larger than a page are not mounted by every kernel; mkfs fills them itself.
fn by_mkfs() -> Result<(), Failed> {
    let source = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let root = source.path().join("root");
    std::fs::create_dir(&root)?;
    fill::everything(&root)?;
    // The smallest blocks have no room for them.
    for name in ["block", "large", "largest"] {
        let _ = rustix::fs::lremovexattr(root.join("attributes").join(name), "user.value");
    }
    for name in ["1023", "4094"] {
        std::fs::remove_file(root.join("links").join(name))?;
    }
    let whole_seconds = |mut listing: Listing| {
        for (name, listed) in &mut listing {
            // mkfs does not copy these, or not unchanged.
            listed.attributes.mtime.nanoseconds = 0;
            if name.starts_with(b"times/") || name.is_empty() {
                listed.attributes.mtime = Default::default();
            }
            listed.xattrs.retain(|name, _| !name.starts_with(b"security.selinux"));
        }
        listing.retain(|name, _| !name.starts_with(b"lost+found"));
        listing.get_mut(&b""[..]).unwrap().nlink = 0;
        listing
    };
    let theirs = whole_seconds(listing::by_kernel(&root));
    for size in ["1024", "2048", "4096", "8192", "16384", "32768", "65536"] {
        for features in ["^has_journal", "^has_journal,^extent,^64bit", "^has_journal,^metadata_csum"] {
            let options = ["-b", size, "-O", features, "-d", root.to_str().unwrap(), "-N", "8000"];
            let disk = Disk::new(512, &options)?;
            let ours = whole_seconds(of_image(&Image::open(File::open(&disk.path)?)?));
            same(&ours, &theirs).map_err(|error| format!("{size} {features}: {error:?}"))?;
        }
    }
    Ok(())
}
