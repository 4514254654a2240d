use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use super::{super::lists_tests::mounts, *};

#[path = "stack_refusals_tests.rs"]
mod refusals;

/// Images among the shared layers, as lists name them.
const CACHED: &str = "S/sha256/ab/ab000000000000000000000000000000000000000000000000000000000000cd.erofs";
const OTHER_CACHED: &str =
    "S/sha256/ab/ab111111111111111111111111111111111111111111111111111111111111cd.erofs";

/// Roots of an EROFS and an overlayfs snapshotter, `R` and `O` in lists, and shared layers, `S`.
///
/// Below `R` the snapshots 1 to 3 are committed and have images, 4 and 5 are active, 6 and 7 views as
/// newer and older snapshotters make them, 8 was committed by a snapshotter without an image, 9 to 11 are in
/// block mode: used, not used yet, applied; 12 is a view of nothing there.
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
    snapshot("erofs", "9", &[".erofslayer", "rwlayer.img"]);
    snapshot("erofs", "10", &[".erofslayer"]);
    snapshot("erofs", "12", &[]);
    snapshot("erofs", "11", &[".erofslayer", "rwlayer.img", "layer.erofs"]);
    for id in ["1", "2", "3"] {
        snapshot("overlayfs", id, &["work"]);
    }
    fs::create_dir_all(at("shared/sha256/ab")).unwrap();
    fs::write(at("shared/sha256/ab/abcd.erofs"), "shared").unwrap();
    for name in [CACHED, OTHER_CACHED] {
        fs::write(at(&name.replacen('S', "shared", 1)), "mounted in place").unwrap();
    }
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
        let list = &list.replace("CACHED", CACHED).replace("OTHER", OTHER_CACHED);
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
            LayerSource::Device { dir, .. } => (dir.key(), "device:"),
        };
        assert_eq!(opened, layer.key, "{path:?}");
        let mapped = if layer.ids.is_identity() { "" } else { "mapped:" };
        let cached = |text: &str, name: &str| text == name.replacen('S', "shared", 1);
        if cached(path.to_str().unwrap(), CACHED) {
            return "cached".to_owned();
        }
        if cached(path.to_str().unwrap(), OTHER_CACHED) {
            return "other".to_owned();
        }
        let short = path.to_str().unwrap().replace("/snapshots/", "/").replace("overlayfs/", "O/");
        format!("{mapped}{kind}{}", short.replace("erofs/", "").replace("layer.erofs", "erofs"))
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
        ("BuildKit: no mounts for nothing", "", ""),
        ("a view that holds a layer as a directory", "bind R/snapshots/8/fs [ro rbind]", "8/fs"),
        ("the same with an image beside the directory", "bind R/snapshots/1/fs [ro rbind]", "1/erofs"),
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
        (
            "block mode, no parent",
            "mkfs/ext4 R/snapshots/9/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             format/mkdir/bind {{_mount_0_}}/upper [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 rw rbind]",
            "ext4:9/rwlayer.img",
        ),
        (
            "block mode, not used yet, no image",
            "mkfs/ext4 R/snapshots/10/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             format/mkdir/bind {{_mount_0_}}/upper [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 rw rbind]",
            "",
        ),
        (
            "block mode, view of nothing, neither image nor marker",
            "mkfs/ext4 R/snapshots/12/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 ro loop]
             format/mkdir/bind {{_mount_0_}}/upper [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 ro rbind]",
            "",
        ),
        (
            "block mode, a view that has an image all the same",
            "mkfs/ext4 R/snapshots/9/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 ro loop]
             format/mkdir/bind {{_mount_0_}}/upper [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 ro rbind]",
            "ext4:9/rwlayer.img",
        ),
        (
            "block mode, one parent, user namespaces",
            "mkfs/ext4 R/snapshots/9/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 \
             X-containerd.mkdir.path={{_mount_0_}}/work:0755 workdir={{_mount_0_}}/work upperdir={{_mount_0_}}/upper \
             uidmap=0:1000:10 gidmap=0:1000:10 lowerdir={{_mount_1_}}]",
            "mapped:ext4:9/rwlayer.img 1/erofs",
        ),
        (
            "block mode, n parents, no image",
            "mkfs/ext4 R/snapshots/10/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 \
             X-containerd.mkdir.path={{_mount_0_}}/work:0755 workdir={{_mount_0_}}/work upperdir={{_mount_0_}}/upper \
             lowerdir={{_overlay_1_2_}}]",
            "2/erofs 1/erofs",
        ),
        (
            "block mode, merged metadata, applied but not committed",
            "mkfs/ext4 R/snapshots/11/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             erofs R/snapshots/2/fsmeta.erofs [ro loop device=R/snapshots/1/layer.erofs device=R/snapshots/2/layer.erofs]
             format/mkdir/overlay overlay [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 \
             X-containerd.mkdir.path={{_mount_0_}}/work:0755 workdir={{_mount_0_}}/work upperdir={{_mount_0_}}/upper \
             lowerdir={{_mount_1_}}]",
            "11/erofs 2/erofs 1/erofs",
        ),
        (
            "2.1: several options in one string",
            "overlay overlay [workdir=R/snapshots/4/work,upperdir=R/snapshots/4/fs,lowerdir=R/snapshots/1/fs,index=off volatile,userxattr]",
            "user:4/fs 1/erofs",
        ),
        (
            "2.2: several options of the operator's in one string",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs \
             index=off,xino=off,redirect_dir=off lowerdir={{_mount_0_}}]",
            "4/fs 1/erofs",
        ),
        (
            "2.4: shared layers mounted in place under an active snapshot",
            "erofs CACHED [ro loop X-containerd.dmverity=CACHED.dmverity]
             erofs R/snapshots/1/layer.erofs [ro loop]
             erofs OTHER [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_overlay_0_2_}}]",
            "4/fs cached 1/erofs other",
        ),
        ("2.4: view of one shared layer", "erofs CACHED [ro loop]", "cached"),
        (
            "2.4: view of shared layers alone",
            "erofs CACHED [ro loop]
             erofs OTHER [ro loop]
             format/mkdir/overlay overlay [lowerdir={{_overlay_0_1_}}]",
            "cached other",
        ),
        (
            "2.4: merged metadata of a layer above a shared one",
            "erofs R/snapshots/2/fsmeta.erofs [ro loop device=CACHED device=R/snapshots/2/layer.erofs]
             format/bind {{_mount_0_}} [ro rbind]",
            "2/erofs cached",
        ),
        (
            "2.4: merged metadata of shared layers alone",
            "erofs R/snapshots/2/fsmeta.erofs [ro loop device=OTHER device=CACHED]
             format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_mount_0_}}]",
            "4/fs cached other",
        ),
        (
            "block mode: a shared layer under it",
            "mkfs/ext4 R/snapshots/9/rwlayer.img [X-containerd.mkfs.fs=ext4 rw loop]
             erofs CACHED [ro loop]
             format/mkdir/overlay overlay [workdir={{_mount_0_}}/work upperdir={{_mount_0_}}/upper lowerdir={{_mount_1_}}]",
            "ext4:9/rwlayer.img cached",
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
        // The stack below the layer that is written to has all the others, whatever that layer holds.
        let has_top = ["[rw", " rw", "upperdir="].iter().any(|word| list.contains(word));
        let below = match layers.split_once(' ') {
            _ if !has_top || case.contains("no image") => layers,
            Some((_top, below)) => below,
            None => "",
        };
        let parents = fixture.roots.parents(&fixture.mounts(list)).unwrap();
        let words: Vec<_> = parents.layers.iter().map(|layer| fixture.word(layer)).collect();
        assert_eq!(words.join(" "), below, "below: {case}");
    }
}

#[test]
fn the_layer_that_is_written_to_is_not_looked_at_for_what_is_below() {
    let fixture = fixture();
    let list = "erofs R/snapshots/1/layer.erofs [ro loop]
                format/mkdir/overlay overlay [workdir=R/snapshots/404/work upperdir=R/snapshots/404/fs lowerdir={{_mount_0_}}]";
    assert_eq!(fixture.roots.parents(&fixture.mounts(list)).unwrap().layers.len(), 1);
    assert!(fixture.stack(list).unwrap_err().to_string().contains("404"));
    let missing = "erofs R/snapshots/404/layer.erofs [ro loop]
                   format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs lowerdir={{_mount_0_}}]";
    assert!(matches!(fixture.roots.parents(&fixture.mounts(missing)), Err(MountError::Missing(_))));
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
