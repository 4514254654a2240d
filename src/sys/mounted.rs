//! The EROFS images that are mounted anywhere on this machine, and the overlays on top of them.
//!
//! Reads the mount tables of all processes, one for each mount namespace, and sysfs. Nothing is opened that they name.
//!
//! Source: proc_pid_mountinfo(5); Linux `fs/erofs/super.c` (file-backed mounts have the file as their source).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::loop_device::{backing_files, device_number, unescape};

/// Suffix that the kernel appends to the path of a file that has lost its name.
const DELETED: &[u8] = b" (deleted)";

/// An image that is mounted, or a directory below an overlay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mounted {
    /// Path of the file or directory, as the kernel has it. Relative for a directory that was mounted so.
    pub source: PathBuf,
    /// Place of the mount in its namespace.
    pub point: PathBuf,
    /// A process that sees it.
    pub pid: u32,
    /// The mount is an overlay, and `source` one of its directories.
    pub is_overlay: bool,
}

/// Lists the EROFS images that are mounted, and the lower directories of overlays, in all mount namespaces. Processes
/// whose tables cannot be read are passed over. Errors: there is no `/proc`.
pub fn mounted() -> io::Result<Vec<Mounted>> {
    let devices = backing_files().unwrap_or_default();
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended since, or is a stranger's.
        let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(table) = fs::read(entry.path().join("mountinfo")) else { continue };
        found.extend(mounts(&table, pid, &devices));
    }
    Ok(found.into_iter().collect())
}

/// Mounts of images and overlays in the text of a mount table.
fn mounts(table: &[u8], pid: u32, devices: &BTreeMap<u64, PathBuf>) -> Vec<Mounted> {
    let mut found = Vec::new();
    for line in table.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let device = fields.next().and_then(|field| device_number(str::from_utf8(field).ok()?));
        let (Some(device), Some(_root), Some(point)) = (device, fields.next(), fields.next()) else {
            continue;
        };
        let point = path(point);
        // After the options come fields without a fixed number, ended by a dash.
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (Some(file_system), Some(source)) = (fields.next(), fields.next()) else { continue };
        match file_system {
            b"erofs" => {
                let source = devices.get(&device).cloned().unwrap_or_else(|| path(source));
                found.push(Mounted { source, point, pid, is_overlay: false });
            }
            b"overlay" => {
                let options = fields.next().unwrap_or_default().split(|&byte| byte == b',');
                let lower = options.filter_map(|option| {
                    option.strip_prefix(b"lowerdir=").or_else(|| option.strip_prefix(b"lowerdir+="))
                });
                let lower = lower.flat_map(|list| list.split(|&byte| byte == b':'));
                found.extend(lower.map(|directory| Mounted {
                    source: path(directory),
                    point: point.clone(),
                    pid,
                    is_overlay: true,
                }));
            }
            _ => {}
        }
    }
    found
}

/// A path without escapes, and without the mark of a file that has lost its name.
fn path(field: &[u8]) -> PathBuf {
    let plain = unescape(field);
    let plain = plain.strip_suffix(DELETED).unwrap_or(&plain);
    let plain = plain.strip_suffix(b"//deleted").unwrap_or(plain);
    PathBuf::from(OsStr::from_bytes(plain))
}

impl Mounted {
    /// Whether it is the file or directory `name` in the directory of a snapshot, which is at any of `directories`. A
    /// relative path is compared by its last two components.
    pub fn is(&self, directories: &[PathBuf], name: &str) -> bool {
        directories.iter().any(|directory| match self.source.is_absolute() {
            true => self.source == directory.join(name),
            false => {
                let last = directory.file_name().map(Path::new);
                last.is_some_and(|last| self.source.ends_with(last.join(name)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_through_loop_devices_and_as_files() {
        let table = br"36 35 7:3 / /mnt/loop ro - erofs /dev/loop3 ro,user_xattr
37 35 0:44 / /r/snapshots/1/fs ro,relatime shared:7 - erofs /r/snapshots/1/layer.erofs ro
38 35 0:45 / /run/a\040b rw - overlay overlay rw,lowerdir=/r/snapshots/2/fs:1/fs,upperdir=/u,workdir=/w
39 35 0:46 / /mnt/new ro - erofs /r/snapshots/4/layer.erofs\040(deleted) ro
40 35 0:47 / /proc rw - proc proc rw
41 x y
42 35 0:48 / /short rw - overlay
";
        let devices =
            BTreeMap::from([(rustix::fs::makedev(7, 3), PathBuf::from("/r/snapshots/3/layer.erofs"))]);
        let found = mounts(table, 9, &devices);
        let text: Vec<_> = found
            .iter()
            .map(|Mounted { source, point, .. }| format!("{} at {}", source.display(), point.display()))
            .collect();
        assert_eq!(
            text,
            [
                "/r/snapshots/3/layer.erofs at /mnt/loop",
                "/r/snapshots/1/layer.erofs at /r/snapshots/1/fs",
                "/r/snapshots/2/fs at /run/a b",
                "1/fs at /run/a b",
                "/r/snapshots/4/layer.erofs at /mnt/new",
            ]
        );
        let one = [PathBuf::from("/r/snapshots/1"), PathBuf::from("/other/snapshots/1")];
        assert!(found[1].is(&one, "layer.erofs") && !found[1].is(&one, "fs"));
        assert!(found[3].is(&one, "fs") && !found[2].is(&one, "fs") && !found[0].is(&one, "layer.erofs"));
    }

    #[test]
    fn this_machine_has_mount_tables() {
        // Whatever is mounted here.
        mounted().unwrap();
    }
}
