//! The publisher as a child of the test: this very program, which publishes and does nothing else.

use std::{
    env, fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    time::Duration,
};

use plywood::{
    error::Error,
    format::Sink,
    limits::Limits,
    snapshot::{
        DEVICE_LAYER, Durability, LAYER, LAYER_NAME, MERGED_NAME, Mount, OVERLAYBD_NAME, Roots,
        TAR_INDEX_NAME, TAR_NAME,
    },
};
use testkit::strace::{self, Fault};

use super::{Outcome, Publisher};

/// Set for the child: what it shall do, and in which root.
const ROLE: &str = "PLYWOOD_CRASH_ROLE";
const ROOT: &str = "PLYWOOD_CRASH_ROOT";
/// Bytes of an earlier layer of the same snapshot.
const OLD: &[u8] = b"an earlier layer";
/// Bytes of one write.
const PIECE: usize = 128 << 10;

#[derive(Clone, Copy)]
pub struct Library {
    len: usize,
    /// A layer is there already.
    existing: bool,
    /// The file system has no unnamed files.
    named: bool,
    kind: Kind,
}

/// Kinds of layers, by the files that are published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One image.
    Image,
    /// An image with merged metadata of it and all layers below.
    Merged,
    /// An image in the place of one with merged metadata.
    Unmerged,
    /// A native layer of a device.
    Native,
    /// A layer of a device that points into the archive beside it.
    Turbo,
}

impl Kind {
    /// The files, in the order in which they are published.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Image | Self::Unmerged => &[LAYER_NAME],
            Self::Merged => &[LAYER_NAME, MERGED_NAME],
            Self::Native => &[OVERLAYBD_NAME],
            Self::Turbo => &[TAR_NAME, TAR_INDEX_NAME, OVERLAYBD_NAME],
        }
    }

    /// All files that layers of this snapshotter may have.
    fn all(self) -> &'static [&'static str] {
        match self {
            Self::Image => &[LAYER_NAME],
            Self::Merged | Self::Unmerged => Self::Merged.files(),
            Self::Native | Self::Turbo => Self::Turbo.files(),
        }
    }

    /// Whether it is a layer of the EROFS snapshotter.
    fn is_image(self) -> bool {
        matches!(self, Self::Image | Self::Merged | Self::Unmerged)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Merged => "merged",
            Self::Unmerged => "unmerged",
            Self::Native => "native",
            Self::Turbo => "turbo",
        }
    }

    fn of(name: &str) -> Self {
        let all = [Self::Image, Self::Merged, Self::Unmerged, Self::Native, Self::Turbo];
        all.into_iter().find(|kind| kind.name() == name).unwrap()
    }

    fn roots(self, root: &Path) -> Result<Roots, Error> {
        let roots = [root.to_owned()];
        Ok(match self {
            _ if self.is_image() => Roots::open(&roots)?,
            _ => Roots::open(&[])?.with_overlaybd(&roots)?,
        })
    }
}

const PLAIN: Library = Library { len: 1 << 20, existing: false, named: false, kind: Kind::Image };

pub const SCENARIOS: [(&str, Library); 12] = [
    ("a tiny layer", Library { len: 10, ..PLAIN }),
    ("a small layer", PLAIN),
    ("a large layer", Library { len: 12 << 20, ..PLAIN }),
    ("a replaced layer", Library { existing: true, ..PLAIN }),
    ("a layer without unnamed files", Library { named: true, ..PLAIN }),
    ("a layer with merged metadata", Library { kind: Kind::Merged, ..PLAIN }),
    ("a layer with merged metadata replaced", Library { kind: Kind::Merged, existing: true, ..PLAIN }),
    (
        "a layer with merged metadata replaced by one without",
        Library { kind: Kind::Unmerged, existing: true, ..PLAIN },
    ),
    ("an archive and its layer", Library { kind: Kind::Turbo, ..PLAIN }),
    ("an archive and its layer replaced", Library { kind: Kind::Turbo, existing: true, ..PLAIN }),
    ("an archive and its layer without unnamed files", Library { kind: Kind::Turbo, named: true, ..PLAIN }),
    (
        "an archive and its layer replaced by a native layer",
        Library { kind: Kind::Native, existing: true, ..PLAIN },
    ),
];

/// What the overlaybd snapshotter makes of the files at commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No layer.
    Nothing,
    /// An archive, which it converts itself.
    Archive,
    /// A layer.
    Layer,
}

// --- the child -------------------------------------------------------------------------------

/// Does what the child is for, if this process is one.
pub fn act() -> Option<ExitCode> {
    let role = env::var(ROLE).ok()?;
    let root = PathBuf::from(env::var_os(ROOT)?);
    let outcome = match role.strip_prefix("publish ") {
        Some(what) => {
            let (kind, len) = what.split_once(' ').unwrap();
            publish(&root, Kind::of(kind), len.parse().unwrap())
        }
        None => sweep(Kind::of(role.strip_prefix("sweep ").unwrap()), &root),
    };
    let Err(error) = outcome else { return Some(ExitCode::SUCCESS) };
    let text = format!("{} {}: {error}", error.kind().as_str(), error.reason());
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    Some(ExitCode::FAILURE)
}

fn publish(root: &Path, kind: Kind, len: usize) -> Result<(), Error> {
    let roots = kind.roots(root)?;
    let source = root.join("snapshots/1/fs").to_str().unwrap().to_owned();
    let mount = Mount { kind: "bind".into(), source, ..Mount::default() };
    let snapshot = roots.resolve(&[mount])?;
    let limits = Limits { reserve_bytes: 0, reserve_percent: 0, ..Limits::default() };
    let set = if kind.is_image() { &LAYER } else { &DEVICE_LAYER };
    let publication = snapshot.publish(set, &limits)?;
    let mut files = Vec::new();
    for name in kind.files() {
        let mut layer = publication.file(name)?;
        // The head last, as an image's superblock.
        let bytes = contents(len);
        let (head, body) = bytes.split_at(len.min(PIECE));
        let mut at = head.len() as u64;
        for piece in body.chunks(PIECE) {
            layer.write_at(at, piece).map_err(Error::disk)?;
            at += piece.len() as u64;
        }
        layer.write_at(0, head).map_err(Error::disk)?;
        layer.set_len(bytes.len() as u64).map_err(Error::disk)?;
        files.push(layer);
    }
    publication.commit(files, Durability::Always, false)?;
    Ok(())
}

fn sweep(kind: Kind, root: &Path) -> Result<(), Error> {
    let swept = kind.roots(root)?.sweep().run(Duration::from_secs(60));
    assert!(swept.finished && swept.failed == 0 && swept.live == 0, "{swept:?}");
    Ok(())
}

/// The bytes of a layer.
fn contents(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

// --- the test --------------------------------------------------------------------------------

impl Library {
    /// A fresh snapshot directory.
    fn prepare(self, root: &Path) -> PathBuf {
        let _ = fs::remove_dir_all(root);
        let snapshot = root.join("snapshots/1");
        fs::create_dir_all(snapshot.join("fs")).unwrap();
        fs::write(snapshot.join(".erofslayer"), "").unwrap();
        fs::set_permissions(snapshot.join(".erofslayer"), fs::Permissions::from_mode(0o644)).unwrap();
        for dir in [root, &snapshot] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        if self.existing {
            for name in self.kind.all() {
                fs::write(snapshot.join(name), OLD).unwrap();
            }
        }
        snapshot
    }

    /// The files of the snapshot, those that are missing too.
    fn found(self, snapshot: &Path) -> Vec<(&'static str, Option<Vec<u8>>)> {
        self.kind.all().iter().map(|name| (*name, fs::read(snapshot.join(name)).ok())).collect()
    }

    fn is_whole(self, found: &[(&str, Option<Vec<u8>>)]) -> bool {
        let new = contents(self.len);
        found.iter().all(|(name, bytes)| bytes.as_ref() == self.kind.files().contains(name).then_some(&new))
    }

    fn is_as_before(self, found: &[(&str, Option<Vec<u8>>)]) -> bool {
        found.iter().all(|(_, bytes)| bytes.as_deref() == self.existing.then_some(OLD))
    }

    /// What the snapshotter takes the files for. Errors: a torn file, or a layer beside files of another one.
    fn state(self, found: &[(&str, Option<Vec<u8>>)]) -> Result<State, String> {
        let new = contents(self.len);
        let sizes =
            || found.iter().map(|(name, bytes)| (*name, bytes.as_ref().map(Vec::len))).collect::<Vec<_>>();
        if found.iter().flat_map(|(_, bytes)| bytes).any(|bytes| *bytes != new && bytes != OLD) {
            return Err(format!("torn: {:?}", sizes()));
        }
        if let (true, [(_, layer), metadata @ ..]) = (self.kind.is_image(), found) {
            // Merged metadata stands beside the very layer that it was made of, or not at all.
            let belongs = metadata.iter().all(|(_, metadata)| metadata.is_none() || metadata == layer);
            return match (belongs, layer) {
                (false, _) => Err(format!("metadata beside another layer: {:?}", sizes())),
                (true, Some(_)) => Ok(State::Layer),
                (true, None) => Ok(State::Nothing),
            };
        }
        let last = |name: &str| *self.kind.all().last().unwrap() == name;
        if !found.iter().any(|(name, bytes)| last(name) && bytes.is_some()) {
            let archive = found.iter().any(|(name, bytes)| *name == TAR_NAME && bytes.is_some());
            return Ok(if archive { State::Archive } else { State::Nothing });
        }
        match self.is_whole(found) || self.is_as_before(found) {
            true => Ok(State::Layer),
            false => Err(format!("a layer beside files of another one: {:?}", sizes())),
        }
    }

    fn child(self, root: &Path, strace: &[String]) -> Output {
        let mut command = Command::new("strace");
        command.args(strace).arg(env::current_exe().unwrap());
        command
            .env(ROLE, format!("publish {} {}", self.kind.name(), self.len))
            .env(ROOT, root)
            .output()
            .unwrap()
    }
}

impl Publisher for Library {
    fn traced(&self, place: &Path, strace: &[String]) {
        self.prepare(place);
        let output = self.child(place, strace);
        assert!(output.status.success(), "{output:?}");
    }

    fn concerns(&self, place: &Path, line: &str) -> bool {
        line.contains(place.to_str().unwrap())
    }

    /// Takes unnamed files away, if the scenario says so.
    fn always(&self, scratch: &Path) -> Vec<String> {
        if !self.named {
            return Vec::new();
        }
        let calls = strace::list(scratch, &[], |strace| self.traced(&scratch.join("traced"), strace));
        let open = calls.iter().find(|point| point.call == "openat" && point.line.contains("O_TMPFILE"));
        let number = open.expect("the publisher asks for an unnamed file first").number;
        vec!["-e".into(), format!("inject=openat:error=EOPNOTSUPP:when={number}")]
    }

    fn attempt(&self, place: &Path, strace: &[String], fault: Fault) -> Result<Outcome, String> {
        let snapshot = self.prepare(place);
        let output = self.child(place, strace);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let killed = output.status.signal() == Some(9);

        let found = self.found(&snapshot);
        let [whole, before] = [self.is_whole(&found), self.is_as_before(&found)];
        let state = self.state(&found)?;
        if self.kind == Kind::Image && !whole && !before {
            return Err(format!("no layer is left, where there was one: {state:?}"));
        }
        let kind = if fault == Fault::NoSpace { "resource_exhausted" } else { "unavailable" };
        match fault {
            _ if output.status.success() && whole => {}
            _ if output.status.success() => return Err("success was reported without a layer".into()),
            Fault::Kill if killed => {}
            _ if !message.starts_with(kind) => {
                return Err(format!("{:?} instead of {kind}: {message}", output.status));
            }
            // A layer that was replaced stays replaced when the directory cannot be synced after that.
            _ if whole && !self.existing => return Err(format!("a layer is left after {message}")),
            // Of several files, those that came first may be gone or new: no layer is among them.
            _ if !before && !whole && !self.existing && state != State::Nothing => {
                return Err(format!("{state:?} is left after {message}"));
            }
            _ => {}
        }
        let leftovers = |when: &str| {
            let mut names: Vec<_> =
                fs::read_dir(&snapshot).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let known = [&[".erofslayer", "fs"], self.kind.all()].concat();
            names.retain(|name| !known.iter().any(|known| name == known));
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?} left {when}")) }
        };
        if !killed {
            leftovers("by the publisher")?;
        }
        let own = env::current_exe().unwrap();
        let next = Command::new(own)
            .env(ROLE, format!("sweep {}", self.kind.name()))
            .env(ROOT, place)
            .output()
            .unwrap();
        if !next.status.success() {
            return Err(format!("the next start fails: {}", String::from_utf8_lossy(&next.stderr)));
        }
        leftovers("after the next start")?;
        if self.found(&snapshot) != found {
            return Err("the next start touched the layer".into());
        }
        Ok(if output.status.success() { Outcome::Unharmed } else { Outcome::Struck })
    }
}
