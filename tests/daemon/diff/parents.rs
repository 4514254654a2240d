//! Directories that a layer does not list, on top of layers that have them, for every list that shows these.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use plywood::{digest::Digest, snapshot::Mount};
use testkit::tree::Tree;

use super::{
    lists::{Mode, Release},
    shop::{Shop, TAR, scan},
};
use crate::harness::*;

pub const TESTS: &[Test] = &[
    ("every_list_shows_what_a_directory_shadows_that_the_layer_does_not_list", every_list),
    ("a_layer_that_is_a_link_or_a_directory_is_looked_at_like_an_image", links_and_directories),
    ("without_visible_parents_unlisted_directories_are_roots_and_counted", without_parents),
    ("layers_below_that_cannot_be_read_are_as_if_they_were_not_shown", unreadable),
    ("nothing_below_is_opened_for_a_layer_that_lists_its_directories", nothing_opened),
];

/// A directory of a layer: name, mode, owner and group, PAX records.
type Described = (&'static str, u32, [u64; 2], &'static [(&'static str, &'static [u8])]);

/// An access-control list with an entry for user 1000: version 2; owner, user 1000, group, mask, others.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

const BASE: &[Described] = &[
    ("tmp", 0o1777, [0, 0], &[("mtime", b"1700000000.123456789")]),
    ("etc", 0o750, [7, 8], &[("SCHILY.xattr.user.note", b"a note"), ("mtime", b"-1.5")]),
    ("etc/deep", 0o2770, [1000, 4_000_000_000], &[("SCHILY.xattr.trusted.own", b"\0\x01")]),
    ("home", 0o770, [1000, 1000], &[("SCHILY.xattr.system.posix_acl_access", ACL)]),
    ("gone", 0o700, [5, 5], &[]),
    ("emptied", 0o711, [6, 6], &[]),
    ("emptied/in", 0o700, [6, 6], &[]),
];
/// Changes of the second layer: `etc` is described anew, `gone` deleted, `emptied` made opaque.
const SECOND: &[Described] = &[
    ("etc", 0o751, [9, 9], &[("mtime", b"5"), ("SCHILY.xattr.user.second", b"2")]),
    ("emptied", 0o755, [0, 7], &[]),
];
const SECOND_MARKERS: &[&str] = &[".wh.gone", "emptied/.wh..wh..opq"];
/// The names of a layer that lists none of its directories, and these directories.
const NAMES: &[&str] =
    &["tmp/x/f", "etc/.wh.old", "etc/deep/f", "home/user/f", "gone/f", "emptied/in/f", "usr/new/f"];
const UNLISTED: [&str; 11] = [
    "tmp",
    "tmp/x",
    "etc",
    "etc/deep",
    "home",
    "home/user",
    "gone",
    "emptied",
    "emptied/in",
    "usr",
    "usr/new",
];

/// An archive of directories and of files without anything in them.
fn archive(directories: &[Described], files: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, mode, [uid, gid]: [u64; 2], records: &[(&str, &[u8])]| {
        if !records.is_empty() {
            builder.append_pax_extensions(records.iter().copied()).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(0);
        builder.append_data(&mut header, name, &b""[..]).unwrap();
    };
    for (name, mode, owner, records) in directories {
        add(name, tar::EntryType::Directory, *mode, *owner, records);
    }
    for name in files {
        add(name, tar::EntryType::Regular, 0o644, [0, 0], &[]);
    }
    builder.into_inner().unwrap()
}

impl Shop {
    /// Applies `archive` to the new snapshot `id`, whose mounts are `mounts`.
    fn apply(&self, id: u32, archive: &[u8], mounts: Vec<Mount>) {
        let digest = self.node.store.add(NAMESPACE, archive);
        let mut request = self.node.request(id, TAR, &digest, archive.len());
        request.mounts = mounts;
        assert_eq!(self.node.apply(&request), Reply::of_tar(archive), "{}", self.daemon.log());
    }

    /// Layers 1 and 2, each applied on top of what is below it.
    fn base(&self) {
        let lists = self.lists(Release::V22);
        self.apply(1, &archive(BASE, &["etc/old"]), lists.active(1, &[], Mode::Directory));
        self.apply(2, &archive(SECOND, SECOND_MARKERS), lists.active(2, &[1], Mode::Directory));
    }

    fn layer_bytes(&self, id: u32) -> Vec<u8> {
        fs::read(self.directory(id).join("layer.erofs")).unwrap()
    }

    /// The directories that the layer does not list, as a container sees them with layer `id` on top of `below`.
    fn unlisted(&self, id: u32, below: &[u32]) -> Tree {
        let stack = [&[id], below].concat();
        let tree = self.show(&stack, None, scan);
        tree.into_iter().filter(|(name, _)| UNLISTED.iter().any(|it| it.as_bytes() == name)).collect()
    }

    /// These directories as they are below, and as they are made where there is nothing below.
    fn want(&self, below: &[u32]) -> Tree {
        let shown = self.show(below, None, scan);
        let made = |name: &&str| {
            let mut node = shown.get(name.as_bytes()).cloned().unwrap_or_else(|| {
                let mut node = shown[&b"tmp"[..]].clone();
                (node.mode, node.mtime, node.xattrs) = (0o755, (0, 0), BTreeMap::new());
                (node.uid, node.gid) = (0, 0);
                node
            });
            // The number of directories in it, which a layer on top changes.
            node.nlink = 0;
            (name.as_bytes().to_vec(), node)
        };
        UNLISTED.iter().map(made).collect()
    }

    fn assert_like_below(&self, id: u32, below: &[u32], what: &str) {
        let mut found = self.unlisted(id, below);
        found.values_mut().for_each(|node| node.nlink = 0);
        assert_eq!(found, self.want(below), "{what}\n{}", self.daemon.log());
    }

    fn counted(&self, metric: &str) -> u64 {
        let metrics = self.node.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix("_total "));
        line.unwrap_or_else(|| panic!("{metric} not in {metrics}")).parse().unwrap()
    }
}

fn every_list() {
    let shop = Shop::new();
    shop.base();
    let want = shop.want(&[2, 1]);
    // The attributes that the test is about are below, as they were written.
    let node = |name: &str| &want[name.as_bytes()];
    assert_eq!((node("tmp").mode, node("tmp").mtime), (0o1777, (1_700_000_000, 123_456_789)));
    assert_eq!((node("etc").mode, node("etc").uid, node("etc").mtime), (0o751, 9, (5, 0)));
    assert_eq!((node("etc/deep").gid, node("etc/deep").mode), (4_000_000_000, 0o2770));
    assert_eq!(node("home").xattrs[&b"system.posix_acl_access"[..]], ACL);
    assert_eq!((node("gone").uid, node("emptied").gid, node("emptied/in").uid), (0, 7, 0));

    let layer = archive(&[], NAMES);
    let (old, new) = (shop.lists(Release::V21), shop.lists(Release::V22));
    let maps = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
    fs::write(shop.directory(2).join("fsmeta.erofs"), "not read").unwrap();
    let forms: Vec<(&str, Vec<Mount>)> = vec![
        ("2.1", old.active(10, &[2, 1], Mode::Directory)),
        ("2.2", new.active(11, &[2, 1], Mode::Directory)),
        ("block mode", new.active(12, &[2, 1], Mode::Block)),
        ("merged metadata", new.active_merged(13, &[2, 1], 2)),
        ("merged metadata below a layer", new.active_merged(14, &[2, 1], 1)),
        ("a user namespace", new.active_directory(15, &[2, 1], &maps)),
        ("further options", old.active_directory(16, &[2, 1], &["index=off", "volatile"])),
    ];
    fs::copy(shop.directory(2).join("fsmeta.erofs"), shop.directory(1).join("fsmeta.erofs")).unwrap();
    let mut images = Vec::new();
    for (id, (what, mounts)) in (10..).zip(forms) {
        shop.apply(id, &layer, mounts);
        shop.assert_like_below(id, &[2, 1], what);
        images.push(shop.layer_bytes(id));
    }
    // A layer on top of the same parents gives the same image for every spelling of the list.
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    // On top of others it is another.
    shop.apply(30, &layer, new.active(30, &[1], Mode::Directory));
    shop.assert_like_below(30, &[1], "one parent");
    assert_ne!(shop.layer_bytes(30), images[0]);
    assert_eq!(
        (shop.counted("plywood_implied_directories"), shop.counted("plywood_layers_without_parents")),
        (88, 0)
    );
    // tmp, etc, etc/deep, home and emptied; on top of the first layer alone also gone and emptied/in.
    assert_eq!(shop.counted("plywood_inherited_directories"), 7 * 5 + 7);
    let log = shop.daemon.log();
    assert!(log.contains("implied=11 inherited=5") && log.contains("implied=11 inherited=7"), "{log}");
    shop.daemon.stop();
}

fn links_and_directories() {
    let node = Node::new();
    let shared = node.scratch.path().join("shared/sha256");
    fs::create_dir_all(&shared).unwrap();
    let settings = fs::read_to_string(node.config()).unwrap();
    let also = format!("shared_layers = [{:?}]\noverlayfs_roots", node.scratch.path().join("shared"));
    fs::write(node.config(), settings.replace("overlayfs_roots", &also)).unwrap();
    let shop = Shop::on(node);
    shop.base();
    // Newer snapshotters put a link into a cache in the place of the image.
    let (image, cached) = (shop.directory(1).join("layer.erofs"), shared.join("1.erofs"));
    fs::rename(&image, &cached).unwrap();
    symlink(&cached, &image).unwrap();
    let layer = archive(&[], NAMES);
    shop.apply(10, &layer, shop.lists(Release::V22).active(10, &[2, 1], Mode::Directory));
    shop.assert_like_below(10, &[2, 1], "a link");

    // Another differ unpacked into the directory, and there is no image.
    let directory = shop.node.snapshot(20).join("fs");
    shop.show(&[1], None, |root| copy_directories(root, &directory));
    let own = |id| shop.lists(Release::V21).active(id, &[20], Mode::Directory);
    shop.apply(21, &layer, own(21));
    fs::remove_file(&image).unwrap();
    fs::rename(&cached, &image).unwrap();
    shop.assert_like_below(21, &[1], "a directory");
    shop.daemon.stop();
}

/// Copies the directories of a tree with everything about them.
fn copy_directories(from: &Path, to: &Path) {
    for (name, node) in scan(from) {
        let path = to.join(String::from_utf8(name.clone()).unwrap());
        if name.is_empty() || !from.join(String::from_utf8(name).unwrap()).is_dir() {
            continue;
        }
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(node.uid), Some(node.gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(node.mode)).unwrap();
        for (name, value) in &node.xattrs {
            rustix::fs::lsetxattr(&path, name.as_slice(), value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
    // From the deepest on: making a directory changes the time of the one it is in.
    for (name, node) in scan(from).into_iter().rev() {
        let path = to.join(String::from_utf8(name.clone()).unwrap());
        if !name.is_empty() && path.is_dir() {
            let time = rustix::fs::Timespec { tv_sec: node.mtime.0, tv_nsec: node.mtime.1.into() };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        }
    }
}

fn without_parents() {
    let layer = archive(&[], NAMES);
    let defaults = |shop: &Shop, id: u32, mounts| {
        shop.apply(id, &layer, mounts);
        for node in shop.unlisted(id, &[]).values() {
            assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o755, 0, 0, (0, 0)));
            assert!(node.xattrs.keys().all(|name| name.starts_with(b"trusted.overlay.")), "{node:?}");
        }
    };
    let shop = Shop::new();
    shop.base();
    // Unpacked side by side.
    defaults(&shop, 10, shop.lists(Release::V22).active(10, &[], Mode::Directory));
    defaults(&shop, 11, shop.lists(Release::V22).active(11, &[], Mode::Block));
    let implied =
        ["plywood_implied_directories", "plywood_inherited_directories", "plywood_layers_without_parents"];
    assert_eq!(implied.map(|metric| shop.counted(metric)), [22, 0, 2]);
    assert!(shop.daemon.log().contains("implied=11 inherited=0"));
    let without = shop.layer_bytes(10);
    shop.daemon.stop();

    let shop = Shop::with("[apply]\nimplied_directories = \"default\"");
    shop.base();
    defaults(&shop, 10, shop.lists(Release::V22).active(10, &[2, 1], Mode::Directory));
    assert_eq!(implied.map(|metric| shop.counted(metric)), [11, 0, 1]);
    assert_eq!(shop.layer_bytes(10), without, "the image depends on its layer alone");
    shop.daemon.stop();
}

fn unreadable() {
    let shop = Shop::new();
    shop.base();
    let layer = archive(&[], NAMES);
    let lists = shop.lists(Release::V22);
    shop.apply(10, &layer, lists.active(10, &[], Mode::Directory));
    let want = shop.layer_bytes(10);
    // The root is sound, and everything behind the first block is damaged: found after other directories were read.
    let mut broken = shop.layer_bytes(1);
    broken[4096..].fill(0xee);
    for (id, bytes) in [(20, b"no image".to_vec()), (21, broken)] {
        fs::write(shop.node.snapshot(id).join("layer.erofs"), bytes).unwrap();
    }
    fs::create_dir(shop.node.snapshot(22).join("layer.erofs")).unwrap();
    for (id, below) in [(30, [20, 1]), (31, [2, 21]), (32, [22, 1]), (33, [404, 1])] {
        shop.apply(id, &layer, lists.active(id, &below, Mode::Directory));
        assert_eq!(shop.layer_bytes(id), want, "{below:?}");
        let warned = shop.daemon.log().matches("the layers below cannot be read").count();
        assert_eq!(warned, usize::try_from(id - 29).unwrap(), "{}", shop.daemon.log());
    }
    // Options whose meaning for the layers is unknown make the list one that cannot be read.
    shop.apply(34, &layer, lists.active_directory(34, &[2, 1], &["datadir+=/x"]));
    assert_eq!(shop.layer_bytes(34), want);
    assert!(shop.daemon.log().contains("mount.option-unknown"), "{}", shop.daemon.log());
    assert_eq!(shop.counted("plywood_layers_without_parents"), 6);
    shop.daemon.stop();
}

fn nothing_opened() {
    let shop = Shop::new();
    let layer = archive(BASE, &["etc/deep/f", "emptied/in/f", "f"]);
    // None of the layers below exists, so opening them would fail.
    shop.apply(10, &layer, shop.lists(Release::V22).active(10, &[404, 405], Mode::Directory));
    shop.apply(11, &layer, shop.lists(Release::V21).active(11, &[], Mode::Directory));
    assert_eq!(Digest::sha256(&shop.layer_bytes(10)), Digest::sha256(&shop.layer_bytes(11)));
    let log = shop.daemon.log();
    assert!(!log.contains("the layers below") && !log.contains("implied="), "{log}");
    assert_eq!(shop.counted("plywood_layers_without_parents"), 0);
    shop.daemon.stop();
}
