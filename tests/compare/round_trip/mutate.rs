//! Changes to a tree, each chosen by a number: the same numbers, the same changes.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _, lchown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev};
use testkit::random::Random;

/// Every kind of name: plain, spaced, not UTF-8, with control bytes, and as long as any.
fn name(random: &mut Random) -> Vec<u8> {
    match random.below(12) {
        0 => format!("ü {}", random.below(9)).into_bytes(),
        1 => vec![b'n', 0xff, 0xc3, b'0' + u8::try_from(random.below(9)).unwrap()],
        2 => format!("line\nbreak{}", random.below(9)).into_bytes(),
        // GNU tar makes a file of a whiteout, whose name is four bytes longer.
        3 => vec![b'a' + u8::try_from(random.below(26)).unwrap(); 251],
        4 => vec![b'a' + u8::try_from(random.below(26)).unwrap(); 130],
        5 => format!("back\\slash*{}", random.below(9)).into_bytes(),
        _ => format!("new-{}", random.below(40)).into_bytes(),
    }
}

/// Every directory from `root` down, that itself first, and everything else.
fn all_below(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut directories, mut others) = (vec![root.to_owned()], Vec::new());
    let mut at = 0;
    while at < directories.len() {
        let mut found: Vec<_> =
            fs::read_dir(&directories[at]).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        for path in found {
            if path.symlink_metadata().unwrap().is_dir() { directories.push(path) } else { others.push(path) }
        }
        at += 1;
    }
    (directories, others)
}

fn set_times(path: &Path, random: &mut Random) -> io::Result<()> {
    let seconds = *random.of(&[0, 1, 1_700_000_000, 2_208_988_800, 1_234_567_890, -86_400]);
    let nanoseconds = *random.of(&[0, 1, 500_000_000, 999_999_999]);
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// A POSIX ACL that lets user 1000 read.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 0xff, 0xff, 0xff,
    0xff, 0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];
/// `cap_net_raw+ep`, revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn set_attribute(path: &Path, random: &mut Random) -> io::Result<()> {
    let kind = path.symlink_metadata()?;
    let set = |name: &str, value: &[u8]| rustix::fs::lsetxattr(path, name, value, XattrFlags::empty());
    let has_user = kind.is_file() || kind.is_dir();
    match random.below(5) {
        0 if has_user => {
            let len = *random.of(&[0, 1, 30, 2000]);
            set("user.note", &random.bytes(len))?;
        }
        1 if has_user => set(&format!("user.{}", "x".repeat(100)), b"a long name")?,
        2 if kind.is_file() => set("security.capability", &CAPABILITY)?,
        3 if has_user => set("system.posix_acl_access", &ACL)?,
        _ => set("trusted.mark", &random.bytes(9))?,
    }
    Ok(())
}

fn remove_attribute(path: &Path) -> io::Result<()> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut list)?;
    if let Some(name) = list[..len].split(|byte| *byte == 0).find(|name| !name.is_empty()) {
        rustix::fs::lremovexattr(path, name)?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Makes something new at `path`, of any type.
pub fn make(path: &Path, random: &mut Random) -> io::Result<()> {
    let node = |kind, number| rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), number);
    match random.below(12) {
        0..4 => {
            let len = *random.of(&[0, 1, 100, 511, 512, 513, 4095, 4096, 4097, 70_000]);
            fs::write(path, random.bytes(len))?;
        }
        4 => {
            let file = File::create(path)?;
            let offset = random.below(300_000) as u64;
            file.write_all_at(&random.bytes(5000), offset)?;
            file.write_all_at(b"far", 1 << 20)?;
            file.set_len((1 << 20) + *random.of(&[3, 4, 700_000]))?;
        }
        5 => symlink(OsStr::from_bytes(&vec![b't'; *random.of(&[1, 20, 100, 101, 300, 4000])]), path)?,
        6..8 => {
            fs::create_dir(path)?;
            for _ in 0..random.below(3) {
                let inner = path.join(OsStr::from_bytes(&name(random)));
                fs::write(inner, random.bytes(50))?;
            }
        }
        8 => node(FileType::CharacterDevice, makedev(1, 3))?,
        9 => node(FileType::BlockDevice, makedev(259, 70_000))?,
        10 => node(FileType::Fifo, 0)?,
        _ => {
            // Bound through a short name: a socket's path has 107 bytes at most.
            let short = tempfile::tempdir()?;
            let directory = short.path().join("d");
            symlink(path.parent().unwrap(), &directory)?;
            drop(UnixListener::bind(directory.join("s"))?);
            fs::rename(directory.join("s"), path)?;
        }
    }
    Ok(())
}

/// Makes one change below `root`. What the kernel refuses (renaming a directory of a lower layer, a name
/// that is too long where it is) is no change.
pub fn change(root: &Path, random: &mut Random) {
    let (directories, others) = all_below(root);
    let directory = random.of(&directories).clone();
    let any = match others.is_empty() || random.below(4) == 0 {
        true => directory.clone(),
        false => random.of(&others).clone(),
    };
    let is_root = any == root;
    let fresh = directory.join(OsStr::from_bytes(&name(random)));
    let is_free = fresh.symlink_metadata().is_err();
    let _refused = match random.below(20) {
        0..4 if is_free => make(&fresh, random),
        4..6 if !is_root => remove(&any),
        6 if !is_root => remove(&any).and_then(|()| make(&any, random)),
        7 if directory != root => remove(&directory).and_then(|()| {
            fs::create_dir(&directory)?;
            fs::write(directory.join("instead"), random.bytes(20))
        }),
        8 => write_into(&any, random),
        9 if !any.is_symlink() => {
            let mode = *random.of(&[0, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777, 0o400]);
            fs::set_permissions(&any, fs::Permissions::from_mode(mode))
        }
        10 => {
            let id = *random.of(&[0, 1, 1000, 65_534, 4_000_000_000]);
            lchown(&any, Some(id), Some(*random.of(&[0, id])))
        }
        11 | 12 if !is_root => set_times(&any, random),
        13 | 14 => set_attribute(&any, random),
        15 => remove_attribute(&any),
        16 | 17 if is_free && !any.is_dir() => fs::hard_link(&any, &fresh),
        18 if is_free && !is_root => fs::rename(&any, &fresh),
        19 if !any.is_dir() && !others.is_empty() => fs::rename(&any, random.of(&others)),
        _ => set_times(&directory, random),
    };
}

fn write_into(path: &Path, random: &mut Random) -> io::Result<()> {
    if !path.symlink_metadata()?.is_file() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let len = file.metadata()?.len();
    match random.below(4) {
        0 => file.set_len(len / 2),
        1 => file.set_len(len + 9000),
        2 => file.write_all_at(&random.bytes(10), len),
        _ => file.write_all_at(&random.bytes(10), len / 3),
    }
}
