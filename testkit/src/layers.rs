//! Layers packed by GNU tar from trees made here, which together use everything a layer can hold, and the tree that a
//! stack of layers must give.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

pub use crate::random::noise;
use crate::{
    host,
    tree::{clean, split},
};

/// How GNU tar spells what the plain header cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// Extended headers: names, nanoseconds, extended attributes, sparse files.
    Pax,
    /// GNU's own long names and base-256 numbers; whole seconds, no attributes.
    Gnu,
}

/// A tree being made, to be packed as a layer.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty tree at `root`, which must not exist.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir(root)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        Ok(Self { root: root.to_owned() })
    }

    fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.root.join(name.as_ref())
    }

    /// A directory of mode 0755 and its missing parents.
    pub fn dir(&self, name: &str) -> anyhow::Result<()> {
        fs::create_dir_all(self.at(name)).with_context(|| name.to_owned())
    }

    /// A file with these contents, in a directory that is made when missing.
    pub fn file(&self, name: &str, contents: &[u8]) -> anyhow::Result<()> {
        if let Some(parent) = Path::new(name).parent() {
            fs::create_dir_all(self.at(parent))?;
        }
        fs::write(self.at(name), contents).with_context(|| name.to_owned())
    }

    /// A file that is executable; otherwise as [`Self::file`].
    pub fn program(&self, name: &str, contents: &[u8]) -> anyhow::Result<()> {
        self.file(name, contents)?;
        self.mode(name, 0o755)
    }

    /// Another name of a file.
    pub fn hard_link(&self, name: &str, of: &str) -> anyhow::Result<()> {
        fs::hard_link(self.at(of), self.at(name)).with_context(|| name.to_owned())
    }

    /// A symbolic link.
    pub fn symlink(&self, name: &str, target: &str) -> anyhow::Result<()> {
        symlink(target, self.at(name)).with_context(|| name.to_owned())
    }

    /// Permission bits, the upper three included.
    pub fn mode(&self, name: &str, mode: u32) -> anyhow::Result<()> {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Owner and group, not followed through a link.
    pub fn owner(&self, name: &str, uid: u32, gid: u32) -> anyhow::Result<()> {
        std::os::unix::fs::lchown(self.at(name), Some(uid), Some(gid))?;
        Ok(())
    }

    /// A device or a fifo.
    pub fn node(&self, name: &str, kind: FileType, major: u32, minor: u32) -> anyhow::Result<()> {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, self.at(name), kind, mode, rustix::fs::makedev(major, minor))?;
        Ok(())
    }

    /// An extended attribute.
    pub fn xattr(&self, name: &str, attribute: &str, value: &[u8]) -> anyhow::Result<()> {
        rustix::fs::lsetxattr(self.at(name), attribute, value, XattrFlags::empty())
            .with_context(|| format!("{attribute} on {name}"))?;
        Ok(())
    }

    /// Packs the tree as `out`. Every entry first gets a modification time of its own, with nanoseconds.
    pub fn pack(self, spelling: Spelling, out: &Path) -> anyhow::Result<()> {
        let mut names = vec![self.root.clone()];
        let mut next = 0;
        while let Some(name) = names.get(next).cloned() {
            next += 1;
            if name.is_dir() && !name.is_symlink() {
                for entry in fs::read_dir(&name)? {
                    names.push(entry?.path());
                }
            }
        }
        names.sort();
        for (name, number) in names.iter().zip(0_i64..) {
            let time = Timespec { tv_sec: 1_700_000_000 + number, tv_nsec: 123_456_789 + number };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&self.root).args(["--sort=name", "--numeric-owner"]);
        match spelling {
            Spelling::Pax => tar.args(["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*"]),
            Spelling::Gnu => tar.args(["--format=gnu", "--no-xattrs"]),
        };
        run(tar.arg("-cf").arg(out).arg("."))?;
        fs::remove_dir_all(&self.root)?;
        Ok(())
    }
}

/// Text that gzip makes small: `len` bytes that differ with `seed`.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    let mut line = seed;
    while bytes.len() < len {
        bytes.extend_from_slice(
            format!("line {line} of a text that says the same again and again\n").as_bytes(),
        );
        line += 1;
    }
    bytes.truncate(len);
    bytes
}

/// The tar of a layer that holds one file.
pub fn one_file(name: &str, contents: &[u8]) -> anyhow::Result<Vec<u8>> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::create(&scratch.path().join("tree"))?;
    tree.file(name, contents)?;
    let out = scratch.path().join("layer.tar");
    tree.pack(Spelling::Pax, &out)?;
    Ok(fs::read(out)?)
}

/// Whether [`feature_layers`] include a sparse file, which mkfs.erofs does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sparse {
    /// One of 3 MiB with two holes.
    With,
    /// None.
    Without,
}

/// Three layers, the lowest first, as tar files in `dir`: every type of entry and attribute in the first, changes and
/// deletions in the second, directories that come back in the third. A shell is in `/bin`.
pub fn feature_layers(dir: &Path, sparse: Sparse) -> anyhow::Result<Vec<PathBuf>> {
    let layers = [("base", Spelling::Pax), ("change", Spelling::Gnu), ("top", Spelling::Pax)];
    let mut packed = Vec::new();
    for (name, spelling) in layers {
        let tree = Tree::create(&dir.join(name))?;
        match name {
            "base" => base(&tree, sparse)?,
            "change" => change(&tree)?,
            _ => top(&tree)?,
        }
        let out = dir.join(format!("{name}.tar"));
        tree.pack(spelling, &out)?;
        packed.push(out);
    }
    Ok(packed)
}

fn base(tree: &Tree, sparse: Sparse) -> anyhow::Result<()> {
    for dir in ["proc", "sys", "dev", "etc", "tmp"] {
        tree.dir(dir)?;
    }
    let busybox = host::program("busybox").context("busybox is missing")?;
    tree.program("bin/busybox", &fs::read(busybox)?)?;
    for applet in ["sh", "cat", "ls", "stat", "test", "find"] {
        tree.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
    }
    // Sizes around a block and around the limit of inline tails.
    for len in [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 100_000, 3_000_000] {
        tree.file(&format!("sizes/{len}"), &noise(len, 7))?;
    }
    if sparse == Sparse::With {
        let file = fs::File::create(tree.root.join("sizes/sparse"))?;
        std::os::unix::fs::FileExt::write_all_at(&file, b"at one mebibyte", 1 << 20)?;
        file.set_len((3 << 20) + 5)?;
    }

    tree.file("links/one", b"three names")?;
    tree.hard_link("links/two", "links/one")?;
    tree.dir("links/below")?;
    tree.hard_link("links/below/three", "links/one")?;
    tree.symlink("links/relative", "../etc/hosts")?;
    tree.symlink("links/absolute", "/bin/busybox")?;
    tree.symlink("links/dangling", "nowhere")?;
    tree.symlink("links/long", &"x/".repeat(1000))?;

    tree.dir("nodes")?;
    tree.node("nodes/null", FileType::CharacterDevice, 1, 3)?;
    tree.node("nodes/disk", FileType::BlockDevice, 259, 70_000)?;
    tree.node("nodes/fifo", FileType::Fifo, 0, 0)?;

    tree.program("modes/setuid", b"#!/bin/sh\n")?;
    tree.mode("modes/setuid", 0o4755)?;
    tree.dir("modes/setgid")?;
    tree.mode("modes/setgid", 0o2775)?;
    tree.mode("tmp", 0o1777)?;
    tree.file("modes/secret", b"nobody reads this")?;
    tree.mode("modes/secret", 0)?;
    tree.file("modes/owned", b"by somebody")?;
    tree.owner("modes/owned", 1000, 100_000)?;
    tree.file("modes/far", b"by the last owner of an id map")?;
    tree.owner("modes/far", 4_000_000_000, 4_000_000_001)?;
    tree.symlink("modes/owned-link", "owned")?;
    tree.owner("modes/owned-link", 65_534, 65_534)?;

    tree.file("attributes/one", b"")?;
    tree.xattr("attributes/one", "user.comment", b"short")?;
    tree.xattr("attributes/one", "trusted.binary", &[0, 1, 254, 255])?;
    tree.file("attributes/capable", b"")?;
    // CAP_NET_RAW, permitted and effective: revision 2 of the kernel's struct vfs_cap_data.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tree.xattr("attributes/capable", "security.capability", &capability)?;
    tree.xattr("attributes", "user.directory", &noise(500, 3))?;
    for number in 0..20 {
        let name = format!("attributes/shared-{number}");
        tree.file(&name, b"")?;
        tree.xattr(&name, "user.shared", b"the same long value on every one of these files")?;
    }

    tree.file(&format!("names/{}", "n".repeat(255)), b"the longest name")?;
    tree.file(&format!("names/{}deep", "a-directory-of-thirty-characters/".repeat(20)), b"a long path")?;
    tree.file("names/Grüße, 世界 \u{1F600}", "UTF-8".as_bytes())?;
    let latin = Path::new(OsStr::from_bytes(b"names/caf\xe9"));
    fs::write(tree.root.join(latin), b"not UTF-8")?;
    tree.file("names/new\nline \\ \"quoted\" and spaces", b"")?;
    for number in 0..500 {
        tree.file(&format!("many/file-{number:03}"), format!("number {number}\n").as_bytes())?;
    }

    tree.file("etc/removed", b"must not be seen")?;
    tree.file("etc/kept", b"of the first layer")?;
    tree.file("gone/with/everything", b"must not be seen")?;
    tree.file("back/old", b"must not be seen")?;
    tree.file("opaque/old", b"must not be seen")?;
    tree.file("opaque/below/old", b"must not be seen")?;
    tree.file("dir-becomes-file/child", b"must not be seen")?;
    tree.file("file-becomes-dir", b"must not be seen")?;
    tree.symlink("link-becomes-dir", "etc")?;
    tree.file("linked-then-removed", b"two names, then one")?;
    tree.hard_link("linked-and-kept", "linked-then-removed")?;
    Ok(())
}

fn change(tree: &Tree) -> anyhow::Result<()> {
    tree.file("etc/.wh.removed", b"")?;
    tree.file("etc/changed", b"of the second layer")?;
    tree.mode("etc", 0o711)?;
    tree.file(".wh.gone", b"")?;
    tree.file(".wh.back", b"")?;
    tree.file("opaque/.wh..wh..opq", b"")?;
    tree.file("opaque/new", b"seen")?;
    tree.file("dir-becomes-file", b"seen")?;
    tree.file("file-becomes-dir/child", b"seen")?;
    tree.file("link-becomes-dir/child", b"seen")?;
    tree.file(".wh.linked-then-removed", b"")?;
    // GNU's spelling of a long name, a long link and numbers beyond the header's octal digits.
    tree.file(&format!("names/{}", "g".repeat(150)), b"")?;
    tree.symlink("names/long-link", &"y/".repeat(150))?;
    tree.file("names/big-owner", b"")?;
    tree.owner("names/big-owner", 3_000_000_000, 5)?;
    Ok(())
}

fn top(tree: &Tree) -> anyhow::Result<()> {
    tree.file("back/new", b"seen")?;
    tree.file("dir-becomes-file-again/x", b"")?;
    tree.file("opaque/below/new", b"seen")?;
    tree.program(
        "bin/proof",
        b"#!/bin/sh\nset -e\ncat /etc/kept /etc/changed /back/new\ntest ! -e /etc/removed\ntest ! -e /gone\n\
          test ! -e /back/old\ntest ! -e /opaque/old\ntest -f /dir-becomes-file\ntest -d /file-becomes-dir\n\
          test -p /nodes/fifo\ntest -c /nodes/null\ntest -u /modes/setuid\necho proven\n",
    )?;
    Ok(())
}

/// Makes the tree that a stack of tar layers must give in `target`, with GNU tar and the whiteout rules.
///
/// Deletions act on the layers below, whatever their place in the archive, so they are carried out before the
/// layer is extracted. Something that replaces a directory, or a directory that replaces something, removes it first.
/// A directory that a layer does not list keeps what it has; a new one is root's, of mode 0755 and time 0.
pub fn stack(layers: &[PathBuf], target: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(target)?;
    let mut is_new = true;
    for layer in layers {
        let at = |name: &[u8]| {
            if name.is_empty() { target.to_owned() } else { target.join(OsStr::from_bytes(name)) }
        };
        let (mut listed, mut above) = (BTreeSet::new(), BTreeSet::from([Vec::new()]));
        let (mut deleted, mut opaque) = (BTreeSet::new(), BTreeSet::new());
        for entry in tar::Archive::new(File::open(layer)?).entries()? {
            let entry = entry?;
            let name = clean(&entry.path_bytes());
            let (directory, last) = split(&name);
            let mut rest = directory;
            while !rest.is_empty() {
                above.insert(rest.to_vec());
                rest = split(rest).0;
            }
            if last == b".wh..wh..opq" {
                opaque.insert(directory.to_vec());
            } else if let Some(hidden) = last.strip_prefix(b".wh.") {
                deleted.insert(join(directory, hidden));
            } else {
                listed.insert((name, entry.header().entry_type().is_dir()));
            }
        }
        let names: BTreeSet<_> = listed.iter().map(|(name, _)| name.clone()).collect();
        // Their times change with what is made and removed in them.
        // One in a directory that the layer hides is a new one.
        let is_hidden = |name: &[u8]| {
            let within = std::iter::successors(Some(name), |name| (!name.is_empty()).then(|| split(name).0));
            within.enumerate().any(|(up, name)| deleted.contains(name) || (up > 0 && opaque.contains(name)))
        };
        let unlisted = above.difference(&names).map(|name| {
            let found = fs::symlink_metadata(at(name)).ok().filter(fs::Metadata::is_dir);
            (name.clone(), found.filter(|_| !(is_hidden(name) || is_new && name.is_empty())))
        });
        let unlisted: Vec<_> = unlisted.collect();
        for directory in &opaque {
            for child in fs::read_dir(at(directory)).into_iter().flatten() {
                remove(&child?.path())?;
            }
        }
        for name in &deleted {
            remove(&at(name))?;
        }
        for (name, is_directory) in &listed {
            let is_there = fs::symlink_metadata(at(name));
            if is_there.is_ok_and(|found| found.is_dir() != *is_directory) {
                remove(&at(name))?;
            }
        }
        for (name, _) in &unlisted {
            // Something else than a directory is in the way of what is to be below it.
            if fs::symlink_metadata(at(name)).is_ok_and(|found| !found.is_dir()) {
                remove(&at(name))?;
            }
        }
        for (name, _) in &unlisted {
            // What only whiteouts are in is a directory as well, and tar does not make it.
            let inside = names.range(join(name, b"")..).next();
            if !inside.is_some_and(|inside| inside.starts_with(&join(name, b""))) {
                fs::create_dir_all(at(name))?;
            }
        }
        run(Command::new("tar")
            .arg("-C")
            .arg(target)
            .args(["--numeric-owner", "--same-owner", "--same-permissions", "--delay-directory-restore"])
            .args(["--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "-xf"])
            .arg(layer))?;
        for (name, before) in unlisted.iter().rev() {
            let path = at(name);
            // The layer replaced it, or what is in it.
            if !path.is_dir() {
                continue;
            }
            let (mode, time) = match before {
                Some(found) => (found.mode() & 0o7777, (found.mtime(), found.mtime_nsec())),
                None => (0o755, (0, 0)),
            };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            let time = Timespec { tv_sec: time.0, tv_nsec: time.1 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        is_new = false;
    }
    Ok(())
}

/// A name in a directory; `name` may be empty.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn remove(name: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(name) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(name)?,
        Ok(_) => fs::remove_file(name)?,
        Err(_) => {}
    }
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let failed = host::run(command).err();
    failed.map_or(Ok(()), |failed| anyhow::bail!("{}", failed.message().unwrap_or("failed")))
}
