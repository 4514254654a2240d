//! The one reader of mount lists: it takes entries apart, and knows how paths and templates are spelled.
//!
//! Templates are compared with the forms that snapshotters emit; nothing is evaluated, and no disk is touched.
//! Which layers an entry means is decided by the callers: [`super::resolve`] for Apply, [`super::plan`] for the
//! layers below and for Diff. For logs, [`snapshot_id`] looks at any list.
//!
//! Source: docs/formats/containerd.md, "Mount lists"; containerd `core/mount/manager`.

use super::{
    error::{MountError, quote},
    layout::{SNAPSHOTS, UPPER_IN_BLOCK},
    mount::{Mount, decimal},
    options::is_known,
};
use crate::limits;

/// A list of sane size whose types are all known. It has at least one entry.
#[derive(Debug)]
pub(super) struct MountList<'m> {
    /// The entries before the last one, which templates may name.
    pub(super) before: Vec<Entry<'m>>,
    /// The entry that shows the snapshot in the end.
    pub(super) last: Entry<'m>,
    /// Length of all strings together.
    bytes: usize,
}

/// One entry of a list, its options read once.
#[derive(Debug)]
pub(super) struct Entry<'m> {
    /// The file system without the prefixes of the type: `bind`, `overlay`, `erofs`.
    pub(super) base: &'m str,
    /// The file system that containerd makes in the image `path` before the first mount: of the type `mkfs/ext4`.
    pub(super) makes: Option<&'m str>,
    /// Whether containerd evaluates the templates in the entry before it mounts it.
    pub(super) is_formatted: bool,
    /// The source as text.
    pub(super) path: &'m str,
    /// The source as a word.
    pub(super) source: Word<'m>,
    /// `upperdir=`, one [`Word`].
    pub(super) upper: Value<'m>,
    /// `lowerdir=`, one [`Word`] or several joined by colons.
    pub(super) lower: Value<'m>,
    /// `workdir=`, one [`Word`].
    pub(super) work: Value<'m>,
    /// All values of `device=`, in their order.
    pub(super) devices: Vec<&'m str>,
    pub(super) maps: Maps<'m>,
    /// `ro`.
    pub(super) is_read_only: bool,
    /// `userxattr`: overlayfs keeps its attributes in `user.overlay.`.
    pub(super) user_xattr: bool,
    /// `X-containerd.dmverity=`: the image is mounted through a device that checks it.
    pub(super) is_verified: bool,
    /// The first option whose effect on the layers is not known.
    pub(super) unknown: Option<&'m str>,
}

/// The values of an option that makes sense only once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Value<'m> {
    pub(super) first: Option<&'m str>,
    /// A second value, with which the list contradicts itself.
    pub(super) second: Option<&'m str>,
}

/// The options with the id maps of an entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Maps<'m> {
    /// `uidmap=`.
    pub(super) users: Value<'m>,
    /// `gidmap=`.
    pub(super) groups: Value<'m>,
}

/// The name of a directory or an image in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word<'m> {
    /// A text without a template.
    Path(&'m str),
    /// `{{ mount N }}`: the entry N.
    Mount(usize),
    /// `{{ mount N }}/upper`: the upper directory in the image that is the entry N.
    UpperOf(usize),
    /// `{{ overlay A B }}`: the entries from A to B, in that direction.
    Overlay(usize, usize),
    /// A template that no snapshotter emits.
    Unknown,
}

impl<'m> Word<'m> {
    pub(super) fn of(text: &'m str) -> Self {
        let read = || {
            let (template, below) = text.strip_prefix("{{ ")?.split_once(" }}")?;
            let number = |digits| decimal(digits).and_then(|number| usize::try_from(number).ok());
            let (name, arguments) = template.split_once(' ')?;
            match (name, arguments.split_once(' '), below.strip_prefix('/')) {
                ("mount", None, None) if below.is_empty() => Some(Self::Mount(number(arguments)?)),
                ("mount", None, Some(UPPER_IN_BLOCK)) => Some(Self::UpperOf(number(arguments)?)),
                ("overlay", Some((a, b)), None) if below.is_empty() => {
                    Some(Self::Overlay(number(a)?, number(b)?))
                }
                _ => None,
            }
        };
        if text.contains("{{") { read().unwrap_or(Self::Unknown) } else { Self::Path(text) }
    }
}

impl<'m> Value<'m> {
    fn add(&mut self, value: &'m str) {
        let free = if self.first.is_none() { &mut self.first } else { &mut self.second };
        free.get_or_insert(value);
    }
}

impl<'m> Entry<'m> {
    /// Takes an entry apart. Any entry can be read: nothing in it is refused here.
    fn read(mount: &'m Mount) -> Self {
        let Mount { kind, source, .. } = mount;
        let mut entry = Self {
            base: kind.rsplit('/').next().unwrap_or_default(),
            makes: kind.strip_prefix("mkfs/"),
            is_formatted: kind.split('/').any(|prefix| prefix == "format"),
            path: source,
            source: Word::of(source),
            upper: Value::default(),
            lower: Value::default(),
            work: Value::default(),
            devices: Vec::new(),
            maps: Maps::default(),
            is_read_only: false,
            user_xattr: false,
            is_verified: false,
            unknown: None,
        };
        for option in mount.each_option() {
            match option.split_once('=') {
                Some(("upperdir", value)) => entry.upper.add(value),
                Some(("lowerdir", value)) => entry.lower.add(value),
                Some(("workdir", value)) => entry.work.add(value),
                Some(("device", value)) => entry.devices.push(value),
                Some(("uidmap", value)) => entry.maps.users.add(value),
                Some(("gidmap", value)) => entry.maps.groups.add(value),
                Some(("X-containerd.dmverity", _)) => entry.is_verified = true,
                None if option == "ro" => entry.is_read_only = true,
                None if option == "userxattr" => entry.user_xattr = true,
                _ => {}
            }
            if !is_known(option, entry.base, entry.is_formatted) {
                entry.unknown.get_or_insert(option);
            }
        }
        entry
    }
}

impl<'m> MountList<'m> {
    /// Reads `mounts`. Errors: too many or too long; none; a type that no served snapshotter uses.
    pub(super) fn read(mounts: &'m [Mount]) -> Result<Self, MountError> {
        let bytes = mounts.iter().map(Mount::len_bytes).fold(0, usize::saturating_add);
        if mounts.len() > limits::MOUNTS || bytes > limits::MOUNT_BYTES {
            return Err(MountError::TooLarge { count: mounts.len(), bytes });
        }
        let Some((last, before)) = mounts.split_last() else { return Err(MountError::Empty) };
        if let Some(unknown) = mounts.iter().find(|mount| !is_known_type(&mount.kind)) {
            return Err(MountError::Type(quote(&unknown.kind)));
        }
        Ok(Self { before: before.iter().map(Entry::read).collect(), last: Entry::read(last), bytes })
    }

    /// The first entry, which may be the last one as well.
    pub(super) fn first(&self) -> &Entry<'m> {
        self.before.first().unwrap_or(&self.last)
    }

    /// All entries in their order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<'m>> {
        self.before.iter().chain([&self.last])
    }

    /// The refusal of a list that names `count` files, more than may be open at a time.
    pub(super) fn too_large(&self, count: usize) -> MountError {
        MountError::TooLarge { count, bytes: self.bytes }
    }
}

/// Whether a served snapshotter uses a type: a file system behind any of its prefixes.
fn is_known_type(kind: &str) -> bool {
    if let Some(file_system) = kind.strip_prefix("mkfs/") {
        return !file_system.is_empty() && file_system.bytes().all(|b| b.is_ascii_alphanumeric());
    }
    let mut parts = kind.rsplit('/');
    matches!(parts.next(), Some("bind" | "overlay" | "erofs"))
        && parts.all(|prefix| matches!(prefix, "format" | "mkdir"))
}

/// Finds the number of the snapshot in a list of any snapshotter, also in one that cannot be served.
///
/// For logs and their readers: no file is ever opened by this number.
pub fn snapshot_id(mounts: &[Mount]) -> Option<&str> {
    let entries: Vec<_> = mounts.iter().map(Entry::read).collect();
    // An active snapshot by its upper directory or image, a view by the newest layer it shows.
    let block = entries.first().filter(|entry| entry.makes.is_some());
    block
        .and_then(|entry| id_in(entry.path))
        .or_else(|| entries.iter().rev().find_map(|entry| id_in(entry.upper.first?)))
        .or_else(|| entries.iter().find_map(|entry| id_in(entry.path)))
        .or_else(|| entries.iter().find_map(|entry| id_in(entry.lower.first?)))
}

fn id_in(path: &str) -> Option<&str> {
    // The root of any snapshotter may lie before it: the first directory of that name counts.
    let (_, rest) = path.split_once(&format!("/{SNAPSHOTS}/"))?;
    let digits = rest.split('/').next()?;
    let decimal =
        !digits.is_empty() && digits.len() <= 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    decimal.then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_compared_not_evaluated() {
        for (text, want) in [
            ("{{ mount 0 }}", Word::Mount(0)),
            ("{{ mount 17 }}", Word::Mount(17)),
            ("{{ mount 3 }}/upper", Word::UpperOf(3)),
            ("{{ overlay 0 3 }}", Word::Overlay(0, 3)),
            ("{{ overlay 3 0 }}", Word::Overlay(3, 0)),
            ("/snapshots/1/fs", Word::Path("/snapshots/1/fs")),
            ("", Word::Path("")),
            ("}}", Word::Path("}}")),
        ] {
            assert_eq!(Word::of(text), want, "{text}");
        }
        for text in [
            "{{mount 0}}",
            "{{ mount 01 }}",
            "{{ mount -1 }}",
            "{{ mount }}",
            "{{ mount  }}",
            "{{ mount 0  }}",
            "{{ mount 0 1 }}",
            "{{ mount 0 }}/",
            "{{ mount 0 }}upper",
            "{{ mount 0 }}/work",
            "{{ mount 0 }}/upper/",
            "{{ mount 0 }}:{{ mount 1 }}",
            "{{ mount 18446744073709551616 }}",
            "x{{ mount 0 }}",
            " {{ mount 0 }}",
            "/a/{{ mount 0 }}/upper",
            "{{ overlay 0 }}",
            "{{ overlay 0 3 1 }}",
            "{{ overlay 0 3 }}x",
            "{{ overlay 0 3 }}/upper",
            "{{ overlay 0  3 }}",
            "{{ overlay a b }}",
            "{{ source 0 }}",
            "{{",
        ] {
            assert_eq!(Word::of(text), Word::Unknown, "{text}");
        }
    }

    #[test]
    fn the_options_of_an_entry_are_read_once() {
        let mount = Mount {
            kind: "format/mkdir/overlay".into(),
            source: "overlay".into(),
            options: [
                "ro,upperdir=/a,upperdir=/b,upperdir=/c",
                "lowerdir={{ mount 0 }}",
                "device=/x",
                "device=/y,odd",
            ]
            .map(String::from)
            .into(),
            ..Mount::default()
        };
        let entry = Entry::read(&mount);
        assert_eq!((entry.base, entry.makes, entry.is_formatted), ("overlay", None, true));
        assert_eq!((entry.upper.first, entry.upper.second), (Some("/a"), Some("/b")));
        assert_eq!((entry.lower.first, entry.lower.second), (Some("{{ mount 0 }}"), None));
        assert_eq!(entry.devices, ["/x", "/y"]);
        assert!(entry.is_read_only && !entry.user_xattr && entry.work.first.is_none());
        // A device is no option of an overlay.
        assert_eq!(entry.unknown, Some("device=/x"));
    }

    #[test]
    fn the_snapshot_is_named_as_its_mounts_name_it() {
        let mount = |source: &str, options: &[&str]| Mount {
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Mount::default()
        };
        let bind = [mount("/r/snapshots/12/fs", &["rw", "rbind"])];
        assert_eq!(snapshot_id(&bind), Some("12"));
        let overlay = [
            mount("/r/snapshots/3/layer.erofs", &["ro"]),
            mount(
                "overlay",
                &["workdir=/r/snapshots/7/work", "upperdir=/r/snapshots/7/fs", "lowerdir={{ mount 0 }}"],
            ),
        ];
        assert_eq!(snapshot_id(&overlay), Some("7"));
        let view = [
            mount("/r/snapshots/3/layer.erofs", &["ro"]),
            mount("/r/snapshots/2/layer.erofs", &["ro"]),
            mount("overlay", &["lowerdir={{ overlay 0 1 }}"]),
        ];
        assert_eq!(snapshot_id(&view), Some("3"));
        let paths = [mount("overlay", &["lowerdir=/r/snapshots/3/fs:/r/snapshots/2/fs"])];
        assert_eq!(snapshot_id(&paths), Some("3"));
        let block = Mount { kind: "mkfs/ext4".to_owned(), ..mount("/r/snapshots/8/rwlayer.img", &[]) };
        assert_eq!(snapshot_id(&[block, mount("/r/snapshots/3/layer.erofs", &[])]), Some("8"));
        // Several options in one string.
        let joined = [
            mount("/r/snapshots/3/layer.erofs", &["ro"]),
            mount("overlay", &["workdir=/r/snapshots/7/work,upperdir=/r/snapshots/7/fs", "index=off"]),
        ];
        assert_eq!(snapshot_id(&joined), Some("7"));
        assert_eq!(snapshot_id(&[mount("/r/snapshots/x7/fs", &[])]), None);
        assert_eq!(snapshot_id(&[]), None);
    }
}
