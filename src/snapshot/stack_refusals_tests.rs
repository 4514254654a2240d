//! Lists that are refused, links that are not followed, and lists that make no sense at all.

use std::{os::unix::fs::symlink, path::Path};

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::error::{Classify, Kind};

#[test]
fn lists_that_are_not_ours_are_left_to_the_next_differ() {
    let fixture = fixture();
    let erofs = "erofs R/snapshots/1/layer.erofs [ro loop]\n";
    let upper = "format/mkdir/overlay overlay [workdir=R/snapshots/4/work upperdir=R/snapshots/4/fs";
    for (list, reason) in [
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
        (
            "mkfs/ext4 R/snapshots/12/rwlayer.img [rw]\nformat/bind {{_mount_0_}}/upper [rw]".into(),
            "mount.no-marker",
        ),
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
    // Only layers are shared.
    let block = "mkfs/ext4 R/snapshots/10/rwlayer.img [rw]\nformat/bind {{_mount_0_}}/upper [rw]";
    symlink(fixture.at("shared/sha256/ab/abcd.erofs"), fixture.snapshot("10").join("rwlayer.img")).unwrap();
    assert_eq!(reason(block), "mount.file");
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
    // Also as a parent in the older form, and as the upper of an applied snapshot.
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
fn a_shared_layer_is_mounted_in_place_under_its_digest_and_nothing_else_is() {
    let fixture = fixture();
    let refused = |path: &str| {
        let list = format!(
            "erofs {path} [ro loop]\nformat/mkdir/overlay overlay [workdir=R/snapshots/4/work \
             upperdir=R/snapshots/4/fs lowerdir={{{{_mount_0_}}}}]"
        );
        let error = fixture.stack(&list).unwrap_err();
        (error.kind(), error.reason())
    };
    let hex = format!("ab{}", "0".repeat(60));
    for path in [
        // Linked to it would be found; in place only digests are.
        "S/sha256/ab/abcd.erofs".to_owned(),
        "S/../erofs/snapshots/1/layer.erofs".to_owned(),
        CACHED.replace("/ab/", "/../shared/sha256/ab/"),
        CACHED.replace("/ab/", "//"),
        CACHED.replace("/ab/", "/./ab/"),
        CACHED.replace("/ab/", "/cd/"),
        CACHED.replace("/ab/", "/a/"),
        CACHED.replace("sha256", "sha512"),
        CACHED.replace("sha256", "md5"),
        CACHED.replace(".erofs", ".erofs.dmverity"),
        CACHED.replace("cd.erofs", "CD.erofs"),
        format!("S/sha256/ab/{hex}.erofs"),
        format!("S/{hex}cd.erofs"),
    ] {
        assert_eq!(refused(&path), (Kind::Denied, "mount.shared-layer"), "{path}");
    }
    let [elsewhere, in_root] =
        ["Xelsewhere", "R/snapshots/1"].map(|directory| CACHED.replacen("S", directory, 1));
    let elsewhere = elsewhere.replacen('X', &format!("{}/", fixture.scratch.path().display()), 1);
    assert_eq!(refused(&elsewhere), (Kind::Denied, "mount.foreign"));
    assert_eq!(refused(&in_root), (Kind::Denied, "mount.path"));
    // As the newest layer it is somebody else's list.
    let error = fixture.stack(&format!("erofs {elsewhere} [ro loop]")).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "mount.outside-root"));

    let cached = fixture.at(&CACHED.replacen('S', "shared", 1));
    let becomes = |make: &dyn Fn()| {
        fs::remove_file(&cached).unwrap();
        make();
        refused("CACHED")
    };
    fs::set_permissions(&cached, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(refused("CACHED"), (Kind::Denied, "mount.owner"));
    assert_eq!(becomes(&|| symlink("/etc/passwd", &cached).unwrap()), (Kind::Denied, "mount.link"));
    assert_eq!(becomes(&|| symlink("abcd.erofs", &cached).unwrap()), (Kind::Denied, "mount.link"));
    let fifo = || rustix::fs::mknodat(rustix::fs::CWD, &cached, FileType::Fifo, rustix::fs::Mode::RUSR, 0);
    assert_eq!(becomes(&|| fifo().unwrap()), (Kind::Denied, "mount.file"));
    assert_eq!(becomes(&|| ()), (Kind::Conflict, "mount.missing"));
    fs::rename(fixture.at("shared/sha256/ab"), fixture.at("moved")).unwrap();
    symlink(fixture.at("moved"), fixture.at("shared/sha256/ab")).unwrap();
    assert_eq!(refused("OTHER"), (Kind::Denied, "mount.link"));
    // An overlayfs snapshotter has no images.
    let error = fixture
        .stack("erofs OTHER []\nformat/overlay overlay [upperdir=O/snapshots/1/fs lowerdir={{_mount_0_}}]");
    assert_eq!(error.unwrap_err().reason(), "mount.path");
}

#[test]
fn a_comma_in_a_path_is_refused_for_good() {
    let fixture = fixture();
    for options in [
        "upperdir=R/snapshots/4/fs lowerdir=R/snapshots/1,2/fs",
        "upperdir=R/snapshots/4/fs,lowerdir=R/snapshots/1,2/fs",
        "upperdir=R/snapshots/4,5/fs",
        "upperdir=R/snapshots/4/fs,lowerdir=R/snapshots/1/fs\\,userxattr",
    ] {
        let error = fixture.stack(&format!("overlay overlay [{options}]")).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Denied, "mount.path"), "{options}: {error}");
    }
    // To the kernel this is a second option, of unknown effect.
    let list = "overlay overlay [upperdir=R/snapshots/4/fs,lowerdir+=R/snapshots/1/fs]";
    let error = fixture.stack(list).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::NotImplemented, "mount.option-unknown"), "{error}");
    // Nor can one hide behind a comma.
    let list = "overlay overlay [upperdir=R/snapshots/4/fs,upperdir=R/snapshots/5/fs]";
    let error = fixture.stack(list).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Denied, "mount.option"), "{error}");
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
        "R/snapshots/9/rwlayer.img",
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
                    ["1/fs", "4/fs", "1/erofs", "2/erofs", "9/rwlayer.img", "O/1/fs", "O/2/fs"]
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
