//! Upper directories that the kernel's overlayfs wrote.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    thread,
};

use libtest_mimic::Failed;
use plywood::{
    call::Cancel,
    compare::{
        changes::{Options, RootEntry},
        layer::{Control, DirectoryLayer, LayerError},
    },
    error::Kind,
    sys::{
        capabilities::{self, Raised},
        dir::Dir,
        sandbox,
    },
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use tempfile::TempDir;

use super::{
    Image, Mounted, compare, layer,
    tree::{self, Kind as Type, Tree},
};

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

    fn mount(&self, options: &str) -> Result<Mounted<'_>, Failed> {
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
    // What makes something is likelier than what takes it away.
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

/// What is there but sockets; how many names an inode has is what can be counted.
fn scan(root: &Path) -> Result<Tree, Failed> {
    let mut found = tree::scan(root)?;
    found.retain(|_, node| node.kind != Type::Socket);
    tree::count_links(&mut found);
    Ok(found)
}

/// Changes made through the kernel's mount come out the same when told, as an image below another mount.
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

fn refused(places: &Places) -> (Kind, &'static str) {
    let (lower, upper) = (layer(&places.lower, Control::Trusted), layer(&places.upper, Control::Trusted));
    let error = compare(&[&lower], &[&upper, &lower], &Options::default(), &mut Image::new()).unwrap_err();
    (error.kind(), error.reason())
}

pub fn redirect() -> Result<(), Failed> {
    let places = Places::new()?;
    fs::create_dir(places.lower.join("d"))?;
    fs::write(places.lower.join("d/f"), "x")?;
    let mounted = places.mount(",redirect_dir=on")?;
    fs::rename(places.merged.join("d"), places.merged.join("e"))?;
    drop(mounted);
    assert_eq!(refused(&places), (Kind::Conflict, "compare.redirect"));
    Ok(())
}

pub fn metacopy() -> Result<(), Failed> {
    let places = Places::new()?;
    fs::write(places.lower.join("f"), "x")?;
    let mounted = places.mount(",metacopy=on")?;
    fs::set_permissions(places.merged.join("f"), fs::Permissions::from_mode(0o600))?;
    drop(mounted);
    assert_eq!(refused(&places), (Kind::Conflict, "compare.metacopy"));
    Ok(())
}

/// Without the capability, marks would go unseen and deleted files come back.
pub fn privilege() -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let root = Dir::open_root(scratch.path())?;
    let refused = thread::spawn(move || {
        capabilities::drop_all_but(capabilities::READING).unwrap();
        DirectoryLayer::new(root, String::new(), Control::Trusted, &Cancel::new()).unwrap_err()
    });
    assert!(matches!(refused.join().unwrap(), LayerError::Privilege { .. }));
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
        let _raised = Raised::for_reading().unwrap();
        compare(&[], &[&layer(&root, Control::Trusted)], &Options::default(), &mut Image::new())
    });
    let counts = told.join().unwrap()?;
    assert_eq!((counts.changed, counts.data_bytes), (3, 30));
    Ok(())
}
