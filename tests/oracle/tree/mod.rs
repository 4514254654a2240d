//! The tree oracle: every reader of an image of ours finds the tree of the layer.
//!
//! Layers are made on the spot, by GNU tar from a tree with one of everything and by hand from what
//! GNU tar never writes; with `PLYWOOD_CORPORA` set, the corpora of `tests/benches/corpora.py` too
//! (`cargo test --release --test oracle tree::`). The tree that must come out is the one GNU tar
//! extracts, or for the corpora the one read from the archive by the `tar` crate, plus the whiteout
//! rules. It is compared with what the kernel and the erofs-rs crate read from the image, by names,
//! types, modes, owners, nanosecond times, sizes, digests of contents, link targets, hard links,
//! link counts, attributes and device numbers. fsck.erofs and dump.erofs read every image as well.

mod memory;
mod model;
mod pack;
mod spell;

use std::{
    collections::BTreeSet,
    env, fs,
    fs::File,
    io::{BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
};

use libtest_mimic::Failed;
use tempfile::TempDir;
use testkit::{
    Need, Suite,
    host::{plywood, program, run},
    images::{self, Mounted, apply, erofs_utils_accept, read_with_erofs_rs},
    tree::{Kind, Tree, clean, compare, image_of, scan, split},
};

/// Above this many entries a corpus measures speed; its tree would only repeat what smaller ones show.
const MOST_ENTRIES: u64 = 200_000;

pub fn add(suite: &mut Suite) {
    for source in [Source::PackedPosix, Source::PackedGnu, Source::Spelled] {
        add_layer(suite, source);
    }
    match corpora() {
        Some(found) => found.into_iter().for_each(|layer| add_layer(suite, Source::Corpus(layer))),
        None => {
            let corpora =
                Need::Other("PLYWOOD_CORPORA, a directory made by tests/benches/corpora.py", || false);
            suite.test("corpora: every image shows what its layer holds", &[corpora], || ());
        }
    }
    suite.test("memory: a layer streams through, however large", &[], memory::a_stream_of_any_size);
}

// --- layers ----------------------------------------------------------------------------------

/// Where a layer comes from.
#[derive(Clone, Debug)]
enum Source {
    PackedPosix,
    PackedGnu,
    Spelled,
    Corpus(PathBuf),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::PackedPosix => "packed by GNU tar as posix".to_owned(),
            Self::PackedGnu => "packed by GNU tar as gnu".to_owned(),
            Self::Spelled => "spelled by hand".to_owned(),
            Self::Corpus(tar) => {
                let stem = tar.file_stem().unwrap_or_default();
                format!("corpus {}", stem.to_string_lossy())
            }
        }
    }
}

/// A layer, its image, and the tree that must be in it: made once, by the first test that asks.
struct Layer {
    source: Source,
    dir: TempDir,
    made: OnceLock<Result<Made, String>>,
    want: OnceLock<Result<Tree, String>>,
}

struct Made {
    archive: PathBuf,
    image: PathBuf,
}

impl Layer {
    fn new(source: Source) -> Result<Self, Failed> {
        let dir = TempDir::with_prefix_in("tree-oracle-", env!("CARGO_TARGET_TMPDIR"))?;
        Ok(Self { source, dir, made: OnceLock::new(), want: OnceLock::new() })
    }

    fn made(&self) -> Result<&Made, Failed> {
        let made = self.made.get_or_init(|| self.make().map_err(message));
        made.as_ref().map_err(Failed::from)
    }

    fn make(&self) -> Result<Made, Failed> {
        let dir = self.dir.path();
        let archive = match &self.source {
            Source::Corpus(archive) => archive.clone(),
            _ => dir.join("layer.tar"),
        };
        match self.source {
            Source::PackedPosix => pack::pack(dir, pack::Spelling::Posix, &archive)?,
            Source::PackedGnu => pack::pack(dir, pack::Spelling::Gnu, &archive)?,
            Source::Spelled => fs::write(&archive, spell::archive()?)?,
            Source::Corpus(_) => {}
        }
        let image = dir.join("layer.erofs");
        apply(&archive, &image)?;
        Ok(Made { archive, image })
    }

    /// The tree the image must show.
    fn want(&self) -> Result<&Tree, Failed> {
        let want = self.want.get_or_init(|| {
            let made = self.made().map_err(message)?;
            let want = match self.source {
                Source::Corpus(_) => File::open(&made.archive)
                    .map_err(Failed::from)
                    .and_then(|file| model::of_archive(BufReader::with_capacity(1 << 20, file))),
                _ => extracted(&made.archive, &self.dir.path().join("extracted")),
            };
            want.map_err(message)
        });
        want.as_ref().map_err(Failed::from)
    }
}

fn message(failed: Failed) -> String {
    failed.message().unwrap_or("failed").to_owned()
}

/// The tree that GNU tar extracts, with the whiteout rules applied.
fn extracted(archive: &Path, to: &Path) -> Result<Tree, Failed> {
    fs::create_dir(to)?;
    run(Command::new("tar")
        .args(["-x", "-p", "--same-owner", "--numeric-owner", "--delay-directory-restore"])
        .args(["--xattrs", "--xattrs-include=*", "-C"])
        .arg(to)
        .arg("-f")
        .arg(archive))?;
    let tree = scan(to)?;
    fs::remove_dir_all(to)?;
    // Whatever is there without an entry of its own is a parent that only other names imply.
    let mut named = BTreeSet::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        named.insert(clean(&entry?.path_bytes()));
    }
    let above = named.iter().flat_map(|name| {
        std::iter::successors(Some(split(name).0), |name| (!name.is_empty()).then(|| split(name).0))
    });
    let implied = above
        .filter(|name| {
            !named.contains(*name) && tree.get(*name).is_some_and(|node| node.kind == Kind::Directory)
        })
        .map(<[u8]>::to_vec)
        .collect();
    Ok(image_of(tree, &implied))
}

/// The corpora, smallest first; `None` when there are none.
fn corpora() -> Option<Vec<PathBuf>> {
    let dir = PathBuf::from(env::var_os("PLYWOOD_CORPORA")?);
    let manifest = fs::read(dir.join("corpora.json")).ok()?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).ok()?;
    let mut found: Vec<(u64, PathBuf)> = manifest
        .as_object()?
        .iter()
        .filter_map(|(name, corpus)| Some((corpus["entries"].as_u64()?, dir.join(format!("{name}.tar")))))
        .filter(|(entries, tar)| *entries <= MOST_ENTRIES && tar.exists())
        .collect();
    found.sort();
    Some(found.into_iter().map(|(_, tar)| tar).collect())
}

// --- tests -----------------------------------------------------------------------------------

type Test = fn(&Layer) -> Result<(), Failed>;

/// The tests of one layer.
fn add_layer(suite: &mut Suite, source: Source) {
    let corpus = matches!(source, Source::Corpus(_));
    let packed = matches!(source, Source::PackedPosix | Source::PackedGnu);
    let extract = &[Need::Root, Need::GnuTar][..];
    // Devices, owners and trusted attributes take root, to make them as to extract them.
    let make = if packed { extract } else { &[] };
    let want = if corpus { &[] } else { extract };
    let mount = &[Need::Root, Need::FileSystem("erofs")][..];
    let utils = &[Need::Tool("fsck.erofs"), Need::Tool("dump.erofs")][..];
    let tests: [(&str, Vec<Need>, Test); 6] = [
        ("the kernel shows what the layer holds", [make, want, mount].concat(), kernel_shows),
        ("erofs-rs reads what the layer holds", [make, want].concat(), erofs_rs_reads),
        ("tar --diff sees no difference", [make, mount, &[Need::GnuTar]].concat(), tar_compares),
        ("fsck.erofs and dump.erofs have no complaint", [make, utils].concat(), erofs_utils),
        ("plywood check has no complaint", make.to_vec(), checks),
        ("one layer is one image, whatever its coding and the CPUs", make.to_vec(), is_deterministic),
    ];
    let name = source.name();
    let layer = match Layer::new(source) {
        Ok(layer) => Arc::new(layer),
        Err(error) => {
            let error = message(error);
            return suite.test(format!("{name}: is made"), &[], || Err::<(), _>(Failed::from(error)));
        }
    };
    for (sentence, needs, test) in tests {
        let layer = Arc::clone(&layer);
        suite.test(format!("{name}: {sentence}"), &needs, move || test(&layer));
    }
}

fn kernel_shows(layer: &Layer) -> Result<(), Failed> {
    let mounted = Mounted::new(&layer.made()?.image, layer.dir.path().join("mounted"))?;
    compare(layer.want()?, &mounted.tree()?)
}

fn erofs_rs_reads(layer: &Layer) -> Result<(), Failed> {
    compare(layer.want()?, &read_with_erofs_rs(&layer.made()?.image)?)
}

/// GNU tar's own comparison: no attributes, but contents and times without any code of ours.
fn tar_compares(layer: &Layer) -> Result<(), Failed> {
    let made = layer.made()?;
    let mounted = Mounted::new(&made.image, layer.dir.path().join("compared"))?;
    let mut tar = Command::new("tar");
    tar.args(["--diff", "--numeric-owner", "--exclude=.wh.*"]);
    if matches!(layer.source, Source::Spelled) {
        // Entries that a later one replaces differ, of course: only the last of each is looked at.
        tar.args(["--exclude=twice", "--exclude=linked", "--exclude=file-then-directory"]);
        tar.args(["--exclude=directory-then-link", "--exclude=again", "--exclude=times/cut"]);
    }
    run(tar.arg("-C").arg(mounted.path()).arg("-f").arg(&made.archive)).map(drop)
}

fn erofs_utils(layer: &Layer) -> Result<(), Failed> {
    erofs_utils_accept(&layer.made()?.image)
}

fn checks(layer: &Layer) -> Result<(), Failed> {
    run(plywood().arg("check").arg(&layer.made()?.image)).map(drop)
}

fn is_deterministic(layer: &Layer) -> Result<(), Failed> {
    let made = layer.made()?;
    let dir = layer.dir.path();
    let again = dir.join("again.erofs");
    let fresh = || match fs::remove_file(&again) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    apply(&made.archive, &again)?;
    images::same_file(&made.image, &again)?;

    // One CPU: every stage takes turns with every other.
    if let Some(taskset) = program("taskset") {
        fresh()?;
        let command = plywood();
        run(Command::new(taskset)
            .args(["-c", "0"])
            .arg(command.get_program())
            .arg("apply")
            .arg(&made.archive)
            .arg("-o")
            .arg(&again))?;
        images::same_file(&made.image, &again)?;
    }

    // Arriving in pieces that divide nothing evenly.
    fresh()?;
    let mut child = plywood()
        .args(["apply", "-", "-o"])
        .arg(&again)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut pipe = child.stdin.take().ok_or("no pipe")?;
    let archive = fs::read(&made.archive)?;
    let mut sizes = [1, 511, 513, 4095, 70_001, 1_000_003].into_iter().cycle();
    let mut rest = &archive[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
        pipe.write_all(piece)?;
        rest = after;
    }
    drop(pipe);
    if !child.wait()?.success() {
        return Err("plywood apply - failed".into());
    }
    images::same_file(&made.image, &again)?;
    drop(archive);

    // Compressed, the blob has another digest and the image another UUID; nothing else differs.
    for (coding, command) in [("gz", ["gzip", "-1", "-n", "-c"]), ("zst", ["zstd", "-1", "-q", "-c"])] {
        let Some(compressor) = program(command[0]) else { continue };
        let coded = dir.join(format!("layer.tar.{coding}"));
        let status = Command::new(compressor)
            .args(&command[1..])
            .stdin(File::open(&made.archive)?)
            .stdout(File::create(&coded)?)
            .status()?;
        if !status.success() {
            return Err(format!("{command:?} failed").into());
        }
        fresh()?;
        apply(&coded, &again)?;
        fs::remove_file(&coded)?;
        images::same_image(&made.image, &again)?;
    }
    Ok(fs::remove_file(&again)?)
}
