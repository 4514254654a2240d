//! Live directories: what a walk tells of an upper directory that the kernel wrote, and how it fares
//! with one whose owner means harm.
//!
//! The kernel's overlayfs is the oracle: changes are made through its mount, what is told of the upper
//! directory becomes an image, and the kernel shows that image over the same lower directory. Both views
//! have to be one tree. Most of it needs root, for mounts, devices and attributes of overlayfs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod overlay;
#[path = "../tree_oracle/tree.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod tree;

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use plywood::{
    call::Cancel,
    compare::{
        changes::{self, Counts, Options},
        layer::{Control, DirectoryLayer, Layer},
        output::Output,
    },
    error::Result as CompareResult,
    format::{
        ReadAt,
        erofs::writer::{self, Writer},
    },
    sys::dir::Dir,
    tree::Entry,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

fn main() {
    let arguments = Arguments::from_args();
    let root = (!rustix::process::geteuid().is_root()).then_some("needs root");
    if root.is_none() {
        enter_own_mounts();
    }
    let overlay = root.or_else(|| (!kernel_has("overlay")).then_some("needs overlayfs in the kernel"));
    let erofs = overlay.or_else(|| (!kernel_has("erofs")).then_some("needs EROFS in the kernel"));
    let mut trials = Vec::new();
    for seed in 1..=3 {
        trials.push(trial(&format!("overlay: 200 random changes, seed {seed}"), erofs, move || {
            overlay::random_changes(seed, "trusted")
        }));
    }
    // Each seed is four rounds, one on top of the other.
    let seeds = env::var("PLYWOOD_REDIRECT_SEEDS").map_or(12, |text| text.parse::<u64>().unwrap());
    for first in (0..seeds).step_by(4) {
        let name = format!("overlay: renamed directories and files without data, seeds from {first}");
        trials.push(trial(&name, erofs, move || overlay::redirects(first..first + 4)));
    }
    for (name, needs, run) in [
        (
            "overlay: attributes of the user's own",
            erofs,
            (|| overlay::random_changes(4, "user")) as fn() -> _,
        ),
        ("overlay: renames and files without data that lead nowhere are refused", root, overlay::unresolved),
        (
            "overlay: a redirect of the user's own is refused, as by the kernel",
            overlay,
            overlay::user_redirects,
        ),
        ("overlay: attributes that are not to be seen", root, overlay::privilege),
        ("confined: two capabilities and the layer's directory are enough", root, overlay::confined),
        ("hostile: files that become others are told right or not at all", root, hostile::swaps),
        ("hostile: a file that grows is told right or not at all", None, hostile::growing),
        ("hostile: eight exabytes of nothing", None, hostile::eight_exabytes),
        ("hostile: ten thousand directories in each other", None, hostile::deep),
        ("hostile: a million names", None, hostile::million),
        ("hostile: a mount inside the layer", root, hostile::mounted_inside),
    ] {
        trials.push(trial(name, needs, run));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(
    name: &str,
    needs: Option<&'static str>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || match needs {
        Some(what) => Ok(Completion::ignored_with(what)),
        None => run().map(|()| Completion::Completed),
    })
}

/// Goes on in a mount namespace of its own, so that no way to end leaves a mount behind.
fn enter_own_mounts() {
    const INSIDE: &str = "PLYWOOD_COMPARE_INSIDE";
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]);
        command
    };
    let works = || unshare().arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if env::var_os(INSIDE).is_none() && works() {
        let mut command = unshare();
        command.args(env::current_exe().iter()).args(env::args_os().skip(1)).env(INSIDE, "1");
        // Returns only when it could not start: then mounts are undone one by one as usual.
        let _ = command.exec();
    }
}

fn kernel_has(filesystem: &str) -> bool {
    let known = || std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known().contains(filesystem) {
        let _ = Command::new("modprobe").arg(filesystem).stderr(Stdio::null()).status();
    }
    known().contains(filesystem)
}

/// A mount, until dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(source: &Path, at: &'a Path, kind: &str, options: &str) -> Result<Self, Failed> {
        let options = std::ffi::CString::new(options)?;
        let flags = if kind == "erofs" { MountFlags::RDONLY } else { MountFlags::empty() };
        mount(source, at, kind, flags, Some(options.as_c_str()))
            .map_err(|error| format!("mount {kind} {}: {error}", options.to_string_lossy()))?;
        Ok(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

fn layer(path: &Path, control: Control) -> DirectoryLayer {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    DirectoryLayer::new(Dir::open_root(path).unwrap(), name, control, &Cancel::new()).unwrap()
}

fn compare(
    lower: &[&dyn Layer],
    upper: &[&dyn Layer],
    options: &Options,
    output: &mut dyn Output,
) -> CompareResult<Counts> {
    changes::write(lower, upper, options, &Cancel::new(), &mut |_| Ok(()), output)
}

/// Keeps an image of what is told.
struct Image(Writer<Vec<u8>>);

impl Image {
    fn new() -> Self {
        Self(Writer::new(Vec::new(), writer::Options::default()))
    }

    fn finish(self) -> Vec<u8> {
        let (image, _) = self.0.finish().unwrap();
        assert!(image.size_bytes() > 0);
        image
    }
}

impl Output for Image {
    fn entry(&mut self, entry: &Entry) -> CompareResult<()> {
        Ok(self.0.entry(entry)?)
    }
    fn data(&mut self, offset: u64, bytes: &[u8]) -> CompareResult<()> {
        Ok(self.0.data(offset, bytes)?)
    }
    fn end_entry(&mut self) -> CompareResult<()> {
        Ok(self.0.end_entry()?)
    }
}
