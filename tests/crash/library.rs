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
    snapshot::{Durability, LAYER, LAYER_NAME, Mount, Roots},
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
}

pub const SCENARIOS: [(&str, Library); 5] = [
    ("a tiny layer", Library { len: 10, existing: false, named: false }),
    ("a small layer", Library { len: 1 << 20, existing: false, named: false }),
    ("a large layer", Library { len: 12 << 20, existing: false, named: false }),
    ("a replaced layer", Library { len: 1 << 20, existing: true, named: false }),
    ("a layer without unnamed files", Library { len: 1 << 20, existing: false, named: true }),
];

// --- the child -------------------------------------------------------------------------------

/// Does what the child is for, if this process is one.
pub fn act() -> Option<ExitCode> {
    let role = env::var(ROLE).ok()?;
    let root = PathBuf::from(env::var_os(ROOT)?);
    let outcome = match role.strip_prefix("publish ") {
        Some(len) => publish(&root, len.parse().unwrap()),
        None => sweep(&root),
    };
    let Err(error) = outcome else { return Some(ExitCode::SUCCESS) };
    let text = format!("{} {}: {error}", error.kind().as_str(), error.reason());
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    Some(ExitCode::FAILURE)
}

fn publish(root: &Path, len: usize) -> Result<(), Error> {
    let roots = Roots::open(&[root.to_owned()])?;
    let source = root.join("snapshots/1/fs").to_str().unwrap().to_owned();
    let mount = Mount { kind: "bind".into(), source, ..Mount::default() };
    let snapshot = roots.resolve(&[mount])?;
    let limits = Limits { reserve_bytes: 0, reserve_percent: 0, ..Limits::default() };
    let publication = snapshot.publish(&LAYER, &limits)?;
    let mut layer = publication.file(LAYER_NAME)?;
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
    publication.commit([layer], Durability::Always, false)?;
    Ok(())
}

fn sweep(root: &Path) -> Result<(), Error> {
    let swept = Roots::open(&[root.to_owned()])?.sweep().run(Duration::from_secs(60));
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
            fs::write(snapshot.join("layer.erofs"), OLD).unwrap();
        }
        snapshot
    }

    fn child(self, root: &Path, strace: &[String]) -> Output {
        let mut command = Command::new("strace");
        command.args(strace).arg(env::current_exe().unwrap());
        command.env(ROLE, format!("publish {}", self.len)).env(ROOT, root).output().unwrap()
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

        let found = fs::read(snapshot.join("layer.erofs")).ok();
        let whole = found.as_deref() == Some(&contents(self.len)[..]);
        let before = found.as_deref() == self.existing.then_some(OLD);
        if !whole && !before {
            return Err(format!("a layer of {:?} bytes is left", found.map(|bytes| bytes.len())));
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
            _ => {}
        }
        let leftovers = |when: &str| {
            let mut names: Vec<_> =
                fs::read_dir(&snapshot).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.retain(|name| !matches!(name.to_str(), Some(".erofslayer" | "fs" | "layer.erofs")));
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?} left {when}")) }
        };
        if !killed {
            leftovers("by the publisher")?;
        }
        let own = env::current_exe().unwrap();
        let next = Command::new(own).env(ROLE, "sweep").env(ROOT, place).output().unwrap();
        if !next.status.success() {
            return Err(format!("the next start fails: {}", String::from_utf8_lossy(&next.stderr)));
        }
        leftovers("after the next start")?;
        if fs::read(snapshot.join("layer.erofs")).ok() != found {
            return Err("the next start touched the layer".into());
        }
        Ok(if output.status.success() { Outcome::Unharmed } else { Outcome::Struck })
    }
}
