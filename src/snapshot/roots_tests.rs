use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use proptest::{prelude::*, test_runner::TestRunner};

use super::{
    super::{LAYER, LAYER_NAME, layout::FileSet, lists_tests::mounts, scratch_tests::limits},
    *,
};

/// A root with the snapshots 1 to 3, all as the snapshotter leaves them; `R` stands for it in mounts.
struct Fixture {
    _dir: tempfile::TempDir,
    root: PathBuf,
    roots: Roots,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("erofs");
    for id in ["1", "2", "3", "007", "new-123"] {
        let snapshot = root.join("snapshots").join(id);
        for name in ["fs", "work"] {
            fs::create_dir_all(snapshot.join(name)).unwrap();
        }
        fs::write(snapshot.join(".erofslayer"), "").unwrap();
        fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let roots = Roots::open(std::slice::from_ref(&root)).unwrap();
    Fixture { _dir: dir, root, roots }
}

impl Fixture {
    fn snapshot(&self, id: &str) -> PathBuf {
        self.root.join("snapshots").join(id)
    }

    /// A list in short; `R` is the root's path.
    fn mounts(&self, list: &str) -> Vec<Mount> {
        mounts(list, &[("R", &self.root)])
    }

    fn resolve(&self, list: &str) -> Result<SnapshotDir, MountError> {
        self.roots.resolve(&self.mounts(list))
    }
}

#[test]
fn every_form_the_snapshotter_emits_leads_to_its_directory() {
    use Access::{Active, View};
    let fixture = fixture();
    for (case, list, id, access) in [
        ("active, no parent", "bind R/snapshots/1/fs [rw rbind]", "1", Active),
        (
            "2.1: active, one parent",
            "overlay overlay [workdir=R/snapshots/2/work upperdir=R/snapshots/2/fs lowerdir=R/snapshots/1/fs]",
            "2",
            Active,
        ),
        (
            "2.1: active, two parents, options of the operator's",
            "overlay overlay [workdir=R/snapshots/3/work upperdir=R/snapshots/3/fs \
             lowerdir=R/snapshots/2/fs:R/snapshots/1/fs volatile index=off]",
            "3",
            Active,
        ),
        (
            "2.2: active, one parent",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/2/work upperdir=R/snapshots/2/fs lowerdir={{_mount_0_}}]",
            "2",
            Active,
        ),
        (
            "2.2: active, two parents",
            "erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/3/work upperdir=R/snapshots/3/fs lowerdir={{_overlay_0_1_}}]",
            "3",
            Active,
        ),
        (
            "block mode, no parent",
            "mkfs/ext4 R/snapshots/1/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             format/mkdir/bind {{_mount_0_}}/upper [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 rw rbind]",
            "1",
            Active,
        ),
        (
            "block mode, view of nothing",
            "mkfs/ext4 R/snapshots/1/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 ro loop]
             format/mkdir/bind {{_mount_0_}}/upper [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 ro rbind]",
            "1",
            View,
        ),
        (
            "block mode, two parents",
            "mkfs/ext4 R/snapshots/3/rwlayer.img [X-containerd.mkfs.fs=ext4 X-containerd.mkfs.size=67108864 rw loop]
             erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [X-containerd.mkdir.path={{_mount_0_}}/upper:0755 \
             X-containerd.mkdir.path={{_mount_0_}}/work:0755 workdir={{_mount_0_}}/work upperdir={{_mount_0_}}/upper \
             lowerdir={{_overlay_1_2_}}]",
            "3",
            Active,
        ),
        ("view of one layer", "erofs R/snapshots/2/layer.erofs [ro loop]", "2", View),
        ("2.1: view of two", "overlay overlay [lowerdir=R/snapshots/2/fs:R/snapshots/1/fs]", "2", View),
        (
            "2.2: view of two",
            "erofs R/snapshots/2/layer.erofs [ro loop]
             erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [lowerdir={{_overlay_0_1_}}]",
            "2",
            View,
        ),
        ("view of nothing", "bind R/snapshots/3/fs [ro rbind]", "3", View),
        (
            "2.3: merged metadata under an active snapshot",
            "erofs R/snapshots/2/fsmeta.erofs [ro loop device=R/snapshots/1/layer.erofs device=R/snapshots/2/layer.erofs]
             format/mkdir/overlay overlay [workdir=R/snapshots/3/work upperdir=R/snapshots/3/fs lowerdir={{_mount_0_}}]",
            "3",
            Active,
        ),
        (
            "2.3: view of merged metadata alone",
            "erofs R/snapshots/2/fsmeta.erofs [ro loop device=R/snapshots/1/layer.erofs device=R/snapshots/2/layer.erofs]
             format/bind {{_mount_0_}} [ro rbind]",
            "2",
            View,
        ),
        (
            "2.3: dm-verity",
            "erofs R/snapshots/1/layer.erofs [ro loop X-containerd.dmverity=R/snapshots/1/layer.erofs.dmverity]
             format/mkdir/overlay overlay [workdir=R/snapshots/2/work upperdir=R/snapshots/2/fs lowerdir={{_mount_0_}}]",
            "2",
            Active,
        ),
        (
            "2.4: a shared layer mounted in place as the parent, and options in one string",
            "erofs /cache/sha256/ab/ab000000000000000000000000000000000000000000000000000000000000cd.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/2/work,upperdir=R/snapshots/2/fs,index=off lowerdir={{_mount_0_}}]",
            "2",
            Active,
        ),
        (
            "2.3: user namespaces",
            "erofs R/snapshots/1/layer.erofs [ro loop]
             format/mkdir/overlay overlay [workdir=R/snapshots/2/work upperdir=R/snapshots/2/fs lowerdir={{_mount_0_}} \
             uidmap=0:1000:10,10:5000:10 gidmap=0:1000:65536]",
            "2",
            Active,
        ),
    ] {
        let found = fixture.resolve(list).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!((found.id(), found.access()), (id, access), "{case}");
        let opened = found.dir.status().unwrap();
        let want = Dir::open(&fixture.snapshot(id)).unwrap().status().unwrap();
        assert_eq!(opened, want, "{case}");
        assert_eq!(found.key(), (want.device, want.inode), "{case}");
    }
}

#[test]
fn lists_that_are_not_ours_are_left_to_the_next_differ() {
    let fixture = fixture();
    fs::remove_file(fixture.snapshot("3").join(".erofslayer")).unwrap();
    for (list, reason) in [
        ("bind /var/lib/other/snapshots/1/fs [rw rbind]", "mount.outside-root"),
        (
            "overlay overlay [workdir=/o/1/work upperdir=/o/1/fs lowerdir=/o/2/fs index=off]",
            "mount.outside-root",
        ),
        ("overlay overlay [rw upperdir=/o/1/fs]", "mount.outside-root"),
        // Somebody else's oddities.
        ("overlay overlay [upperdir=/o/1/fs upperdir=/o/2/fs]", "mount.outside-root"),
        ("overlay overlay [upperdir=/o/1,2/fs]", "mount.outside-root"),
        ("overlay overlay [upperdir=/o/1/fs upperdir=R/snapshots/1/fs]", "mount.outside-root"),
        ("erofs /o/1/layer.erofs [ro device=/etc/shadow]", "mount.outside-root"),
        ("bind fs [rw]", "mount.outside-root"),
        ("bind  [rw]", "mount.outside-root"),
        ("overlay overlay [index=off]", "mount.form"),
        ("overlay overlay [lowerdir={{_overlay_0_1_}}]", "mount.form"),
        ("overlay overlay [lowerdir={{_source_0_}}]", "mount.form"),
        ("overlay overlay [upperdir={{_mount_0_}}/upper]", "mount.form"),
        ("format/bind {{_mount_0_}} [ro]", "mount.form"),
        ("format/bind {{_mount_7_}} [ro]", "mount.form"),
        ("format/bind {{_target_0_}} [ro]", "mount.form"),
        ("ext4 /dev/vda [rw]", "mount.type"),
        ("zfs pool/layer []", "mount.type"),
        ("fuse3.fuse-overlayfs overlay [upperdir=R/snapshots/1/fs]", "mount.type"),
        ("mkfs/ R/snapshots/1/rwlayer.img [rw]", "mount.type"),
        ("loop/erofs R/snapshots/1/layer.erofs [ro]", "mount.type"),
        ("bind R/snapshots/3/fs [rw rbind]", "mount.no-marker"),
    ] {
        let error = fixture.resolve(list).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, reason), "{list}: {error}");
    }
}

#[test]
fn a_list_without_mounts_is_no_matter_of_the_next_differ() {
    let error = fixture().resolve("").unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "mount.empty"), "{error}");
}

#[test]
fn what_is_below_a_root_but_odd_is_refused_for_good() {
    let fixture = fixture();
    let active = "overlay overlay [workdir=R/snapshots/2/work upperdir=R/snapshots/2/fs";
    for (list, reason) in [
        ("bind R/snapshots/../snapshots/1/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/1/../../../etc/fs [rw]".to_owned(), "mount.path"),
        ("bind R/../erofs/snapshots/1/fs [rw]".to_owned(), "mount.path"),
        ("bind R//snapshots/1/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/./1/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/1/fs/ [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/1/fs/sub [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/1 [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/1/work [rw]".to_owned(), "mount.path"),
        ("bind R/ [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/new-123/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/007/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/0/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/-1/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/+1/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/1x/fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots//fs [rw]".to_owned(), "mount.path"),
        ("bind R/snapshots/99999999999999999999/fs [rw]".to_owned(), "mount.path"),
        ("erofs R/snapshots/1/other.erofs [ro]".to_owned(), "mount.path"),
        ("mkfs/ext4 R/snapshots/1/layer.erofs [rw]".to_owned(), "mount.path"),
        (format!("{active} upperdir=R/snapshots/1/fs]"), "mount.option"),
        (format!("{active} upperdir=/etc]"), "mount.option"),
        (format!("{active} workdir=R/snapshots/2/work]"), "mount.option"),
        (format!("{active} lowerdir=/a lowerdir=/b]"), "mount.option"),
        (format!("{active} lowerdir=/a,upperdir=/etc]"), "mount.option"),
        (format!("{active} lowerdir=/a\\:b]"), "mount.option"),
        ("overlay overlay [workdir=R/snapshots/1/work upperdir=R/snapshots/2/fs]".to_owned(), "mount.option"),
        ("overlay overlay [workdir=/tmp/work upperdir=R/snapshots/2/fs]".to_owned(), "mount.option"),
        ("erofs R/snapshots/1/layer.erofs [ro device=/etc/shadow]".to_owned(), "mount.option"),
        ("erofs R/snapshots/1/layer.erofs [ro device=R/snapshots/1/../../x]".to_owned(), "mount.option"),
        ("erofs R/snapshots/1/layer.erofs [ro device=R/metadata.db]".to_owned(), "mount.option"),
    ] {
        let error = fixture.resolve(&list).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Denied, reason), "{list}: {error}");
    }
}

#[test]
fn links_owners_and_markers_are_looked_at_after_opening() {
    let fixture = fixture();
    let bind = |id: &str| format!("bind R/snapshots/{id}/fs [rw rbind]");
    let case = |id: &str| {
        let error = fixture.resolve(&bind(id)).unwrap_err();
        (error.kind(), error.reason())
    };
    assert_eq!(case("77"), (Kind::Conflict, "mount.missing"));

    let elsewhere = fixture.root.parent().unwrap().join("elsewhere");
    fs::create_dir_all(elsewhere.join("fs")).unwrap();
    fs::write(elsewhere.join(".erofslayer"), "").unwrap();
    symlink(&elsewhere, fixture.snapshot("10")).unwrap();
    assert_eq!(case("10"), (Kind::Denied, "mount.link"));
    symlink("1", fixture.snapshot("11")).unwrap();
    assert_eq!(case("11"), (Kind::Denied, "mount.link"));
    fs::write(fixture.snapshot("12"), "").unwrap();
    assert_eq!(case("12"), (Kind::Denied, "mount.link"));

    fs::set_permissions(fixture.snapshot("1"), fs::Permissions::from_mode(0o770)).unwrap();
    assert_eq!(case("1"), (Kind::Denied, "mount.owner"));

    let marker = fixture.snapshot("2").join(".erofslayer");
    fs::set_permissions(&marker, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(case("2"), (Kind::Denied, "mount.owner"));
    fs::remove_file(&marker).unwrap();
    symlink("/etc/passwd", &marker).unwrap();
    assert_eq!(case("2"), (Kind::Denied, "mount.marker"));
    fs::remove_file(&marker).unwrap();
    fs::create_dir(&marker).unwrap();
    assert_eq!(case("2"), (Kind::Denied, "mount.marker"));
}

#[test]
fn huge_lists_are_refused_unread() {
    let fixture = fixture();
    let one = fixture.mounts("bind R/snapshots/1/fs [rw rbind]");
    let many: Vec<Mount> = one.iter().cycle().take(513).cloned().collect();
    assert_eq!(fixture.roots.resolve(&many).unwrap_err().reason(), "limit.mounts");
    assert!(fixture.roots.resolve(&many[..512]).is_ok());
    let mut long = one;
    long[0].options.push("x".repeat(256 << 10));
    let error = fixture.roots.resolve(&long).unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn long_names_are_cut_in_messages() {
    let fixture = fixture();
    let source = format!("/{}", "\u{e9}\n".repeat(2000));
    let mount = Mount { kind: "bind".into(), source, ..Mount::default() };
    let error = fixture.roots.resolve(&[mount]).unwrap_err().to_string();
    assert!(error.len() < 700 && !error.contains('\n'), "{error}");
}

#[test]
fn a_root_behind_a_link_is_known_under_both_spellings() {
    let fixture = fixture();
    let link = fixture.root.parent().unwrap().join("link");
    symlink(fixture.root.parent().unwrap(), &link).unwrap();
    let roots = Roots::open(&[link.join("erofs")]).unwrap();
    let resolve = |source: &Path| {
        let source = source.join("snapshots/1/fs").to_str().unwrap().to_owned();
        roots.resolve(&[Mount { kind: "bind".into(), source, ..Mount::default() }])
    };
    assert_eq!(resolve(&link.join("erofs")).unwrap().id(), "1");
    assert_eq!(resolve(&fixture.root.canonicalize().unwrap()).unwrap().id(), "1");
    // The snapshotter's own link below the root is another matter.
    let other = fixture.root.parent().unwrap().join("other");
    fs::create_dir(&other).unwrap();
    symlink(fixture.root.join("snapshots"), other.join("snapshots")).unwrap();
    let roots = Roots::open(std::slice::from_ref(&other)).unwrap();
    let source = other.join("snapshots/1/fs").to_str().unwrap().to_owned();
    let error = roots.resolve(&[Mount { kind: "bind".into(), source, ..Mount::default() }]).unwrap_err();
    assert_eq!(error.reason(), "mount.link");
}

#[test]
fn roots_that_cannot_be_trusted_are_refused_at_start() {
    let fixture = fixture();
    for path in
        ["relative", "/tmp/../etc", "/a,b", "/a:b", "/a\\b", "/a//b", "/nowhere/at/all", "/etc/passwd"]
    {
        assert!(Roots::open(&[PathBuf::from(path)]).is_err(), "{path}");
    }
    fs::set_permissions(&fixture.root, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Roots::open(std::slice::from_ref(&fixture.root)).unwrap_err();
    assert!(matches!(error, RootsError::Owner { .. }), "{error}");
}

#[test]
fn a_layer_is_written_to_active_snapshots_only() {
    let fixture = fixture();
    let view = fixture.resolve("erofs R/snapshots/1/layer.erofs [ro loop]").unwrap();
    let error = view.publish(&LAYER, &limits()).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Denied, "mount.read-only"));
    let active = fixture.resolve("bind R/snapshots/1/fs [rw rbind]").unwrap();
    let publication = active.publish(&LAYER, &limits()).unwrap();
    let layer = publication.file(LAYER_NAME).unwrap();
    publication.commit([layer], super::super::Durability::Always, true).unwrap();
    assert!(fixture.snapshot("1").join("layer.erofs").is_file());
}

/// A snapshotter that marks no directories, and looks for layers in the upper directory.
#[test]
fn another_snapshotter_is_another_row() {
    static SET: FileSet = FileSet::of(&["layer.tar", "fs/layer.commit"]);
    static ROW: Layout = Layout { marker: None, keeps: &[Leaf::Upper], publishes: &[&SET], ..EROFS };
    let mut fixture = fixture();
    fixture.roots.snapshots[0].layout = &ROW;
    fs::remove_file(fixture.snapshot("1").join(".erofslayer")).unwrap();
    let list = "bind R/snapshots/1/fs [rw rbind]";
    let snapshot = fixture.resolve(list).unwrap();
    let publication = snapshot.publish(&SET, &limits()).unwrap();
    let files: Vec<_> = SET.names.iter().map(|name| publication.file(name).unwrap()).collect();
    publication.commit(files, super::super::Durability::Always, false).unwrap();
    assert!(SET.names.iter().all(|name| fixture.snapshot("1").join(name).is_file()));
    // An image of that name is no layer here.
    fs::write(fixture.snapshot("1").join("layer.erofs"), "").unwrap();
    let stack = fixture.roots.stack(&fixture.mounts(list)).unwrap();
    let paths: Vec<_> = stack.layers.iter().map(|layer| layer.path.clone()).collect();
    assert_eq!(paths, [fixture.snapshot("1").join("fs")]);
    let image = fixture.mounts("erofs R/snapshots/1/layer.erofs [ro loop]");
    assert_eq!(fixture.roots.stack(&image).unwrap_err().reason(), "mount.path");
    assert_eq!(fixture.roots.sweep().run(std::time::Duration::MAX).directories, 3);
}

#[test]
fn a_sweep_removes_stale_temporaries_and_nothing_else() {
    use std::time::Duration;
    let fixture = fixture();
    let temporary = |digit: char| format!(".plywood-{}.tmp", digit.to_string().repeat(32));
    let snapshot = fixture.snapshot("1");
    for name in [temporary('a'), temporary('b'), "layer.erofs".into(), ".plywood-x.tmp".into()] {
        fs::write(snapshot.join(name), "x").unwrap();
    }
    fs::create_dir(snapshot.join(temporary('c'))).unwrap();
    symlink("layer.erofs", snapshot.join(temporary('d'))).unwrap();
    fs::write(fixture.snapshot("new-123").join(temporary('e')), "x").unwrap();
    // A container's own file, whatever it is called.
    fs::write(snapshot.join("fs").join(temporary('f')), "x").unwrap();
    let live = fs::File::open(snapshot.join(temporary('b'))).unwrap();
    assert!(crate::sys::file::lock_exclusive(&live).unwrap());

    let mut sweep = fixture.roots.sweep();
    assert!(!sweep.run(Duration::ZERO).finished);
    let swept = sweep.run(Duration::from_secs(60));
    assert_eq!((swept.removed, swept.live, swept.failed, swept.finished), (1, 1, 0, true), "{swept:?}");
    assert_eq!(swept.directories, 3);
    let mut left: Vec<_> =
        fs::read_dir(&snapshot).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let mut want = vec![temporary('b'), temporary('c'), temporary('d')];
    want.extend([".erofslayer", ".plywood-x.tmp", "fs", "layer.erofs", "work"].map(String::from));
    want.sort();
    assert_eq!(left, want);
    assert!(fixture.snapshot("new-123").join(temporary('e')).is_file());
    assert!(snapshot.join("fs").join(temporary('f')).is_file());

    drop(live);
    assert_eq!(fixture.roots.sweep().run(Duration::from_secs(60)).removed, 1);
}

#[test]
fn a_root_without_snapshots_yet_is_swept_in_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::open(&[dir.path().to_owned()]).unwrap();
    let swept = roots.sweep().run(std::time::Duration::from_secs(1));
    assert!(swept.finished && swept.failed == 0, "{swept:?}");
}

/// Whatever the list says, what is found is a snapshot directory below the root, by inode.
#[test]
fn no_list_leads_out_of_the_root() {
    let fixture = fixture();
    let part = prop::sample::select(vec![
        "R",
        "/",
        "..",
        ".",
        "snapshots",
        "1",
        "2",
        "fs",
        "work",
        "layer.erofs",
        "new-123",
        "{{ mount 0 }}",
        ",",
        "\\",
        "\0",
    ]);
    let kind = prop::sample::select(vec![
        "bind",
        "overlay",
        "erofs",
        "mkfs/ext4",
        "format/bind",
        "format/mkdir/overlay",
    ]);
    let key = prop::sample::select(vec!["upperdir=", "lowerdir=", "workdir=", "device=", ""]);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(2000));
    let outcome = runner.run(&(prop::collection::vec(part, 0..10), kind, key), |(parts, kind, key)| {
        // Half of all lists begin well, so that some get far.
        let text = parts.concat().replace('R', &format!("{}/snapshots/", fixture.root.display()));
        let options = vec![format!("{key}{text}")];
        let mount = Mount { kind: kind.into(), source: text, target: String::new(), options };
        if let Ok(found) = fixture.roots.resolve(&[mount]) {
            let want = Dir::open(&fixture.snapshot(found.id())).unwrap().status().unwrap();
            prop_assert_eq!(found.key(), (want.device, want.inode));
            prop_assert!(matches!(found.id(), "1" | "2"));
        }
        Ok(())
    });
    outcome.unwrap();
}
