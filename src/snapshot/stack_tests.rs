use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use proptest::{prelude::*, test_runner::TestRunner};

use super::{super::lists_tests::mounts, *};
use crate::error::{Classify, Kind};

/// Roots of an EROFS and an overlayfs snapshotter, `R` and `O` in lists, and shared layers, `S`.
///
/// Below `R` the snapshots 1 to 3 are committed and have images, 4 and 5 are active, 6 and 7 views as
/// newer and older snapshotters make them, 8 was committed by a snapshotter without an image.
struct Fixture {
    scratch: tempfile::TempDir,
    roots: Roots,
}

fn fixture() -> Fixture {
    // The random part of the name must not end like a short name of these lists.
    let scratch = tempfile::Builder::new().suffix(".stack").tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let snapshot = |root: &str, id: &str, entries: &[&str]| {
        let dir = at(root).join("snapshots").join(id);
        fs::create_dir_all(dir.join("fs")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        for name in entries {
            match *name {
                "work" => fs::create_dir(dir.join(name)).unwrap(),
                _ => fs::write(dir.join(name), id).unwrap(),
            }
        }
    };
    for id in ["1", "2", "3"] {
        snapshot("erofs", id, &[".erofslayer", "work", "layer.erofs"]);
    }
    snapshot("erofs", "2", &["fsmeta.erofs"]);
    snapshot("erofs", "4", &[".erofslayer", "work", "fs/new"]);
    snapshot("erofs", "5", &[".erofslayer", "work"]);
    snapshot("erofs", "6", &[]);
    snapshot("erofs", "7", &[".erofslayer", "work"]);
    snapshot("erofs", "8", &[".erofslayer", "work", "fs/old"]);
    for id in ["1", "2", "3"] {
        snapshot("overlayfs", id, &["work"]);
    }
    fs::create_dir_all(at("shared/sha256/ab")).unwrap();
    fs::write(at("shared/sha256/ab/abcd.erofs"), "shared").unwrap();
    let roots = Roots::open(&[at("erofs")]).unwrap();
    let roots = roots.also_read(&[at("overlayfs"), at("absent")], &[at("shared")]).unwrap();
    Fixture { scratch, roots }
}

impl Fixture {
    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn snapshot(&self, id: &str) -> PathBuf {
        self.at("erofs/snapshots").join(id)
    }

    fn mounts(&self, list: &str) -> Vec<Mount> {
        let (erofs, overlayfs, shared) = (self.at("erofs"), self.at("overlayfs"), self.at("shared"));
        mounts(list, &[("R", &erofs), ("O", &overlayfs), ("S", &shared)])
    }

    fn stack(&self, list: &str) -> Result<Stack, MountError> {
        self.roots.stack(&self.mounts(list))
    }

    /// The layers of a list by their paths below the scratch directory, as a line of words.
    fn layers(&self, list: &str) -> String {
        let stack = self.stack(list).unwrap_or_else(|error| panic!("{list}: {error}"));
        let words: Vec<_> = stack.layers.iter().map(|layer| self.word(layer)).collect();
        words.join(" ")
    }

    fn word(&self, layer: &StackLayer) -> String {
        let path = layer.path.strip_prefix(self.scratch.path()).unwrap();
        let metadata = fs::metadata(&layer.path).unwrap();
        assert_eq!(layer.key, (metadata.dev(), metadata.ino()), "{path:?}");
        let (opened, kind) = match &layer.source {
            LayerSource::Directory { dir, user_xattr } => {
                let Status { device, inode, .. } = dir.status().unwrap();
                ((device, inode), if *user_xattr { "user:" } else { "" })
            }
            LayerSource::Erofs { image, .. } => {
                let metadata = image.metadata().unwrap();
                ((metadata.dev(), metadata.ino()), "")
            }
            LayerSource::Ext4 { image, .. } => {
                let metadata = image.metadata().unwrap();
                ((metadata.dev(), metadata.ino()), "ext4:")
            }
        };
        assert_eq!(opened, layer.key, "{path:?}");
        let mapped = if layer.ids.is_identity() { "" } else { "mapped:" };
        let short = path.to_str().unwrap().replace("/snapshots/", "/").replace("overlayfs/", "O/");
        format!("{mapped}{kind}{}", short.replace("erofs/", "").replace("layer.", ""))
    }
}

#[test]
fn every_form_the_snapshotters_emit_becomes_its_layers() {
    let fixture = fixture();
    for (case, list, layers) in [
        ("active, no parent", "bind R/snapshots/4/fs [rw rbind]", "4/fs"),
        ("active, no parent, applied but not committed", "bind R/snapshots/1/fs [rw rbind]", "1/erofs"),
        (
            "2.1: active, one parent",
            "overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir=R/snapshots/1/fs]",
            "4/fs 1/erofs",
        ),
        (
            "2.1: active, n parents, one of them without an image, options of the operator's",
            "overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs \
             lowerdir=R/snapshots/3/fs:R/snapshots/8/fs:R/snapshots/1/fs volatile index=off redirect_dir=on metacopy=on]",
            "4/fs 3/erofs 8/fs 1/erofs",
        ),
        (
            "2.1: attributes in user.overlay",
            "overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir=R/snapshots/1/fs userxattr]",
            "user:4/fs 1/erofs",
        ),
        (
            "2.2: active, one parent",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_mount_0_}}]",
            "4/fs 1/erofs",
        ),
        (
            "2.2: active, n parents",
            "erofs R/snapshots/3/layer.erofs [ro loop]
             erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/5/work upperdir=R/snapshots/5/fs lowerdir={{_overlay_0_2_}}]",
            "5/fs 3/erofs 2/erofs 1/erofs",
        ),
        (
            "the same, the other way round",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/3/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/5/work upperdir=R/snapshots/5/fs lowerdir={{_overlay_2_0_}}]",
            "5/fs 3/erofs 2/erofs 1/erofs",
        ),
        (
            "2.2: active, applied but not committed",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/2/work upperdir=R/snapshots/2/fs lowerdir={{_mount_0_}}]",
            "2/erofs 1/erofs",
        ),
        ("view of one", "erofs R/snapshots/1/layer.erofs [ro loop]", "1/erofs"),
        (
            "2.1: view of n",
            "overlay overlay [lowerdir=R/snapshots/3/fs:R/snapshots/2/fs:R/snapshots/1/fs]",
            "3/erofs 2/erofs 1/erofs",
        ),
        (
            "2.2: view of n",
            "erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [lowerdir={{_overlay_0_1_}}]",
            "2/erofs 1/erofs",
        ),
        ("2.1: view of nothing", "bind R/snapshots/7/fs [ro rbind]", ""),
        ("2.2: view of nothing, without a marker", "bind R/snapshots/6/fs [ro rbind]", ""),
        ("a view that holds a layer as a directory", "bind R/snapshots/8/fs [ro rbind]", "8/fs"),
        (
            "2.3: merged metadata under an active snapshot",
            "erofs R/snapshots/2/fsmeta.erofs [ro loop device=R/snapshots/1/layer.erofs device=R/snapshots/2/layer.erofs]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_mount_0_}}]",
            "4/fs 2/erofs 1/erofs",
        ),
        (
            "2.3: a layer above merged metadata",
            "erofs R/snapshots/3/layer.erofs [ro loop]
             erofs R/snapshots/2/fsmeta.erofs [ro loop device=R/snapshots/1/layer.erofs device=R/snapshots/2/layer.erofs]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_overlay_0_1_}}]",
            "4/fs 3/erofs 2/erofs 1/erofs",
        ),
        (
            "2.3: view of merged metadata alone",
            "erofs R/snapshots/2/fsmeta.erofs [ro loop device=R/snapshots/1/layer.erofs device=R/snapshots/2/layer.erofs]
             format/bind {{_mount_0_}} [ro rbind]",
            "2/erofs 1/erofs",
        ),
        (
            "2.3: dm-verity",
            "erofs R/snapshots/1/layer.erofs [ro loop X-containerd.dmverity=R/snapshots/1/layer.erofs.dmverity]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_mount_0_}}]",
            "4/fs 1/erofs",
        ),
        (
            "2.3: user namespaces",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs \
             uidmap=0:1000:10,10:5000:10 gidmap=0:1000:65536 lowerdir={{_mount_0_}}]",
            "mapped:4/fs 1/erofs",
        ),
        (
            "2.3: half a map is none",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs \
             uidmap=0:1000:10 lowerdir={{_mount_0_}}]",
            "4/fs 1/erofs",
        ),
        ("2.4: active, a shared layer", "erofs R/snapshots/2/layer.erofs [ro loop]", "2/erofs"),
        ("overlayfs: active, no parent", "bind O/snapshots/1/fs [rw rbind]", "O/1/fs"),
        ("overlayfs: view of nothing or of one", "bind O/snapshots/1/fs [ro rbind]", "O/1/fs"),
        (
            "overlayfs: active, parents",
            "overlay overlay [workdir=O/snapshots/3/work upperdir=O/snapshots/3/fs lowerdir=O/snapshots/2/fs:O/snapshots/1/fs index=off]",
            "O/3/fs O/2/fs O/1/fs",
        ),
        (
            "overlayfs: view of n",
            "overlay overlay [lowerdir=O/snapshots/2/fs:O/snapshots/1/fs index=off userxattr]",
            "user:O/2/fs user:O/1/fs",
        ),
        ("overlayfs: unpacked side by side", "overlay overlay [rw upperdir=O/snapshots/2/fs]", "O/2/fs"),
        (
            "overlayfs: user namespaces",
            "overlay overlay [uidmap=0:1000:10 gidmap=0:1000:10 workdir=O/snapshots/3/work upperdir=O/snapshots/3/fs lowerdir=O/snapshots/2/fs]",
            "mapped:O/3/fs O/2/fs",
        ),
        ("overlayfs: a bind mount's map is the mount's", "bind O/snapshots/1/fs [uidmap=0:1:9 gidmap=0:1:9 rw rbind]", "O/1/fs"),
    ] {
        assert_eq!(fixture.layers(list), layers, "{case}");
    }
}

#[test]
fn a_map_is_the_upper_directorys() {
    let fixture = fixture();
    let list = "erofs R/snapshots/1/layer.erofs [ro loop]
                format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs \
                uidmap=0:1000:10 gidmap=0:2000:10 lowerdir={{_mount_0_}}]";
    let stack = fixture.stack(list).unwrap();
    let ids: Vec<_> = stack.layers.iter().map(|layer| &layer.ids).collect();
    assert_eq!((ids[0].users.in_container(1003), ids[0].groups.in_container(2009)), (Some(3), Some(9)));
    assert_eq!((ids[0].users.in_container(0), ids[0].groups.in_container(2010)), (None, None));
    assert!(ids[1].is_identity());
}

#[test]
fn devices_of_a_layer_stay_in_their_order() {
    let fixture = fixture();
    let list = "erofs R/snapshots/3/layer.erofs [ro device=R/snapshots/2/layer.erofs device=R/snapshots/1/layer.erofs]";
    let stack = fixture.stack(list).unwrap();
    let [StackLayer { source: LayerSource::Erofs { image, devices }, .. }] = stack.layers.as_slice() else {
        panic!("{stack:?}");
    };
    let content = |file: &File| io::read_to_string(file).unwrap();
    assert_eq!(content(image), "3");
    assert_eq!(devices.iter().map(content).collect::<Vec<_>>(), ["2", "1"]);
}

#[test]
fn lists_that_are_not_ours_are_left_to_the_next_differ() {
    let fixture = fixture();
    let erofs = "erofs R/snapshots/1/layer.erofs [ro loop]\n";
    let upper = "format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs";
    for (list, reason) in [
        (String::new(), "mount.empty"),
        ("bind /var/lib/other/snapshots/1/fs [rw rbind]".into(), "mount.outside-root"),
        ("overlay overlay [upperdir=/o/1/fs upperdir=R/snapshots/1/fs]".into(), "mount.outside-root"),
        ("overlay overlay [upperdir=/o/1/fs uidmap=x gidmap=y strange=1]".into(), "mount.outside-root"),
        ("overlay overlay [lowerdir=/o/1/fs:R/snapshots/1/fs]".into(), "mount.outside-root"),
        ("erofs /o/1/layer.erofs [ro device=/etc/shadow]".into(), "mount.outside-root"),
        ("ext4 /dev/vda [rw]".into(), "mount.type"),
        ("zfs pool/layer []".into(), "mount.type"),
        ("overlay overlay [index=off]".into(), "mount.form"),
        ("overlay overlay [lowerdir=R/snapshots/1/fs::R/snapshots/2/fs]".into(), "mount.form"),
        ("overlay overlay [lowerdir=]".into(), "mount.form"),
        (format!("{erofs}{erofs}"), "mount.form"),
        (format!("{erofs}bind R/snapshots/4/fs [rw rbind]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir=R/snapshots/1/fs]"), "mount.form"),
        // Templates that name nothing, too much, something later, something twice, or something else.
        (format!("{erofs}{upper} lowerdir={{{{_mount_1_}}}}]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_mount_9_}}}}]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_overlay_0_18446744073709551615_}}}}]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_overlay_18446744073709551615_0_}}}}]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_mount_0_}}}}:{{{{_mount_0_}}}}]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_mount_0_}}}}/upper]"), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_source_0_}}}}]"), "mount.form"),
        (format!("bind R/snapshots/4/fs [rw]\n{upper} lowerdir={{{{_mount_0_}}}}]"), "mount.form"),
        // Nobody would evaluate these.
        (format!("{erofs}overlay overlay [lowerdir={{{{_mount_0_}}}}]"), "mount.form"),
        (format!("{erofs}bind {{{{_mount_0_}}}} [ro]"), "mount.form"),
        (format!("{erofs}format/bind {{{{_target_0_}}}} [ro]"), "mount.form"),
        ("format/bind {{_mount_0_}} [ro]".into(), "mount.form"),
        (format!("{erofs}{upper} lowerdir={{{{_mount_0_}}}} strange]"), "mount.option-unknown"),
        (format!("{erofs}{upper} lowerdir={{{{_mount_0_}}}} datadir+=/x]"), "mount.option-unknown"),
        ("erofs R/snapshots/1/layer.erofs [ro fsoffset=4096]".into(), "mount.option-unknown"),
        ("bind R/snapshots/4/fs [rw subdir=x]".into(), "mount.option-unknown"),
        // An active snapshot or a layer that another snapshotter made.
        ("bind R/snapshots/6/fs [rw rbind]".into(), "mount.no-marker"),
        ("overlay overlay [lowerdir=R/snapshots/1/fs:R/snapshots/6/fs]".into(), "mount.no-marker"),
    ] {
        let error = fixture.stack(&list).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, reason), "{list}: {error}");
    }
}

#[test]
fn what_is_below_a_root_but_odd_is_refused_for_good() {
    let fixture = fixture();
    let upper = "overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs";
    for (list, reason) in [
        ("bind R/snapshots/../snapshots/4/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/4/work [rw]".to_owned(), "mount.path"),
        ("bind O/snapshots/new-1/fs [rw]".to_owned(), "mount.path"),
        ("erofs R/snapshots/2/fsmeta.erofs [ro]".to_owned(), "mount.path"),
        ("erofs O/snapshots/1/layer.erofs [ro]".to_owned(), "mount.path"),
        (format!("{upper} lowerdir=R/snapshots/1/fs:R/snapshots/1]"), "mount.path"),
        (format!("{upper} lowerdir=R/snapshots/1/fs:/etc]"), "mount.foreign"),
        (format!("{upper} lowerdir=O/snapshots/1/fs]"), "mount.foreign"),
        (format!("{upper} lowerdir=R/snapshots/1/fs\\:b]"), "mount.path"),
        (format!("{upper} upperdir=R/snapshots/1/fs]"), "mount.option"),
        (format!("{upper} lowerdir=R/snapshots/1/fs lowerdir=/etc]"), "mount.option"),
        ("overlay overlay [workdir=R/snapshots/5/work upperdir=R/snapshots/4/fs]".to_owned(), "mount.option"),
        ("erofs R/snapshots/1/layer.erofs [ro device=/etc/shadow]".to_owned(), "mount.option"),
        ("erofs R/snapshots/1/layer.erofs [ro device=O/snapshots/1/layer.erofs]".to_owned(), "mount.option"),
        // The layers of merged metadata end in the one it lies beside.
        (
            "erofs R/snapshots/2/fsmeta.erofs [ro device=R/snapshots/2/layer.erofs device=R/snapshots/1/layer.erofs]"
                .to_owned(),
            "mount.option",
        ),
        ("erofs R/snapshots/2/fsmeta.erofs [ro device=/etc/layer.erofs]".to_owned(), "mount.foreign"),
        (format!("{upper} uidmap=0:0:x gidmap=0:0:1]"), "mount.option"),
        (format!("{upper} uidmap=0:0:1 uidmap=0:0:2]"), "mount.option"),
        (format!("{upper} uidmap=0:0:1 gidmap=0:0:9,5:20:1]"), "mount.option"),
    ] {
        let error = fixture.stack(&list).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Denied, reason), "{list}: {error}");
    }
}

#[test]
fn layers_that_are_gone_are_a_conflict() {
    let fixture = fixture();
    fs::remove_dir(fixture.snapshot("5").join("fs")).unwrap();
    for list in [
        "bind R/snapshots/77/fs [rw rbind]",
        "bind R/snapshots/5/fs [rw rbind]",
        "bind O/snapshots/77/fs [ro rbind]",
        "erofs R/snapshots/4/layer.erofs [ro loop]",
        "overlay overlay [lowerdir=R/snapshots/1/fs:R/snapshots/77/fs]",
        "erofs R/snapshots/1/layer.erofs [ro device=R/snapshots/4/layer.erofs]",
        "erofs R/snapshots/77/fsmeta.erofs [ro device=R/snapshots/1/layer.erofs device=R/snapshots/77/layer.erofs]",
    ] {
        let error = fixture.stack(list).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "mount.missing"), "{list}: {error}");
    }
}

#[test]
fn links_owners_and_types_are_looked_at_after_opening() {
    let fixture = fixture();
    let layer = fixture.snapshot("1").join("layer.erofs");
    let reason = |list: &str| {
        let error = fixture.stack(list).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        error.reason()
    };
    let view = "erofs R/snapshots/1/layer.erofs [ro loop]";
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(reason(view), "mount.owner");
    fs::remove_file(&layer).unwrap();
    fs::create_dir(&layer).unwrap();
    assert_eq!(reason(view), "mount.file");
    fs::remove_dir(&layer).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &layer, FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert_eq!(reason(view), "mount.file");

    fs::remove_dir(fixture.snapshot("5").join("fs")).unwrap();
    symlink("../4/fs", fixture.snapshot("5").join("fs")).unwrap();
    assert_eq!(reason("bind R/snapshots/5/fs [rw]"), "mount.link");
    fs::rename(fixture.snapshot("8"), fixture.at("elsewhere")).unwrap();
    symlink(fixture.at("elsewhere"), fixture.snapshot("8")).unwrap();
    assert_eq!(reason("overlay overlay [lowerdir=R/snapshots/2/fs:R/snapshots/8/fs]"), "mount.link");

    fs::set_permissions(fixture.snapshot("3"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(reason("overlay overlay [lowerdir=R/snapshots/2/fs:R/snapshots/3/fs]"), "mount.owner");
}

#[test]
fn a_link_to_a_shared_layer_is_followed_and_no_other() {
    let fixture = fixture();
    let layer = fixture.snapshot("1").join("layer.erofs");
    let point = |target: &Path| {
        fs::remove_file(&layer).unwrap();
        symlink(target, &layer).unwrap();
        fixture.stack("erofs R/snapshots/1/layer.erofs [ro loop]")
    };
    let shared = fixture.at("shared/sha256/ab/abcd.erofs");
    let stack = point(&shared).unwrap();
    let metadata = fs::metadata(&shared).unwrap();
    assert_eq!(stack.layers[0].key, (metadata.dev(), metadata.ino()));
    // The same as a parent in the older form, and as the upper of an applied snapshot.
    assert_eq!(fixture.layers("overlay overlay [lowerdir=R/snapshots/1/fs]"), "1/erofs");
    assert_eq!(fixture.layers("bind R/snapshots/1/fs [rw rbind]"), "1/erofs");

    symlink("abcd.erofs", fixture.at("shared/sha256/ab/link.erofs")).unwrap();
    fs::create_dir(fixture.at("sharedness")).unwrap();
    fs::write(fixture.at("sharedness/x.erofs"), "").unwrap();
    for (target, reason) in [
        (fixture.snapshot("2").join("layer.erofs"), "mount.shared-layer"),
        ("../2/layer.erofs".into(), "mount.shared-layer"),
        ("/etc/passwd".into(), "mount.shared-layer"),
        (fixture.at("shared/../erofs/snapshots/2/layer.erofs"), "mount.shared-layer"),
        (fixture.at("shared/sha256//ab/abcd.erofs"), "mount.shared-layer"),
        (fixture.at("sharedness/x.erofs"), "mount.shared-layer"),
        (fixture.at("shared/sha256/ab/link.erofs"), "mount.link"),
        (fixture.at("shared/sha256/ab"), "mount.file"),
    ] {
        let error = point(&target).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Denied, reason), "{target:?}: {error}");
    }
    let error = point(&fixture.at("shared/sha256/ab/gone.erofs")).unwrap_err();
    assert_eq!(error.reason(), "mount.missing");
}

#[test]
fn roots_to_read_are_checked_like_the_others() {
    let fixture = fixture();
    let open = |overlayfs: &[PathBuf], shared: &[PathBuf]| {
        Roots::open(&[fixture.at("erofs")]).unwrap().also_read(overlayfs, shared)
    };
    assert!(open(&[fixture.at("absent")], &[]).is_ok(), "nobody has used that snapshotter yet");
    assert!(open(&[], &[fixture.at("absent")]).is_err());
    assert!(open(&["relative".into()], &[]).is_err());
    fs::set_permissions(fixture.at("overlayfs"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(open(&[fixture.at("overlayfs")], &[]).is_err());
}

#[test]
fn an_overlayfs_snapshot_is_never_applied_to() {
    let fixture = fixture();
    let error = fixture.roots.resolve(&fixture.mounts("bind O/snapshots/1/fs [rw rbind]")).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "mount.outside-root"));
}

#[test]
fn huge_lists_are_refused_unread() {
    let fixture = fixture();
    let lower = |count| {
        let paths = vec![format!("{}/snapshots/1/fs", fixture.at("erofs").display()); count].join(":");
        let options = vec![format!("lowerdir={paths}")];
        fixture.roots.stack(&[Mount { kind: "overlay".into(), options, ..Mount::default() }])
    };
    assert_eq!(lower(512).unwrap().layers.len(), 512);
    for count in [513, 4000, 40_000] {
        let error = lower(count).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.mounts"));
        assert!(error.to_string().len() < 200, "{error}");
    }
}

/// Whatever the list says, nothing panics, and every layer lies below a root.
#[test]
fn no_list_leads_out_of_the_roots() {
    let fixture = fixture();
    let words =
        |words: &[&str]| prop::sample::select(words.iter().map(|w| w.to_string()).collect::<Vec<_>>());
    let part = words(&[
        "R/snapshots/",
        "O/snapshots/",
        "S/",
        "1",
        "2",
        "4",
        "6",
        "/fs",
        "/work",
        "/layer.erofs",
        "/fsmeta.erofs",
        "/rwlayer.img",
        "..",
        ":",
        "{{ mount 0 }}",
        "{{ mount 1 }}",
        "{{ overlay 0 1 }}",
        "{{ overlay 1 0 }}",
        "/upper",
        "\\",
        "\0",
        "",
    ]);
    // Half of all paths are whole, so that some lists get far.
    let whole = words(&[
        "R/snapshots/1/fs",
        "R/snapshots/4/fs",
        "R/snapshots/6/fs",
        "R/snapshots/1/layer.erofs",
        "R/snapshots/2/layer.erofs",
        "R/snapshots/2/fsmeta.erofs",
        "O/snapshots/1/fs",
        "R/snapshots/4/rwlayer.img",
        "R/snapshots/1/fs:R/snapshots/2/fs",
        "{{ mount 0 }}",
        "{{ overlay 0 1 }}",
        "{{ mount 0 }}/upper",
    ]);
    let path =
        prop_oneof![4 => whole, 1 => prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())];
    let key =
        words(&["upperdir=", "lowerdir=", "workdir=", "device=", "uidmap=", "ro", "X-containerd.x=", ""]);
    let kind = words(&[
        "bind",
        "overlay",
        "erofs",
        "mkfs/ext4",
        "format/bind",
        "format/mkdir/overlay",
        "format/mkdir/bind",
        "tmpfs",
    ]);
    let option = (key, path.clone()).prop_map(|(key, path)| key + &path);
    let mount = (kind, path, prop::collection::vec(option, 0..3));
    let place = |text: String| {
        let [erofs, overlayfs, shared] = ["erofs/", "overlayfs/", "shared/"]
            .map(|name| format!("{}/{name}", fixture.scratch.path().display()));
        text.replace("R/", &erofs).replace("O/", &overlayfs).replace("S/", &shared)
    };
    let mut runner = TestRunner::new(ProptestConfig::with_cases(3000));
    let opened = std::cell::Cell::new(0);
    let outcome = runner.run(&prop::collection::vec(mount, 1..4), |list| {
        let list: Vec<_> = list
            .into_iter()
            .map(|(kind, source, options)| Mount {
                kind,
                source: place(source),
                target: String::new(),
                options: options.into_iter().map(place).collect(),
            })
            .collect();
        if let Ok(stack) = fixture.roots.stack(&list) {
            opened.set(opened.get() + 1);
            for layer in stack.layers {
                let word = fixture.word(&layer);
                prop_assert!(
                    ["1/fs", "4/fs", "1/erofs", "2/erofs", "O/1/fs", "O/2/fs"]
                        .iter()
                        .any(|known| word.ends_with(known)),
                    "{}",
                    word
                );
            }
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(opened.get() > 20, "only {} lists were taken", opened.get());
}
