//! Apply: merged metadata beside a layer, for every list that shows the layers below.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use plywood::snapshot::Mount;
use testkit::{
    host,
    mounts::Mounted,
    tree::{self, Tree},
};

use super::{
    lists::{Mode, Release},
    shop::{Shop, TAR, scan},
};
use crate::harness::*;

pub const TESTS: &[Test] = &[
    ("layers_above_the_configured_number_get_merged_metadata_that_shows_their_overlay", every_list),
    ("layers_that_merged_metadata_stands_for_do_not_count_but_are_merged_anew", counted),
    ("nothing_is_merged_where_dm_verity_protects_a_layer", verity),
    ("a_layer_that_cannot_be_merged_is_published_without_and_old_metadata_goes", left_unmerged),
    ("nothing_is_merged_unless_it_is_configured", not_configured),
];

fn archive(number: u32) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory { 0o750 + number } else { 0o644 });
        header.set_uid(number.into());
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).unwrap();
    };
    add("d", tar::EntryType::Directory, b"");
    add(&format!("d/of-{number}"), tar::EntryType::Regular, &number.to_le_bytes().repeat(3000));
    add(
        "d/common",
        tar::EntryType::Regular,
        &number.to_le_bytes().repeat(usize::try_from(number).unwrap() * 100),
    );
    if number > 1 {
        add(&format!("d/.wh.of-{}", number - 1), tar::EntryType::Regular, b"");
    }
    builder.into_inner().unwrap()
}

impl Shop {
    /// Applies the archive `number` to the new snapshot `id`, or to the one that `mounts` show.
    fn apply_numbered(&self, id: u32, number: u32, mounts: Vec<Mount>) {
        let archive = archive(number);
        let digest = self.node.store.add(NAMESPACE, archive.as_slice());
        let mut request = self.node.request(id, TAR, &digest, archive.len());
        request.mounts = mounts;
        assert_eq!(self.node.apply(&request), Reply::of_tar(&archive), "{}", self.daemon.log());
    }

    /// Applies the layers 1 to `count`, each on top of those before.
    fn chain(&self, count: u32) {
        for id in 1..=count {
            let parents: Vec<_> = (1..id).rev().collect();
            self.apply_numbered(id, id, self.lists(Release::V22).active(id, &parents, Mode::Directory));
        }
    }

    fn metadata(&self, id: u32) -> std::path::PathBuf {
        self.directory(id).join("fsmeta.erofs")
    }

    /// The tree that the kernel shows of the merged metadata of `id`, mounted as containerd does it, with `layers` as
    /// devices, the bottom one first.
    fn merged(&self, id: u32, layers: &[u32]) -> Tree {
        let at = tempfile::tempdir().unwrap();
        let devices =
            layers.iter().map(|id| format!("device={}", self.directory(*id).join("layer.erofs").display()));
        let options = devices.collect::<Vec<_>>().join(",");
        let _mounted = Mounted::new(&self.metadata(id), at.path(), "erofs", &options).unwrap();
        scan(at.path())
    }

    /// Compares the merged metadata beside the topmost of `layers`, the bottom one first, with their overlay.
    fn assert_shows_the_overlay(&self, layers: &[u32]) {
        let without_links = |mut tree: Tree| {
            tree.values_mut().for_each(|node| node.nlink = 0);
            tree
        };
        let newest_first: Vec<_> = layers.iter().rev().copied().collect();
        let want = without_links(self.show(&newest_first, None, scan));
        if let Err(difference) = tree::compare(&want, &without_links(self.merged(newest_first[0], layers))) {
            panic!("{}", difference.message().unwrap_or_default());
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn every_list() {
    let shop = Shop::with("[apply]\nmax_unmerged_layers = 3");
    shop.chain(3);
    assert!((1..=3).all(|id| !shop.metadata(id).exists()), "{}", shop.daemon.log());
    let (old, new) = (shop.lists(Release::V21), shop.lists(Release::V22));
    let mut images = Vec::new();
    for (id, mounts) in [
        (4, old.active(4, &[3, 2, 1], Mode::Directory)),
        (5, new.active(5, &[3, 2, 1], Mode::Directory)),
        (6, new.active(6, &[3, 2, 1], Mode::Block)),
    ] {
        shop.apply_numbered(id, 4, mounts);
        shop.assert_shows_the_overlay(&[1, 2, 3, id]);
        assert_eq!(mode(&shop.metadata(id)), 0o644);
        images.push(fs::read(shop.metadata(id)).unwrap());
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(shop.daemon.log().contains(" merged=4 "), "{}", shop.daemon.log());
    shop.daemon.stop();
}

fn counted() {
    let shop = Shop::with("[apply]\nmax_unmerged_layers = 2");
    let new = shop.lists(Release::V22);
    shop.chain(3);
    assert!(shop.metadata(3).exists());
    for id in 4..=6 {
        let parents: Vec<_> = (1..id).rev().collect();
        shop.apply_numbered(id, id, new.active_merged(id, &parents, 3));
    }
    assert_eq!([4, 5, 6].map(|id| shop.metadata(id).exists()), [false, false, true]);
    shop.assert_shows_the_overlay(&[1, 2, 3, 4, 5, 6]);
    shop.daemon.stop();
}

fn verity() {
    let shop = Shop::with("[apply]\nmax_unmerged_layers = 1");
    shop.apply_numbered(1, 1, shop.lists(Release::V22).active(1, &[], Mode::Directory));
    let mut mounts = shop.lists(Release::V22).active(2, &[1], Mode::Directory);
    let path = shop.directory(1).join("layer.erofs.dmverity");
    mounts[0].options.push(format!("X-containerd.dmverity={}", path.display()));
    shop.apply_numbered(2, 2, mounts);
    assert!(!shop.metadata(2).exists());
    shop.daemon.stop();
}

fn left_unmerged() {
    let shop = Shop::with("[apply]\nmax_unmerged_layers = 1\n[erofs]\nblock_size = 4096");
    let new = shop.lists(Release::V22);
    shop.apply_numbered(1, 1, new.active(1, &[], Mode::Directory));
    shop.apply_numbered(2, 2, new.active(2, &[1], Mode::Directory));
    assert!(shop.metadata(2).exists());
    // A layer of another writer, with blocks of another size.
    let tar = shop.node.scratch.path().join("other.tar");
    fs::write(&tar, archive(1)).unwrap();
    let image = shop.directory(1).join("layer.erofs");
    let mut other = host::plywood();
    host::run(other.arg("apply").arg(&tar).args(["--block-size", "512", "-o"]).arg(&image)).unwrap();
    shop.apply_numbered(3, 2, new.active(2, &[1], Mode::Directory));
    assert!(!shop.metadata(2).exists(), "metadata of another layer is left");
    let log = shop.daemon.log();
    assert!(log.contains("layers are left unmerged") && log.contains("merge.block-size"), "{log}");
    shop.daemon.stop();
}

fn not_configured() {
    let shop = Shop::new();
    shop.chain(3);
    assert!((1..=3).all(|id| !shop.metadata(id).exists()));
    shop.daemon.stop();
}
