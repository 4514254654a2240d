//! Blobs on their way into the store: every rule of its protocol that is easily broken.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use containerd_client::services::v1::WriteAction;
use plywood::{
    call::Call,
    containerd::{Containerd, Direct},
    digest::Digest,
    error::{Error, Kind},
    store::{BlobSink, Ingest, Stored},
};
use testkit::{
    Suite,
    containerd::{FakeContainerd, Fault, WriteFault},
};

use super::{Fixture, STALL, call, fixture};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_blob_arrives_whole_with_its_labels_and_the_namespace,
        the_first_message_is_a_stat_and_every_other_one_carries_the_running_offset,
        what_an_earlier_attempt_left_under_the_reference_is_truncated,
        what_an_earlier_attempt_left_is_not_sent_again_by_one_that_resumes,
        bytes_of_another_blob_under_the_reference_are_noticed_when_it_is_resumed,
        a_truncation_that_did_not_happen_is_noticed,
        an_empty_blob_is_a_blob,
        one_large_write_goes_in_messages_that_the_store_takes,
        messages_are_under_way_while_more_are_made_but_not_without_bound,
        the_store_is_kept_busy_while_a_reply_is_on_its_way,
        content_that_exists_is_a_success_and_its_labels_are_completed,
        content_that_exists_is_a_success_whenever_the_store_says_so,
        a_label_the_store_would_refuse_is_refused_before_it_is_sent,
        a_reference_that_is_too_long_is_refused,
        a_locked_reference_is_waited_for,
        a_reference_that_stays_locked_is_given_up,
        two_ingests_of_one_reference_follow_each_other_and_others_do_not_wait,
        an_ingest_is_written_by_whichever_thread_has_it,
    ];
}

pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Bytes that are nowhere the same.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// Writes `bytes` and commits them with `labels`.
pub fn put(
    client: &Containerd,
    call: &Call,
    reference: &str,
    bytes: &[u8],
    labels: &BTreeMap<String, String>,
) -> Result<Stored, Error> {
    let mut ingest = client.ingest(call, reference)?;
    ingest.write(bytes)?;
    ingest.commit(&Digest::sha256(bytes), labels)
}

impl Fixture {
    pub fn put(
        &self,
        call: &Call,
        reference: &str,
        bytes: &[u8],
        labels: &BTreeMap<String, String>,
    ) -> Result<Stored, Error> {
        put(&self.patient(), call, reference, bytes, labels)
    }

    /// A client that takes a moment's silence for a stall.
    pub fn impatient(&self) -> Containerd {
        self.client(Direct::Off)
    }

    /// A client that waits longer than any test.
    pub fn patient(&self) -> Containerd {
        let runtime = self.runtime.handle().clone();
        Containerd::new(self.store.socket(), runtime, Direct::Off, Duration::from_secs(60))
    }
}

/// Waits until nothing is left of what failed: cleaning up may go on in the background.
pub fn assert_nothing_is_left(store: &FakeContainerd) {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let left = (store.ingests(), store.leases(), store.active_writes());
        if left.0.is_empty() && left.1.is_empty() && left.2 == 0 {
            return;
        }
        assert!(Instant::now() < end, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_blob_arrives_whole_with_its_labels_and_the_namespace() {
    let fixture = fixture();
    let bytes = noise(3_500_000);
    let wanted = labels(&[(UNCOMPRESSED, "sha256:00"), ("own", "label")]);
    let stored = fixture.put(&call("team"), "", &bytes, &wanted).unwrap();
    let digest = Digest::sha256(&bytes);
    assert_eq!(stored, Stored { digest: digest.clone(), size_bytes: 3_500_000 });
    let found = fixture.store.blob("team", &digest).unwrap();
    assert!(*found.bytes == bytes);
    assert_eq!(found.labels.into_iter().collect::<BTreeMap<_, _>>(), wanted);
    assert!(fixture.store.blob("default", &digest).is_none());
    assert!(fixture.store.take_seen().iter().all(|seen| seen.namespace.as_deref() == Some("team")));
    assert!(fixture.store.ingests().is_empty());
}

fn the_first_message_is_a_stat_and_every_other_one_carries_the_running_offset() {
    let fixture = fixture();
    let bytes = noise(2 * (1 << 20) + 7);
    let mut ingest = fixture.patient().ingest(&call("default"), "given").unwrap();
    // However it comes, it goes in whole pieces.
    for part in bytes.chunks(300_001) {
        ingest.write(part).unwrap();
    }
    let digest = Digest::sha256(&bytes);
    ingest.commit(&digest, &labels(&[("key", "value")])).unwrap();
    let messages = fixture.store.take_messages();
    let steps: Vec<_> = messages.iter().map(|m| (m.action, m.offset, m.data_bytes)).collect();
    let mib = 1 << 20;
    assert_eq!(
        steps,
        [
            (WriteAction::Stat, 0, 0),
            (WriteAction::Write, 0, mib),
            (WriteAction::Write, 1 << 20, mib),
            (WriteAction::Write, 2 << 20, 7),
            (WriteAction::Commit, (2 << 20) + 7, 0),
        ]
    );
    assert!(messages.iter().all(|message| message.reference == "given"));
    let commit = messages.last().unwrap();
    assert_eq!((commit.total, &commit.expected), ((2 << 20) + 7, &digest.to_string()));
    assert_eq!(commit.labels, labels(&[("key", "value")]));
}

fn what_an_earlier_attempt_left_under_the_reference_is_truncated() {
    for (left, wanted) in [(5, 3_000_000), (3_000_000, 5), (9, 0), (4, 4)] {
        let fixture = fixture();
        fixture.store.leave("default", "given", &noise(left));
        let bytes: Vec<u8> = noise(wanted).into_iter().map(|byte| !byte).collect();
        let stored = fixture.put(&call("default"), "given", &bytes, &labels(&[])).unwrap();
        assert_eq!(stored.size_bytes, wanted as u64);
        assert!(*fixture.store.blob("default", &stored.digest).unwrap().bytes == bytes, "{left} {wanted}");
        let messages = fixture.store.take_messages();
        let steps: Vec<_> = messages.iter().take(2).map(|m| (m.action, m.offset, m.data_bytes)).collect();
        assert_eq!(steps, [(WriteAction::Stat, 0, 0), (WriteAction::Write, 0, 0)], "explicitly");
    }
}

/// Writes `bytes` behind what is there, and commits them.
fn resume(fixture: &Fixture, reference: &str, bytes: &[u8]) -> (u64, Result<Stored, Error>) {
    let mut ingest = fixture.patient().resume(&call("default"), reference).unwrap();
    let kept = ingest.kept_bytes();
    for piece in bytes.chunks(300_000) {
        ingest.write(piece).unwrap();
    }
    (kept, ingest.commit(&Digest::sha256(bytes), &BTreeMap::new()))
}

fn what_an_earlier_attempt_left_is_not_sent_again_by_one_that_resumes() {
    let fixture = fixture();
    let bytes = noise(2_500_000);
    for left in [0, 1, 299_999, 300_000, 1_700_000, bytes.len()] {
        let (name, bytes) = (format!("left-{left}"), [&bytes[..], &left.to_le_bytes()].concat());
        fixture.store.leave("default", &name, &bytes[..left]);
        fixture.store.take_messages();
        let (kept, stored) = resume(&fixture, &name, &bytes);
        assert_eq!((kept, stored.unwrap().size_bytes), (left as u64, bytes.len() as u64));
        let sent: usize = fixture.store.take_messages().iter().map(|message| message.data_bytes).sum();
        assert_eq!(sent, bytes.len() - left);
        assert_eq!(**fixture.store.blob("default", &Digest::sha256(&bytes)).unwrap().bytes, bytes);
    }
    assert!(fixture.store.ingests().is_empty());
}

fn bytes_of_another_blob_under_the_reference_are_noticed_when_it_is_resumed() {
    let fixture = fixture();
    let bytes = noise(1000);
    fixture.store.leave("default", "short", &[0; 500]);
    let error = resume(&fixture, "short", &bytes).1.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.digest"), "{error}");
    fixture.store.leave("default", "long", &[0; 1001]);
    let error = resume(&fixture, "long", &bytes).1.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.offset"), "{error}");
    assert!(fixture.store.blob("default", &Digest::sha256(&bytes)).is_none());
}

fn a_truncation_that_did_not_happen_is_noticed() {
    let fixture = fixture();
    fixture.store.leave("default", "given", b"left");
    fixture.store.write_fault(WriteFault::NoTruncation);
    let error = fixture.put(&call("default"), "given", b"new", &labels(&[])).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.offset"));
}

fn an_empty_blob_is_a_blob() {
    let fixture = fixture();
    let stored = fixture.put(&call("default"), "", b"", &labels(&[("key", "value")])).unwrap();
    assert_eq!((stored.size_bytes, &stored.digest), (0, &Digest::sha256(b"")));
    assert_eq!(fixture.store.blob("default", &stored.digest).unwrap().labels["key"], "value");
}

fn one_large_write_goes_in_messages_that_the_store_takes() {
    let fixture = fixture();
    let bytes = noise(20 << 20);
    fixture.put(&call("default"), "", &bytes, &labels(&[])).unwrap();
    let messages = fixture.store.take_messages();
    assert_eq!(messages.len(), 22);
    assert!(messages.iter().all(|message| message.data_bytes <= 1 << 20));
}

fn messages_are_under_way_while_more_are_made_but_not_without_bound() {
    let fixture = fixture();
    fixture.store.write_fault(WriteFault::Stall(1));
    let call = call("default");
    let mut ingest = fixture.patient().ingest(&call, "").unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&written);
    let writer = std::thread::spawn(move || {
        let piece = noise(1 << 18);
        while ingest.write(&piece).is_ok() {
            counted.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    let taken = written.load(Ordering::SeqCst);
    assert!((2 << 20..=6 << 20).contains(&taken), "{taken} bytes without a reply");
    call.cancel.cancel();
    writer.join().unwrap();
    assert_nothing_is_left(&fixture.store);
}

fn the_store_is_kept_busy_while_a_reply_is_on_its_way() {
    // The store takes 800 ms for four messages; the writer does not wait for any of their replies.
    let fixture = fixture();
    fixture.store.write_fault(WriteFault::Slow(200));
    let mut ingest = fixture.patient().ingest(&call("default"), "").unwrap();
    let begun = Instant::now();
    let bytes = noise(4 << 20);
    ingest.write(&bytes).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?} for four messages", begun.elapsed());
    ingest.commit(&Digest::sha256(&bytes), &labels(&[])).unwrap();
}

fn content_that_exists_is_a_success_and_its_labels_are_completed() {
    let fixture = fixture();
    let bytes = noise(1_500_000);
    let digest: Digest = fixture.store.add("default", bytes.clone());
    fixture.store.label("default", &digest, &[("theirs", "stays"), ("other", "old"), ("same", "1")]);
    let wanted = labels(&[(UNCOMPRESSED, "sha256:00"), ("other", "new"), ("same", "1"), ("empty", "")]);
    let stored = fixture.put(&call("default"), "", &bytes, &wanted).unwrap();
    assert_eq!(stored, Stored { digest: digest.clone(), size_bytes: 1_500_000 });
    let found: BTreeMap<_, _> = fixture.store.blob("default", &digest).unwrap().labels.into_iter().collect();
    let all = labels(&[(UNCOMPRESSED, "sha256:00"), ("other", "new"), ("same", "1"), ("theirs", "stays")]);
    assert_eq!(found, all);
    assert!(fixture.store.ingests().is_empty());

    // Nothing to complete: nothing is updated.
    fixture.store.take_seen();
    fixture.put(&call("default"), "", &bytes, &wanted).unwrap();
    assert!(fixture.store.take_seen().iter().all(|seen| seen.method != "update"));

    fixture.store.fault(Fault::DeafUpdate);
    let error = fixture.put(&call("default"), "", &bytes, &labels(&[("new", "1")])).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.label"));
}

fn content_that_exists_is_a_success_whenever_the_store_says_so() {
    let bytes = noise(3_500_000);
    for at in 0..=5 {
        let fixture = fixture();
        let digest = fixture.store.add("default", bytes.clone());
        fixture.store.write_fault(WriteFault::Exists(at));
        let stored = fixture.put(&call("default"), "", &bytes, &labels(&[("key", "value")])).unwrap();
        assert_eq!(stored.digest, digest, "{at}");
        assert_eq!(fixture.store.blob("default", &digest).unwrap().labels["key"], "value", "{at}");
    }
    // But it has to be true.
    for at in 0..=5 {
        let fixture = fixture();
        fixture.store.write_fault(WriteFault::Exists(at));
        let error = fixture.put(&call("default"), "", &bytes, &labels(&[])).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{at} {error}");
        fixture.store.write_fault(None);
        assert_nothing_is_left(&fixture.store);
    }
}

fn a_label_the_store_would_refuse_is_refused_before_it_is_sent() {
    let fixture = fixture();
    let long = labels(&[("key", &"v".repeat(4094))]);
    let error = fixture.put(&call("default"), "", b"blob", &long).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "store.label"));
    assert!(fixture.store.take_messages().iter().all(|message| message.action != WriteAction::Commit));
    assert_nothing_is_left(&fixture.store);
    let longest = labels(&[("key", &"v".repeat(4093))]);
    fixture.put(&call("default"), "", b"blob", &longest).unwrap();
}

fn a_reference_that_is_too_long_is_refused() {
    let fixture = fixture();
    let error = fixture.patient().ingest(&call("default"), &"r".repeat(4097)).err().unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "store.reference"));
    assert!(fixture.store.take_seen().is_empty());
}

fn a_locked_reference_is_waited_for() {
    let fixture = fixture();
    fixture.store.lock("default", "given", true);
    let ingest = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.patient().ingest(&call("default"), "given"));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waiting.is_finished());
        fixture.store.lock("default", "given", false);
        waiting.join().unwrap()
    });
    let mut ingest = ingest.unwrap();
    ingest.write(b"blob").unwrap();
    ingest.commit(&Digest::sha256(b"blob"), &labels(&[])).unwrap();
}

fn a_reference_that_stays_locked_is_given_up() {
    let fixture = fixture();
    fixture.store.lock("default", "given", true);
    let begun = Instant::now();
    let error = fixture.impatient().ingest(&call("default"), "given").err().unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "store.locked"));
    assert!(error.to_string().contains("\"given\""), "{error}");
    assert!(begun.elapsed() >= STALL && begun.elapsed() < 10 * STALL, "{:?}", begun.elapsed());
    assert!(fixture.store.leases().is_empty());
}

fn two_ingests_of_one_reference_follow_each_other_and_others_do_not_wait() {
    let fixture = fixture();
    let client = fixture.patient();
    let first = client.ingest(&call("default"), "given").unwrap();
    let bytes = noise(2_000_000);
    fixture.put(&call("default"), "", &bytes, &labels(&[])).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| fixture.put(&call("default"), "given", b"second", &labels(&[])));
        std::thread::sleep(Duration::from_millis(60));
        drop(first);
        second.join().unwrap().unwrap();
    });
}

/// The ingest may be handed to another thread.
fn an_ingest_is_written_by_whichever_thread_has_it() {
    let fixture = fixture();
    let mut ingest: Box<dyn Ingest> = fixture.patient().ingest(&call("default"), "").unwrap();
    ingest.write(b"one").unwrap();
    let thread = std::thread::spawn(move || {
        ingest.write(b"two").unwrap();
        ingest.commit(&Digest::sha256(b"onetwo"), &labels(&[])).unwrap()
    });
    assert_eq!(thread.join().unwrap().size_bytes, 6);
}
