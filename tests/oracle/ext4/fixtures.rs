//! Images that the kernel wrote, read by us: what the kernel showed of them.
//!
//! The images are in `tests/fixtures/ext4`; its README says how they were made.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use plywood::{
    error::Classify as _,
    format::ext4::{
        InodeNumber, fuzz_image,
        inode::Content,
        reader::{Image, Node},
    },
    tree::FileType,
};
use sha2::{Digest as _, Sha256};
use testkit::Suite;

const IMAGES: [&str; 4] = ["everything", "maps", "in-use", "journalled"];

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        images_of_the_kernel_read_as_the_kernel_showed_them,
        images_in_use_need_their_journal,
        names_are_found_in_every_image,
        no_byte_that_is_different_makes_the_reader_panic,
    ];
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ext4").join(name)
}

fn image(name: &str) -> Vec<u8> {
    zstd::decode_all(&fs::read(path(&format!("{name}.ext4.zst"))).unwrap()[..]).unwrap()
}

/// All names but those of `lost+found`, in byte order.
fn walk(image: &Image<&[u8]>) -> BTreeMap<Vec<u8>, Node> {
    let mut found = BTreeMap::new();
    let mut open = vec![(Vec::new(), image.root().unwrap())];
    while let Some((path, node)) = open.pop() {
        if node.inode.file_type == FileType::Directory {
            let mut directory = image.directory(&node).unwrap();
            while let Some(entry) = directory.next_child().unwrap() {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                if entry.name != b"lost+found" {
                    let name = [&path, slash, entry.name].concat();
                    open.push((name, image.named(node.number, &entry).unwrap()));
                }
            }
        }
        assert!(found.insert(path, node).is_none(), "a name is there twice");
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// As make.py writes it.
fn listing(image: &Image<&[u8]>) -> String {
    let mut text = String::new();
    for (path, node) in walk(image) {
        let inode = &node.inode;
        let attributes = inode.attributes;
        let name = if path.is_empty() { "/".into() } else { String::from_utf8(path.clone()).unwrap() };
        let content = match (inode.file_type, inode.content()) {
            (FileType::Regular, _) => {
                let mut data = vec![0; usize::try_from(inode.size_bytes).unwrap()];
                image.read_data(&node, 0, &mut data).unwrap();
                hex(&Sha256::digest(&data))
            }
            (FileType::Symlink, _) => String::from_utf8(image.symlink_target(&node).unwrap()).unwrap(),
            (_, Content::Device(device)) => format!("{}:{}", device.major, device.minor),
            _ => "-".into(),
        };
        let sized = matches!(inode.file_type, FileType::Regular | FileType::Symlink);
        let time = match path.is_empty() {
            true => "-".into(),
            false => format!("{}.{:09}", attributes.mtime.seconds, attributes.mtime.nanoseconds),
        };
        writeln!(
            text,
            "{name}\t{:o}\t{}:{}\t{}\t{time}\t{}\t{content}",
            attributes.mode | inode.file_type.mode_bits(),
            attributes.uid,
            attributes.gid,
            inode.links,
            if sized { inode.size_bytes } else { 0 },
        )
        .unwrap();
        for xattr in image.xattrs(&node).unwrap() {
            writeln!(text, "\t{}\t{}", String::from_utf8(xattr.name).unwrap(), hex(&xattr.value)).unwrap();
        }
    }
    text
}

fn images_of_the_kernel_read_as_the_kernel_showed_them() {
    for name in IMAGES {
        let bytes = image(name);
        let found = listing(&Image::open(&bytes[..]).unwrap());
        let want = fs::read_to_string(path(&format!("{name}.txt"))).unwrap();
        let difference = want.lines().zip(found.lines()).find(|(want, found)| want != found);
        assert_eq!(difference, None, "{name}");
        assert_eq!(want.lines().count(), found.lines().count(), "{name}");
    }
}

fn images_in_use_need_their_journal() {
    let replayed = |name| Image::open(&image(name)[..]).unwrap().replayed();
    for name in ["everything", "maps"] {
        assert_eq!(replayed(name), None, "{name}");
    }
    let found = replayed("in-use").unwrap();
    assert!(found.transactions > 2 && found.blocks > 20 && found.revoked > 50, "{found:?}");
    let found = replayed("journalled").unwrap();
    assert!(found.transactions > 2 && found.blocks > 500, "{found:?}");
    // The kernel's `noload`: the flag is cleared, and the checksum of the superblock put right.
    for name in ["in-use", "journalled"] {
        let mut bytes = image(name);
        bytes[1024 + 0x60] &= !4;
        let sum = plywood::format::ext4::checksum::crc32c(!0, &bytes[1024..1024 + 0x3FC]);
        bytes[1024 + 0x3FC..2048].copy_from_slice(&sum.to_le_bytes());
        let stale = Image::open(&bytes[..]).unwrap();
        assert_eq!(stale.replayed(), None);
        let found = stale.find(b"upper/like-a-journal");
        let read = found.ok().flatten().map(|node| {
            let mut data = vec![0; usize::try_from(node.inode.size_bytes).unwrap()];
            stale.read_data(&node, 0, &mut data).map(|()| data).unwrap_or_default()
        });
        let line = b"9 abcdefghijklmnopqrstuvwxyz\n";
        let want = [&[0xC0, 0x3B, 0x39, 0x98][..], &line.repeat(36)[..1020]].concat().repeat(90);
        assert!(read.is_none_or(|read| read != want), "{name} is the same without its journal");
    }
}

fn names_are_found_in_every_image() {
    for name in IMAGES {
        let bytes = image(name);
        let image = Image::open(&bytes[..]).unwrap();
        let many = image.find(b"upper/many").unwrap().unwrap();
        let names = image.names(&many).unwrap();
        assert_eq!(names.len(), 100);
        for number in 0..300 {
            let wanted = format!("a name that fills blocks {number}");
            let found = names.lookup(&image, wanted.as_bytes()).unwrap();
            assert_eq!(found.is_some(), !(50..250).contains(&number), "{name}: {wanted}");
            assert_eq!(found, image.lookup(&many, wanted.as_bytes()).unwrap());
        }
        assert_eq!(image.parent(&many).unwrap(), image.find(b"upper").unwrap().unwrap().number);
        let error = image.node(InodeNumber(100_000)).unwrap_err();
        assert_eq!(error.reason(), "ext4.inode.number");
    }
}

fn no_byte_that_is_different_makes_the_reader_panic() {
    for name in IMAGES {
        let mut bytes = image(name);
        let used: Vec<usize> = (0..bytes.len()).filter(|place| bytes[*place] != 0).collect();
        let mut seed = 1_u64;
        for _ in 0..150 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Half of them where the superblock, the groups and the first inodes are.
            let range = if seed & 1 == 0 { used.len() } else { used.len() / 20 };
            let place = used[usize::try_from(seed >> 33).unwrap() % range];
            let before = bytes[place];
            bytes[place] ^= 1 << ((seed >> 8) & 7);
            fuzz_image(&bytes);
            bytes[place] = before;
        }
    }
}
