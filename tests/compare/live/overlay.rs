//! Upper directories that the kernel's overlayfs wrote.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use libtest_mimic::Failed;
use plywood::{
    call::Cancel,
    compare::changes::{Options, RootEntry},
    error::Kind,
    sys::{capabilities, dir::Dir, sandbox},
    view::{Control, DirectoryView, ErofsView, View, ViewError, Volume},
};
use rustix::{
    fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, makedev, mknodat, setxattr},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use tempfile::TempDir;
use testkit::{
    mounts::Mounted,
    tree::{self, Kind as Type, Tree},
};

use super::{Image, compare, layer};

/// The directories of an overlay.
struct Places {
    _scratch: TempDir,
    lower: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    image: PathBuf,
    top: PathBuf,
    merged: PathBuf,
}

impl Places {
    fn new() -> Result<Self, Failed> {
        let scratch = tempfile::tempdir()?;
        let place = |name: &str| scratch.path().join(name);
        let [lower, upper, work, top, merged] = ["lower", "upper", "work", "top", "merged"].map(place);
        for path in [&lower, &upper, &work, &top, &merged] {
            fs::create_dir(path)?;
        }
        Ok(Self { image: place("image"), _scratch: scratch, lower, upper, work, top, merged })
    }

    fn mount(&self, options: &str) -> Result<Mounted, Failed> {
        let show = |path: &Path| path.display().to_string();
        let (lower, upper, work) = (show(&self.lower), show(&self.upper), show(&self.work));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}{options}");
        Mounted::new(Path::new("overlay"), &self.merged, "overlay", &options)
    }
}

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % sides
    }

    fn name(&mut self) -> String {
        const NAMES: [&str; 9] = ["a", "b", "c", "a-b", ".hidden", "\u{e4}", "B", "x y", "a.b"];
        let depth = 1 + self.roll(3);
        let parts: Vec<_> = (0..depth).map(|_| NAMES[usize::try_from(self.roll(9)).unwrap()]).collect();
        parts.join("/")
    }
}

/// One change below `root`; those that cannot be are left out.
fn change(root: &Path, dice: &mut Dice) -> io::Result<()> {
    let (path, other) = (root.join(dice.name()), root.join(dice.name()));
    let detail = dice.roll(1000);
    let small = u32::try_from(detail).unwrap_or(0);
    // Actions that create are likelier than those that remove.
    let action = [dice.roll(20), dice.roll(10)][usize::from(detail.is_multiple_of(2))];
    // Directories of the first level stay: there would not be much left to compare.
    if matches!(action, 11 | 12) && path.parent() == Some(root) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Opening a fifo to write would wait for a reader.
    if matches!(action, 4..=6 | 17 | 19) && fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match action {
        0..=3 => fs::create_dir(&path)?,
        4..=6 => fs::write(&path, format!("{detail} ").repeat(usize::try_from(detail).unwrap_or(0)))?,
        7 => symlink(format!("to {detail}"), &path)?,
        8 => fs::hard_link(&path, &other)?,
        9 => match detail % 3 {
            0 => mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0)?,
            1 => mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 3))?,
            _ => drop(std::os::unix::net::UnixListener::bind(&path)?),
        },
        10 => fs::remove_file(&path)?,
        11 => fs::remove_dir_all(&path)?,
        12 => {
            // Gone and there again: opaque.
            fs::remove_dir_all(&path)?;
            fs::create_dir(&path)?;
        }
        13 => fs::set_permissions(&path, fs::Permissions::from_mode(small % 0o10_000))?,
        14 => chown(&path, Some(small), Some(small * 100))?,
        15 => setxattr(&path, format!("user.{}", detail % 3), &detail.to_le_bytes(), XattrFlags::empty())?,
        16 => setxattr(&path, "trusted.mine", b"1", XattrFlags::empty())?,
        17 => fs::OpenOptions::new().write(true).open(&path)?.write_all_at(b"hole", detail * 1000)?,
        18 => fs::rename(&path, &other)?,
        _ => fs::OpenOptions::new().write(true).open(&path)?.set_len(detail * 7)?,
    }
    Ok(())
}

/// The tree without sockets. Link counts are those of the names found.
fn scan(root: &Path) -> Result<Tree, Failed> {
    let mut found = tree::scan(root)?;
    found.retain(|_, node| node.kind != Type::Socket);
    tree::count_links(&mut found);
    Ok(found)
}

/// Changes made through the kernel's mount come out the same in another mount, on top of an image of the walk.
pub fn random_changes(seed: u64, prefix: &str) -> Result<(), Failed> {
    let places = Places::new()?;
    let (control, option) = match prefix {
        "user" => (Control::User, ",userxattr"),
        _ => (Control::Trusted, ",index=off,redirect_dir=off,metacopy=off"),
    };
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    for _ in 0..150 {
        let _impossible = change(&places.lower, &mut dice);
    }
    let mounted = places.mount(option)?;
    let mut made = 0;
    while made < 200 {
        made += u32::from(change(&places.merged, &mut dice).is_ok());
    }
    drop(mounted);
    // Mounted anew, so that the names of an inode are those that its layer joins.
    let mounted = places.mount(option)?;
    let want = scan(&places.merged)?;
    drop(mounted);

    let (lower, upper) = (layer(&places.lower, control), layer(&places.upper, control));
    let options = Options { root: RootEntry::Always, ..Options::default() };
    let mut image = Image::new();
    let counts = compare(&[&lower], &[&upper, &lower], &options, &mut image)?;
    assert!(counts.changed > 20 && counts.deleted + counts.opaque > 0, "{counts:?}");
    fs::write(&places.image, image.finish())?;

    let _top = Mounted::new(&places.image, &places.top, "erofs", "")?;
    let options = format!("lowerdir={}:{}", places.top.display(), places.lower.display());
    let _merged = Mounted::new(Path::new("overlay"), &places.merged, "overlay", &options)?;
    tree::compare(&want, &scan(&places.merged)?)
}

/// One layer of a stack that grows: the directory that the kernel wrote, or an image of it.
struct Below {
    path: PathBuf,
    /// Where the kernel shows the image.
    shown: Option<PathBuf>,
}

impl Below {
    fn layer(&self) -> Result<Box<dyn View>, Failed> {
        if self.shown.is_none() {
            return Ok(Box::new(layer(&self.path, Control::Trusted)));
        }
        let (file, name) = (fs::File::open(&self.path)?, self.path.display().to_string());
        let key = (1, fs::metadata(&self.path)?.ino());
        Ok(Box::new(ErofsView::open(Volume::from(file), Vec::new(), key, name, &Cancel::new())?))
    }

    fn mounted(&self) -> String {
        self.shown.as_ref().unwrap_or(&self.path).display().to_string()
    }
}

/// Where a stack is built up, unmounted in the end.
struct Stacked {
    scratch: TempDir,
    layers: Vec<Below>,
}

impl Drop for Stacked {
    fn drop(&mut self) {
        for shown in self.layers.iter().filter_map(|layer| layer.shown.as_ref()) {
            let _ = unmount(shown, UnmountFlags::DETACH);
        }
    }
}

/// One change as containers make them where renames are recorded: more of those, and of changes that leave the
/// data alone.
fn change_or_rename(root: &Path, dice: &mut Dice) -> io::Result<()> {
    match dice.roll(8) {
        0 | 1 => fs::rename(root.join(dice.name()), root.join(dice.name())),
        2 => {
            let mode = u32::try_from(dice.roll(0o1000)).unwrap_or(0);
            fs::set_permissions(root.join(dice.name()), fs::Permissions::from_mode(mode))
        }
        3 => fs::hard_link(root.join(dice.name()), root.join(dice.name())),
        _ => change(root, dice),
    }
}

/// Stacks in which the kernel recorded renames and left data where it was come out as plain layers: the newer
/// side on top of the older one, and either as a whole. Lower layers are such directories, and images of them.
pub fn redirects(seeds: std::ops::Range<u64>) -> Result<(), Failed> {
    let mut seen = (0, 0);
    for seed in seeds {
        let (redirects, metacopies) = redirects_of(seed)
            .map_err(|failed| format!("seed {seed}: {}", failed.message().unwrap_or("failed")))?;
        seen = (seen.0 + redirects, seen.1 + metacopies);
    }
    assert!(seen.0 > 10 && seen.1 > 10, "the changes made {seen:?} redirects and files without data");
    Ok(())
}

fn redirects_of(seed: u64) -> Result<(usize, usize), Failed> {
    const GENERATIONS: u64 = 4;
    let scratch = tempfile::tempdir()?;
    let mut stacked = Stacked { layers: vec![], scratch };
    let place = |stacked: &Stacked, name: &str| -> Result<PathBuf, Failed> {
        let path = stacked.scratch.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let merged = place(&stacked, "merged")?;
    let base = place(&stacked, "base")?;
    let mut dice = Dice((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    for _ in 0..200 {
        let _impossible = change(&base, &mut dice);
    }
    stacked.layers.push(Below { path: base, shown: None });
    let mut seen = (0, 0);
    for generation in 0..GENERATIONS {
        let upper = place(&stacked, &format!("upper-{generation}"))?;
        let work = place(&stacked, &format!("work-{generation}"))?;
        let below: Vec<_> = stacked.layers.iter().map(Below::mounted).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,redirect_dir=on,metacopy=on",
            below.join(":"),
            upper.display(),
            work.display()
        );
        let shown = || Mounted::new(Path::new("overlay"), &merged, "overlay", &options);
        let mounted = shown()?;
        let mut made = 0;
        while made < 40 {
            made += u32::from(change_or_rename(&merged, &mut dice).is_ok());
        }
        drop(mounted);
        let mounted = shown()?;
        let want = scan(&merged)?;
        drop(mounted);

        let lower: Vec<_> = stacked.layers.iter().map(Below::layer).collect::<Result<_, _>>()?;
        let top = layer(&upper, Control::Trusted);
        let lower: Vec<&dyn View> = lower.iter().map(|layer| &**layer).collect();
        let newer: Vec<&dyn View> = std::iter::once(&top as &dyn View).chain(lower.iter().copied()).collect();
        let image = |older: &[&dyn View], newer: &[&dyn View], name: &str| -> Result<PathBuf, Failed> {
            let options = Options { root: RootEntry::Always, ..Options::default() };
            let mut image = Image::new();
            compare(older, newer, &options, &mut image)?;
            let path = stacked.scratch.path().join(name);
            fs::write(&path, image.finish())?;
            Ok(path)
        };
        let [older_at, diff_at] = [place(&stacked, "older")?, place(&stacked, "diff")?];
        let older = image(&[], &lower, "older.erofs")?;
        let diff = image(&lower, &newer, "diff.erofs")?;
        {
            let _older = Mounted::new(&older, &older_at, "erofs", "")?;
            let _diff = Mounted::new(&diff, &diff_at, "erofs", "")?;
            let options = format!("lowerdir={}:{}", diff_at.display(), older_at.display());
            let _merged = Mounted::new(Path::new("overlay"), &merged, "overlay", &options)?;
            tree::compare(&want, &scan(&merged)?).map_err(|failed| at(generation, "on top", &failed))?;
        }
        let whole = image(&[], &newer, "whole.erofs")?;
        {
            let _whole = Mounted::new(&whole, &diff_at, "erofs", "")?;
            tree::compare(&want, &scan(&diff_at)?).map_err(|failed| at(generation, "whole", &failed))?;
        }
        // Two stacks that do not know of each other: the whole older tree, and the newer stack.
        let flat = Below { path: older, shown: Some(older_at.clone()) }.layer()?;
        let walked = image(&[&*flat], &newer, "walked.erofs")?;
        {
            let _older = Mounted::new(&stacked.scratch.path().join("older.erofs"), &older_at, "erofs", "")?;
            let _diff = Mounted::new(&walked, &diff_at, "erofs", "")?;
            let options = format!("lowerdir={}:{}", diff_at.display(), older_at.display());
            let _merged = Mounted::new(Path::new("overlay"), &merged, "overlay", &options)?;
            tree::compare(&want, &scan(&merged)?).map_err(|failed| at(generation, "walked", &failed))?;
        }
        seen = (seen.0 + marked(&upper, "redirect")?, seen.1 + marked(&upper, "metacopy")?);
        stacked.layers.insert(0, committed(&stacked, upper, generation)?);
    }
    Ok(seen)
}

fn at(generation: u64, what: &str, failed: &Failed) -> Failed {
    format!("generation {generation}, {what}: {}", failed.message().unwrap_or_default()).into()
}

/// How many files below `root` have an attribute of overlayfs.
fn marked(root: &Path, attribute: &str) -> Result<usize, Failed> {
    let mut found = 0;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let is_directory = entry.file_type()?.is_dir();
        let name = format!("trusted.overlay.{attribute}");
        found += usize::from(lgetxattr(entry.path(), name, &mut [0; 4096]).is_ok());
        if is_directory {
            found += marked(&entry.path(), attribute)?;
        }
    }
    Ok(found)
}

/// Every second upper directory becomes an image, as the EROFS snapshotter commits it.
fn committed(stacked: &Stacked, upper: PathBuf, generation: u64) -> Result<Below, Failed> {
    let image = stacked.scratch.path().join(format!("layer-{generation}.erofs"));
    if generation.is_multiple_of(2) {
        return Ok(Below { path: upper, shown: None });
    }
    let Some(mkfs) = program("mkfs.erofs") else { return Ok(Below { path: upper, shown: None }) };
    let made = Command::new(mkfs).args(["--quiet", "-Enoinline_data"]).arg(&image).arg(&upper).output()?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
    }
    let shown = stacked.scratch.path().join(format!("shown-{generation}"));
    fs::create_dir(&shown)?;
    mount(&image, &shown, "erofs", MountFlags::RDONLY, None)?;
    Ok(Below { path: image, shown: Some(shown) })
}

/// A program, from `$PLYWOOD_TOOLS/bin` or the search path.
fn program(name: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("PLYWOOD_TOOLS").map(|dir| PathBuf::from(dir).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    tools
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Content that the kernel refuses to show, or that no layer below has, is refused: never a layer that lacks it.
pub fn unresolved() -> Result<(), Failed> {
    let control = |directory: &str, attribute: &str, value: &[u8], refusing: (&'static str, &str)| {
        let places = Places::new()?;
        for name in ["lower/d", "upper/e"] {
            fs::create_dir(places.lower.join("..").join(name))?;
        }
        fs::write(places.lower.join("d/f"), "data")?;
        fs::write(places.upper.join("e/f"), "gone")?;
        let path = places.upper.join(directory);
        setxattr(&path, format!("trusted.overlay.{attribute}"), value, XattrFlags::empty())?;
        let (lower, upper) = (layer(&places.lower, Control::Trusted), layer(&places.upper, Control::Trusted));
        let error =
            compare(&[&lower], &[&upper, &lower], &Options::default(), &mut Image::new()).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, refusing.0), "{error}");
        assert!(error.to_string().contains(refusing.1), "{error}");
        Ok::<_, Failed>(())
    };
    let redirect = |value: &[u8], why| control("e", "redirect", value, ("compare.redirect", why));
    redirect(b"absent", "no layer below has \"absent\"")?;
    redirect(b"/d/absent", "no layer below has \"d/absent\"")?;
    redirect(b"/d/f", "no layer below has")?;
    redirect(b"", "no path")?;
    redirect(b"..", "no path")?;
    redirect(b"/d/../d", "no path")?;
    redirect(b"/d/", "no path")?;
    redirect(b"//d", "no path")?;
    redirect(b"/d\0", "no path")?;
    redirect(b"x/d", "neither a name")?;
    redirect(&[b'n'; 256], "too long")?;
    let metacopy = |value: &[u8], why| control("e/f", "metacopy", value, ("compare.metacopy", why));
    metacopy(b"", "no layer below has the file")?;
    metacopy(b"\0\x05\0\x01x", "fs-verity digest")?;
    metacopy(b"\x01\x04\0\0", "malformed")?;
    Ok(())
}

/// The kernel follows none of these where attributes of the user's own steer overlayfs: the owner of the upper
/// directory could show files that he may not read.
pub fn user_redirects() -> Result<(), Failed> {
    let places = Places::new()?;
    fs::create_dir(places.lower.join("d"))?;
    fs::write(places.lower.join("d/f"), "data")?;
    fs::create_dir(places.upper.join("e"))?;
    setxattr(places.upper.join("e"), "user.overlay.redirect", b"d", XattrFlags::empty())?;
    let mounted = places.mount(",userxattr")?;
    assert!(fs::read_dir(places.merged.join("e")).is_err(), "the kernel follows it");
    drop(mounted);
    let (lower, upper) = (layer(&places.lower, Control::User), layer(&places.upper, Control::User));
    let error = compare(&[&lower], &[&upper, &lower], &Options::default(), &mut Image::new()).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "compare.redirect"), "{error}");
    Ok(())
}

/// Without the capability, marks would go unseen and deleted files come back.
pub fn privilege() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let root = Dir::open_root(scratch.path())?;
    let refused = thread::spawn(move || {
        capabilities::drop_all_but(capabilities::READING).unwrap();
        DirectoryView::new(root, String::new(), Control::Trusted, &Cancel::new()).unwrap_err()
    });
    assert!(matches!(refused.join().unwrap(), ViewError::Privilege { .. }));
    Ok(())
}

/// Other users' files, without modes for anybody, with attributes that only the system's administrator
/// sees, in the only directory that can be reached.
pub fn confined() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let root = scratch.path().join("fs");
    fs::create_dir_all(root.join("d"))?;
    for name in ["d/f", "g"] {
        let path = root.join(name);
        fs::write(&path, "of another user")?;
        setxattr(&path, "trusted.mine", b"1", XattrFlags::empty())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o0))?;
        chown(&path, Some(1000), Some(1000))?;
    }
    setxattr(root.join("d"), "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o0))?;
    chown(root.join("d"), Some(1000), Some(1000))?;
    let told = thread::spawn(move || {
        sandbox::confine(sandbox::Paths { read: &[&root], ..sandbox::Paths::default() }).unwrap();
        capabilities::drop_all_but(capabilities::READING).unwrap();
        capabilities::reading(|| {
            compare(&[], &[&layer(&root, Control::Trusted)], &Options::default(), &mut Image::new())
        })
        .unwrap()
    });
    let counts = told.join().unwrap()?;
    assert_eq!((counts.changed, counts.data_bytes), (3, 30));
    Ok(())
}
