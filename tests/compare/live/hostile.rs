//! Upper directories whose owner means harm.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, symlink},
    },
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use plywood::{
    call::Cancel,
    compare::{
        changes::{self, Options},
        output::Output,
    },
    error::{Kind, Result as CompareResult},
    limits::Limits,
    tree::{Body, Entry, Extent},
    view::Control,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat, renameat},
    io::Errno,
};
use tempfile::TempDir;
use testkit::mounts::Mounted;

use super::{compare, layer};

/// Contents of a file of the host, which must not appear in any layer.
const SECRET: &[u8] = b"SECRET OF THE HOST";

/// Keeps names and data, and finds out when either is not the layer's.
#[derive(Default)]
struct Told {
    files: BTreeMap<Vec<u8>, (Body, Vec<u8>)>,
    last: Vec<u8>,
}

impl Output for Told {
    fn entry(&mut self, entry: &Entry) -> CompareResult<()> {
        self.last.clone_from(&entry.path);
        self.files.insert(entry.path.clone(), (entry.body.clone(), Vec::new()));
        Ok(())
    }
    fn data(&mut self, _offset: u64, bytes: &[u8]) -> CompareResult<()> {
        self.files.get_mut(&self.last).unwrap().1.extend_from_slice(bytes);
        Ok(())
    }
    fn end_entry(&mut self) -> CompareResult<()> {
        Ok(())
    }
}

fn control() -> Control {
    if rustix::process::geteuid().is_root() { Control::Trusted } else { Control::User }
}

/// In memory where that is possible: the tests make many files.
fn scratch() -> io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// Names that are a file, a fifo, a device, a link to a file outside and a directory in turn, thousands of
/// times a second.
pub fn swaps() -> Result<(), Failed> {
    let outside = scratch()?;
    let secret = outside.path().join("secret");
    fs::write(&secret, SECRET)?;
    fs::create_dir(outside.path().join("secrets"))?;
    fs::write(outside.path().join("secrets/f0"), SECRET)?;
    let upper = scratch()?;
    let root = upper.path();
    fs::create_dir(root.join("d"))?;
    // Names in it are changed through a handle: by its path, the secret itself could be moved in.
    let inside = fs::File::open(root.join("d"))?;
    mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;

    let stop = AtomicBool::new(false);
    let swapped = AtomicU64::new(0);
    let meddle = |seed: usize| {
        let mut n = seed;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            let name = format!("f{}", n % 7);
            let (dir, path) =
                if n.is_multiple_of(3) { (inside.as_fd(), name.into()) } else { (CWD, root.join(&name)) };
            let new = root.join(format!(".new{seed}"));
            let _left = fs::remove_file(&new);
            let _made = match n % 5 {
                0 => fs::write(&new, "mine"),
                1 => symlink(&secret, &new),
                2 => {
                    mknodat(CWD, &new, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(io::Error::from)
                }
                // Nothing drives it: who opens it gets an error that is not one of a file that changed.
                3 => {
                    mknodat(CWD, &new, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(240, 7))
                        .map_err(io::Error::from)
                }
                _ => renameat(dir, &path, CWD, &new).map_err(io::Error::from),
            };
            let _moved = renameat(CWD, &new, dir, &path);
            if n.is_multiple_of(11) {
                // The directory becomes a link to one outside, and a directory again.
                let _ = fs::rename(root.join("d"), root.join("moved"));
                let _ = symlink(outside.path().join("secrets"), root.join("d"));
                let _ = fs::remove_file(root.join("d"));
                let _ = fs::rename(root.join("moved"), root.join("d"));
            }
            swapped.fetch_add(1, Ordering::Relaxed);
        }
    };
    // A writer gets through as soon as somebody opens the fifo for reading.
    let knock = || {
        while !stop.load(Ordering::Relaxed) {
            let opened = openat(CWD, root.join("pipe"), OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
            assert_eq!(opened.err(), Some(Errno::NXIO), "the fifo was opened");
        }
    };
    let outcome = thread::scope(|scope| {
        scope.spawn(|| meddle(1));
        scope.spawn(|| meddle(2));
        scope.spawn(knock);
        let end = Instant::now() + Duration::from_secs(2);
        let mut outcomes = [0_u64; 2];
        let result = (|| {
            while Instant::now() < end || (outcomes[0] == 0 && Instant::now() < end + Duration::from_secs(20))
            {
                let started = Instant::now();
                let mut told = Told::default();
                match compare(&[], &[&layer(root, Control::Trusted)], &Options::default(), &mut told) {
                    Ok(_) => outcomes[0] += 1,
                    Err(error) if error.kind() == Kind::Changed => outcomes[1] += 1,
                    Err(error) => return Err(Failed::from(error.to_string())),
                }
                for (name, (_, data)) in &told.files {
                    if !matches!(data.as_slice(), b"" | b"mine") {
                        return Err(format!("{}: foreign data", name.escape_ascii()).into());
                    }
                }
                if started.elapsed() > Duration::from_secs(10) {
                    return Err("a walk over a few files took 10 s".into());
                }
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        result.map(|()| outcomes)
    });
    let [right, changed] = outcome?;
    let swapped = swapped.into_inner();
    assert!(right + changed > 20 && swapped > 100, "{right} right, {changed} changed, {swapped} swaps");
    Ok(())
}

/// The walk emits the file as it was at one moment, or nothing.
pub fn growing() -> Result<(), Failed> {
    let upper = scratch()?;
    let file = fs::File::create(upper.path().join("log"))?;
    let stop = AtomicBool::new(false);
    let (right, changed) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(&[b'x'; 1000], at).unwrap();
                at = (at + 1000) % (8 << 20);
                thread::sleep(Duration::from_micros(if at.is_multiple_of(64_000) { 20_000 } else { 50 }));
            }
        });
        let mut counted = (0, 0);
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            let mut told = Told::default();
            match compare(&[], &[&layer(upper.path(), control())], &Options::default(), &mut told) {
                Ok(_) => {
                    counted.0 += 1;
                    let (body, data) = &told.files[&b"log"[..]];
                    let Body::Regular { size_bytes, .. } = body else { panic!("{body:?}") };
                    assert!(data.len() as u64 == *size_bytes && data.iter().all(|byte| *byte == b'x'));
                }
                Err(error) if error.kind() == Kind::Changed => counted.1 += 1,
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        counted
    });
    assert!(right + changed > 10, "{right} right, {changed} changed");
    Ok(())
}

/// The largest file there is, with data at its beginning and at its very end.
pub fn eight_exabytes() -> Result<(), Failed> {
    let upper = scratch()?;
    let size_bytes = i64::MAX.unsigned_abs();
    let file = fs::File::create(upper.path().join("f"))?;
    if file.set_len(size_bytes).is_err() {
        // Only file systems in memory have such files.
        return Ok(());
    }
    file.write_all_at(b"first", 0)?;
    file.write_all_at(b"last", size_bytes - 4)?;
    let layer = layer(upper.path(), control());
    let error = compare(&[], &[&layer], &Options::default(), &mut Told::default()).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.stream"));
    let limits = Limits { stream_bytes: u64::MAX, ..Limits::default() };
    let mut told = Told::default();
    compare(&[], &[&layer], &Options { limits, ..Options::default() }, &mut told)?;
    let (body, data) = &told.files[&b"f"[..]];
    let Body::Regular { extents: Some(extents), .. } = body else { panic!("{body:?}") };
    assert!(matches!(extents[..], [Extent { offset: 0, .. }, last] if last.offset + last.len == size_bytes));
    assert!(data.starts_with(b"first\0") && data.ends_with(b"\0last") && data.len() < 1 << 16);
    Ok(())
}

/// Deeper than any path can say.
pub fn deep() -> Result<(), Failed> {
    let upper = scratch()?;
    let mode = Mode::from_raw_mode(0o755);
    let mut at = openat(CWD, upper.path(), OFlags::PATH, Mode::empty())?;
    for _ in 0..10_000 {
        mkdirat(&at, "d", mode)?;
        at = openat(&at, "d", OFlags::PATH, Mode::empty())?;
    }
    let before = fs::read_dir("/proc/self/fd")?.count();
    let mut most = 0;
    let mut output = Counting { most: &mut most, entries: 0 };
    let layer = layer(upper.path(), control());
    let error = compare(&[], &[&layer], &Options::default(), &mut output).unwrap_err();
    let entries = output.entries;
    assert_eq!((error.kind(), error.reason(), entries), (Kind::Exhausted, "limit.path", 2048));
    assert!(most <= before + 16, "{most} descriptors, {before} before");
    // Too deep for the standard library as well.
    assert!(Command::new("rm").arg("-rf").arg(upper.path().join("d")).status()?.success());
    Ok(())
}

/// Counts entries, and descriptors of this process.
struct Counting<'a> {
    most: &'a mut usize,
    entries: u64,
}

impl Output for Counting<'_> {
    fn entry(&mut self, _: &Entry) -> CompareResult<()> {
        self.entries += 1;
        if self.entries.is_multiple_of(100) {
            let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            *self.most = open.max(*self.most);
        }
        Ok(())
    }
    fn data(&mut self, _: u64, _: &[u8]) -> CompareResult<()> {
        Ok(())
    }
    fn end_entry(&mut self) -> CompareResult<()> {
        Ok(())
    }
}

/// One directory, a million names: in memory that is charged, and given back.
pub fn million() -> Result<(), Failed> {
    const NAMES: u64 = 1_000_000;
    let upper = scratch()?;
    fs::create_dir(upper.path().join("d"))?;
    let first = upper.path().join("first");
    fs::write(&first, "x")?;
    let directory = openat(CWD, upper.path().join("d"), OFlags::PATH, Mode::empty())?;
    let file = openat(CWD, &first, OFlags::PATH, Mode::empty())?;
    for n in 0..NAMES {
        // Names of one inode where that many are possible.
        let name = format!("{:x}-{n}", n.wrapping_mul(0x9E37_79B9));
        if rustix::fs::linkat(CWD, &first, &directory, &name, rustix::fs::AtFlags::empty()).is_err() {
            mknodat(&directory, &name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        }
    }
    drop(file);
    let layer = layer(upper.path(), control());
    let mut charged = 0;
    let mut charge = |bytes| {
        charged = bytes;
        Ok(())
    };
    let mut most = 0;
    let mut output = Counting { most: &mut most, entries: 0 };
    let counts =
        changes::write(&[], &[&layer], &Options::default(), &Cancel::new(), &mut charge, &mut output)?;
    assert_eq!(counts.changed, NAMES + 2);
    // Names of 16 bytes and where they are, vectors that double.
    assert!((24 << 20..64 << 20).contains(&charged), "{charged}");

    let limits = Limits { nodes: 1000, ..Limits::default() };
    let options = Options { limits, ..Options::default() };
    let error = compare(&[], &[&layer], &options, &mut Counting { most: &mut most, entries: 0 }).unwrap_err();
    assert_eq!(error.reason(), "limit.nodes");
    assert!(Command::new("rm").arg("-rf").arg(upper.path().join("d")).status()?.success());
    Ok(())
}

/// Mounts inside an upper directory do not belong to it.
pub fn mounted_inside() -> Result<(), Failed> {
    let upper = scratch()?;
    let at = upper.path().join("d");
    fs::create_dir(&at)?;
    let _mounted = Mounted::new(Path::new("tmpfs"), &at, "tmpfs", "size=64k")?;
    fs::write(at.join("secret"), SECRET)?;
    let layer = layer(upper.path(), Control::Trusted);
    let error = compare(&[], &[&layer], &Options::default(), &mut Told::default()).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Denied, "compare.mount"));
    Ok(())
}
