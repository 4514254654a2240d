//! `plywood scrub` under a real containerd: it finds what was broken, mends it without a pull, and is silent otherwise.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use plywood_integration::archive::{self, Sparse, Spelling, Tree};
use plywood_integration::env::{Env, Setup};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer};
use plywood_integration::tree;
use serde_json::Value;
use testkit::random::Random;

use crate::Suite;

/// Images of the test that breaks every snapshot, and layers of each.
const IMAGES: usize = 4;
const LAYERS: usize = 25;
/// Layers of each image of the test that breaks none; ten images are unpacked by us and ten by containerd's own differ.
const SOUND_LAYERS: usize = 50;
const SOUND_IMAGES: usize = 10;

pub fn add(suite: &mut Suite) {
    suite.with_env("scrub_finds_and_mends_100_snapshots_broken_at_random", Setup::default(), broken);
    let setup = Setup { differs: &["erofs"], ..Setup::default() };
    suite.with_env("scrub_gives_no_alarm_on_1000_sound_snapshots", setup, sound);
    suite.with_env("scrub_says_what_a_pull_has_to_bring", Setup::default(), blob_is_gone);
    suite.with_env("scrub_tells_leftovers_from_work_in_progress", Setup::default(), in_progress);
    suite.with_env("scrub_follows_no_name_below_a_root", Setup::default(), hostile);
    suite.with_env("scrub_minds_what_is_beside_a_layer", Setup::default(), beside);
    // mkfs.erofs merges no layers with tails beside their inodes.
    let setup = Setup { plywood_tables: "[erofs]\ninline_limit = 0\n".to_owned(), ..Setup::default() };
    suite.with_env("scrub_finds_and_mends_damaged_merged_metadata", setup, merged);
    suite.with_env("scrub_says_what_running_containers_see", Setup::default(), running);
    let plywood_tables =
        "[overlaybd]\nvirtual_gib = 1\nlayers = \"native\"\n[limits]\nreserve_percent = 0\n".to_owned();
    let setup =
        Setup { overlaybd: true, plywood_tables, differs: &["plywood", "walking"], ..Setup::default() };
    suite.with_env("scrub_mends_layers_of_devices", setup, devices);
}

/// Exit code, and the report or the error.
fn scrub(env: &Env, arguments: &[&str]) -> anyhow::Result<(i32, Value)> {
    let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
    command.args(["scrub", "--json", "--config"]).arg(env.path("plywood.toml")).args(arguments);
    let output = command.output()?;
    let object = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.status.code().context("ended by a signal")?, object))
}

/// The findings of a report that has the exit code `want`.
fn findings(env: &Env, arguments: &[&str], want: i32) -> anyhow::Result<Vec<Value>> {
    let (code, report) = scrub(env, arguments)?;
    anyhow::ensure!(code == want, "exit code {code} instead of {want}: {report:#}");
    Ok(report["findings"].as_array().context("no findings")?.clone())
}

/// Numbers of the snapshots in findings of a state.
fn numbers(findings: &[Value], state: &str) -> Vec<u64> {
    let of_state = findings.iter().filter(|finding| finding["state"] == state);
    let mut numbers: Vec<_> = of_state.filter_map(|finding| finding["snapshot"].as_u64()).collect();
    numbers.sort_unstable();
    numbers
}

/// An image whose lowest layer has a shell, and with layers of some files each.
fn image(number: usize, layers: usize, coding: Coding) -> anyhow::Result<Image> {
    let scratch = tempfile::tempdir()?;
    let mut all = Vec::new();
    for layer in 0..layers {
        let tree = Tree::create(&scratch.path().join(format!("tree-{layer}")))?;
        if layer == 0 {
            for dir in ["proc", "sys", "dev", "etc", "tmp"] {
                tree.dir(dir)?;
            }
            tree.program("bin/busybox", &std::fs::read(host::program("busybox").context("no busybox")?)?)?;
            tree.hard_link("bin/sh", "bin/busybox")?;
        }
        let name = format!("data/image-{number}-layer-{layer}");
        tree.file(&name, marker(number, layer).repeat(40 + layer * 50).as_bytes())?;
        tree.symlink(&format!("data/link-{number}-{layer}"), &format!("/{name}"))?;
        tree.mode("data", 0o755)?;
        let tar = scratch.path().join(format!("{layer}.tar"));
        tree.pack(Spelling::Pax, &tar)?;
        all.push(Layer::oci(&std::fs::read(&tar)?, coding)?);
    }
    Ok(Image::oci(all))
}

/// Text of a layer's file.
fn marker(number: usize, layer: usize) -> String {
    format!("contents of layer {layer} of image {number}; ")
}

/// Directories of the committed snapshots, by number.
fn snapshots(env: &Env) -> anyhow::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    for file in env.layer_files()? {
        let directory = file.parent().context("no directory")?.to_owned();
        let name = directory.file_name().context("no name")?.to_string_lossy().into_owned();
        found.insert(name.parse()?, directory);
    }
    Ok(found)
}

/// A way to break a snapshot, and whether a look at the structure finds it.
type Damage = (&'static str, bool, fn(&Path, &mut Random) -> anyhow::Result<()>);

const DAMAGES: [Damage; 10] = [
    ("emptied", true, |dir, _| Ok(std::fs::write(dir.join("layer.erofs"), "")?)),
    ("truncated", true, |dir, random| {
        let file = open(dir)?;
        let size = usize::try_from(file.metadata()?.len())?;
        // At least the last block: what follows the end of the image does not matter.
        Ok(file.set_len(random.below(size - 4096) as u64)?)
    }),
    ("removed", true, |dir, _| Ok(std::fs::remove_file(dir.join("layer.erofs"))?)),
    ("torn", true, |dir, _| {
        // Our images have their metadata at the end: the write of the last blocks did not reach the disk.
        let file = open(dir)?;
        let size = file.metadata()?.len();
        let from = (size / 2).next_multiple_of(4096).min(size - 4096);
        Ok(file.write_all_at(&vec![0; usize::try_from(size - from)?], from)?)
    }),
    ("superblock bit flipped", true, |dir, random| {
        let at = 1024 + random.below(64);
        flip(dir, at, random)
    }),
    ("data bit flipped", false, |dir, random| flip_in(dir, b"contents of layer ", random)),
    ("name bit flipped", false, |dir, random| flip_in(dir, b"image-", random)),
    ("without its marker", true, |dir, _| Ok(std::fs::remove_file(dir.join(".erofslayer"))?)),
    ("without its directory to mount on", true, |dir, _| {
        unmount(dir)?;
        Ok(std::fs::remove_dir(dir.join("fs"))?)
    }),
    ("without its directory", true, |dir, _| {
        unmount(dir)?;
        Ok(std::fs::remove_dir_all(dir)?)
    }),
];

fn open(dir: &Path) -> anyhow::Result<std::fs::File> {
    Ok(std::fs::File::options().read(true).write(true).open(dir.join("layer.erofs"))?)
}

fn flip(dir: &Path, at: usize, random: &mut Random) -> anyhow::Result<()> {
    let (file, mut byte) = (open(dir)?, [0]);
    file.read_exact_at(&mut byte, at as u64)?;
    Ok(file.write_all_at(&[byte[0] ^ 1 << random.below(8)], at as u64)?)
}

/// Flips a bit in one of the places where the image has `text`.
fn flip_in(dir: &Path, text: &[u8], random: &mut Random) -> anyhow::Result<()> {
    let bytes = std::fs::read(dir.join("layer.erofs"))?;
    let places: Vec<_> = (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text)).collect();
    anyhow::ensure!(!places.is_empty(), "the image has no {:?}", text.escape_ascii().to_string());
    let at = random.of(&places) + random.below(text.len());
    flip(dir, at, random)
}

fn unmount(dir: &Path) -> anyhow::Result<()> {
    // Not mounted, if it is the topmost layer.
    Command::new("umount").arg("--lazy").arg(dir.join("fs")).output()?;
    Ok(())
}

fn broken(env: &mut Env) -> anyhow::Result<()> {
    let images: Vec<_> =
        (0..IMAGES).map(|number| image(number, LAYERS, Coding::Gzip)).collect::<Result<_, _>>()?;
    let mut references = Vec::new();
    for (number, image) in images.iter().enumerate() {
        references.push(env.push(&format!("image-{number}"), image)?);
        env.pull(&references[number], "erofs", &[])?;
    }
    let snapshots = snapshots(env)?;
    anyhow::ensure!(snapshots.len() == IMAGES * LAYERS, "{} snapshots", snapshots.len());
    anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty(), "alarms before");
    let blobs = content(env)?;

    let mut random = Random(20);
    let (mut all, mut structural) = (Vec::new(), Vec::new());
    for (index, (number, directory)) in snapshots.iter().enumerate() {
        let (what, is_structural, damage) = DAMAGES[index % DAMAGES.len()];
        damage(directory, &mut random).with_context(|| format!("{what}: {}", directory.display()))?;
        all.push(*number);
        if is_structural {
            structural.push(*number);
        }
    }
    // A name with another letter may be out of order, which is a matter of structure.
    let found = numbers(&findings(env, &[], 3)?, "broken");
    let missed: Vec<_> = structural.iter().filter(|number| !found.contains(number)).collect();
    anyhow::ensure!(missed.is_empty() && found.len() < all.len(), "missed {missed:?}, found {found:?}");
    let found = numbers(&findings(env, &["--deep"], 3)?, "broken");
    anyhow::ensure!(found == all, "{found:?} instead of {all:?}");

    let mended = findings(env, &["--deep", "--repair"], 0)?;
    anyhow::ensure!(numbers(&mended, "repaired") == all, "{mended:#?}");
    anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty(), "alarms after");
    anyhow::ensure!(content(env)? == blobs, "the content store has changed");
    for (number, reference) in references.iter().enumerate() {
        for layer in [0, LAYERS / 2, LAYERS - 1] {
            let script = format!("read line < /data/link-{number}-{layer}; echo \"$line\"");
            let said = env.run(reference, "erofs", &["/bin/sh", "-c", &script])?;
            anyhow::ensure!(
                said.starts_with(&marker(number, layer)),
                "image {number}, layer {layer}: {said:.99}"
            );
        }
    }
    anyhow::ensure!(env.leftovers()?.is_empty(), "left behind: {:?}", env.leftovers()?);
    Ok(())
}

/// Names of the blobs in the content store.
fn content(env: &Env) -> anyhow::Result<String> {
    host::run(&mut env.ctr(&["content", "ls", "--quiet"]))
}

fn sound(env: &mut Env) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    // mkfs.erofs takes the place-holder of a sparse file for the file: scrub is right to find that.
    let files = archive::feature_layers(scratch.path(), Sparse::Without)?;
    let features: Vec<_> = files.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    for number in 0..2 * SOUND_IMAGES {
        let is_ours = number < SOUND_IMAGES;
        let mut layers = Vec::new();
        // No snapshot of one differ is to be found by the other: chains begin with another layer.
        layers.push(Layer::oci(
            &archive::one_file("first", &archive::text(100, number as u64))?,
            Coding::Gzip,
        )?);
        for tar in &features {
            layers.push(Layer::oci(tar, Coding::Gzip)?);
        }
        while layers.len() < SOUND_LAYERS {
            let seed = (number * SOUND_LAYERS + layers.len()) as u64;
            let name = format!("dir-{}/file-{}", seed % 7, layers.len());
            let tar = archive::one_file(&name, &archive::text(500 + 97 * layers.len(), seed))?;
            layers.push(Layer::oci(&tar, [Coding::Gzip, Coding::Zstd, Coding::Plain][layers.len() % 3])?);
        }
        let reference = env.push(&format!("sound-{number}"), &Image::oci(layers))?;
        env.pull(&reference, "erofs", if is_ours { &[] } else { &["--local"] })?;
    }
    let total = 2 * SOUND_IMAGES * SOUND_LAYERS;
    for arguments in [&[][..], &["--deep"]] {
        let (code, report) = scrub(env, arguments)?;
        anyhow::ensure!(code == 0 && report["findings"] == serde_json::json!([]), "{report:#}");
        let count = |name: &str| report["counts"][name].as_u64();
        anyhow::ensure!(count("sound") == Some(total as u64), "{report:#}");
        anyhow::ensure!(
            count("compared") == Some(if arguments.is_empty() { 0 } else { total as u64 }),
            "{report:#}"
        );
        println!("{total} snapshots, {arguments:?}: {:.1} s", report["seconds"].as_f64().unwrap_or_default());
    }
    Ok(())
}

fn blob_is_gone(env: &mut Env) -> anyhow::Result<()> {
    let image = image(0, 3, Coding::Gzip)?;
    let reference = env.push("image", &image)?;
    env.pull(&reference, "erofs", &[])?;
    let (number, directory) = snapshots(env)?.pop_last().context("no snapshot")?;
    std::fs::write(directory.join("layer.erofs"), "")?;
    let digest = image.layers[2].digest();
    // Another machine's registry has it; this content store has let go of it.
    host::run(&mut env.ctr(&["content", "rm", &digest]))?;
    for arguments in [&[][..], &["--repair"]] {
        let found = findings(env, arguments, 3)?;
        anyhow::ensure!(numbers(&found, "broken") == [number], "{found:#?}");
        let command = format!("ctr --namespace {} content fetch {reference}", env.namespace());
        anyhow::ensure!(found[0]["commands"] == serde_json::json!([command]), "{found:#?}");
        anyhow::ensure!(found[0]["layer"] == serde_json::json!(digest), "{found:#?}");
    }
    host::run(env.ctr(&["content", "fetch", "--plain-http", &reference]).args(["--platform", "all"]))
        .or_else(|_| host::run(&mut env.ctr(&["content", "fetch", "--plain-http", &reference])))?;
    anyhow::ensure!(numbers(&findings(env, &["--repair"], 0)?, "repaired") == [number]);

    // Damaged in the store, which notices nothing.
    std::fs::write(directory.join("layer.erofs"), "")?;
    let blob = env.blob(&digest);
    let mut bytes = std::fs::read(&blob)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o644))?;
    std::fs::write(&blob, bytes)?;
    let found = findings(env, &["--repair"], 3)?;
    let commands = found[0]["commands"].as_array().context("no commands")?;
    anyhow::ensure!(
        commands.len() == 2 && commands[0].as_str().is_some_and(|line| line.ends_with(&digest)),
        "{found:#?}"
    );
    anyhow::ensure!(
        std::fs::metadata(directory.join("layer.erofs"))?.len() == 0,
        "replaced by something else"
    );
    Ok(())
}

fn in_progress(env: &mut Env) -> anyhow::Result<()> {
    let base = image(0, 3, Coding::Gzip)?;
    let reference = env.push("base", &base)?;
    env.pull(&reference, "erofs", &[])?;
    let top = base.chain_id();
    let caller = env.caller()?;
    caller.prepare("container", &top)?;
    caller.prepare("extract-1 nothing", "")?;
    caller.view("erofs", "view", &top)?;
    // Pulls, and removals, while scrubs run.
    let others: Vec<_> = (1..6).map(|number| image(number, 8, Coding::Gzip)).collect::<Result<_, _>>()?;
    let mut references = Vec::new();
    for (number, image) in others.iter().enumerate() {
        references.push(env.push(&format!("other-{number}"), image)?);
    }
    let env = &*env;
    std::thread::scope(|scope| {
        let puller = scope.spawn(|| {
            for reference in &references {
                env.pull(reference, "erofs", &[])?;
                host::run(&mut env.ctr(&["image", "rm", "--sync", reference]))?;
            }
            anyhow::Ok(())
        });
        while !puller.is_finished() {
            let found = findings(env, &[], 0)?;
            anyhow::ensure!(found.is_empty(), "{found:#?}");
        }
        puller.join().map_err(|_panic| anyhow::anyhow!("the puller has panicked"))?
    })?;

    let root = env.snapshots().join("snapshots");
    std::fs::create_dir_all(root.join("4711/fs"))?;
    std::fs::create_dir(root.join("new-123"))?;
    let temporary = snapshots(env)?.into_values().next().context("no snapshot")?;
    let temporary = temporary.join(format!(".plywood-{}.tmp", "0".repeat(32)));
    std::fs::write(&temporary, "half")?;
    let found = findings(env, &[], 4)?;
    let mut reasons: Vec<_> = found.iter().filter_map(|finding| finding["reason"].as_str()).collect();
    reasons.sort_unstable();
    anyhow::ensure!(reasons == ["scrub.orphan", "scrub.orphan", "scrub.temporary"], "{found:#?}");
    let found = findings(env, &["--repair"], 0)?;
    anyhow::ensure!(found.iter().all(|finding| finding["state"] == "removed"), "{found:#?}");
    for path in [root.join("4711"), root.join("new-123"), temporary] {
        anyhow::ensure!(!path.exists(), "{} is still there", path.display());
    }
    // Work of others is untouched.
    caller.mounts("erofs", "container")?;
    caller.mounts("erofs", "view")?;
    Ok(())
}

fn hostile(env: &mut Env) -> anyhow::Result<()> {
    let reference = env.push("image", &image(0, 6, Coding::Gzip)?)?;
    env.pull(&reference, "erofs", &[])?;
    let outside = env.path("outside");
    std::fs::create_dir(&outside)?;
    std::fs::write(outside.join("secret"), "untouched")?;
    let root = env.snapshots().join("snapshots");
    symlink(&outside, root.join("4711"))?;
    symlink("/etc", root.join("a link"))?;
    std::fs::write(root.join("n".repeat(255)), "")?;
    host::run(Command::new("mkfifo").arg(root.join("4712")))?;
    host::run(Command::new("mknod").arg(root.join("4713")).args(["c", "1", "5"]))?;
    let directories: Vec<_> = snapshots(env)?.into_iter().collect();
    let layer = |index: usize| directories[index].1.join("layer.erofs");
    for index in 0..5 {
        std::fs::remove_file(layer(index))?;
    }
    host::run(Command::new("mkfifo").arg(layer(0)))?;
    symlink(outside.join("secret"), layer(1))?;
    host::run(Command::new("mknod").arg(layer(2)).args(["b", "7", "0"]))?;
    std::fs::create_dir(layer(3))?;
    symlink("/dev/zero", layer(4))?;

    let broken: Vec<_> = directories[..5].iter().map(|(number, _)| *number).collect();
    let found = findings(env, &[], 3)?;
    anyhow::ensure!(numbers(&found, "broken") == broken, "{found:#?}");
    let strays = found.iter().filter(|finding| finding["reason"] == "scrub.orphan").count();
    anyhow::ensure!(strays == 5, "{found:#?}");
    // A directory is not replaced: whose it is, nobody knows.
    let found = findings(env, &["--repair"], 3)?;
    anyhow::ensure!(numbers(&found, "broken") == broken[3..4], "{found:#?}");
    anyhow::ensure!(
        numbers(&found, "repaired") == [broken[0], broken[1], broken[2], broken[4]],
        "{found:#?}"
    );
    anyhow::ensure!(std::fs::read_to_string(outside.join("secret"))? == "untouched");
    std::fs::remove_dir(layer(3))?;
    findings(env, &["--repair"], 0)?;
    anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty());
    let said = env.run(&reference, "erofs", &["/bin/sh", "-c", "echo runs"])?;
    anyhow::ensure!(said.trim() == "runs", "{said}");
    Ok(())
}

/// Merges the layers of some directories, the bottom one first, with a program.
fn merge(program: &str, dirs: &[&Path], output: &Path) -> anyhow::Result<()> {
    let layers: Vec<_> = dirs.iter().map(|dir| dir.join("layer.erofs")).collect();
    let mut command = match program {
        "plywood" => {
            let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
            command.arg("merge").args(layers).arg("-o").arg(output);
            command
        }
        _ => {
            let mut command = Command::new(host::program(program).context("no mkfs.erofs")?);
            command.args(["--quiet", "--aufs", "--ovlfs-strip=1"]).arg(output).args(layers);
            command
        }
    };
    host::run(&mut command)?;
    Ok(())
}

fn merged(env: &mut Env) -> anyhow::Result<()> {
    let reference = env.push("image", &image(0, 4, Coding::Gzip)?)?;
    env.pull(&reference, "erofs", &[])?;
    let snapshots: Vec<_> = snapshots(env)?.into_iter().collect();
    let dirs: Vec<_> = snapshots.iter().map(|(_, dir)| dir.as_path()).collect();
    let (number, file) = (snapshots[3].0, dirs[3].join("fsmeta.erofs"));
    merge("plywood", &dirs, &file)?;
    let whole = std::fs::read(&file)?;
    anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty(), "an alarm for what is sound");

    // The snapshotter passes over an empty file.
    std::fs::write(&file, "")?;
    anyhow::ensure!(findings(env, &[], 0)?.is_empty(), "an alarm for an empty file");

    let other = |dirs: &[&Path]| -> anyhow::Result<Vec<u8>> {
        let other = env.path("other.erofs");
        merge("plywood", dirs, &other)?;
        Ok(std::fs::read(other)?)
    };
    let mut name = whole.clone();
    let at = whole.windows(8).rposition(|bytes| bytes == b"image-0-").context("no name")?;
    name[at] ^= 1;
    let half = whole.len() / 2;
    let damages = [
        ("truncated", whole[..half].to_vec(), "erofs.", ""),
        ("torn", [&whole[..half], &vec![0; whole.len() - half]].concat(), "erofs.", ""),
        ("text", b"merged".to_vec(), "erofs.", ""),
        ("of fewer layers", other(&dirs[..3])?, "scrub.merged", ""),
        ("of layers in another order", other(&[dirs[1], dirs[0], dirs[2], dirs[3]])?, "scrub.merged", ""),
        ("with another name", name, "", "--deep"),
    ];
    for (what, bytes, reason, option) in damages {
        std::fs::write(&file, bytes)?;
        let options: Vec<_> = [option].into_iter().filter(|option| !option.is_empty()).collect();
        let found = findings(env, &options, 3).context(what)?;
        anyhow::ensure!(
            numbers(&found, "broken") == [number]
                && found[0]["path"] == file.display().to_string()
                && found[0]["reason"].as_str().is_some_and(|found| found.starts_with(reason)),
            "{what}: {found:#?}"
        );
        let found = findings(env, &[&options[..], &["--repair"]].concat(), 0).context(what)?;
        anyhow::ensure!(numbers(&found, "repaired") == [number], "{what}: {found:#?}");
        anyhow::ensure!(std::fs::read(&file)? == whole, "{what}: other bytes after the repair");
    }

    // Without a way to merge, the layers are mounted one by one.
    std::fs::remove_file(&file)?;
    std::fs::create_dir(&file)?;
    let found = findings(env, &[], 3)?;
    anyhow::ensure!(numbers(&found, "broken") == [number], "{found:#?}");
    std::fs::remove_dir(&file)?;

    // As containerd has it made.
    merge("mkfs.erofs", &dirs, &file)?;
    anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty(), "an alarm for what mkfs.erofs has merged");
    let bytes = std::fs::read(&file)?;
    std::fs::write(&file, &bytes[..bytes.len() / 2])?;
    let found = findings(env, &["--repair"], 0)?;
    anyhow::ensure!(numbers(&found, "repaired") == [number], "{found:#?}");

    // A layer below that is made anew may have its data elsewhere.
    std::fs::write(dirs[1].join("layer.erofs"), "")?;
    let found = findings(env, &[], 3)?;
    anyhow::ensure!(numbers(&found, "broken") == [snapshots[1].0], "{found:#?}");
    findings(env, &["--repair"], 0)?;
    anyhow::ensure!(!file.exists() && findings(env, &["--deep"], 0)?.is_empty());

    // A sound image that was put in the place of a layer, and whose files are compressed: there is nothing to merge.
    let packed = env.path("packed");
    std::fs::create_dir(&packed)?;
    std::fs::write(packed.join("zeros"), vec![0; 1 << 20])?;
    let mut mkfs = Command::new(host::program("mkfs.erofs").context("no mkfs.erofs")?);
    host::run(mkfs.args(["--quiet", "-zlz4"]).arg(dirs[1].join("layer.erofs")).arg(&packed))?;
    std::fs::write(&file, "merged")?;
    let found = findings(env, &["--repair"], 0)?;
    anyhow::ensure!(
        numbers(&found, "repaired") == [number]
            && found[0]["notes"].to_string().contains("[merge.compressed]"),
        "{found:#?}"
    );
    anyhow::ensure!(!file.exists() && findings(env, &[], 0)?.is_empty(), "what cannot be merged is left");
    Ok(())
}

fn beside(env: &mut Env) -> anyhow::Result<()> {
    let reference = env.push("image", &image(0, 4, Coding::Gzip)?)?;
    env.pull(&reference, "erofs", &[])?;
    let snapshots: Vec<_> = snapshots(env)?.into_iter().collect();
    let (layer, number) =
        (|index: usize| snapshots[index].1.join("layer.erofs"), |index: usize| snapshots[index].0);

    // Whoever made the hash tree has to make it again.
    let side_file = snapshots[0].1.join("layer.erofs.dmverity");
    std::fs::write(&side_file, "{}")?;
    let found = findings(env, &["--repair"], 3)?;
    anyhow::ensure!(
        found[0]["reason"] == "scrub.verity" && numbers(&found, "broken") == [number(0)],
        "{found:#?}"
    );
    anyhow::ensure!(found[0]["notes"].to_string().contains("scrub.unrepairable"), "{found:#?}");
    std::fs::remove_file(side_file)?;

    // Bytes that a write to the wrong place has left behind the image.
    open(&snapshots[1].1)?.write_all_at(&[1; 9000], std::fs::metadata(layer(1))?.len())?;
    // Merged metadata says where the data of the layers below is.
    std::fs::write(snapshots[3].1.join("fsmeta.erofs"), "merged")?;
    let found = findings(env, &["--repair"], 0)?;
    anyhow::ensure!(
        found[0]["reason"] == "scrub.size" && numbers(&found, "repaired") == [number(1), number(3)],
        "{found:#?}"
    );
    anyhow::ensure!(!snapshots[3].1.join("fsmeta.erofs").exists(), "merged metadata is still there");

    // The snapshotter's setting set_immutable; not every file system has it.
    std::fs::write(layer(2), "")?;
    let marked = Command::new("chattr").arg("+i").arg(layer(2)).status().is_ok_and(|status| status.success());
    let found = findings(env, &["--repair"], 0)?;
    anyhow::ensure!(numbers(&found, "repaired") == [number(2)], "{found:#?}");
    if marked {
        anyhow::ensure!(std::fs::remove_file(layer(2)).is_err(), "the new layer is not marked");
        anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty(), "a marked layer cannot be compared");
        host::run(Command::new("chattr").arg("-i").arg(layer(2)))?;
    }

    // A layer that is elsewhere is no loss, where layers may be.
    std::fs::remove_file(layer(3))?;
    let shared = env.path("shared");
    std::fs::create_dir(&shared)?;
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o755))?;
    let config = std::fs::read_to_string(env.path("plywood.toml"))?;
    let config = config.replace("[snapshots]\n", &format!("[snapshots]\nshared_layers = [{shared:?}]\n"));
    std::fs::write(env.path("shared.toml"), config)?;
    let mut command = Command::new(host::plywood_binary().context("no plywood binary")?);
    command.args(["scrub", "--config"]).arg(env.path("shared.toml"));
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.code() == Some(4) && text.contains("[scrub.shared]"), "{text}");
    Ok(())
}

fn running(env: &mut Env) -> anyhow::Result<()> {
    let reference = env.push("image", &image(0, 3, Coding::Gzip)?)?;
    env.pull(&reference, "erofs", &[])?;
    let script = "while :; do read line < /data/link-0-0; echo \"${line%%;*}\" > /tmp/seen; sleep 1; done";
    let container =
        env.start_container(&reference, "erofs", "shop", &["/bin/busybox", "sh", "-c", script])?;
    let (number, directory) = snapshots(env)?.pop_first().context("no snapshot")?;
    let before = std::fs::metadata(directory.join("layer.erofs"))?.ino();
    std::fs::remove_file(directory.join(".erofslayer"))?;
    std::fs::rename(directory.join("layer.erofs"), env.path("kept"))?;
    let found = findings(env, &["--repair"], 0)?;
    anyhow::ensure!(numbers(&found, "repaired") == [number], "{found:#?}");
    let notes = found[0]["notes"].to_string();
    anyhow::ensure!(notes.contains("sees the old layer until it is started again"), "{notes}");
    anyhow::ensure!(notes.contains("released the snapshotter's mount of the old layer"), "{notes}");
    anyhow::ensure!(std::fs::metadata(directory.join("layer.erofs"))?.ino() != before);
    // The container goes on, and another one starts from the new layer.
    let seen = container.root().join("tmp/seen");
    let _ = std::fs::remove_file(&seen);
    plywood_integration::env::wait_until("the container reads its layer", || {
        Ok(std::fs::read_to_string(&seen).is_ok_and(|text| text.starts_with("contents of layer 0")))
    })?;
    let said =
        env.run(&reference, "erofs", &["/bin/sh", "-c", "read line < /data/link-0-0; echo \"$line\""])?;
    anyhow::ensure!(said.starts_with(&marker(0, 0)), "{said:.99}");
    Ok(())
}

fn devices(env: &mut Env) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let files = archive::feature_layers(scratch.path(), Sparse::With)?;
    let layers = files.iter().map(|file| Layer::oci(&std::fs::read(file)?, Coding::Gzip));
    let reference = env.push("features", &Image::oci(layers.collect::<anyhow::Result<_>>()?))?;
    env.pull(&reference, "overlaybd", &[])?;
    anyhow::ensure!(findings(env, &["--deep"], 0)?.is_empty());
    let mut committed: Vec<_> =
        env.overlaybd()?.committed().into_iter().map(|(directory, _)| directory).collect();
    committed.sort();
    let before: Vec<_> = committed
        .iter()
        .map(|dir| std::fs::read(dir.join("fs/overlaybd.commit")))
        .collect::<Result<_, _>>()?;
    let file = |index: usize| committed[index].join("fs/overlaybd.commit");
    std::fs::write(file(0), "")?;
    let size = std::fs::metadata(file(1))?.len();
    std::fs::File::options().write(true).open(file(1))?.set_len(size / 2)?;
    // A bit of a compressed block: only a look at all blocks finds it.
    let mut bytes = before[2].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file(2), bytes)?;
    anyhow::ensure!(numbers(&findings(env, &[], 3)?, "broken").len() >= 2);
    anyhow::ensure!(numbers(&findings(env, &["--deep"], 3)?, "broken").len() == 3);
    let found = findings(env, &["--deep", "--repair"], 0)?;
    anyhow::ensure!(numbers(&found, "repaired").len() == 3, "{found:#?}");
    for (index, before) in before.iter().enumerate() {
        anyhow::ensure!(std::fs::read(file(index))? == *before, "layer {index} has other bytes");
    }
    anyhow::ensure!(tree::scan(scratch.path()).is_ok());
    Ok(())
}
