//! The content client against a store that answers like containerd's, and against one that does not.

mod failures;
mod leases;
mod sweep;
mod write;

use std::{
    fs,
    io::Read,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use plywood::{
    call::Call,
    containerd::{Containerd, Direct},
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind},
    store::{Blob, ContentStore},
};
use testkit::{
    Suite,
    containerd::{FakeContainerd, Fault, Seen},
};
use tokio::runtime::Runtime;

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_blob_arrives_whole_with_namespace_and_lease_on_every_call,
        another_namespaces_blob_is_not_found,
        an_empty_blob_needs_no_read,
        whatever_is_wrong_with_the_bytes_is_noticed_and_named,
        a_store_that_lies_about_the_size_is_caught_by_the_descriptors,
        cancelling_ends_a_stalled_read_soon_and_tells_the_store,
        cancelling_ends_a_wait_for_info,
        the_next_request_finds_a_restarted_store,
        a_reader_that_waits_does_not_keep_the_others_from_their_bytes,
        the_stores_directory_is_read_when_introspection_names_it,
        with_several_content_stores_none_is_read_directly,
    ];
    suite.room("failures", failures::add);
    suite.room("leases", leases::add);
    suite.room("sweep", sweep::add);
    suite.room("write", write::add);
}

/// A store, a client, and a blob of a few messages in the namespace `default`.
struct Fixture {
    dir: tempfile::TempDir,
    store: FakeContainerd,
    runtime: Runtime,
    bytes: Vec<u8>,
    descriptor: Descriptor,
}

const STALL: Duration = Duration::from_millis(400);

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = FakeContainerd::start(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bytes: Vec<u8> = (0..625_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let digest = store.add("default", bytes.clone());
    let descriptor = describe(&digest, bytes.len());
    Fixture { dir, store, runtime, bytes, descriptor }
}

fn describe(digest: &Digest, size: usize) -> Descriptor {
    Descriptor::new("application/octet-stream", digest.clone(), i64::try_from(size).unwrap()).unwrap()
}

fn call(namespace: &str) -> Call {
    Call::new(namespace.parse().unwrap())
}

impl Fixture {
    fn client(&self, direct: Direct) -> Containerd {
        Containerd::new(self.store.socket(), self.runtime.handle().clone(), direct, STALL)
    }

    /// Opens and reads the blob under `fault`. Returns the error's kind and reason.
    fn outcome(&self, fault: Fault) -> (Kind, &'static str) {
        self.store.fault(fault);
        let outcome = self.client(Direct::Off).open(&call("default"), &self.descriptor).and_then(read);
        self.store.fault(None);
        let error = outcome.expect_err("the fault was not noticed");
        (error.kind(), error.reason())
    }
}

fn read(mut blob: Box<dyn Blob>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    blob.read_to_end(&mut bytes).map_err(|error| Error::from_io(error, Kind::Internal, "test.unpacked"))?;
    Ok(bytes)
}

fn a_blob_arrives_whole_with_namespace_and_lease_on_every_call() {
    let fixture = fixture();
    let client = fixture.client(Direct::Off);
    let mut call = call("default");
    call.lease = Some("lease-7".into());
    let blob = client.open(&call, &fixture.descriptor).unwrap();
    assert_eq!(blob.size_bytes(), fixture.bytes.len() as u64);
    assert!(blob.file().is_none());
    assert!(read(blob).unwrap() == fixture.bytes);
    let seen = |method| Seen { method, namespace: Some("default".into()), lease: Some("lease-7".into()) };
    assert_eq!(fixture.store.take_seen(), [seen("info"), seen("read")]);
}

fn another_namespaces_blob_is_not_found() {
    let fixture = fixture();
    let client = fixture.client(Direct::Off);
    let error = client.open(&call("other"), &fixture.descriptor).err().unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "store.not-found"));
}

fn an_empty_blob_needs_no_read() {
    let fixture = fixture();
    let digest = fixture.store.add("default", Vec::new());
    let client = fixture.client(Direct::Off);
    let blob = client.open(&call("default"), &describe(&digest, 0)).unwrap();
    assert!(read(blob).unwrap().is_empty());
    let methods: Vec<_> = fixture.store.take_seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["info"]);
}

fn whatever_is_wrong_with_the_bytes_is_noticed_and_named() {
    let fixture = fixture();
    let end = fixture.bytes.len();
    for (fault, want) in [
        (Fault::WrongSize(1), (Kind::DataLoss, "store.size")),
        (Fault::WrongSize(-1), (Kind::DataLoss, "store.size")),
        (Fault::CutShort(0), (Kind::DataLoss, "store.short")),
        (Fault::CutShort(1_500_000), (Kind::DataLoss, "store.short")),
        (Fault::CutShort(end - 1), (Kind::DataLoss, "store.short")),
        (Fault::Extra(1), (Kind::DataLoss, "store.long")),
        (Fault::SkippedOffset(0), (Kind::DataLoss, "store.offset")),
        (Fault::SkippedOffset(1_500_000), (Kind::DataLoss, "store.offset")),
        (Fault::Repeated(0), (Kind::DataLoss, "store.offset")),
        (Fault::ReadError(1_500_000), (Kind::DataLoss, "store.read")),
        (Fault::Gone, (Kind::NotFound, "store.not-found")),
        (Fault::Disconnect(1_500_000), (Kind::Unavailable, "store.unavailable")),
        (Fault::Stall(0), (Kind::Unavailable, "store.stall")),
        (Fault::Stall(1_500_000), (Kind::Unavailable, "store.stall")),
        (Fault::Unavailable, (Kind::Unavailable, "store.unavailable")),
        (Fault::SlowInfo(60_000), (Kind::Unavailable, "store.stall")),
    ] {
        assert_eq!(fixture.outcome(fault), want, "{fault:?}");
    }
    // A turned bit is for the digest to find.
    fixture.store.fault(Fault::Flip(1_500_000));
    let blob = fixture.client(Direct::Off).open(&call("default"), &fixture.descriptor).unwrap();
    let flipped = read(blob).unwrap();
    assert_eq!(flipped.len(), end);
    assert_ne!(Digest::sha256(&flipped), fixture.descriptor.digest);
}

fn a_store_that_lies_about_the_size_is_caught_by_the_descriptors() {
    let fixture = fixture();
    let client = fixture.client(Direct::Off);
    for size in [fixture.bytes.len() - 1, fixture.bytes.len() + 1, 0] {
        let descriptor = describe(&fixture.descriptor.digest, size);
        let error = client.open(&call("default"), &descriptor).err().unwrap();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.size"), "{size}");
    }
}

fn cancelling_ends_a_stalled_read_soon_and_tells_the_store() {
    let fixture = fixture();
    fixture.store.fault(Fault::Stall(1_500_000));
    let socket = fixture.store.socket();
    let patient =
        Containerd::new(socket, fixture.runtime.handle().clone(), Direct::Off, Duration::from_secs(60));
    let call = call("default");
    let blob = patient.open(&call, &fixture.descriptor).unwrap();
    let cancel = call.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cancel.cancel();
        Instant::now()
    });
    let error = read(blob).unwrap_err();
    let cancelled_at = canceller.join().unwrap();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert!(cancelled_at.elapsed() < Duration::from_secs(1), "{:?}", cancelled_at.elapsed());
    let deadline = Instant::now() + Duration::from_secs(5);
    while fixture.store.active_reads() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fixture.store.active_reads(), 0, "the read was not given up");
}

fn cancelling_ends_a_wait_for_info() {
    let fixture = fixture();
    fixture.store.fault(Fault::SlowInfo(60_000));
    let socket = fixture.store.socket();
    let patient =
        Containerd::new(socket, fixture.runtime.handle().clone(), Direct::Off, Duration::from_secs(60));
    let call = call("default");
    let cancel = call.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        cancel.cancel();
    });
    let begun = Instant::now();
    assert_eq!(patient.open(&call, &fixture.descriptor).err().unwrap().kind(), Kind::Cancelled);
    assert!(begun.elapsed() < Duration::from_secs(1));
    canceller.join().unwrap();
}

fn the_next_request_finds_a_restarted_store() {
    let mut fixture = fixture();
    let client = fixture.client(Direct::Off);
    let open = |client: &Containerd, descriptor: &Descriptor| client.open(&call("default"), descriptor);
    assert!(read(open(&client, &fixture.descriptor).unwrap()).is_ok());
    fixture.store.stop();
    let error = open(&client, &fixture.descriptor).err().unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "store.unavailable"));
    assert!(error.to_string().contains("containerd.sock"), "{error}");
    fixture.store.restart();
    assert!(read(open(&client, &fixture.descriptor).unwrap()).unwrap() == fixture.bytes);
    // Cut while idle: the first attempt may still find the old connection.
    fixture.store.restart();
    assert!(read(open(&client, &fixture.descriptor).unwrap()).unwrap() == fixture.bytes);
}

fn a_reader_that_waits_does_not_keep_the_others_from_their_bytes() {
    let fixture = fixture();
    let client = fixture.patient();
    let large = fixture.store.add("default", vec![5; 12 << 20]);
    let waiting: Vec<_> =
        (0..32).map(|_| client.open(&call("default"), &describe(&large, 12 << 20)).unwrap()).collect();
    // All of them have filled their windows by now; none is read.
    std::thread::sleep(Duration::from_millis(100));
    let blob = client.open(&call("default"), &fixture.descriptor).unwrap();
    assert!(read(blob).unwrap() == fixture.bytes);
    drop(waiting);
}

fn the_stores_directory_is_read_when_introspection_names_it() {
    let fixture = fixture();
    let root = fixture.dir.path().join("content");
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fixture.store.export_root("content", &root);
    let path = blobs.join(fixture.descriptor.digest.hex());
    fs::write(&path, &fixture.bytes).unwrap();

    let client = fixture.client(Direct::Introspect);
    assert_eq!(client.content_root(&call("default")), Some(root.clone()));
    fixture.store.take_seen();
    let blob = client.open(&call("default"), &fixture.descriptor).unwrap();
    assert!(blob.file().is_some());
    assert!(read(blob).unwrap() == fixture.bytes);
    let methods: Vec<_> = fixture.store.take_seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["info"], "introspection is asked once, and Info before every blob");

    // The file is there, but not for this namespace.
    let error = client.open(&call("other"), &fixture.descriptor).err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);

    // Whatever is wrong with the file, the blob comes over gRPC instead.
    fs::write(&path, "wrong size").unwrap();
    assert!(client.open(&call("default"), &fixture.descriptor).unwrap().file().is_none());
    fs::remove_file(&path).unwrap();
    let elsewhere = fixture.dir.path().join("elsewhere");
    fs::write(&elsewhere, &fixture.bytes).unwrap();
    symlink(&elsewhere, &path).unwrap();
    let blob = client.open(&call("default"), &fixture.descriptor).unwrap();
    assert!(blob.file().is_none());
    assert!(read(blob).unwrap() == fixture.bytes);

    fs::remove_file(&path).unwrap();
    fs::write(&path, &fixture.bytes).unwrap();
    let direct = |direct| fixture.client(direct).open(&call("default"), &fixture.descriptor).unwrap();
    let later = fixture.dir.path().join("later");
    let client = fixture.client(Direct::At(later.clone()));
    let open = || client.open(&call("default"), &fixture.descriptor).unwrap();
    assert!(open().file().is_none());
    fs::rename(&root, &later).unwrap();
    assert!(open().file().is_some());
    assert!(direct(Direct::Off).file().is_none());
}

fn with_several_content_stores_none_is_read_directly() {
    let fixture = fixture();
    fixture.store.export_root("content", fixture.dir.path());
    fixture.store.export_root("remote", fixture.dir.path());
    let client = fixture.client(Direct::Introspect);
    assert_eq!(client.content_root(&call("default")), None);
    assert!(client.open(&call("default"), &fixture.descriptor).unwrap().file().is_none());
}
