//! Plywood's content client writes into a real store: references, leases, collections.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use containerd_client::services::v1::DiffRequest;
use plywood::call::Call;
use plywood::digest::Digest;
use plywood::error::{Error, Kind};
use plywood::{
    containerd::{Containerd, Direct},
    store::{BlobSink as _, Stored},
};
use plywood_integration::archive;
use plywood_integration::calls::{Caller, Differ, layer_directory};
use plywood_integration::disk::SmallDisk;
use plywood_integration::env::{Env, Setup, wait_until};
use plywood_integration::host;
use plywood_integration::image::{Coding, Image, Layer};
use tokio::runtime::Runtime;

use crate::Suite;

const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const EXPIRE: &str = "containerd.io/gc.expire";

type Test = fn(&mut Env) -> anyhow::Result<()>;

pub fn add(suite: &mut Suite) {
    let tests: [(&str, Test); 13] = [
        ("leaves_the_blob_with_its_labels_and_no_reference", written),
        ("begins_anew_over_what_was_left_under_the_reference", half_written),
        ("waits_for_a_reference_that_another_holds", locked),
        ("completes_labels_and_lease_of_content_that_exists", exists),
        ("keeps_the_blob_over_a_collection_until_its_lease_is_over", expires),
        ("lets_its_lease_go_once_an_image_refers_to_the_blob", image),
        ("lets_the_lease_of_an_earlier_daemon_go_once_an_image_refers_to_the_blob", image_after_a_kill),
        ("without_a_lease_would_be_in_vain", unleased),
        ("uses_the_lease_that_came_with_the_call", given_lease),
        ("takes_a_lease_of_ours_for_one_that_is_gone", gone_lease),
        ("leaves_nothing_after_a_hundred_failures", hundred_failures),
        ("leaves_a_given_reference_to_its_owner", given_reference),
        ("takes_labels_up_to_the_stores_bound", label_limit),
    ];
    for (name, test) in tests {
        suite.with_env(format!("writing_{name}"), Setup::default(), test);
    }
    suite.with_disk("writing_to_a_full_store_is_exhausted_and_keeps_nothing", full_disk);
}

/// Plywood's client of this containerd.
struct Client {
    runtime: Runtime,
    store: Containerd,
    call: Call,
}

impl Client {
    fn new(env: &Env) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let stall = Duration::from_secs(20);
        let store = Containerd::new(&env.containerd_socket(), runtime.handle().clone(), Direct::Off, stall);
        let namespace = env.namespace().parse()?;
        Ok(Self { runtime, store, call: Call::new(namespace) })
    }

    fn with_lifetime(self, lifetime: Duration) -> Self {
        let Self { runtime, store, call } = self;
        Self { runtime, store: store.with_lease_lifetime(lifetime), call }
    }

    fn with_lease(self, id: &str) -> Self {
        let call = Call { lease: Some(id.to_owned()), ..self.call };
        Self { call, ..self }
    }

    fn put(&self, reference: &str, bytes: &[u8], labels: &[(&str, &str)]) -> Result<Stored, Error> {
        let mut ingest = self.store.ingest(&self.call, reference)?;
        ingest.write(bytes)?;
        ingest.commit(&Digest::sha256(bytes), &map(labels))
    }
}

fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn content(caller: &Caller, stored: &Stored) -> anyhow::Result<Option<(i64, BTreeMap<String, String>)>> {
    caller.content(&stored.digest.to_string())
}

/// The id of the one lease of ours.
fn our_lease(caller: &Caller) -> anyhow::Result<String> {
    let leases = caller.leases()?;
    let ours: Vec<_> = leases.iter().filter(|(id, _)| id.starts_with("plywood-")).collect();
    let [(id, labels)] = ours.as_slice() else { anyhow::bail!("leases: {leases:?}") };
    anyhow::ensure!(labels.len() == 1 && labels.contains_key(EXPIRE), "labels: {labels:?}");
    Ok((*id).clone())
}

fn written(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let client = Client::new(env)?;
    let bytes = archive::text(5_000_000, 1);
    let labels = [(UNCOMPRESSED, "sha256:00"), ("empty", ""), ("own", "label")];
    for (bytes, labels) in [(bytes.as_slice(), &labels[..]), (b"", &labels[2..])] {
        let stored = client.put("", bytes, labels)?;
        anyhow::ensure!(std::fs::read(env.blob(&stored.digest.to_string()))? == bytes, "other bytes");
        let found = content(&caller, &stored)?;
        // An empty label is none.
        let kept: Vec<_> = labels.iter().copied().filter(|(_, value)| !value.is_empty()).collect();
        anyhow::ensure!(found == Some((i64::try_from(bytes.len())?, map(&kept))), "{found:?}");
    }
    anyhow::ensure!(caller.ingests()?.is_empty(), "{:?}", caller.ingests()?);
    Ok(())
}

fn half_written(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let client = Client::new(env)?;
    for (left, wanted) in [(3_000_000, 70_000), (70_000, 3_000_000), (9, 0)] {
        drop(caller.open_write("half", &archive::text(left, 2))?);
        let left = i64::try_from(left)?;
        anyhow::ensure!(caller.ingests()? == [("half".to_owned(), left)].into(), "{:?}", caller.ingests()?);
        let bytes = archive::text(wanted, 3);
        let stored = client.put("half", &bytes, &[])?;
        anyhow::ensure!(std::fs::read(env.blob(&stored.digest.to_string()))? == bytes, "other bytes");
        anyhow::ensure!(caller.ingests()?.is_empty(), "{:?}", caller.ingests()?);
    }
    Ok(())
}

fn locked(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let client = Client::new(env)?;
    let other = caller.open_write("locked", b"theirs")?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.put("locked", b"ours", &[]));
        std::thread::sleep(Duration::from_millis(500));
        anyhow::ensure!(!waiting.is_finished(), "the lock was ignored");
        drop(other);
        let stored = waiting.join().map_err(|_panic| anyhow::anyhow!("the writer panicked"))??;
        anyhow::ensure!(content(&caller, &stored)?.is_some(), "not there");
        Ok(())
    })?;

    let _other = caller.open_write("locked", b"theirs")?;
    let begun = std::time::Instant::now();
    let Err(error) = client.put("locked", b"more", &[]) else { anyhow::bail!("the lock was ignored") };
    anyhow::ensure!((error.kind(), error.reason()) == (Kind::Unavailable, "store.locked"), "{error}");
    let waited = begun.elapsed().as_secs();
    anyhow::ensure!((9..14).contains(&waited), "given up after {waited} s");
    Ok(())
}

fn exists(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let bytes = archive::text(2_000_000, 4);
    caller.create_lease("first")?;
    Client::new(env)?.with_lease("first").put("", &bytes, &[("theirs", "stays"), ("other", "old")])?;

    let client = Client::new(env)?;
    let stored = client.put("", &bytes, &[(UNCOMPRESSED, "sha256:00"), ("other", "new")])?;
    let labels = map(&[(UNCOMPRESSED, "sha256:00"), ("other", "new"), ("theirs", "stays")]);
    let found = content(&caller, &stored)?;
    anyhow::ensure!(found == Some((2_000_000, labels)), "{found:?}");
    anyhow::ensure!(caller.ingests()?.is_empty(), "{:?}", caller.ingests()?);

    // The lease under which it was written goes; the second one holds it.
    caller.delete_lease("first")?;
    anyhow::ensure!(content(&caller, &stored)?.is_some(), "collected under a lease of ours");
    caller.delete_lease(&our_lease(&caller)?)?;
    anyhow::ensure!(content(&caller, &stored)?.is_none(), "nothing holds it any more");
    Ok(())
}

fn expires(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let client = Client::new(env)?.with_lifetime(Duration::from_secs(4));
    let stored = client.put("", b"blob", &[])?;
    caller.collect()?;
    anyhow::ensure!(content(&caller, &stored)?.is_some(), "collected under its lease");
    our_lease(&caller)?;
    std::thread::sleep(Duration::from_secs(4));
    wait_until("the blob is collected", || {
        caller.collect()?;
        Ok(content(&caller, &stored)?.is_none())
    })?;
    anyhow::ensure!(caller.leases()?.is_empty(), "{:?}", caller.leases()?);
    Ok(())
}

/// Imports the image whose only layer is `layer`, as a client that commits one, and sees our lease go: nothing is
/// lost then, and all is collected with the image.
fn commit_and_remove(env: &Env, layer: &Layer) -> anyhow::Result<()> {
    let caller = env.caller()?;
    std::thread::sleep(Duration::from_millis(1500));
    anyhow::ensure!(!caller.leases()?.is_empty(), "let go while nothing else held the blob");
    caller.collect()?;
    anyhow::ensure!(caller.content(&layer.digest())?.is_some(), "collected under our lease");

    let layout = env.path("layout");
    Image::oci(vec![layer.clone()]).write_layout(&layout)?;
    let archive = env.path("layout.tar");
    let mut tar = Command::new("tar");
    host::run(tar.arg("-cf").arg(&archive).arg("-C").arg(&layout).args([
        "blobs",
        "index.json",
        "oci-layout",
    ]))?;
    let mut import =
        env.ctr(&["images", "import", "--local", "--no-unpack", "--base-name", "localhost/made"]);
    host::run(import.arg(&archive))?;
    wait_until("our lease is gone", || {
        caller.collect()?;
        anyhow::ensure!(caller.content(&layer.digest())?.is_some(), "collected under the image");
        Ok(caller.leases()?.keys().all(|id| !id.starts_with("plywood-")))
    })?;
    host::run(&mut env.ctr(&["images", "rm", "--sync", "localhost/made:latest"]))?;
    anyhow::ensure!(caller.content(&layer.digest())?.is_none(), "still there without its image");
    Ok(())
}

fn image(env: &mut Env) -> anyhow::Result<()> {
    let layer = Layer::oci(&archive::one_file("etc/made", b"made")?, Coding::Gzip)?;
    let client = Client::new(env)?;
    client.put("", &layer.blob, &[(UNCOMPRESSED, &layer.diff_id)])?;
    commit_and_remove(env, &layer)
}

fn image_after_a_kill(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let left = caller.view("erofs", "nothing", "")?;
    let right = caller.prepare("made", "")?;
    std::fs::write(layer_directory(&right)?.join("fs/made"), "made")?;
    let found = caller.diff(Differ::Plywood, DiffRequest { left, right, ..DiffRequest::default() }, None)?;
    let (_, labels) = caller.content(&found.digest)?.context("no blob")?;
    let diff_id = labels.get(UNCOMPRESSED).context("no label")?.clone();
    let layer = Layer {
        media_type: found.media_type,
        blob: caller.read(&found.digest)?,
        diff_id,
        annotations: BTreeMap::new(),
    };
    env.kill_plywood()?;
    env.start_plywood()?;
    commit_and_remove(env, &layer)
}

/// Without its lease a blob is collected.
fn unleased(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let stored = Client::new(env)?.put("", b"blob", &[])?;
    caller.delete_lease(&our_lease(&caller)?)?;
    anyhow::ensure!(content(&caller, &stored)?.is_none(), "still there");
    Ok(())
}

fn given_lease(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    caller.create_lease("theirs")?;
    let client = Client::new(env)?.with_lease("theirs");
    let stored = client.put("", b"blob", &[])?;
    drop(client.store.ingest(&client.call, "")?);
    anyhow::ensure!(caller.leases()?.keys().eq(["theirs"]), "{:?}", caller.leases()?);
    caller.collect()?;
    anyhow::ensure!(content(&caller, &stored)?.is_some(), "collected under their lease");
    caller.delete_lease("theirs")?;
    anyhow::ensure!(content(&caller, &stored)?.is_none(), "still there");
    Ok(())
}

fn gone_lease(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let stored = Client::new(env)?.with_lease("gone").put("", b"blob", &[])?;
    our_lease(&caller)?;
    caller.collect()?;
    anyhow::ensure!(content(&caller, &stored)?.is_some(), "collected under our lease");

    // And one that goes in the middle.
    caller.create_lease("going")?;
    let client = Client::new(env)?.with_lease("going");
    let mut ingest = client.store.ingest(&client.call, "")?;
    ingest.write(&archive::text(3_000_000, 5))?;
    caller.delete_lease("going")?;
    let outcome = ingest.commit(&Digest::sha256(&archive::text(3_000_000, 5)), &map(&[]));
    let Err(error) = outcome else { anyhow::bail!("a success that nothing holds") };
    anyhow::ensure!(error.kind() == Kind::Unavailable, "{error}");
    anyhow::ensure!(caller.ingests()?.is_empty(), "{:?}", caller.ingests()?);
    Ok(())
}

fn hundred_failures(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    let client = Client::new(env)?;
    let bytes = archive::text(2_500_000, 6);
    for number in 0..100 {
        let mut call = client.call.clone();
        call.cancel = plywood::call::Cancel::new();
        let mut ingest = client.store.ingest(&call, "")?;
        match number % 4 {
            0 => {}
            1 => ingest.write(&bytes)?,
            2 => {
                ingest.write(&bytes)?;
                let wrong = ingest.commit(&Digest::sha256(b"other"), &map(&[]));
                let Err(error) = wrong else { anyhow::bail!("a wrong digest was committed") };
                anyhow::ensure!(error.reason() == "store.digest", "{error}");
                continue;
            }
            _ => {
                ingest.write(&bytes)?;
                call.cancel.cancel();
                anyhow::ensure!(ingest.write(&bytes).is_err(), "written after it was cancelled");
            }
        }
        drop(ingest);
    }
    wait_until("all is taken back", || Ok(caller.ingests()?.is_empty() && caller.leases()?.is_empty()))?;
    caller.collect()?;
    let root = env.containerd_root().join("io.containerd.content.v1.content");
    let left: Vec<_> = std::fs::read_dir(root.join("ingest"))?.collect();
    anyhow::ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn given_reference(env: &mut Env) -> anyhow::Result<()> {
    let caller = env.caller()?;
    caller.create_lease("theirs")?;
    let client = Client::new(env)?.with_lease("theirs");
    let mut ingest = client.store.ingest(&client.call, "given")?;
    ingest.write(&archive::text(1 << 20, 7))?;
    drop(ingest);
    anyhow::ensure!(caller.ingests()?.keys().eq(["given"]), "{:?}", caller.ingests()?);
    client.put("given", b"blob", &[])?;
    anyhow::ensure!(caller.ingests()?.is_empty(), "{:?}", caller.ingests()?);
    Ok(())
}

fn label_limit(env: &mut Env) -> anyhow::Result<()> {
    let client = Client::new(env)?;
    client.put("", b"blob", &[("key", &"v".repeat(4093))])?;
    let Err(error) = client.put("", b"blob", &[("key", &"v".repeat(4094))]) else {
        anyhow::bail!("a label of 4097 bytes was taken");
    };
    anyhow::ensure!((error.kind(), error.reason()) == (Kind::Malformed, "store.label"), "{error}");
    Ok(())
}

fn full_disk() -> anyhow::Result<()> {
    let disk = SmallDisk::mount(64 << 20)?;
    let setup = Setup { containerd_root: Some(disk.path().join("containerd")), ..Setup::default() };
    let env = Env::start(&setup)?;
    let caller = env.caller()?;
    let client = Client::new(&env)?;
    let outcome = client.put("", &archive::text(128 << 20, 8), &[]);
    let Err(error) = outcome else { anyhow::bail!("128 MiB fitted on 64 MiB") };
    anyhow::ensure!((error.kind(), error.reason()) == (Kind::Exhausted, "store.full"), "{error}");
    wait_until("all is taken back", || Ok(caller.ingests()?.is_empty() && caller.leases()?.is_empty()))?;
    client.put("", &archive::text(8 << 20, 9), &[])?;
    Ok(())
}
