//! Every row of the acceptance matrix, in both releases' forms of mount lists.

use std::{fs, path::Path};

use plywood::snapshot::Mount;
use testkit::{host, images, mounts::Overlay};

use super::{
    lists::{Mode, Release},
    shop::*,
};
use crate::harness::*;

pub const TESTS: &[Test] = &[
    ("diff_of_a_running_container", running),
    ("diff_of_a_container_that_has_stopped", stopped),
    ("diff_of_a_committed_base_layer", base_layer),
    ("diff_of_a_committed_layer_in_the_middle_and_on_top", middle_layer),
    ("diff_of_a_container_on_a_one_layer_image", one_layer),
    ("diff_of_two_arbitrary_snapshots", arbitrary),
    ("diff_of_an_unchanged_container_is_a_valid_empty_tar", unchanged),
    ("diff_in_block_mode_of_a_stopped_container", block),
    ("diff_in_block_mode_of_a_running_container", block_live),
    ("diff_in_block_mode_of_a_snapshot_that_was_never_mounted", block_untouched),
    ("diff_in_block_mode_on_a_view_of_nothing", block_base),
    ("diff_through_merged_metadata", merged),
    ("diff_of_a_container_in_a_user_namespace_has_its_ids", user_namespace),
    ("diff_of_the_overlayfs_snapshotters_snapshots", overlayfs),
    ("diff_of_an_applied_layer_that_is_not_committed_yet", applied),
    ("diff_of_a_view_of_nothing_is_empty", view_of_nothing),
    ("diff_of_a_side_without_mounts_is_that_of_an_empty_tree", no_mounts),
    ("diff_writes_every_type_it_is_asked_for", types),
    ("diff_of_what_is_not_ours_is_left_to_the_next_differ_untouched", not_ours),
];

const BOTH: [Release; 2] = [Release::V21, Release::V22];
/// Numbers of snapshots that are views of nothing.
const VIEW: u32 = 900;

fn shop() -> Shop {
    let shop = Shop::new();
    shop.image();
    shop.node.snapshot(VIEW);
    // Views have no marker.
    fs::remove_file(shop.directory(VIEW).join(".erofslayer")).unwrap();
    shop
}

/// Stacks of [`Shop::image`], from nothing to all three layers.
const STACKS: [&[u32]; 4] = [&[], &[1], &[2, 1], &[3, 2, 1]];

fn running() {
    let shop = shop();
    for (number, parents) in (10..).zip(STACKS) {
        shop.run(number, parents, work, |want| {
            for release in BOTH {
                let lists = shop.lists(release);
                let (left, right) =
                    (lists.view(VIEW, parents), lists.active(number, parents, Mode::Directory));
                let blob = shop.diff_both(&request(left, right, ""));
                assert_eq!(blob.media_type, TAR_GZIP);
                shop.assert_turns(parents, &blob, &want);
            }
        });
    }
    shop.daemon.stop();
}

fn stopped() {
    let shop = shop();
    let want = shop.run(10, &[3, 2, 1], work, |tree| tree);
    for release in BOTH {
        let lists = shop.lists(release);
        let right = lists.active(10, &[3, 2, 1], Mode::Directory);
        let blob = shop.diff_both(&request(lists.view(VIEW, &[3, 2, 1]), right, TAR));
        shop.assert_turns(&[3, 2, 1], &blob, &want);
    }
    // Other options of the overlay, and those for the tools that mount it, do not matter.
    let lists = shop.lists(Release::V22);
    let plain = request(lists.view(VIEW, &[1]), lists.active(10, &[1], Mode::Directory), TAR);
    let mut odd = plain.clone();
    odd.right = lists.active_directory(10, &[1], &["index=off", "xino=off"]);
    for mount in odd.left.iter_mut().chain(&mut odd.right).filter(|mount| mount.kind == "erofs") {
        mount.options.push(format!("X-containerd.dmverity={}.dmverity", mount.source));
    }
    assert_eq!(shop.diff(&odd), shop.diff(&plain));
    shop.daemon.stop();
}

fn base_layer() {
    let shop = shop();
    let want = shop.show(&[1], None, scan);
    for release in BOTH {
        let lists = shop.lists(release);
        let blob = shop.diff_both(&request(lists.view(VIEW, &[]), lists.view(VIEW, &[1]), ""));
        shop.assert_turns(&[], &blob, &want);
        // Some callers send no mounts at all for the parent of a base layer.
        let none = shop.diff_both(&request(Vec::new(), lists.view(VIEW, &[1]), ""));
        assert_eq!(none, blob);
    }
    shop.daemon.stop();
}

fn middle_layer() {
    let shop = shop();
    for stack in [&[2, 1][..], &[3, 2, 1]] {
        let want = shop.show(stack, None, scan);
        for release in BOTH {
            let lists = shop.lists(release);
            let blob = shop.diff_both(&request(lists.view(VIEW, &stack[1..]), lists.view(VIEW, stack), TAR));
            shop.assert_turns(&stack[1..], &blob, &want);
        }
    }
    shop.daemon.stop();
}

fn one_layer() {
    let shop = shop();
    let want = shop.run(10, &[1], work, |tree| tree);
    let committed = shop.show(&[1], None, scan);
    for release in BOTH {
        let lists = shop.lists(release);
        let right = lists.active(10, &[1], Mode::Directory);
        let blob = shop.diff_both(&request(lists.view(VIEW, &[1]), right.clone(), ""));
        shop.assert_turns(&[1], &blob, &want);
        // The container with its image, as one layer.
        let blob = shop.diff_both(&request(lists.view(VIEW, &[]), right, ""));
        shop.assert_turns(&[], &blob, &want);
        let blob = shop.diff_both(&request(lists.view(VIEW, &[]), lists.view(VIEW, &[1]), TAR_ZSTD));
        shop.assert_turns(&[], &blob, &committed);
    }
    shop.daemon.stop();
}

fn arbitrary() {
    let shop = shop();
    // Another image, with much in common, and a sibling of layer 2.
    shop.layer(4, |root| {
        base(root);
        fs::remove_file(root.join("etc/deleted")).unwrap();
        fs::write(root.join("usr/lib/other"), "other").unwrap();
    });
    shop.layer(5, |root| {
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/.wh.link"), "").unwrap();
        fs::write(root.join("usr/lib/five"), "five").unwrap();
    });
    for (left, right) in [
        (&[3, 2, 1][..], &[5, 4][..]),
        (&[5, 4], &[3, 2, 1]),
        (&[2, 1], &[5, 1]),
        (&[3, 2, 1], &[1]),
        (&[1], &[3, 2, 1]),
        (&[3, 2, 1], &[]),
        (&[], &[3, 2, 1]),
    ] {
        let want = shop.show(right, None, scan);
        for release in BOTH {
            let lists = shop.lists(release);
            let blob = shop.diff_both(&request(lists.view(VIEW, left), lists.view(VIEW, right), TAR));
            shop.assert_turns(left, &blob, &want);
        }
    }
    shop.daemon.stop();
}

/// Two blocks of zeros, which Go's reader and GNU tar take for an archive without entries.
fn assert_empty(shop: &Shop, blob: &Blob) {
    assert_eq!(blob.media_type, TAR);
    let bytes = shop.bytes(blob);
    assert_eq!(bytes, [0; 1024]);
    assert_eq!(tar::Archive::new(&bytes[..]).entries().unwrap().count(), 0);
}

fn unchanged() {
    let shop = shop();
    for (number, parents) in (10..).zip(STACKS) {
        shop.run(number, parents, |_| (), |_| ());
        for release in BOTH {
            let lists = shop.lists(release);
            let (left, right) = (lists.view(VIEW, parents), lists.active(number, parents, Mode::Directory));
            assert_empty(&shop, &shop.diff_both(&request(left.clone(), right.clone(), TAR)));
            // Looked at, a tree does not change either.
            let gzip = shop.diff_both(&request(left, right, ""));
            let mut plain = Vec::new();
            let bytes = shop.bytes(&gzip);
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain).unwrap();
            assert_eq!(plain, [0; 1024]);
        }
    }
    shop.daemon.stop();
}

fn block() {
    let shop = shop();
    for (number, parents) in (10..).zip(STACKS) {
        let want = shop.run_block(number, parents, work, |tree| tree);
        let lists = shop.lists(Release::V22);
        let right = lists.active(number, parents, Mode::Block);
        let blob = shop.diff_both(&request(lists.view(VIEW, parents), right, ""));
        shop.assert_turns(parents, &blob, &want);
    }
    shop.daemon.stop();
}

fn block_live() {
    let shop = shop();
    for (number, parents) in (10..).zip(STACKS) {
        shop.run_block(number, parents, work, |want| {
            let lists = shop.lists(Release::V22);
            let right = lists.active(number, parents, Mode::Block);
            let blob = shop.diff_both(&request(lists.view(VIEW, parents), right, TAR));
            shop.assert_turns(parents, &blob, &want);
        });
    }
    shop.daemon.stop();
}

fn block_untouched() {
    let shop = shop();
    let lists = shop.lists(Release::V22);
    for (number, parents) in (10..).zip(STACKS) {
        let directory = shop.node.snapshot(number);
        fs::remove_dir(directory.join("work")).unwrap();
        let right = lists.active(number, parents, Mode::Block);
        let request = request(lists.view(VIEW, parents), right, TAR);
        // Neither image nor anything else: nothing was changed.
        assert_empty(&shop, &shop.diff_both(&request));
        // An image that was made, but never mounted as the snapshot's.
        let image = directory.join("rwlayer.img");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        host::run(std::process::Command::new("mkfs.ext4").arg("-q").arg(&image)).unwrap();
        assert_empty(&shop, &shop.diff_both(&request));
    }
    shop.daemon.stop();
}

fn block_base() {
    let shop = shop();
    let lists = shop.lists(Release::V22);
    let nothing = lists.view_of_nothing_in_block_mode(VIEW);
    // The lowest layer, a one-layer image and what was made from scratch.
    let layer = shop.show(&[1], None, scan);
    let scratch = shop.run_block(10, &[], work, |tree| tree);
    for (right, want) in [(lists.view(VIEW, &[1]), layer), (lists.active(10, &[], Mode::Block), scratch)] {
        for media_type in [TAR, EROFS] {
            let blob = shop.diff_both(&request(nothing.clone(), right.clone(), media_type));
            shop.assert_turns(&[], &blob, &want);
        }
        let blob = shop.diff_both(&request(right, nothing.clone(), TAR));
        assert!(entries(&shop.bytes(&blob)).iter().all(|name| name.starts_with(".wh.")));
    }
    assert_empty(&shop, &shop.diff_both(&request(nothing.clone(), nothing.clone(), TAR)));
    // Nothing is ever applied to it.
    let blob = fs::read(shop.directory(1).join("layer.erofs")).unwrap();
    let digest = shop.node.store.add(NAMESPACE, blob.as_slice());
    let apply = shop.node.request(11, EROFS, &digest, blob.len());
    let apply = plywood::apply::Request { mounts: nothing, ..apply };
    assert_eq!(shop.node.apply(&apply).code_and_reason(), (12, "mount.no-marker"));
    shop.daemon.stop();
}

fn merged() {
    let shop = shop();
    let lists = shop.lists(Release::V22);
    // Any image will do: the layers are read instead, in the order of its devices.
    for id in [2, 3] {
        fs::copy(shop.directory(1).join("layer.erofs"), shop.directory(id).join("fsmeta.erofs")).unwrap();
    }
    let want = shop.run(10, &[3, 2, 1], work, |tree| tree);
    for merged in [2, 3] {
        let view = lists.view_merged(&[3, 2, 1], merged);
        let active = lists.active_merged(10, &[3, 2, 1], merged);
        let blob = shop.diff_both(&request(view.clone(), active, TAR));
        shop.assert_turns(&[3, 2, 1], &blob, &want);
        // Equal to a list of the same layers, each by itself.
        assert_empty(&shop, &shop.diff_both(&request(lists.view(VIEW, &[3, 2, 1]), view.clone(), TAR)));
        // A committed layer whose parent is seen the other way.
        let blob = shop.diff_both(&request(lists.view(VIEW, &[2, 1]), view, TAR));
        shop.assert_turns(&[2, 1], &blob, &shop.show(&[3, 2, 1], None, scan));
    }
    shop.daemon.stop();
}

/// Ids from 100000 of the host are those from 0 of the container.
fn user_namespace() {
    let shop = shop();
    let own = |path: &Path, id: u32| std::os::unix::fs::lchown(path, Some(id), Some(id + 1)).unwrap();
    shop.run(
        10,
        &[1],
        |root| {
            fs::remove_file(root.join("etc/deleted")).unwrap();
            for (name, id) in [("etc/root", 100_000), ("etc/user", 101_000)] {
                fs::write(root.join(name), name).unwrap();
                own(&root.join(name), id);
            }
            own(&root.join("etc"), 100_000);
        },
        |_| (),
    );
    let lists = shop.lists(Release::V22);
    let right = lists.active_directory(10, &[1], &["uidmap=0:100000:65536", "gidmap=0:100000:65536"]);
    let blob = shop.diff_both(&request(lists.view(VIEW, &[1]), right, TAR));
    let bytes = shop.bytes(&blob);
    let mut archive = tar::Archive::new(&bytes[..]);
    let owners: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            (entry.path().unwrap().display().to_string(), header.uid().unwrap(), header.gid().unwrap())
        })
        .collect();
    let want = [("etc/", 0, 1), ("etc/.wh.deleted", 0, 0), ("etc/root", 0, 1), ("etc/user", 1000, 1001)];
    assert_eq!(owners, want.map(|(name, uid, gid)| (name.to_owned(), uid, gid)));
    // A file of the host's in it has no id there.
    fs::write(shop.directory(10).join("fs/etc/root"), "of the host's root").unwrap();
    own(&shop.directory(10).join("fs/etc/root"), 5);
    let right = lists.active_directory(10, &[1], &["uidmap=0:100000:65536", "gidmap=0:100000:65536"]);
    let reply = shop.diff(&request(lists.view(VIEW, &[1]), right, TAR));
    assert_eq!(reply.code_and_reason(), (9, "diff.id-map"), "{reply:?}");
    shop.daemon.stop();
}

/// The other snapshotter's: directories, so that one differ can serve a node with both.
fn overlayfs() {
    let shop = Shop::new();
    let root = shop.node.scratch.path().join("overlayfs/snapshots");
    let at = |id: u32, name: &str| root.join(id.to_string()).join(name);
    for id in [1, 2, 3] {
        fs::create_dir_all(at(id, "fs")).unwrap();
        fs::create_dir(at(id, "work")).unwrap();
    }
    base(&at(1, "fs"));
    let mount = |kind: &str, source: String, options: &[String]| Mount {
        kind: kind.into(),
        source,
        target: String::new(),
        options: options.to_vec(),
    };
    let show = |id: u32| at(id, "fs").display().to_string();
    let bind = |id: u32| vec![mount("bind", show(id), &["ro".to_owned(), "rbind".to_owned()])];
    let active = |id: u32, lower: &[u32]| {
        let lower: Vec<_> = lower.iter().map(|id| show(*id)).collect();
        let work = format!("workdir={}", at(id, "work").display());
        let options = [
            "index=off".into(),
            work,
            format!("upperdir={}", show(id)),
            format!("lowerdir={}", lower.join(":")),
        ];
        vec![mount("overlay", "overlay".into(), &options)]
    };
    // Layer 2 through the kernel, and a container on both.
    let [mnt, upper, work_dir] = [root.join("mnt"), at(2, "fs"), at(2, "work")];
    let want = {
        let overlay = Overlay::new(mnt, &[&at(1, "fs")], Some([&upper, &work_dir])).unwrap();
        work(overlay.path());
        scan(overlay.path())
    };
    // The base, as the layer it would be.
    let blob = shop.diff_both(&request(bind(3), bind(1), TAR));
    let directory = shop.node.snapshot(11);
    fs::write(shop.node.scratch.path().join("one"), shop.bytes(&blob)).unwrap();
    images::apply(&shop.node.scratch.path().join("one"), &directory.join("layer.erofs")).unwrap();
    let mut base_tree = scan(&at(1, "fs"));
    base_tree.values_mut().for_each(|node| node.mtime.1 = 0);
    shop.assert_turns(&[], &blob, &base_tree);
    // The container's changes, on top of that.
    for right in [
        active(2, &[1]),
        vec![mount("overlay", "overlay".into(), &[format!("lowerdir={}:{}", show(2), show(1))])],
    ] {
        let blob = shop.diff_both(&request(bind(1), right, TAR_GZIP));
        let mut want = want.clone();
        // Files that the container left alone have whole seconds, as in the base.
        want.values_mut().for_each(|node| node.mtime.1 = 0);
        shop.assert_turns(&[11], &blob, &want);
    }
    assert_empty(&shop, &shop.diff_both(&request(bind(1), active(3, &[1]), TAR)));
    shop.daemon.stop();
}

fn applied() {
    let shop = shop();
    let want = shop.show(&[3, 2, 1], None, scan);
    // Layer 3 before its commit: its directory has an empty fs/ and the image beside it.
    for release in BOTH {
        let lists = shop.lists(release);
        let right = lists.active(3, &[2, 1], Mode::Directory);
        let blob = shop.diff_both(&request(lists.view(VIEW, &[2, 1]), right, TAR));
        shop.assert_turns(&[2, 1], &blob, &want);
    }
    shop.daemon.stop();
}

fn view_of_nothing() {
    let shop = shop();
    shop.node.snapshot(VIEW + 1);
    let lists = shop.lists(Release::V22);
    let blob = shop.diff_both(&request(lists.view(VIEW, &[]), lists.view(VIEW + 1, &[]), TAR));
    assert_empty(&shop, &blob);
    shop.daemon.stop();
}

/// As BuildKit asks: for the layers of a stage without a parent, of `COPY --link`, and for a diff to nothing.
fn no_mounts() {
    let shop = shop();
    let nothing: Vec<Mount> = Vec::new();
    let overlayfs = |number: u32| {
        let directory = shop.node.scratch.path().join(format!("overlayfs/snapshots/{number}/fs"));
        fs::create_dir_all(&directory).unwrap();
        base(&directory);
        let options = vec!["ro".to_owned(), "rbind".to_owned()];
        vec![Mount {
            kind: "bind".into(),
            source: directory.display().to_string(),
            target: String::new(),
            options,
        }]
    };
    let tree = shop.run(10, &[3, 2, 1], work, |tree| tree);
    let block = shop.run_block(11, &[3, 2, 1], work, |tree| tree);
    let committed = shop.show(&[3, 2, 1], None, scan);
    for release in BOTH {
        let lists = shop.lists(release);
        for (newer, want) in [
            (lists.view(VIEW, &[3, 2, 1]), &committed),
            (lists.active(10, &[3, 2, 1], Mode::Directory), &tree),
            (lists.active(11, &[3, 2, 1], Mode::Block), &block),
        ] {
            // Block mode and its templates are of the newer releases.
            if release == Release::V21 && newer[0].kind.starts_with("mkfs/") {
                continue;
            }
            for media_type in [TAR, EROFS] {
                let blob = shop.diff_both(&request(nothing.clone(), newer.clone(), media_type));
                shop.assert_turns(&[], &blob, want);
            }
            let blob = shop.diff_both(&request(newer.clone(), nothing.clone(), TAR));
            assert_eq!(entries(&shop.bytes(&blob)), [".wh.etc", ".wh.usr", ".wh.var"]);
        }
    }
    let newer = overlayfs(1);
    let want = scan(Path::new(&newer[0].source));
    let blob = shop.diff_both(&request(nothing.clone(), newer.clone(), TAR));
    shop.assert_turns(&[], &blob, &want);
    let blob = shop.diff_both(&request(newer, nothing.clone(), TAR));
    assert_eq!(entries(&shop.bytes(&blob)), [".wh.etc", ".wh.usr", ".wh.var"]);
    // Ids from 0 of the host are those from 100000 of the container, also without parents.
    let lists = shop.lists(Release::V22);
    let maps = ["uidmap=100000:0:65536", "gidmap=100000:0:65536"];
    let mapped = lists.active_directory(10, &[3, 2, 1], &maps);
    let blob = shop.diff_both(&request(nothing.clone(), mapped, TAR));
    let bytes = shop.bytes(&blob);
    let mut archive = tar::Archive::new(&bytes[..]);
    let owners: std::collections::BTreeMap<_, _> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path().unwrap().into_owned(), entry.header().uid().unwrap()))
        .collect();
    let owner = |name: &str| owners[Path::new(name)];
    assert_eq!((owner("etc/added"), owner("usr/bin/new")), (100_000, 0));

    assert_empty(&shop, &shop.diff_both(&request(nothing.clone(), nothing.clone(), TAR)));
    for media_type in [EROFS, EROFS_ZSTD, TAR_ZSTD] {
        let blob = shop.diff_both(&request(nothing.clone(), nothing.clone(), media_type));
        shop.assert_turns(&[1], &blob, &shop.show(&[1], None, scan));
    }
    shop.daemon.stop();
}

/// The names in an archive.
fn entries(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let name = |entry: std::io::Result<tar::Entry<'_, _>>| {
        String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap()
    };
    archive.entries().unwrap().map(name).collect()
}

fn types() {
    let shop = shop();
    let lists = shop.lists(Release::V22);
    shop.run(10, &[3, 2, 1], work, |want| {
        for media_type in [TAR, TAR_GZIP, TAR_ZSTD, EROFS, EROFS_ZSTD, OCI_EROFS] {
            let right = lists.active(10, &[3, 2, 1], Mode::Directory);
            let blob = shop.diff_both(&request(lists.view(VIEW, &[3, 2, 1]), right, media_type));
            assert_eq!(blob.media_type, media_type);
            shop.assert_turns(&[3, 2, 1], &blob, &want);
        }
    });
    let log = shop.daemon.log();
    let line = log.lines().find(|line| line.contains("method=\"Diff\"") && line.contains(TAR_ZSTD)).unwrap();
    for field in [
        "wire=\"grpc\"",
        "namespace=\"default\"",
        "snapshot=\"10\"",
        "parent=\"3\"",
        "code=\"ok\"",
        "coding=\"zstd\"",
        "digest=\"sha256:",
        "diff_id=\"sha256:",
        "bytes_in=",
        "bytes_out=",
        "nodes=",
        "sockets=1",
        "duration_ms=",
    ] {
        assert!(line.contains(field), "{field} not in {line}");
    }
    let metrics = shop.node.metrics();
    for wire in ["grpc", "ttrpc"] {
        let count = format!(
            "plywood_requests_total{{method=\"Diff\",wire=\"{wire}\",layer=\"erofs\",code=\"ok\",reason=\"\"}} 3"
        );
        assert!(metrics.contains(&count), "{metrics}");
    }
    shop.daemon.stop();
}

fn not_ours() {
    let shop = shop();
    shop.run(10, &[1], work, |_| ());
    shop.node.store.take_seen();
    let lists = shop.lists(Release::V22);
    let (left, right) = (lists.view(VIEW, &[1]), lists.active(10, &[1], Mode::Directory));
    let other = vec![Mount {
        kind: "bind".into(),
        source: "/var/lib/containerd/other/snapshots/1/fs".into(),
        target: String::new(),
        options: vec!["rw".into()],
    }];
    for (request, reason) in [
        (
            request(left.clone(), right.clone(), "application/vnd.docker.image.rootfs.diff.tar.gzip"),
            "diff.media-type",
        ),
        (request(left.clone(), right.clone(), "application/vnd.erofs.layer.v1+gzip"), "diff.media-type"),
        // The type is looked at first.
        (request(other.clone(), other.clone(), "x/y"), "diff.media-type"),
        (request(left, other.clone(), ""), "mount.outside-root"),
        (request(other.clone(), right.clone(), ""), "mount.outside-root"),
        (request(other.clone(), Vec::new(), ""), "mount.outside-root"),
        (request(Vec::new(), other, ""), "mount.outside-root"),
    ] {
        let reply = shop.diff(&request);
        assert_eq!(reply.code_and_reason(), (12, reason), "{reply:?}");
        assert_eq!(shop.node.runtime.block_on(shop.node.ttrpc().diff(&request)), reply);
    }
    assert!(shop.node.store.take_seen().is_empty(), "the store was not asked for anything");
    shop.daemon.stop();
}
