//! One of everything, written through the kernel.

use std::{
    fs::{self, File},
    io,
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink},
        net::UnixListener,
    },
    path::Path,
};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags, fallocate, lsetxattr,
    makedev, mknodat, utimensat,
};

/// Bytes that look like nothing else.
pub fn bytes(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [.., high] = seed.to_le_bytes();
        high
    };
    (0..len).map(|_| next()).collect()
}

/// Fills an empty file system.
pub fn everything(root: &Path) -> io::Result<()> {
    files(&root.join("files"))?;
    links(&root.join("links"))?;
    specials(&root.join("specials"))?;
    attributes(&root.join("attributes"))?;
    directories(&root.join("directories"))?;
    fs::create_dir(root.join("upper"))?;
    fs::write(root.join("upper/file"), b"in the layer\n")?;
    times(root)
}

fn files(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    // Around what fits an inode, its attributes, and a block.
    for len in [0, 1, 59, 60, 61, 100, 155, 156, 157, 160, 700, 1023, 1024, 1025, 4095, 4096, 4097, 70_000] {
        fs::write(dir.join(format!("{len}")), bytes(len, len as u64))?;
    }
    fs::write(dir.join("megabytes"), bytes(5 << 20, 9))?;
    let sparse = File::create(dir.join("sparse"))?;
    for at in [0, 100_000, 1 << 20, 7 << 20] {
        sparse.write_all_at(&bytes(5000, at), at)?;
    }
    sparse.set_len((8 << 20) + 77)?;
    File::create(dir.join("hole"))?.set_len(1 << 20)?;
    // Given out, and written in places only.
    let unwritten = File::create(dir.join("unwritten"))?;
    if fallocate(&unwritten, FallocateFlags::empty(), 0, 1 << 20).is_ok() {
        unwritten.write_all_at(&bytes(10_000, 5), 200_000)?;
        unwritten.write_all_at(&bytes(1, 6), 900_000)?;
    }
    let kept = File::create(dir.join("beyond the end"))?;
    kept.write_all_at(b"short", 0)?;
    let _ = fallocate(&kept, FallocateFlags::KEEP_SIZE, 0, 1 << 20);
    // Small ones that grew and shrank.
    let grown = File::create(dir.join("grown"))?;
    grown.write_all_at(b"a few bytes", 0)?;
    grown.sync_all()?;
    grown.set_len(100_000)?;
    let cut = File::create(dir.join("cut"))?;
    cut.write_all_at(&bytes(300_000, 8), 0)?;
    cut.sync_all()?;
    cut.set_len(123)?;
    cut.set_len(5000)?;
    let pieces = File::create(dir.join("pieces"))?;
    for piece in 0..800 {
        pieces.write_all_at(&bytes(3000, piece), piece * 9000)?;
    }
    fs::hard_link(dir.join("700"), dir.join("another name"))?;
    fs::hard_link(dir.join("700"), dir.parent().unwrap().join("yet another"))?;
    for (name, mode) in [("60", 0o4755), ("61", 0o2711), ("100", 0o1000), ("1023", 0)] {
        // The bits go when the owner changes.
        chown(dir.join(name), Some(70_000), Some(4_294_967_294))?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn links(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    for len in [1, 58, 59, 60, 61, 100, 155, 156, 157, 700, 1023, 4094] {
        let target: String = "../".chars().cycle().take(len).collect();
        // 1 KiB blocks have no room for the longest.
        let _ = symlink(target, dir.join(format!("{len}")));
    }
    // The block of attributes is not one of the target's.
    symlink("short, with attributes", dir.join("attributes"))?;
    set(&dir.join("attributes"), "trusted.one", &bytes(300, 1))?;
    lchown(dir.join("1"), Some(1), Some(2))
}

fn specials(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    let node = |name: &str, kind, number| -> io::Result<()> {
        Ok(mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), number)?)
    };
    node("fifo", FileType::Fifo, 0)?;
    node("whiteout", FileType::CharacterDevice, makedev(0, 0))?;
    node("null", FileType::CharacterDevice, makedev(1, 3))?;
    node("old", FileType::BlockDevice, makedev(255, 255))?;
    node("new", FileType::BlockDevice, makedev(256, 256))?;
    node("largest", FileType::BlockDevice, makedev(4095, (1 << 20) - 1))?;
    drop(UnixListener::bind(dir.join("socket"))?);
    Ok(())
}

fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(lsetxattr(path, name, value, XattrFlags::empty())?)
}

fn attributes(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    let file = |name: &str| -> io::Result<std::path::PathBuf> {
        let path = dir.join(name);
        fs::write(&path, name)?;
        Ok(path)
    };
    set(&file("one")?, "user.colour", b"blue")?;
    set(&file("empty")?, "user.empty", b"")?;
    let every = file("every namespace")?;
    set(&every, "user.a", b"1")?;
    set(&every, "trusted.overlay.opaque", b"y")?;
    set(&every, "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")?;
    let many = file("many")?;
    for number in 0..20 {
        set(&many, &format!("user.number.{number}"), &bytes(20, number))?;
    }
    // Equal attributes share a block.
    for number in 0..3 {
        set(&file(&format!("shared {number}"))?, "user.shared", &bytes(600, 7))?;
    }
    // Only with inodes for them is there room; with 1 KiB blocks neither.
    for (name, len) in [("block", 3000), ("large", 20_000), ("largest", 65_536)] {
        let path = file(name)?;
        let _ = set(&path, "user.value", &bytes(len, 3));
    }
    let list = |tags: &[(u16, u16, u32)]| {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, bits, id) in tags {
            value.extend(tag.to_le_bytes().iter().chain(&bits.to_le_bytes()).chain(&id.to_le_bytes()));
        }
        value
    };
    const NOBODY: u32 = u32::MAX;
    let access = list(&[
        (1, 6, NOBODY),
        (2, 7, 1000),
        (2, 5, 70_000),
        (4, 4, NOBODY),
        (8, 1, 65_536),
        (16, 7, NOBODY),
        (32, 0, NOBODY),
    ]);
    set(&file("list")?, "system.posix_acl_access", &access)?;
    let listed = dir.join("listed");
    fs::create_dir(&listed)?;
    let default = list(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 5, NOBODY)]);
    set(&listed, "system.posix_acl_default", &default)?;
    set(&listed, "system.posix_acl_access", &access)?;
    fs::create_dir(listed.join("heir"))?;
    fs::write(listed.join("heir/file"), b"")?;
    // Gone again, and with it the record or the block.
    let gone = file("gone")?;
    set(&gone, "user.gone", &bytes(1000, 4)).or_else(|_| set(&gone, "user.gone", b"small"))?;
    Ok(rustix::fs::lremovexattr(&gone, "user.gone")?)
}

fn directories(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    fs::create_dir(dir.join("empty"))?;
    for (name, count) in [("two", 2), ("five", 5), ("twenty", 20), ("thousands", 3000)] {
        let path = dir.join(name);
        fs::create_dir(&path)?;
        for number in 0..count {
            let padding = "x".repeat(number % 80);
            let name = path.join(format!("{number} {padding}"));
            match number % 10 {
                0 => fs::create_dir(name)?,
                1 => symlink(".", name)?,
                _ => drop(File::create(name)?),
            }
        }
    }
    // Gaps between the names, and blocks without any.
    let holes = dir.join("holes");
    fs::create_dir(&holes)?;
    for number in 0..2000 {
        File::create(holes.join(format!("name number {number}")))?;
    }
    for number in (0..2000).filter(|number| number % 5 != 0 || (500..1500).contains(number)) {
        fs::remove_file(holes.join(format!("name number {number}")))?;
    }
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&bytes);
    File::create(dir.join(name))?;
    File::create(dir.join("n".repeat(255)))?;
    let deep = (0..60).fold(dir.join("deep"), |path, number| path.join(format!("level {number}")));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), b"deep down")
}

fn times(root: &Path) -> io::Result<()> {
    let times = root.join("times");
    fs::create_dir(&times)?;
    for (name, seconds, nanoseconds) in [
        ("epoch", 0, 0),
        ("nanoseconds", 1_700_000_000, 123_456_789),
        ("almost", 1_700_000_000, 999_999_999),
        ("before", -1, 500_000_000),
        ("1901", -0x8000_0000, 0),
        ("2038", 0x8000_0000, 1),
        ("2106", 0x1_0000_0000, 2),
        ("2446", 0x3_7FFF_FFFF, 3),
    ] {
        let path = times.join(name);
        File::create(&path)?;
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
