//! The same [`Listing`] of an image, read by four independent programs or not so independent ones.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use erofs_rs::{EroFS, backend::SliceImage};
use plywood::{
    format::erofs::{Nid, inode::Data, reader::Image},
    tree::{Attributes, Device, FileType, Timestamp},
};

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
    let mut listing = Listing::new();
    let mut inodes = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let mode = u16::try_from(found.mode()).unwrap();
        let file_type = FileType::from_mode(mode).unwrap();
        let mut data = Vec::new();
        match file_type {
            FileType::Directory => {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            FileType::Regular => data = fs::read(&path).unwrap(),
            FileType::Symlink => data = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            _ => {}
        }
        let is_device = matches!(file_type, FileType::CharDevice | FileType::BlockDevice);
        let number = found.rdev();
        let listed = Listed {
            file_type,
            attributes: Attributes {
                mode: mode & 0o7777,
                uid: found.uid(),
                gid: found.gid(),
                mtime: Timestamp {
                    seconds: found.mtime(),
                    nanoseconds: u32::try_from(found.mtime_nsec()).unwrap(),
                },
            },
            nlink: u32::try_from(found.nlink()).unwrap(),
            size_bytes: if file_type == FileType::Directory { 0 } else { found.size() },
            device: is_device
                .then(|| Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }),
            data,
            xattrs: xattrs_of(&path),
            first_name: Vec::new(),
        };
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        inodes.insert(name.clone(), found.ino());
        assert!(listing.insert(name, listed).is_none(), "a name is listed twice");
    }
    join_names(&mut listing, &inodes);
    listing
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}
