//! The round trip: a tree is changed in random ways through the kernel's overlayfs, compared with what it was,
//! and the layer that comes out is applied to what it was. What the kernel shows then is what it showed
//! before, name by name: types, modes, owners, times, contents, links, attributes, devices.
//!
//! The layer is a tar, plain and compressed, and an EROFS image, plain and compressed. Plywood applies each,
//! and GNU tar extracts those that are tars, with the whiteout rules written down a second time. Lower layers
//! are images that earlier rounds made, so they hold whiteouts and opaque directories themselves.
//!
//! `PLYWOOD_ROUND_TRIPS` sets the number of rounds; `PLYWOOD_ROUND` runs the chain of that one only.

mod merge;
mod mutate;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::Failed;
use merge::merge;
use mutate::{change, make};
use tempfile::TempDir;
use testkit::{
    Need, Suite,
    host::{plywood, program, run},
    images::{Mounted, apply},
    mounts::Overlay,
    random::Random,
    tree::{Kind, Tree, compare, count_links, scan, split},
};

/// Rounds in one trial, each on top of the one before; between trials the tree begins anew.
const CHAIN: u64 = 5;
/// Changes in one round, at most.
const CHANGES: usize = 24;

/// The types of layers, by the names that `--type` takes and the endings of files.
const TAR: [(&str, &str); 3] = [("tar", "tar"), ("tar+gzip", "tar.gz"), ("tar+zstd", "tar.zst")];
const EROFS: [(&str, &str); 2] = [("erofs", "erofs"), ("erofs+zstd", "erofs.zst")];

pub fn add(suite: &mut Suite) {
    let count = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = count("PLYWOOD_ROUND_TRIPS").unwrap_or(40);
    let chains: Vec<u64> = match count("PLYWOOD_ROUND") {
        Some(round) => vec![round / CHAIN],
        None => (0..rounds.div_ceil(CHAIN)).collect(),
    };
    for chain in chains {
        let name = format!("rounds {} to {}: no difference", chain * CHAIN, chain * CHAIN + CHAIN - 1);
        let needs = [Need::Root, Need::FileSystem("erofs"), Need::GnuTar, Need::MountNamespace];
        suite.test(name, &needs, move || run_chain(chain));
    }
    let utils = [Need::Tool("mkfs.erofs"), Need::Tool("fsck.erofs")];
    suite.test("layers without inline data are merged by mkfs.erofs", &utils, merged_by_mkfs);
}

/// Two layers of Diff become one image, if only their files stand in blocks of their own.
fn merged_by_mkfs() -> Result<(), Failed> {
    let [mkfs, fsck] = ["mkfs.erofs", "fsck.erofs"].map(|name| program(name).unwrap());
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
        run(Command::new(&mkfs).current_dir(dir).args(["--quiet", "merged.erofs"]).args(layers))?;
        let devices = layers.map(|layer| format!("--device={layer}"));
        run(Command::new(&fsck).current_dir(dir).args(devices).args(["--extract=tree", "merged.erofs"]))
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
    // A walk of the whole tree, without the changes at hand, gives the same.
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
