//! Diff of what containerd's EROFS snapshotter makes: containers that run, committed snapshots, arbitrary pairs. The
//! result, applied to the older one by GNU tar and by Plywood, is the newer one.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use containerd_client::services::v1::DiffRequest;
use containerd_client::types::{Descriptor, Mount};
use plywood_integration::archive::{self, Sparse};
use plywood_integration::calls::{Caller, Differ};
use plywood_integration::env::{Env, Setup, wait_until};
use plywood_integration::host;
use plywood_integration::image::{self, Coding, Image, Layer};
use plywood_integration::tree::{self, Tree, carried};

use crate::Suite;

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Script of a container that changes its image: every kind of change, then a mark that it is done.
pub const CHANGES: &str = r#"set -e
b=/bin/busybox
echo new > /etc/added
echo more >> /etc/kept
$b touch -d '2001-02-03 04:05:06' /etc/kept
$b rm /etc/changed
$b rm -r /many
$b rm -r /opaque && $b mkdir /opaque && echo fresh > /opaque/fresh
$b rm -r /links/below && echo 'a file now' > /links/below
$b rm /links/dangling && $b mkdir /links/dangling && echo x > /links/dangling/child
$b mkdir -p /a/deep/tree
echo x > /a/deep/tree/file
$b ln /etc/added /a/second-name
$b ln -s ../etc/added /a/link
$b mkfifo /a/fifo
$b mknod /a/null c 1 3
$b chmod 0750 /nodes
$b chown 12:34 /modes/owned
$b chmod 4711 /modes/secret
$b truncate -s 8M /a/sparse && echo end >> /a/sparse
$b mv /sizes/1024 /sizes/renamed
$b chmod 0700 /attributes/one
echo done > /a/done
exec $b sleep 1000
"#;

type Test = fn(&mut Env) -> anyhow::Result<()>;

pub fn add(suite: &mut Suite) {
    let tests: [(&str, Test); 11] = [
        ("diff_of_a_running_container_gives_its_tree", running_container),
        ("diff_of_every_committed_snapshot_gives_its_tree", committed),
        ("diff_of_two_arbitrary_snapshots_leads_from_one_to_the_other", arbitrary),
        ("diff_of_an_unchanged_container_is_an_empty_archive", unchanged),
        ("diff_of_a_side_without_mounts_is_that_of_an_empty_tree", without_mounts),
        ("diff_of_renamed_directories_and_files_without_data_gives_their_tree", recorded),
        ("diff_in_every_type_gives_the_same_tree", every_type),
        ("diff_twice_is_one_blob_also_after_half_a_write_and_without_its_label", repeated),
        ("diff_lowers_times_to_the_epoch", epoch),
        ("diff_without_a_lease_outlives_a_collection", leases),
        ("diff_that_is_cancelled_killed_or_refused_leaves_nothing", failures),
    ];
    for (name, test) in tests {
        suite.with_env(name, Setup::default(), test);
    }
    let walking = Setup { differs: &["walking"], ..Setup::default() };
    suite.with_env("diff_on_overlayfs_equals_the_walking_differs", walking, overlayfs);
}

/// The image of every feature, pulled.
pub struct Pulled {
    reference: String,
    /// The tars, the lowest first.
    files: Vec<PathBuf>,
    /// The names of their snapshots.
    chain: Vec<String>,
    scratch: tempfile::TempDir,
}

impl Pulled {
    pub fn new(env: &Env, snapshotter: &str) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let files = archive::feature_layers(scratch.path(), Sparse::With)?;
        let layers = files.iter().map(|file| Layer::oci(&std::fs::read(file)?, Coding::Gzip));
        let image = Image::oci(layers.collect::<anyhow::Result<_>>()?);
        let chain = (1..=image.layers.len())
            .map(|count| Image::oci(image.layers[..count].to_vec()).chain_id())
            .collect();
        let reference = env.push("features", &image)?;
        // The diff service unpacks for any snapshotter with whatever differ it has.
        env.pull(&reference, snapshotter, if snapshotter == "erofs" { &[] } else { &["--local"] })?;
        Ok(Self { reference, files, chain, scratch })
    }

    fn top(&self) -> &str {
        &self.chain[self.chain.len() - 1]
    }

    /// Layers of the image, the lowest first.
    pub fn layers(&self) -> anyhow::Result<Vec<Layer>> {
        self.files.iter().map(|file| Layer::oci(&std::fs::read(file)?, Coding::Gzip)).collect()
    }
}

/// `ctr snapshots diff`, which asks containerd, which asks Plywood: the blob.
fn ctr_diff(env: &Env, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = env.ctr(&["snapshots", "--snapshotter", "erofs", "diff"]);
    let output = command.args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ctr snapshots diff {arguments:?}: {said}");
    Ok(output.stdout)
}

fn gunzip(blob: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut tar = Vec::new();
    // One member: what comes after it would not be read by everybody.
    let mut decoder = flate2::bufread::GzDecoder::new(blob);
    decoder.read_to_end(&mut tar)?;
    anyhow::ensure!(decoder.into_inner().is_empty(), "more than one gzip member");
    Ok(tar)
}

/// Applies a gzip layer to the layers below it, by GNU tar and by Plywood; both must give `want`.
fn leads_to(env: &Env, below: &[PathBuf], parent: &str, blob: &[u8], want: &Tree) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let tar = gunzip(blob)?;
    let file = scratch.path().join("diff.tar");
    std::fs::write(&file, &tar)?;
    let mut layers = below.to_vec();
    layers.push(file);
    let by_tar = scratch.path().join("tree");
    tree::stack(&layers, &by_tar)?;
    tree::ensure_equal(want, &carried(&by_tar)?).context("applied by GNU tar")?;
    let layer = Layer {
        media_type: GZIP.into(),
        blob: blob.to_vec(),
        diff_id: image::digest(&tar),
        annotations: BTreeMap::new(),
    };
    applied(env, parent, &layer, want)
}

/// Applies a layer on a parent by Plywood and compares what the kernel then shows.
fn applied(env: &Env, parent: &str, layer: &Layer, want: &Tree) -> anyhow::Result<()> {
    let caller = env.caller()?;
    caller.ingest(layer)?;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let key = format!("apply-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mounts = caller.prepare(&key, parent)?;
    let answer = caller.apply(layer, &mounts)?;
    anyhow::ensure!(answer.digest == layer.diff_id, "applied {answer:?}, not {}", layer.diff_id);
    caller.commit("erofs", &format!("{key}-done"), &key)?;
    caller.view("erofs", &format!("{key}-view"), &format!("{key}-done"))?;
    let mounted = env.mount_snapshot("erofs", &format!("{key}-view"))?;
    tree::ensure_equal(want, &carried(mounted.path())?).context("applied by Plywood")
}

/// Starts a container that changes its image, and waits until it has.
pub fn changed<'e>(
    env: &'e Env,
    pulled: &Pulled,
    snapshotter: &str,
    id: &str,
) -> anyhow::Result<plywood_integration::env::Container<'e>> {
    let container =
        env.start_container(&pulled.reference, snapshotter, id, &["/bin/busybox", "sh", "-c", CHANGES])?;
    let mark = container.root().join("a/done");
    let log = env.path(&format!("logs/{id}.log"));
    wait_until("the container has changed its tree", || Ok(is_written(&mark)))
        .with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
    Ok(container)
}

/// The request that commit clients send for an active snapshot.
/// Whether a file is there with its contents: a shell makes it first and writes to it then.
pub fn is_written(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.len() > 0)
}

fn request(left: Vec<Mount>, right: Vec<Mount>) -> DiffRequest {
    DiffRequest { left, right, ..DiffRequest::default() }
}

/// The request for an active snapshot on the image, with a view of the image of its own.
pub fn on_top(caller: &Caller, pulled: &Pulled, key: &str) -> anyhow::Result<DiffRequest> {
    let left = caller.view("erofs", &format!("below-{key}"), pulled.top())?;
    Ok(request(left, caller.mounts("erofs", key)?))
}

fn running_container(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let container = changed(env, &pulled, "erofs", "changing")?;
    let want = carried(&container.root())?;
    let blob = ctr_diff(env, &["changing"])?;
    leads_to(env, &pulled.files, pulled.top(), &blob, &want)?;

    // Only what changed is in it: the image has 3 MB of noise that would show.
    anyhow::ensure!(blob.len() < 100_000, "the diff has {} bytes", blob.len());
    let tar = gunzip(&blob)?;
    let mut names = Vec::new();
    for entry in tar::Archive::new(&tar[..]).entries()? {
        let entry = entry?;
        names.push(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
        let header = entry.header();
        anyhow::ensure!(header.username_bytes().is_none_or(<[u8]>::is_empty), "{names:?}: a user name");
    }
    for expected in ["etc/", "etc/.wh.changed", ".wh.many", "opaque/.wh..wh..opq", "opaque/fresh", "a/fifo"] {
        anyhow::ensure!(names.iter().any(|name| name == expected), "{expected} is not in {names:?}");
    }

    // Stopped, its snapshot is what it was.
    container.kill()?;
    anyhow::ensure!(ctr_diff(env, &["changing"])? == blob, "another blob once the container has ended");
    // Committed, it is an image; the changes are the same ones.
    let caller = env.caller()?;
    caller.commit("erofs", "changed", "changing")?;
    let committed = ctr_diff(env, &["changed"])?;
    leads_to(env, &pulled.files, pulled.top(), &committed, &want)
}

fn committed(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    for (number, name) in pulled.chain.iter().enumerate() {
        let want = pulled.scratch.path().join(format!("want-{number}"));
        tree::stack(&pulled.files[..=number], &want)?;
        let parent = number.checked_sub(1).map_or("", |below| &pulled.chain[below]);
        let blob = ctr_diff(env, &[name])?;
        leads_to(env, &pulled.files[..number], parent, &blob, &carried(&want)?)
            .with_context(|| format!("layer {number}"))?;
    }
    // A container of an image of one layer.
    let caller = env.caller()?;
    let mounts = caller.prepare("one", &pulled.chain[0])?;
    let upper = upper_directory(&mounts)?;
    std::fs::write(upper.join("added"), "of one layer")?;
    let tar = gunzip(&ctr_diff(env, &["one"])?)?;
    let mut archive = tar::Archive::new(&tar[..]);
    let names: Vec<_> =
        archive.entries()?.map(|e| Ok(e?.path()?.into_owned())).collect::<anyhow::Result<_>>()?;
    anyhow::ensure!(names == [Path::new("added")], "{names:?}");
    Ok(())
}

fn upper_directory(mounts: &[Mount]) -> anyhow::Result<PathBuf> {
    let options = &mounts.first().context("no mount")?.options;
    let upper = options.iter().find_map(|option| option.strip_prefix("upperdir=")).context("no upperdir")?;
    Ok(upper.into())
}

fn arbitrary(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let other = archive::one_file("etc/kept", b"another image altogether")?;
    let file = pulled.scratch.path().join("other.tar");
    std::fs::write(&file, &other)?;
    let image = Image::oci(vec![Layer::oci(&other, Coding::Zstd)?]);
    let reference = env.push("other", &image)?;
    env.pull(&reference, "erofs", &[])?;
    let other = image.chain_id();
    let all = pulled.files.clone();
    let [base, top] = [pulled.chain[0].as_str(), pulled.top()];
    let pairs: [(&str, &[PathBuf], &str, &[PathBuf]); 4] = [
        (base, &all[..1], top, &all),
        (top, &all, base, &all[..1]),
        (&other, std::slice::from_ref(&file), top, &all),
        (top, &all, &other, std::slice::from_ref(&file)),
    ];
    for (left, below, right, wanted) in pairs {
        let want = tempfile::tempdir()?;
        tree::stack(wanted, want.path())?;
        let blob = ctr_diff(env, &[left, right])?;
        leads_to(env, below, left, &blob, &carried(want.path())?)
            .with_context(|| format!("from {left} to {right}"))?;
    }
    Ok(())
}

fn unchanged(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    env.caller()?.prepare("unchanged", pulled.top())?;
    let tar = gunzip(&ctr_diff(env, &["unchanged"])?)?;
    anyhow::ensure!(tar == [0; 1024], "{} bytes that are no empty archive", tar.len());
    Ok(())
}

/// The requests of BuildKit's containerd worker: nothing is no mounts, not the mounts of an empty snapshot.
fn without_mounts(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let caller = env.caller()?;
    for (number, name) in pulled.chain.iter().enumerate() {
        let want = pulled.scratch.path().join(format!("want-{number}"));
        tree::stack(&pulled.files[..=number], &want)?;
        let newer = caller.view("erofs", &format!("newer-{number}"), name)?;
        for differ in [Differ::Plywood, Differ::Service] {
            let found = caller.diff(differ, request(Vec::new(), newer.clone()), None)?;
            let layer = fetched(&caller, &found)?;
            leads_to(env, &[], "", &layer.blob, &carried(&want)?).with_context(|| format!("{differ:?}"))?;
        }
    }
    let whole = caller.view("erofs", "whole", pulled.top())?;
    for differ in [Differ::Plywood, Differ::Service] {
        let found = caller.diff(differ, request(whole.clone(), Vec::new()), None)?;
        leads_to(env, &pulled.files, pulled.top(), &fetched(&caller, &found)?.blob, &Tree::new())
            .with_context(|| format!("{differ:?}"))?;
        let found = caller.diff(differ, request(Vec::new(), Vec::new()), None)?;
        anyhow::ensure!(gunzip(&fetched(&caller, &found)?.blob)? == [0; 1024], "no empty archive: {found:?}");
    }
    let layer = Layer::oci(&archive::one_file("file", b"contents")?, Coding::Gzip)?;
    caller.ingest(&layer)?;
    for refused in [caller.apply(&layer, &[]), caller.apply_by_service(&layer, &[])] {
        let refused = refused.err().context("applied to nothing")?;
        anyhow::ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused}");
    }
    Ok(())
}

fn every_type(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let container = changed(env, &pulled, "erofs", "changing")?;
    let want = carried(&container.root())?;
    let caller = env.caller()?;
    let asked = on_top(&caller, &pulled, "changing")?;
    for (media_type, applied_type) in [
        ("", GZIP),
        (GZIP, GZIP),
        ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("application/vnd.erofs.layer.v1", "application/vnd.erofs.layer.v1"),
        ("application/vnd.erofs.layer.v1+zstd", "application/vnd.erofs.layer.v1+zstd"),
        ("application/vnd.oci.image.layer.v1.erofs", "application/vnd.oci.image.layer.v1.erofs"),
    ] {
        for differ in [Differ::Plywood, Differ::Service] {
            let message = DiffRequest { media_type: media_type.into(), ..asked.clone() };
            let found = caller.diff(differ, message, None).with_context(|| format!("{media_type:?}"))?;
            anyhow::ensure!(found.media_type == applied_type, "{media_type:?}: {found:?}");
            let layer = fetched(&caller, &found)?;
            if differ == Differ::Plywood && !media_type.is_empty() {
                applied(env, pulled.top(), &layer, &want).with_context(|| media_type.to_owned())?;
            }
        }
    }
    let refused = caller
        .diff(Differ::Plywood, DiffRequest { media_type: "text/plain".into(), ..asked }, None)
        .err()
        .context("text/plain was written")?;
    anyhow::ensure!(refused.code() == tonic::Code::Unimplemented, "{refused}");
    anyhow::ensure!(refused.message().contains("text/plain"), "{refused}");
    Ok(())
}

/// A blob of the store as a layer; its label must name what it decodes to.
fn fetched(caller: &Caller, found: &Descriptor) -> anyhow::Result<Layer> {
    let (size_bytes, labels) = caller.content(&found.digest)?.context("the blob is not in the store")?;
    anyhow::ensure!(size_bytes == found.size, "{size_bytes} bytes are not {found:?}");
    let diff_id = labels.get(UNCOMPRESSED).with_context(|| format!("no label: {labels:?}"))?.clone();
    let blob = caller.read(&found.digest)?;
    anyhow::ensure!(image::digest(&blob) == found.digest, "the store's bytes have another digest");
    let decoded = match found.media_type.rsplit_once('+') {
        Some((_, "gzip")) => gunzip(&blob)?,
        Some((_, "zstd")) => zstd::decode_all(&blob[..])?,
        _ => blob.clone(),
    };
    anyhow::ensure!(image::digest(&decoded) == diff_id, "the label names something else");
    Ok(Layer { media_type: found.media_type.clone(), blob, diff_id, annotations: BTreeMap::new() })
}

fn repeated(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let container = changed(env, &pulled, "erofs", "changing")?;
    let caller = env.caller()?;
    let asked = on_top(&caller, &pulled, "changing")?;
    let first = caller.diff(Differ::Plywood, asked.clone(), None)?;
    let second = caller.diff(Differ::Service, asked.clone(), None)?;
    anyhow::ensure!(first == second, "{first:?} and {second:?}");

    // A reference that an earlier attempt has left half written, longer than the whole.
    drop(caller.open_write("a-reference", &archive::noise(500_000, 1))?);
    let labels: HashMap<_, _> = [("plywood.test/asked".to_owned(), "for".to_owned())].into();
    let named = DiffRequest { r#ref: "a-reference".into(), labels, ..asked.clone() };
    let third = caller.diff(Differ::Plywood, named.clone(), None)?;
    anyhow::ensure!(first == third, "{first:?} and {third:?}");
    // The store knew the blob: its labels are completed all the same.
    let labels = || -> anyhow::Result<_> { Ok(caller.content(&first.digest)?.context("gone")?.1) };
    anyhow::ensure!(labels()?.get("plywood.test/asked").is_some_and(|v| v == "for"), "{:?}", labels()?);
    anyhow::ensure!(labels()?.contains_key(UNCOMPRESSED), "{:?}", labels()?);

    caller.set_labels(&first.digest, [("containerd.io/gc.root".to_owned(), "t".to_owned())].into())?;
    anyhow::ensure!(!labels()?.contains_key(UNCOMPRESSED), "the label was not removed");
    let fourth = caller.diff(Differ::Plywood, asked, None)?;
    anyhow::ensure!(first == fourth, "{first:?} and {fourth:?}");
    fetched(&caller, &fourth)?;
    let begun = caller.ingests()?;
    anyhow::ensure!(begun.keys().all(|name| name == "a-reference"), "left behind: {begun:?}");
    drop(container);
    Ok(())
}

fn epoch(env: &mut Env) -> anyhow::Result<()> {
    const EPOCH: i64 = 1_000_000_000;
    let pulled = Pulled::new(env, "erofs")?;
    let _container = changed(env, &pulled, "erofs", "changing")?;
    let caller = env.caller()?;
    let mut asked = on_top(&caller, &pulled, "changing")?;
    asked.source_date_epoch = Some(prost_types::Timestamp { seconds: EPOCH, nanos: 0 });
    let found = caller.diff(Differ::Plywood, asked, None)?;
    let tar = gunzip(&fetched(&caller, &found)?.blob)?;
    let mut times = BTreeMap::new();
    for entry in tar::Archive::new(&tar[..]).entries()? {
        let entry = entry?;
        times.insert(entry.path()?.into_owned(), entry.header().mtime()?);
    }
    let epoch = u64::try_from(EPOCH)?;
    anyhow::ensure!(times.values().all(|time| *time <= epoch), "{times:?}");
    anyhow::ensure!(times.get(Path::new("etc/added")) == Some(&epoch), "{times:?}");
    anyhow::ensure!(times.get(Path::new("etc/.wh.changed")) == Some(&0), "{times:?}");
    // 2001-02-03 04:05:06 is earlier than the epoch of September of that year.
    anyhow::ensure!(times.get(Path::new("etc/kept")) == Some(&981_173_106), "{times:?}");
    Ok(())
}

fn leases(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let caller = env.caller()?;
    caller.prepare("active", pulled.top())?;
    let upper = upper_directory(&caller.mounts("erofs", "active")?)?;
    std::fs::write(upper.join("one"), "without a lease")?;
    let asked = on_top(&caller, &pulled, "active")?;
    let before = caller.leases()?;
    let found = caller.diff(Differ::Service, asked.clone(), None)?;
    let ours: Vec<String> = caller.leases()?.into_keys().filter(|id| !before.contains_key(id)).collect();
    anyhow::ensure!(ours.len() == 1, "leases made: {ours:?}");
    caller.collect()?;
    anyhow::ensure!(caller.content(&found.digest)?.is_some(), "collected while the lease lives");
    caller.delete_lease(&ours[0])?;
    anyhow::ensure!(caller.content(&found.digest)?.is_none(), "kept without a lease");

    // A lease of the client's guards instead, and none of ours is made.
    caller.create_lease("of-the-client")?;
    let before = caller.leases()?;
    let found = caller.diff(Differ::Plywood, asked.clone(), Some("of-the-client"))?;
    anyhow::ensure!(caller.leases()? == before, "leases: {:?}", caller.leases()?);
    caller.collect()?;
    anyhow::ensure!(caller.content(&found.digest)?.is_some(), "collected while the client's lease lives");
    caller.delete_lease("of-the-client")?;
    anyhow::ensure!(caller.content(&found.digest)?.is_none(), "kept without a lease");
    // One that is gone is replaced by ours.
    let found = caller.diff(Differ::Plywood, asked, Some("of-the-client"))?;
    caller.collect()?;
    anyhow::ensure!(caller.content(&found.digest)?.is_some(), "collected while the lease lives");
    Ok(())
}

fn failures(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let caller = env.caller()?;
    caller.prepare("large", pulled.top())?;
    let upper = upper_directory(&caller.mounts("erofs", "large")?)?;
    std::fs::write(upper.join("noise"), archive::noise(150_000_000, 9))?;
    let asked = on_top(&caller, &pulled, "large")?;
    let leases = caller.leases()?;
    let clean = |caller: &Caller| {
        wait_until("nothing of the Diff is left", || {
            Ok(caller.ingests()?.is_empty() && caller.leases()? == leases)
        })
        .with_context(|| format!("ingests {:?}, leases {:?}", caller.ingests(), caller.leases()))
    };
    let begin = |caller: &Caller| -> anyhow::Result<_> {
        let running = caller.begin_diff(Differ::Plywood, Some(env.namespace()), asked.clone(), None);
        wait_until("some of the blob is written", || {
            anyhow::ensure!(!running.is_finished(), "too fast to be disturbed");
            Ok(caller.ingests()?.values().any(|bytes| *bytes > 0))
        })?;
        Ok(running)
    };

    drop(begin(&caller)?);
    clean(&caller).context("cancelled")?;

    let running = begin(&caller)?;
    env.kill_plywood()?;
    anyhow::ensure!(caller.finish_diff(running).is_err(), "an answer of a dead daemon");
    env.start_plywood()?;
    let caller = env.caller()?;
    clean(&caller).context("killed")?;

    let redirected = asked.clone();
    std::fs::create_dir(upper.join("moved"))?;
    rustix::fs::setxattr(
        upper.join("moved"),
        "trusted.overlay.redirect",
        b"/of/nothing",
        rustix::fs::XattrFlags::empty(),
    )?;
    for _ in 0..100 {
        let refused = caller.diff(Differ::Plywood, redirected.clone(), None).err().context("written")?;
        anyhow::ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused}");
    }
    clean(&caller).context("refused")?;
    std::fs::remove_dir(upper.join("moved"))?;

    let nowhere = caller.begin_diff(Differ::Plywood, None, asked.clone(), None);
    let refused = caller.finish_diff(nowhere).err().context("without a namespace")?;
    anyhow::ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused}");

    // And then it works.
    let found = caller.diff(Differ::Plywood, asked, None)?;
    fetched(&caller, &found)?;
    Ok(())
}

/// A mount below a directory, unmounted on drop.
struct ByHand(tempfile::TempDir);

impl ByHand {
    /// The overlay of `mounts`, where renames and changes of attributes are recorded instead of copied.
    fn mount(mounts: &[Mount]) -> anyhow::Result<Self> {
        let target = tempfile::tempdir()?;
        let overlay = mounts.iter().find(|mount| mount.r#type == "overlay").context("no overlay")?;
        let options = format!("{},redirect_dir=on,metacopy=on", overlay.options.join(","));
        let mut mount = Command::new("mount");
        host::run(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(target.path()))?;
        Ok(Self(target))
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg(self.0.path()).status();
    }
}

fn recorded(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "erofs")?;
    let caller = env.caller()?;
    let left = caller.view("erofs", "below", pulled.top())?;
    let right = caller.prepare("renaming", pulled.top())?;
    let mounted = ByHand::mount(&right)?;
    let at = |name: &str| mounted.0.path().join(name);
    std::fs::rename(at("many"), at("renamed"))?;
    std::fs::rename(at("etc"), at("modes/etc"))?;
    std::fs::write(at("modes/etc/added"), "added")?;
    std::fs::set_permissions(at("sizes/4096"), std::fs::Permissions::from_mode(0o640))?;
    std::fs::rename(at("sizes/4096"), at("renamed/of-4096"))?;
    drop(mounted);
    let mounted = ByHand::mount(&right)?;
    let want = carried(mounted.0.path())?;
    drop(mounted);
    let options = right.iter().flat_map(|mount| &mount.options);
    let upper =
        options.filter_map(|option| option.strip_prefix("upperdir=")).next().context("no upperdir")?;
    let upper = Path::new(upper);
    for (name, attribute) in
        [("renamed", "redirect"), ("modes/etc", "redirect"), ("renamed/of-4096", "metacopy")]
    {
        let attribute = format!("trusted.overlay.{attribute}");
        rustix::fs::lgetxattr(upper.join(name), attribute.as_str(), &mut [0; 256][..]).context(attribute)?;
    }
    let found = caller.diff(Differ::Service, request(left, right), None)?;
    leads_to(env, &pulled.files, pulled.top(), &caller.read(&found.digest)?, &want)
}

fn overlayfs(env: &mut Env) -> anyhow::Result<()> {
    let pulled = Pulled::new(env, "overlayfs")?;
    let container = changed(env, &pulled, "overlayfs", "changing")?;
    let want = carried(&container.root())?;
    container.kill()?;
    let caller = env.caller()?;
    let left = caller.view("overlayfs", "below", pulled.top())?;
    let asked = request(left, caller.mounts("overlayfs", "changing")?);
    for (name, differ) in [("plywood", Differ::Plywood), ("walking", Differ::Service)] {
        let found = caller.diff(differ, asked.clone(), None)?;
        let layer = fetched(&caller, &found)?;
        // Both are applied by containerd's own differ.
        let mounts = caller.prepare_in("overlayfs", &format!("apply-{name}"), pulled.top())?;
        caller.ingest(&layer)?;
        caller.apply_by_service(&layer, &mounts)?;
        let mounted = env.mount_snapshot("overlayfs", &format!("apply-{name}"))?;
        let (mut want, mut found) = (want.clone(), carried(mounted.path())?);
        if differ == Differ::Service {
            // The walking differ writes no other attributes.
            for node in want.values_mut().chain(found.values_mut()) {
                node.xattrs.retain(|name, _| name == b"security.capability");
            }
        }
        tree::ensure_equal(&want, &found).with_context(|| format!("written by {name}"))?;
    }
    Ok(())
}
