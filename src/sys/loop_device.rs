//! Loop devices: whether a file is attached to one, and where its file system is mounted.
//!
//! Reads sysfs and the mount table: no device is opened, nothing is attached or mounted.
//!
//! Source: loop(4); Linux `drivers/block/loop.c` (`backing_file`); proc_pid_mountinfo(5).

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::dir::Dir;

/// Directory of the loop devices in sysfs, among other devices without hardware.
const DEVICES: &str = "/sys/devices/virtual/block";
/// Directory above [`DEVICES`], which exists before the first device does.
const VIRTUAL: &str = "/sys/devices/virtual";
/// Inode number of an ext4 file system's root directory.
const EXT4_ROOT: u64 = 2;

/// A loop device with a file attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// `loop0` and so on.
    pub name: String,
    /// Device number, as in the status of every file on the device.
    pub device: u64,
    /// The attached file could be looked at, and is the one asked for. Another mount namespace may hide it.
    pub is_certain: bool,
}

/// Directory that a confined process must be able to read to see the loop devices.
///
/// Before the first device there is only the one above.
pub fn to_read() -> PathBuf {
    let devices = Path::new(DEVICES);
    if devices.exists() { devices } else { Path::new(VIRTUAL) }.to_owned()
}

/// The loop devices to which the file `path` is attached, whose device and inode number are `key`.
///
/// A file whose path has the same last three components and cannot be looked at is reported as uncertain.
/// Errors: sysfs cannot be read.
pub fn attached(path: &Path, key: (u64, u64)) -> io::Result<Vec<LoopDevice>> {
    match attached_among(Path::new(DEVICES), path, key) {
        // Without sysfs nothing is known; with it, this means that there is no such device.
        Err(error) if error.kind() == ErrorKind::NotFound && Path::new(VIRTUAL).exists() => Ok(Vec::new()),
        outcome => outcome,
    }
}

fn attached_among(devices: &Path, path: &Path, key: (u64, u64)) -> io::Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(devices)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with("loop") {
            continue;
        }
        let sysfs = entry.path();
        let backing = match fs::read(sysfs.join("loop/backing_file")) {
            Ok(backing) => backing,
            // Nothing is attached, no longer attached, or a file with a longer path than any snapshot's.
            Err(error) if is_gone(&error) || error.kind() == ErrorKind::InvalidFilename => continue,
            Err(error) => return Err(error),
        };
        let backing = Path::new(OsStr::from_bytes(backing.strip_suffix(b"\n").unwrap_or(&backing)));
        // The kernel adds " (deleted)" to a file without a name, which ours is not. No other file is looked at:
        // it may lie on a file system whose server is away.
        if backing.file_name() != path.file_name() {
            continue;
        }
        let is_certain = match fs::metadata(backing) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == key => true,
            Ok(_another_file) => continue,
            Err(_) if ends_alike(backing, path) => false,
            Err(_) => continue,
        };
        match fs::read_to_string(sysfs.join("dev")) {
            Ok(number) => {
                let device = device_number(number.trim_end());
                let device = device.ok_or_else(|| invalid(format!("device number {number:?} of {name}")))?;
                found.push(LoopDevice { name, device, is_certain });
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Lists all loop devices with the paths of their files, by device number. Errors: sysfs cannot be read.
pub(super) fn backing_files() -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(DEVICES)? {
        let sysfs = entry?.path();
        let backing = fs::read(sysfs.join("loop/backing_file"));
        let number = fs::read_to_string(sysfs.join("dev"));
        // A device without a file, or another kind of device.
        let (Ok(backing), Ok(number)) = (backing, number) else { continue };
        let backing = backing.strip_suffix(b"\n").unwrap_or(&backing);
        let backing = backing.strip_suffix(b" (deleted)").unwrap_or(backing);
        if let Some(number) = device_number(number.trim_end()) {
            found.insert(number, PathBuf::from(OsStr::from_bytes(backing)));
        }
    }
    Ok(found)
}

/// Whether both paths end in the same `snapshots/ID/FILE`.
fn ends_alike(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (a.components().rev(), b.components().rev());
    (0..3).all(|_| a.next() == b.next())
}

fn is_gone(error: &io::Error) -> bool {
    /// The device has been detached between opening the file and reading it.
    const ENODEV: i32 = 19;
    const ENXIO: i32 = 6;
    error.kind() == ErrorKind::NotFound || matches!(error.raw_os_error(), Some(ENODEV | ENXIO))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

pub(super) fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

impl LoopDevice {
    /// The root directory of the ext4 file system on the device, where this process sees it mounted.
    ///
    /// The path comes from the mount table, and something else may be there by now. So its device and inode are
    /// compared, and another directory is passed over. Errors: the mount table cannot be read.
    pub fn mounted_ext4(&self) -> io::Result<Option<(PathBuf, Dir)>> {
        let table = fs::read("/proc/self/mountinfo")?;
        for point in mount_points(&table, self.device) {
            let Ok(dir) = Dir::open_root(&point) else { continue };
            let status = dir.status()?;
            if (status.device, status.inode) == (self.device, EXT4_ROOT) {
                return Ok(Some((point, dir)));
            }
        }
        Ok(None)
    }
}

/// Where the whole ext4 file system on `device` is mounted, from the text of a mount table.
fn mount_points(table: &[u8], device: u64) -> impl Iterator<Item = PathBuf> {
    table.split(|&byte| byte == b'\n').filter_map(move |line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let number = str::from_utf8(fields.next()?).ok().and_then(device_number)?;
        let (root, point) = (fields.next()?, fields.next()?);
        // After the options come fields without a fixed number, ended by a dash, and then the type.
        let file_system = fields.skip_while(|field| *field != b"-").nth(1)?;
        let is_whole = number == device && root == b"/" && file_system == b"ext4";
        is_whole.then(|| PathBuf::from(OsStr::from_bytes(&unescape(point))))
    })
}

/// Undoes the table's octal escapes of space, tab, newline and backslash.
pub(super) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(first));
        rest = match escaped {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_field_by_field() {
        let table =
            br"36 35 7:3 / /run/containerd/t/1/a\040b\134 rw,noatime shared:7 master:1 - ext4 /dev/loop3 rw
37 35 7:3 /upper /rootfs rw - ext4 /dev/loop3 rw
38 35 7:4 / /four rw - ext4 /dev/loop4 rw
39 35 7:3 / /erofs rw - erofs /dev/loop3 rw
40 35 7:3 / /second rw,relatime - ext4 /dev/loop3 rw

41 35
42 x 7:x / /bad rw - ext4 x rw
43 35 7:3 / /no-dash rw ext4 x rw";
        let device = rustix::fs::makedev(7, 3);
        let found: Vec<_> = mount_points(table, device).collect();
        assert_eq!(found, [PathBuf::from(r"/run/containerd/t/1/a b\"), PathBuf::from("/second")]);
        assert_eq!(mount_points(table, rustix::fs::makedev(8, 3)).count(), 0);
    }

    #[test]
    fn escapes_are_undone_and_what_only_looks_like_one_is_kept() {
        for (field, plain) in [
            (&br"a\011b"[..], &b"a\tb"[..]),
            (br"\134040", br"\040"),
            (br"\04", br"\04"),
            (br"\777\08", br"\777\08"),
            (br"\377", b"\xff"),
            (br"end\", br"end\"),
        ] {
            assert_eq!(unescape(field), plain);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_mount_table_makes_a_panic(
            lines in proptest::collection::vec("[0-9:]{0,4} [^\n]{0,12} (7:3|[0-9:]{0,30}) / [/\\\\0-7]{0,9} - ext4 x", 0..4),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
        ) {
            let mut table = lines.join("\n").into_bytes();
            table.extend(noise);
            for point in mount_points(&table, rustix::fs::makedev(7, 3)) {
                proptest::prop_assert!(point.as_os_str().len() <= table.len());
            }
        }
    }

    /// A directory with the files that sysfs has for each device.
    #[test]
    fn a_device_is_found_by_the_inode_behind_its_path() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for snapshot in ["erofs/snapshots/1", "other/snapshots/1"] {
            fs::create_dir_all(at(snapshot)).unwrap();
            fs::write(at(snapshot).join("rwlayer.img"), "").unwrap();
        }
        let image = at("erofs/snapshots/1/rwlayer.img");
        fs::hard_link(&image, at("erofs/rwlayer.img")).unwrap();
        let sysfs = at("block");
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        for (number, backing) in [
            (0, None),
            (1, Some(text("erofs/snapshots/1/rwlayer.img"))),
            // Another root's, another name of the same file, and what is only called alike.
            (2, Some(text("other/snapshots/1/rwlayer.img"))),
            (3, Some(text("erofs/rwlayer.img"))),
            (4, Some(text("erofs/snapshots/1/rwlayer.img (deleted)"))),
            (5, Some("/not/visible/snapshots/1/rwlayer.img".to_owned())),
            (6, Some("/not/visible/snapshots/2/rwlayer.img".to_owned())),
            (7, Some("/dev/null".to_owned())),
            (8, Some(String::new())),
        ] {
            let device = sysfs.join(format!("loop{number}"));
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("dev"), format!("7:{number}\n")).unwrap();
            if let Some(backing) = backing {
                fs::create_dir(device.join("loop")).unwrap();
                fs::write(device.join("loop/backing_file"), backing + "\n").unwrap();
            }
        }
        fs::create_dir_all(sysfs.join("dm-0")).unwrap();
        let metadata = fs::metadata(&image).unwrap();
        let found = attached_among(&sysfs, &image, (metadata.dev(), metadata.ino())).unwrap();
        let mut found: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.is_certain)).collect();
        found.sort_unstable();
        assert_eq!(found, [("loop1", true), ("loop3", true), ("loop5", false)]);
        fs::write(sysfs.join("loop1/dev"), "seven\n").unwrap();
        assert!(attached_among(&sysfs, &image, (metadata.dev(), metadata.ino())).is_err());
        assert!(attached_among(&at("absent"), &image, (0, 0)).is_err());
    }
}
