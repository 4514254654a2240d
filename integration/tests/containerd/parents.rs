//! Layers that list none of their directories, on top of one that has them in every kind: a container sees what it
//! sees when containerd unpacks the same image with its own differ into the overlayfs snapshotter.

use std::collections::BTreeSet;

use plywood_integration::env::{Env, Setup};
use plywood_integration::image::{Coding, Image, Layer};
use plywood_integration::tree::{self, Kind, Tree};
use testkit::tree::count_links;

use crate::Suite;

/// Images, each of the base and so many layers on top: 200 layers.
const IMAGES: u64 = 20;
const LAYERS: u64 = 10;

pub fn add(suite: &mut Suite) {
    let plywood_tables = "[apply]\ndurability = \"never\"\n".into();
    suite.with_env(
        "directories_that_only_lower_layers_list_are_what_containerd_makes_of_them_on_overlayfs",
        Setup { plywood_tables, ..Setup::default() },
        like_on_overlayfs,
    );
}

/// Children of a directory that both differs unpack alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Anything.
    All,
    /// No directory: the kernel gives one that is made in a setgid directory the group of that, or below a default
    /// access-control list one of its own, and containerd leaves it so.
    Files,
}

/// A directory of the base: name, mode, owner and group, time as PAX spells it, attributes.
type Described = (&'static str, u32, [u64; 2], &'static str, &'static [(&'static str, &'static [u8])], Takes);

/// Owner rwx, user 1000 rwx, group r-x, mask rwx, others nothing: mode 0770.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

const DIRECTORIES: [Described; 20] = [
    ("tmp", 0o1777, [0, 0], "1700000000.123456789", &[], Takes::All),
    ("etc", 0o750, [7, 8], "1600000000", &[], Takes::All),
    ("root", 0o700, [0, 0], "0", &[], Takes::All),
    ("home", 0o755, [0, 0], "-1", &[], Takes::All),
    ("home/user", 0o700, [1000, 1000], "-1.5", &[], Takes::All),
    ("home/user/.ssh", 0o500, [1000, 1000], "-86400.000000001", &[], Takes::All),
    ("srv", 0o2775, [0, 100], "1.999999999", &[], Takes::Files),
    ("srv/spool", 0o3770, [12, 34], "4102444800", &[], Takes::Files),
    ("opt", 0o4755, [3, 0], "5000000000.5", &[], Takes::All),
    ("opt/suid", 0o6711, [65_534, 65_534], "2147483648", &[], Takes::Files),
    ("var", 0o711, [0, 1], "-2147483649", &[], Takes::All),
    ("var/lib", 0o555, [70_000, 4_000_000_000], "946684800.000000001", &[], Takes::All),
    ("var/lib/none", 0, [1, 2], "1", &[], Takes::All),
    ("x-user", 0o755, [0, 0], "2", &[("user.note", b"a note"), ("user.empty", b"")], Takes::All),
    ("x-binary", 0o751, [5, 5], "3", &[("user.bytes", b"\0\x01\xfe\xff"), ("user.a.b.c", b"1")], Takes::All),
    ("x-trusted", 0o710, [6, 6], "4", &[("trusted.own", b"t"), ("user.own", b"u")], Takes::All),
    ("x-security", 0o701, [0, 9], "5", &[("security.note", b"s")], Takes::All),
    ("acl", 0o770, [1000, 1000], "6.25", &[("system.posix_acl_access", ACL)], Takes::All),
    ("acl-default", 0o770, [8, 8], "7", &[("system.posix_acl_default", ACL)], Takes::Files),
    (
        "acl-default/both",
        0o1770,
        [9, 9],
        "8.000000008",
        &[("system.posix_acl_access", ACL), ("system.posix_acl_default", ACL), ("user.acl", b"both")],
        Takes::Files,
    ),
];
/// Files that each directory has in the base, to be deleted.
const OLD: u64 = 3;

/// The archive of a layer under construction.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(&mut self, name: &str, mode: u32, owner: [u64; 2], contents: Option<&str>) -> anyhow::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(if contents.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        header.set_mode(mode);
        header.set_uid(owner[0]);
        header.set_gid(owner[1]);
        header.set_mtime(1_700_000_000);
        let contents = contents.unwrap_or_default();
        header.set_size(contents.len() as u64);
        Ok(self.0.append_data(&mut header, name, contents.as_bytes())?)
    }

    fn layer(self) -> anyhow::Result<Layer> {
        Layer::oci(&self.0.into_inner()?, Coding::Gzip)
    }
}

fn base() -> anyhow::Result<Layer> {
    let mut archive = Archive::new();
    for (name, mode, owner, time, xattrs, _) in DIRECTORIES {
        let names: Vec<_> = xattrs.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let records = names.iter().map(String::as_str).zip(xattrs.iter().map(|(_, value)| *value));
        archive.0.append_pax_extensions([("mtime", time.as_bytes())].into_iter().chain(records))?;
        archive.add(name, mode, owner, None)?;
    }
    for (name, ..) in DIRECTORIES {
        for number in 0..OLD {
            archive.add(&format!("{name}/old-{number}"), 0o644, [0, 0], Some("of the base"))?;
        }
    }
    archive.layer()
}

/// A generator that gives the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A layer that puts files into some of the directories, makes others there, or deletes; it lists none of them.
fn random(random: &mut Random) -> anyhow::Result<Layer> {
    let mut archive = Archive::new();
    let mut names = BTreeSet::new();
    for _ in 0..1 + random.below(5) {
        let at = usize::try_from(random.below(DIRECTORIES.len() as u64))?;
        let (directory, .., takes) = DIRECTORIES[at];
        let number = random.below(6);
        let name = match (random.below(4), takes) {
            (0, _) => format!("{directory}/.wh.old-{}", random.below(OLD)),
            (1, Takes::All) => format!("{directory}/new-{}/deep/f-{number}", random.below(3)),
            _ => format!("{directory}/f-{number}"),
        };
        if names.insert(name.clone()) {
            let contents = if name.contains("/.wh.") { "" } else { &format!("{}", random.below(1 << 20)) };
            archive.add(&name, 0o600 + u32::try_from(number)?, [number, 0], Some(contents))?;
        }
    }
    archive.layer()
}

fn like_on_overlayfs(env: &mut Env) -> anyhow::Result<()> {
    let base = base()?;
    let alone = Image::oci(vec![base.clone()]);
    let reference = env.push("base", &alone)?;
    env.pull(&reference, "erofs", &[])?;
    let want = {
        let mounted = env.mount(&alone)?;
        directories(&tree::scan(mounted.path())?)
    };
    anyhow::ensure!(want.len() == DIRECTORIES.len(), "{want:?}");
    for (name, mode, [uid, gid], ..) in DIRECTORIES {
        let found = &want[name.as_bytes()];
        let owner = (u32::try_from(uid)?, u32::try_from(gid)?);
        anyhow::ensure!((found.mode, (found.uid, found.gid)) == (mode, owner), "{name}: {found:?}");
    }
    let mut numbers = Random(0x9E37_79B9_7F4A_7C15);
    for number in 0..IMAGES {
        let mut layers = vec![base.clone()];
        for _ in 0..LAYERS {
            layers.push(random(&mut numbers)?);
        }
        compare(env, &format!("image-{number}"), &Image::oci(layers), &want)
            .map_err(|error| error.context(format!("image {number}")))?;
    }
    Ok(())
}

fn compare(env: &Env, name: &str, image: &Image, base: &Tree) -> anyhow::Result<()> {
    let reference = env.push(name, image)?;
    env.pull(&reference, "erofs", &[])?;
    env.pull(&reference, "overlayfs", &[])?;
    let ours = tree::scan(env.mount(image)?.path())?;
    let theirs = {
        let key = format!("overlayfs-{name}");
        env.caller()?.view("overlayfs", &key, &image.chain_id())?;
        tree::scan(env.mount_snapshot("overlayfs", &key)?.path())?
    };
    // Everything about the directories that only the base lists is what it is in the base.
    tree::ensure_equal(base, &directories(&ours))?;
    // And everything is as on overlayfs.
    tree::ensure_equal(&comparable(theirs), &comparable(ours))
}

fn directories(tree: &Tree) -> Tree {
    let listed = |name: &[u8]| DIRECTORIES.iter().any(|(listed, ..)| listed.as_bytes() == name);
    let mut tree = tree.clone();
    tree.retain(|name, _| listed(name));
    count_links(&mut tree);
    tree
}

/// A tree without what containerd's own differ does not take from the layers below.
///
/// It copies a directory's times before it puts anything in, so that the time becomes that of unpacking; and
/// attributes but for `trusted.*`, so that those are lost. The root is the snapshotter's. Files get an access-control
/// list from the kernel when their directory has a default one; no layer here gives them any. Source: containerd
/// `pkg/archive/tar.go`, `mkparent`, and `tar_unix.go`, `copyDirInfo` and `copyUpXAttrs`.
fn comparable(mut tree: Tree) -> Tree {
    tree.remove(&b""[..]);
    for node in tree.values_mut().filter(|node| node.kind == Kind::Directory) {
        node.mtime = (0, 0);
        node.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
    }
    for node in tree.values_mut().filter(|node| matches!(node.kind, Kind::Regular { .. })) {
        node.xattrs.remove(&b"system.posix_acl_access"[..]);
    }
    tree
}
