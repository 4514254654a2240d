//! A tree with one of everything, packed by GNU tar.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _, fs::PermissionsExt as _, fs::symlink},
    path::Path,
    process::Command,
};

use libtest_mimic::Failed;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev};
use testkit::{host::run, random::noise};

/// How GNU tar spells what a plain header cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// Extended headers, sparse files as version 1.0.
    Posix,
    /// Long names and numbers of GNU's own; whole seconds, no attributes, no sparse files.
    Gnu,
}

/// Makes the tree below `scratch` and packs it as `out`.
pub fn pack(scratch: &Path, spelling: Spelling, out: &Path) -> Result<(), Failed> {
    let root = scratch.join("tree");
    fs::create_dir(&root)?;
    fill(&root)?;
    set_times(&root)?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).args(["--sort=name", "--numeric-owner"]);
    match spelling {
        Spelling::Posix => tar.args(["--format=posix", "--sparse", "--xattrs", "--xattrs-include=*"]),
        Spelling::Gnu => tar.args(["--format=gnu", "--no-xattrs"]),
    };
    run(tar.arg("-cf").arg(out).arg("."))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn fill(root: &Path) -> Result<(), Failed> {
    let file = |name: &str, contents: &[u8]| -> Result<(), Failed> {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        Ok(fs::write(path, contents)?)
    };
    let xattr = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name), attribute, value, XattrFlags::empty())
    };
    let owner = |name: &str, uid, gid| std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid));
    let mode = |name: &str, mode| fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode));

    // Around a block, and around the limits of inline tails.
    for len in
        [0, 1, 31, 1023, 1024, 1025, 2048, 4000, 4095, 4096, 4097, 5120, 5121, 8192, 100_000, 3_000_000]
    {
        file(&format!("sizes/{len}"), &noise(len, 7))?;
    }
    let sparse = fs::File::create(root.join("sizes/sparse"))?;
    sparse.write_all_at(b"at one mebibyte", 1 << 20)?;
    sparse.write_all_at(&noise(70_000, 5), (2 << 20) + 4096)?;
    sparse.set_len((3 << 20) + 5)?;
    let hole = fs::File::create(root.join("sizes/hole"))?;
    hole.set_len(1 << 20)?;

    file("links/one", b"three names")?;
    fs::hard_link(root.join("links/one"), root.join("links/two"))?;
    fs::create_dir(root.join("links/below"))?;
    fs::hard_link(root.join("links/one"), root.join("links/below/three"))?;
    symlink("../sizes/1", root.join("links/relative"))?;
    fs::hard_link(root.join("links/relative"), root.join("links/relative-again"))?;
    symlink("/sizes/31", root.join("links/absolute"))?;
    symlink("nowhere", root.join("links/dangling"))?;
    symlink("x/".repeat(2000), root.join("links/longest"))?;

    fs::create_dir(root.join("nodes"))?;
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("disk", FileType::BlockDevice, 259, 70_000),
        ("far", FileType::CharacterDevice, 4095, (1 << 20) - 1),
        ("fifo", FileType::Fifo, 0, 0),
    ] {
        rustix::fs::mknodat(
            CWD,
            root.join("nodes").join(name),
            kind,
            Mode::from_raw_mode(0o640),
            makedev(major, minor),
        )?;
    }

    file("modes/setuid", b"#!/bin/sh\n")?;
    file("modes/secret", b"nobody reads this")?;
    file("modes/owned", b"by somebody")?;
    file("modes/far", b"by the last owner of an id map")?;
    owner("modes/owned", 1000, 100_000)?;
    owner("modes/far", 4_000_000_000, 4_000_000_001)?;
    symlink("owned", root.join("modes/owned-link"))?;
    owner("modes/owned-link", 65_534, 65_535)?;
    fs::create_dir(root.join("modes/setgid"))?;
    fs::create_dir(root.join("modes/sticky"))?;
    for (name, bits) in [("setuid", 0o4755), ("secret", 0), ("setgid", 0o2775), ("sticky", 0o1777)] {
        mode(&format!("modes/{name}"), bits)?;
    }

    file("attributes/one", b"")?;
    xattr("attributes/one", "user.comment", b"short")?;
    xattr("attributes/one", "user.empty", b"")?;
    xattr("attributes/one", "trusted.binary", &[0, b'\n', b'=', 254, 255])?;
    xattr("attributes/one", &format!("user.{}", "n".repeat(200)), b"a long name")?;
    file("attributes/capable", b"")?;
    // CAP_NET_RAW, permitted and effective: struct vfs_cap_data of linux/capability.h, revision 2.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr("attributes/capable", "security.capability", &capability)?;
    xattr("attributes", "user.directory", &noise(500, 3))?;
    xattr("attributes", "trusted.overlay.redirect", b"/sizes")?;
    for number in 0..40 {
        let name = format!("attributes/shared-{number}");
        file(&name, &noise(number * 31, 9))?;
        xattr(&name, "user.shared", b"the same long value on every one of these files")?;
    }
    file("attributes/large", &noise(900, 4))?;
    xattr("attributes/large", "user.large", &noise(3000, 8))?;

    file(&format!("names/{}", "n".repeat(255)), b"the longest name")?;
    file(&format!("names/{}deep", "a-directory-of-thirty-characters/".repeat(20)), b"a long path")?;
    file("names/Grüße, 世界 \u{1F600}", "UTF-8".as_bytes())?;
    fs::write(root.join("names").join(OsStr::from_bytes(b"caf\xe9")), b"not UTF-8")?;
    file("names/new\nline \\ \"quoted\" and spaces", b"")?;
    // Before, between and after `.` and `..` in the order of bytes.
    for name in ["!", "+", "-", ".-", ".+", "...", "..a", ".a", "0"] {
        file(&format!("order/{name}"), name.as_bytes())?;
    }
    for number in 0..700 {
        file(&format!("many/file-{number:03}"), format!("number {number}\n").as_bytes())?;
    }
    fs::create_dir_all(root.join("empty/directory"))?;

    file("gone/.wh.file", b"")?;
    mode("gone/.wh.file", 0o600)?;
    file(".wh.top", b"")?;
    file("stays/.wh.file", b"")?;
    file("stays/file", b"the layer's own, whatever it deletes")?;
    file("stays/.wh.directory", b"")?;
    file("stays/directory/child", b"so the directory is opaque")?;
    file("opaque/.wh..wh..opq", b"")?;
    file("opaque/new", b"seen")?;
    file("opaque/both/.wh.more", b"")?;
    file("opaque/both/.wh..wh..opq", b"")?;
    Ok(())
}

/// Gives every name a time of its own, with nanoseconds, some far from now.
fn set_times(root: &Path) -> Result<(), Failed> {
    let mut names = vec![root.to_owned()];
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&name)?.is_dir() {
            for entry in fs::read_dir(&name)? {
                names.push(entry?.path());
            }
        }
    }
    names.sort();
    for (name, number) in names.iter().zip(0_i64..) {
        let seconds = match number % 50 {
            3 => 0,
            5 => 1_i64 << 32,
            _ => 1_700_000_000 + number,
        };
        let time = Timespec { tv_sec: seconds, tv_nsec: (123_456_789 + number * 7_919) % 1_000_000_000 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
