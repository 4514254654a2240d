//! The round trip: a tree is changed in random ways through the kernel's overlayfs, compared with what it was,
//! and the layer that comes out is applied to what it was. What the kernel shows then is what it showed
//! before, name by name: types, modes, owners, times, contents, links, attributes, devices.
//!
//! The layer is a tar, plain and compressed, and an EROFS image, plain and compressed. Plywood applies each,
//! and GNU tar extracts those that are tars, with the whiteout rules written down a second time. Lower layers
//! are images that earlier rounds made, so they hold whiteouts and opaque directories themselves.
//!
//! `PLYWOOD_ROUND_TRIPS` sets the number of rounds; `PLYWOOD_ROUND` runs the chain of that one only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../tree_oracle/images.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod images;
mod merge;
#[path = "../support/mounts.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod mounts;
mod mutate;
#[path = "../tree_oracle/tree.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod tree;

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;

use images::{Mounted, apply, kernel_has_erofs, plywood, program, run};
use merge::merge;
use mounts::Overlay;
use mutate::{Random, change, make};
use tree::{Kind, Tree, compare, count_links, scan, split};

/// Rounds in one trial, each on top of the one before; between trials the tree begins anew.
const CHAIN: u64 = 5;
/// Changes in one round, at most.
const CHANGES: usize = 24;

/// The types of layers, by the names that `--type` takes and the endings of files.
const TAR: [(&str, &str); 3] = [("tar", "tar"), ("tar+gzip", "tar.gz"), ("tar+zstd", "tar.zst")];
const EROFS: [(&str, &str); 2] = [("erofs", "erofs"), ("erofs+zstd", "erofs.zst")];

fn main() {
    let arguments = Arguments::from_args();
    let missing = missing();
    if missing.is_none() {
        enter_own_mounts();
    }
    let count = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = count("PLYWOOD_ROUND_TRIPS").unwrap_or(40);
    let chains: Vec<u64> = match count("PLYWOOD_ROUND") {
        Some(round) => vec![round / CHAIN],
        None => (0..rounds.div_ceil(CHAIN)).collect(),
    };
    let trial = |chain: u64| {
        let name = format!("rounds {} to {}: no difference", chain * CHAIN, chain * CHAIN + CHAIN - 1);
        Trial::ignorable_test(name, move || match missing {
            Some(what) => Ok(Completion::ignored_with(what)),
            None => run_chain(chain).map(|()| Completion::Completed),
        })
    };
    let mut trials: Vec<_> = chains.into_iter().map(trial).collect();
    trials.push(Trial::ignorable_test("layers without inline data are merged by mkfs.erofs", || {
        match [program("mkfs.erofs"), program("fsck.erofs")] {
            [Some(mkfs), Some(fsck)] => merged_by_mkfs(&mkfs, &fsck).map(|()| Completion::Completed),
            _ => Ok(Completion::ignored_with("needs mkfs.erofs and fsck.erofs")),
        }
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Two layers of Diff become one image, if only their files stand in blocks of their own.
fn merged_by_mkfs(mkfs: &Path, fsck: &Path) -> Result<(), Failed> {
    let scratch = TempDir::with_prefix_in("merge-", env!("CARGO_TARGET_TMPDIR"))?;
    let dir = scratch.path();
    for (tree, file) in [("lower", "etc/short"), ("upper", "etc/other")] {
        fs::create_dir_all(dir.join(tree).join("etc"))?;
        fs::write(dir.join(tree).join(file), "a few bytes")?;
        fs::write(dir.join(tree).join("long"), tree.repeat(3000))?;
    }
    let merge = |option: &[&str]| {
        let diff = |older: &str, newer: &str, out: &str| {
            let mut command = plywood();
            command.current_dir(dir).args(["diff", "--user-xattr", "--layer", older, newer, "-o", out]);
            run(command.args(option))
        };
        diff("none", "lower", "1.erofs")?;
        diff("lower", "upper", "2.erofs")?;
        let layers = ["1.erofs", "2.erofs"];
        run(Command::new(mkfs).current_dir(dir).args(["--quiet", "merged.erofs"]).args(layers))?;
        let devices = layers.map(|layer| format!("--device={layer}"));
        run(Command::new(fsck).current_dir(dir).args(devices).args(["--extract=tree", "merged.erofs"]))
    };
    merge(&["--inline-limit", "0"])?;
    assert_eq!(fs::read(dir.join("tree/etc/short"))?, b"a few bytes");
    assert_eq!(fs::read(dir.join("tree/etc/other"))?, b"a few bytes");
    assert_eq!(fs::read(dir.join("tree/long"))?, "upper".repeat(3000).as_bytes());
    // The default is the smaller image, which mkfs.erofs refuses.
    let refused = merge(&[]).err().ok_or("inline data was merged")?;
    let message = refused.message().unwrap_or_default();
    if message.contains("unsupported datalayout") { Ok(()) } else { Err(refused) }
}

fn missing() -> Option<&'static str> {
    let gnu_tar = || run(Command::new("tar").arg("--version")).is_ok_and(|said| said.contains("GNU tar"));
    let unshare = || run(Command::new("unshare").args(["--mount", "true"])).is_ok();
    match () {
        () if !rustix::process::geteuid().is_root() => Some("needs root"),
        () if !kernel_has_erofs() => Some("needs EROFS in the kernel"),
        () if !gnu_tar() => Some("needs GNU tar"),
        () if !unshare() => Some("needs mount namespaces"),
        () => None,
    }
}

/// Goes on in a mount namespace of its own, so that no way to end leaves a mount behind.
fn enter_own_mounts() {
    const INSIDE: &str = "PLYWOOD_ROUND_TRIP_INSIDE";
    if env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]);
        let error = command.args(env::current_exe()).args(env::args_os().skip(1)).env(INSIDE, "1").exec();
        panic!("unshare: {error}");
    }
}

// --- rounds ----------------------------------------------------------------------------------

/// One image below, and where the kernel shows it.
struct Lower {
    image: PathBuf,
    mounted: Mounted,
}

fn run_chain(chain: u64) -> Result<(), Failed> {
    let scratch = TempDir::with_prefix_in("round-trip-", env!("CARGO_TARGET_TMPDIR"))?;
    let mut lowers = vec![base(scratch.path(), chain)?];
    for round in chain * CHAIN..(chain + 1) * CHAIN {
        let dir = scratch.path().join(round.to_string());
        fs::create_dir(&dir)?;
        let image = round_trip(&dir, &lowers, round)
            .map_err(|failed| format!("round {round}: {}", failed.message().unwrap_or("failed")))?;
        let mounted = Mounted::new(&image, dir.join("lower"))?;
        lowers.insert(0, Lower { image, mounted });
    }
    // The mounts before the directory.
    drop(lowers);
    Ok(())
}

/// The first tree of a chain.
fn base(scratch: &Path, seed: u64) -> Result<Lower, Failed> {
    let [tree, archive, image] = ["base", "base.tar", "base.erofs"].map(|name| scratch.join(name));
    fs::create_dir(&tree)?;
    let mut random = Random(!seed);
    for directory in ["", "etc", "usr", "usr/lib", "var", "var/deep/er/still"] {
        fs::create_dir_all(tree.join(directory))?;
        for number in 0..4 {
            make(&tree.join(directory).join(format!("old-{number}")), &mut random)?;
        }
    }
    fs::write(tree.join("etc/joined"), "two names")?;
    fs::hard_link(tree.join("etc/joined"), tree.join("usr/joined"))?;
    for _ in 0..30 {
        change(&tree, &mut random);
    }
    fs::set_permissions(&tree, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::os::unix::fs::chown(&tree, Some(0), Some(0))?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&tree).args(["--sort=name", "--numeric-owner", "--format=posix"]);
    tar.args(["--xattrs", "--xattrs-include=*", "--warning=no-file-ignored", "-cf"]).arg(&archive).arg(".");
    run(&mut tar)?;
    apply(&archive, &image)?;
    let mounted = Mounted::new(&image, scratch.join("lower"))?;
    Ok(Lower { image, mounted })
}

/// How exact a layer's times are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    Seconds,
    Nanoseconds,
}

/// Changes the tree, compares, applies and looks. Returns the image of what changed.
fn round_trip(dir: &Path, lowers: &[Lower], round: u64) -> Result<PathBuf, Failed> {
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.join(name));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let below: Vec<_> = lowers.iter().map(|lower| lower.mounted.path()).collect();
    let overlay = Overlay::new(merged, &below, Some([&upper, &work]))?;
    let before = compared(scan(overlay.path())?, Times::Nanoseconds);
    let mut random = Random(round);
    // Sometimes nothing at all.
    for _ in 0..random.below(CHANGES) {
        change(overlay.path(), &mut random);
    }
    let want = scan(overlay.path())?;

    let stack: Vec<_> = lowers.iter().map(|lower| lower.image.display().to_string()).collect();
    let stack = stack.join(":");
    // A container may be running: the overlay stays mounted meanwhile.
    let diff = |name: &str, arguments: &[&str], newer: &Path| {
        let out = dir.join(name);
        let mut command = plywood();
        command.args(["diff", &stack]).arg(newer).arg("-o").arg(&out).args(arguments);
        run(&mut command).map(|_| out)
    };
    let shown = |image: &Path| -> Result<Tree, Failed> {
        let top = Mounted::new(image, dir.join("top"))?;
        let mut layers = vec![top.path()];
        layers.extend(&below);
        let overlay = Overlay::new(dir.join("result"), &layers, None)?;
        let tree = scan(overlay.path())?;
        drop(overlay);
        Ok(tree)
    };
    let same = |what: &str, found: Tree, times: Times| {
        compare(&compared(want.clone(), times), &compared(found, times))
            .map_err(|failed| Failed::from(format!("{what}: {}", failed.message().unwrap_or_default())))
    };
    let applied = |layer: &Path| -> Result<PathBuf, Failed> {
        let image = layer.with_extension("applied");
        apply(layer, &image)?;
        Ok(image)
    };

    let mut result = None;
    for (kind, ending) in TAR {
        let layer = diff(&format!("layer.{ending}"), &["--layer"], &upper)?;
        same(kind, shown(&applied(&layer)?)?, Times::Seconds)?;
        same(&format!("{kind} by GNU tar"), extracted(dir, &layer, &before)?, Times::Seconds)?;
    }
    let exact = ["--layer", "--timestamps", "nanoseconds", "--type", "tar"];
    let layer = diff("exact", &exact, &upper)?;
    same("tar with nanoseconds", shown(&applied(&layer)?)?, Times::Nanoseconds)?;
    same("tar with nanoseconds by GNU tar", extracted(dir, &layer, &before)?, Times::Nanoseconds)?;
    for (kind, ending) in EROFS {
        let layer = diff(&format!("layer.{ending}"), &["--layer"], &upper)?;
        let image = applied(&layer)?;
        same(kind, shown(&image)?, Times::Nanoseconds)?;
        result = Some(image);
    }
    // The same from the whole tree, without knowing what was changed.
    let layer = diff("walked", &["--timestamps", "nanoseconds", "--type", "tar"], overlay.path())?;
    same("a walk of both trees", shown(&applied(&layer)?)?, Times::Nanoseconds)?;
    drop(overlay);
    result.ok_or_else(|| "no image".into())
}

/// The tree that GNU tar's reading of a layer makes of `before`.
fn extracted(dir: &Path, layer: &Path, before: &Tree) -> Result<Tree, Failed> {
    let to = dir.join("extracted");
    fs::create_dir(&to)?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "-p", "--same-owner", "--numeric-owner", "--delay-directory-restore"]);
    tar.args(["--xattrs", "--xattrs-include=*", "-C"]).arg(&to).arg("-f").arg(layer);
    run(&mut tar)?;
    let mut tree = scan(&to)?;
    fs::remove_dir_all(&to)?;
    // Without an entry of its own, the root is whatever this test made.
    let named = run(Command::new("tar").arg("-tf").arg(layer))?;
    if !named.lines().any(|name| name == "./") {
        tree.insert(Vec::new(), before.get(&b""[..]).cloned().ok_or("no root")?);
    }
    Ok(merge(before.clone(), tree))
}

/// A tree as it is compared: no sockets, which no layer holds; no time of the root, which is no change; link counts
/// by names, because overlayfs counts otherwise.
fn compared(mut tree: Tree, times: Times) -> Tree {
    tree.retain(|_, node| node.kind != Kind::Socket);
    for (name, node) in &mut tree {
        if times == Times::Seconds {
            node.mtime.1 = 0;
        }
        if name.is_empty() {
            node.mtime = (0, 0);
        }
        assert!(!split(name).1.starts_with(b".wh."), "a whiteout as a file");
    }
    count_links(&mut tree);
    tree
}
