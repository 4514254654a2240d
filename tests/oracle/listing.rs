//! [`Listing`]s of an image by four programs, which are more or less independent and must agree.

use std::{collections::BTreeMap, ffi::OsStr, fs, io::Read, os::unix::ffi::OsStrExt, path::Path};

use erofs_rs::{EroFS, backend::SliceImage};
use plywood::{
    digest::Digest,
    format::erofs::{Nid, inode::Data, reader::Image},
    tree::{Attributes, Device, FileType, Timestamp},
};
use testkit::tree::{self, Kind};

use super::layer_model::{Listed, Listing};

/// Fills in which names belong to one inode, given each name's inode number.
pub fn join_names(listing: &mut Listing, inodes: &BTreeMap<Vec<u8>, u64>) {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (name, inode) in inodes {
        let first = first.entry(*inode).or_insert_with(|| name.clone());
        listing.get_mut(name).unwrap().first_name = first.clone();
    }
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// Read by Plywood's own reader.
pub fn by_our_reader(bytes: &[u8]) -> Listing {
    of_image(&Image::open(bytes).unwrap())
}

/// Read by Plywood's own reader from an image that is open.
pub fn of_image(image: &Image<&[u8]>) -> Listing {
    let mut listing = Listing::new();
    let mut inodes = BTreeMap::new();
    let mut open: Vec<(Vec<u8>, Nid)> = vec![(Vec::new(), image.root().unwrap().nid)];
    while let Some((path, nid)) = open.pop() {
        let node = image.node(nid).unwrap();
        let inode = node.inode;
        let mut data = Vec::new();
        match inode.file_type {
            FileType::Directory => {
                let mut directory = image.directory(&node).unwrap();
                while let Some(child) = directory.next_child().unwrap() {
                    open.push((below(&path, child.name), child.nid));
                }
            }
            FileType::Regular => {
                data.resize(usize::try_from(inode.size_bytes).unwrap(), 0);
                image.read_data(&node, 0, &mut data).unwrap();
            }
            FileType::Symlink => data = image.symlink_target(&node).unwrap(),
            _ => {}
        }
        let xattrs = image.xattrs(&node).unwrap();
        let listed = Listed {
            file_type: inode.file_type,
            attributes: inode.attributes,
            nlink: inode.nlink,
            size_bytes: if inode.file_type == FileType::Directory { 0 } else { inode.size_bytes },
            device: match inode.data {
                Data::Device(device) => Some(device),
                _ => None,
            },
            data,
            xattrs: xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
            first_name: Vec::new(),
        };
        inodes.insert(path.clone(), nid.0);
        assert!(listing.insert(path, listed).is_none(), "a name is listed twice");
    }
    join_names(&mut listing, &inodes);
    listing
}

/// Read by the erofs-rs crate.
pub fn by_erofs_rs(bytes: &[u8]) -> Listing {
    of_erofs_rs(&EroFS::new(SliceImage::new(bytes)).unwrap())
}

/// Read by the erofs-rs crate from an image that is open.
pub fn of_erofs_rs(image: &EroFS<SliceImage<'_>>) -> Listing {
    let root = image.get_inode(image.super_block().root_inode_id()).unwrap();
    let mut found = vec![(Vec::new(), root)];
    for entry in image.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path();
        let path: &[u8] = path.as_bytes();
        found.push((path.strip_prefix(b"/").unwrap_or(path).to_vec(), entry.inode));
    }
    let mut listing = Listing::new();
    let mut inodes = BTreeMap::new();
    for (path, inode) in found {
        let (seconds, nanoseconds) = inode.modified_unix();
        let mode = u16::try_from(std::os::unix::fs::PermissionsExt::mode(&inode.permissions())).unwrap();
        let file_type = match inode.device() {
            _ if inode.is_dir() => FileType::Directory,
            _ if inode.is_file() => FileType::Regular,
            _ if inode.is_symlink() => FileType::Symlink,
            Some(_) if format!("{:?}", inode.file_type()).contains("Block") => FileType::BlockDevice,
            Some(_) => FileType::CharDevice,
            None => FileType::Fifo,
        };
        let mut data = Vec::new();
        match file_type {
            FileType::Regular => {
                image.open_inode_file(inode).unwrap().read_to_end(&mut data).unwrap();
            }
            FileType::Symlink => {
                let target = image.read_link_inode(inode).unwrap();
                data = target.as_bytes().to_vec();
            }
            _ => {}
        }
        let xattrs = image.xattrs_inode(inode).unwrap();
        let listed = Listed {
            file_type,
            attributes: Attributes {
                mode: mode & 0o7777,
                uid: inode.uid(),
                gid: inode.gid(),
                mtime: Timestamp { seconds, nanoseconds },
            },
            nlink: inode.nlink(),
            size_bytes: if inode.is_dir() { 0 } else { inode.data_size() },
            device: inode.device().map(|(major, minor)| Device { major, minor }),
            data,
            xattrs: xattrs.into_iter().collect(),
            first_name: Vec::new(),
        };
        inodes.insert(path.clone(), inode.id());
        assert!(listing.insert(path, listed).is_none(), "a name is listed twice");
    }
    join_names(&mut listing, &inodes);
    listing
}

/// Read through a mounted file system.
pub fn by_kernel(root: &Path) -> Listing {
    let tree = tree::scan_with_labels(root).unwrap();
    let mut listing = Listing::new();
    let mut inodes = BTreeMap::new();
    for (name, node) in tree {
        let device = |major, minor| Some(Device { major, minor });
        let (file_type, size_bytes, device, data) = match node.kind {
            Kind::Regular { size_bytes, .. } => {
                let path = root.join(OsStr::from_bytes(&name));
                (FileType::Regular, size_bytes, None, fs::read(path).unwrap())
            }
            Kind::Directory => (FileType::Directory, 0, None, Vec::new()),
            Kind::Symlink { target } => (FileType::Symlink, target.len() as u64, None, target),
            Kind::Char { major, minor } => (FileType::CharDevice, 0, device(major, minor), Vec::new()),
            Kind::Block { major, minor } => (FileType::BlockDevice, 0, device(major, minor), Vec::new()),
            Kind::Fifo => (FileType::Fifo, 0, None, Vec::new()),
            Kind::Socket => (FileType::Socket, 0, None, Vec::new()),
        };
        let (seconds, nanoseconds) = node.mtime;
        let attributes = Attributes {
            mode: u16::try_from(node.mode).unwrap(),
            uid: node.uid,
            gid: node.gid,
            mtime: Timestamp { seconds, nanoseconds },
        };
        if file_type != FileType::Directory {
            inodes.insert(name.clone(), node.link_group);
        }
        let nlink = u32::try_from(node.nlink).unwrap();
        // Directories have one name each.
        let first_name = name.clone();
        let xattrs = node.xattrs;
        let listed = Listed { file_type, attributes, nlink, size_bytes, device, data, xattrs, first_name };
        listing.insert(name, listed);
    }
    join_names(&mut listing, &inodes);
    listing
}

/// Compares a tree with its listing in lines of JSON. `directories`: whether attributes of directories count. Those of a
/// directory that the listing calls implied are the ones of any such directory.
pub fn assert_listed(found: &Listing, text: &str, directories: bool) {
    let want: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let path_of =
        |want: &serde_json::Value| want["path"].as_str().unwrap().trim_start_matches('/').to_owned();
    let mut names: Vec<_> = want.iter().map(path_of).collect();
    names.sort();
    let found_names: Vec<_> = found.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(found_names, names);
    for want in &want {
        let path = path_of(want);
        let node = &found[path.as_bytes()];
        let number = |key: &str| want.get(key).and_then(serde_json::Value::as_u64);
        let kind = match node.file_type {
            FileType::Directory => "dir",
            FileType::Regular => "reg",
            FileType::Symlink => "symlink",
            FileType::CharDevice => "char",
            FileType::BlockDevice => "block",
            FileType::Fifo => "fifo",
            FileType::Socket => "socket",
        };
        assert_eq!(want["type"], kind, "{path}");
        assert_eq!(number("nlink"), Some(node.nlink.into()), "{path}");
        if kind == "dir" && !directories {
            continue;
        }
        let Attributes { mode, uid, gid, mtime } = node.attributes;
        if kind != "symlink" {
            assert_eq!(want["mode"], format!("{mode:04o}"), "{path}");
        }
        assert_eq!((number("uid"), number("gid")), (Some(uid.into()), Some(gid.into())), "{path}");
        assert_eq!(want["mtime"].as_i64(), Some(mtime.seconds), "{path}");
        if kind == "reg" {
            assert_eq!(number("size"), Some(node.size_bytes), "{path}");
            let digest = Digest::sha256(&node.data);
            assert_eq!(want["sha256"].as_str().unwrap(), digest.hex(), "{path}");
        }
        if kind == "symlink" {
            assert_eq!(want["target"].as_str().unwrap().as_bytes(), node.data, "{path}");
        }
        if let Some(Device { major, minor }) = node.device {
            assert_eq!(want["rdev"], format!("{major}:{minor}"), "{path}");
        }
        let names = want.get("xattrs").and_then(serde_json::Value::as_object);
        let names: Vec<_> = names.into_iter().flat_map(|xattrs| xattrs.keys().cloned()).collect();
        let found: Vec<_> = node.xattrs.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect();
        assert_eq!(names, found, "{path}");
    }
}
