//! Images: made by the program under test, read by everybody else.

use std::{
    collections::BTreeMap,
    fs,
    fs::File,
    io::{Read as _, Seek as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use erofs_rs::{EroFS, backend::SliceImage, types::Inode};
use libtest_mimic::Failed;
use rustix::{
    fs::FileType,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::{
    host::{plywood, program, run},
    tree::{Kind, Node, Tree, clean, hash, number_links, scan},
};

/// `plywood apply`.
pub fn apply(layer: &Path, out: &Path) -> Result<(), Failed> {
    run(plywood().arg("apply").arg(layer).arg("-o").arg(out)).map(drop)
}

// --- the kernel ------------------------------------------------------------------------------

/// A mounted image, until dropped.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts `image` on the new directory `at`.
    pub fn new(image: &Path, at: PathBuf) -> Result<Self, Failed> {
        fs::create_dir(&at)?;
        // From Linux 6.12 on a file can be mounted as it is; before, it takes a loop device.
        if mount(image, &at, "erofs", MountFlags::RDONLY, None).is_err() {
            run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(&at))?;
        }
        Ok(Self { at })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    pub fn tree(&self) -> Result<Tree, Failed> {
        scan(&self.at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.at);
    }
}

// --- erofs-utils -----------------------------------------------------------------------------

/// Has fsck.erofs and dump.erofs read all of `image`. Both end with 0 after some of their errors.
///
/// Not with `--xattrs`: fsck.erofs 1.9 takes an empty value for an error, and ours has them.
pub fn erofs_utils_accept(image: &Path) -> Result<(), Failed> {
    let tool = |name: &str| program(name).ok_or_else(|| format!("{name} is missing"));
    for command in [
        Command::new(tool("fsck.erofs")?).arg("--extract").arg(image),
        Command::new(tool("dump.erofs")?).args(["-s", "-S"]).arg(image),
    ] {
        let said = run(command)?;
        let complaint = said.lines().find(|line| line.contains("<E>") || line.contains("<W>"));
        if let Some(line) = complaint {
            return Err(format!("{command:?}: {line}").into());
        }
    }
    Ok(())
}

// --- erofs-rs --------------------------------------------------------------------------------

/// The tree as the erofs-rs crate reads it.
pub fn read_with_erofs_rs(image: &Path) -> Result<Tree, Failed> {
    let bytes = fs::read(image)?;
    let image = EroFS::new(SliceImage::new(&bytes))?;
    let root = image.get_inode(image.super_block().root_inode_id())?;
    let mut tree = Tree::from([(Vec::new(), node(&image, root)?)]);
    for entry in image.walk_dir("/")? {
        let entry = entry?;
        let name = clean(entry.dir_entry.path().as_bytes());
        if tree.insert(name.clone(), node(&image, entry.inode)?).is_some() {
            return Err(format!("{}: listed twice", String::from_utf8_lossy(&name)).into());
        }
    }
    number_links(&mut tree);
    Ok(tree)
}

fn node(image: &EroFS<SliceImage<'_>>, inode: Inode) -> Result<Node, Failed> {
    let (major, minor) = inode.device().unwrap_or((0, 0));
    let kind = match inode.file_type() {
        FileType::RegularFile => {
            let (size_bytes, sha256) = hash(image.open_inode_file(inode)?)?;
            if size_bytes != inode.data_size() {
                return Err(
                    format!("inode {}: {size_bytes} of {} bytes", inode.id(), inode.data_size()).into()
                );
            }
            Kind::Regular { size_bytes, sha256 }
        }
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink { target: image.read_link_inode(inode)?.into_vec() },
        FileType::CharacterDevice => Kind::Char { major, minor },
        FileType::BlockDevice => Kind::Block { major, minor },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return Err(format!("inode {}: of no known type", inode.id()).into()),
    };
    let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = image.xattrs_inode(inode)?;
    Ok(Node {
        mode: inode.permissions().mode() & 0o7777,
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: inode.modified_unix(),
        xattrs,
        nlink: u64::from(inode.nlink()),
        link_group: if kind == Kind::Directory { 0 } else { inode.id() },
        kind,
    })
}

// --- two images ------------------------------------------------------------------------------

/// Superblock fields that depend on the blob's digest: checksum, UUID. From erofs_fs.h of Linux.
const OF_THE_BLOB: [std::ops::Range<u64>; 2] = [1024 + 4..1024 + 8, 1024 + 48..1024 + 64];

/// Fails unless two images are equal byte for byte, but for what names the compressed blob.
pub fn same_image(one: &Path, other: &Path) -> Result<(), Failed> {
    same_bytes(one, other, &OF_THE_BLOB)
}

/// Fails unless two files are equal byte for byte.
pub fn same_file(one: &Path, other: &Path) -> Result<(), Failed> {
    same_bytes(one, other, &[])
}

fn same_bytes(one: &Path, other: &Path, but: &[std::ops::Range<u64>]) -> Result<(), Failed> {
    let (mut a, mut b) = (File::open(one)?, File::open(other)?);
    let (len, other_len) = (a.metadata()?.len(), b.metadata()?.len());
    if len != other_len {
        return Err(format!("{len} bytes, then {other_len}").into());
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < len {
        let take = usize::try_from((len - offset).min(1 << 20))?;
        a.read_exact(&mut left[..take])?;
        b.read_exact(&mut right[..take])?;
        if left[..take] != right[..take] {
            let differs = (offset..).zip(left[..take].iter().zip(&right[..take]));
            let mut differs =
                differs.filter(|(at, (l, r))| l != r && !but.iter().any(|range| range.contains(at)));
            if let Some((at, _)) = differs.next() {
                return Err(format!("the images differ at byte {at} of {len}").into());
            }
        }
        offset += take as u64;
    }
    debug_assert_eq!(a.stream_position()?, len);
    Ok(())
}
