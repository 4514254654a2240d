//! Leases that keep a blob until its caller refers to it.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use plywood::{call::Call, digest::Digest, error::Kind, store::BlobSink as _};
use testkit::{
    Suite,
    containerd::{Fault, LeaseView},
};

use super::{
    Fixture, call, fixture,
    write::{assert_nothing_is_left, labels, noise, put},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        a_call_without_a_lease_gets_one_of_ours_that_ends,
        the_blob_outlives_a_collection_and_goes_when_the_lease_is_over,
        a_lease_that_came_with_the_call_is_used_and_none_is_made,
        for_a_lease_that_is_gone_one_of_ours_is_taken,
        a_lease_that_goes_while_a_blob_is_written_fails_the_write,
        content_that_existed_comes_under_the_lease_too,
        our_lease_goes_when_the_write_fails_after_the_commit,
        our_lease_goes_soon_after_a_manifest_refers_to_the_blob_and_the_blob_with_the_image,
        our_lease_goes_when_another_holds_the_blob_but_not_for_one_of_ours,
        an_older_image_with_the_same_layer_is_no_reason,
        a_blob_that_nobody_wants_is_let_go_when_its_time_is_over,
        a_store_that_was_away_is_asked_again,
        a_lease_that_stays_is_replaced_by_one_that_ends_in_time,
        before_the_end_what_is_held_is_let_go_and_the_rest_ends_in_time,
    ];
}

fn leased(id: &str) -> Call {
    Call { lease: Some(id.to_owned()), ..call("default") }
}

fn only_lease(fixture: &Fixture) -> LeaseView {
    let mut leases = fixture.store.leases();
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}

fn holds(lease: &LeaseView, digest: &Digest) -> bool {
    lease.resources.contains(&("content".to_owned(), digest.to_string()))
}

fn a_call_without_a_lease_gets_one_of_ours_that_ends() {
    let fixture = fixture();
    let before = SystemTime::now();
    let client = fixture.patient().with_lease_lifetime(Duration::from_secs(90));
    let mut ingest = client.ingest(&call("default"), "").unwrap();
    ingest.write(b"blob").unwrap();
    let stored = ingest.commit(&Digest::sha256(b"blob"), &labels(&[])).unwrap();

    let lease = only_lease(&fixture);
    assert!(lease.id.starts_with("plywood-") && lease.namespace == "default", "{lease:?}");
    assert_eq!(lease.labels.keys().collect::<Vec<_>>(), ["containerd.io/gc.expire"], "and no root");
    let end: prost_types::Timestamp = lease.labels["containerd.io/gc.expire"].parse().unwrap();
    // The write takes an hour at the most.
    let lifetime = SystemTime::try_from(end).unwrap().duration_since(before).unwrap();
    assert!(lifetime.abs_diff(Duration::from_secs(3690)) < Duration::from_secs(30), "{lifetime:?}");
    assert!(holds(&lease, &stored.digest));

    // It goes with every call that puts something into the store.
    let seen = fixture.store.take_seen();
    let writes: Vec<_> = seen.iter().filter(|seen| seen.method == "write").collect();
    assert!(
        !writes.is_empty() && writes.iter().all(|seen| seen.lease.as_ref() == Some(&lease.id)),
        "{seen:?}"
    );
}

fn the_blob_outlives_a_collection_and_goes_when_the_lease_is_over() {
    let fixture = fixture();
    let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    let now = SystemTime::now();
    fixture.store.collect(now + Duration::from_secs(3600 + 800));
    assert!(fixture.store.blob("default", &stored.digest).is_some());
    fixture.store.collect(now + Duration::from_secs(3600 + 1000));
    assert!(fixture.store.blob("default", &stored.digest).is_none());
    assert!(fixture.store.leases().is_empty());
}

fn a_lease_that_came_with_the_call_is_used_and_none_is_made() {
    let fixture = fixture();
    fixture.store.add_lease("default", "theirs");
    let stored = fixture.put(&leased("theirs"), "", b"blob", &labels(&[])).unwrap();
    let lease = only_lease(&fixture);
    assert_eq!(lease.id, "theirs");
    assert!(holds(&lease, &stored.digest));
    // And a failure does not take it away.
    let mut failed = fixture.patient().ingest(&leased("theirs"), "").unwrap();
    failed.write(b"other").unwrap();
    drop(failed);
    assert_eq!(only_lease(&fixture).id, "theirs");
    assert!(fixture.store.ingests().is_empty());
}

fn for_a_lease_that_is_gone_one_of_ours_is_taken() {
    let fixture = fixture();
    let stored = fixture.put(&leased("gone"), "", b"blob", &labels(&[])).unwrap();
    let lease = only_lease(&fixture);
    assert!(lease.id.starts_with("plywood-"), "{lease:?}");
    assert!(holds(&lease, &stored.digest));
    // The one that is gone is named to the store once, and not when ours is made.
    let seen = fixture.store.take_seen();
    let named = seen.iter().filter(|seen| seen.lease.as_deref() == Some("gone"));
    assert_eq!(named.map(|seen| seen.method).collect::<Vec<_>>(), ["write"]);
    let failed = fixture.patient().ingest(&leased("gone"), "").unwrap();
    assert_eq!(fixture.store.leases().len(), 2);
    drop(failed);
    assert_eq!(fixture.store.leases().len(), 1);
}

fn a_lease_that_goes_while_a_blob_is_written_fails_the_write() {
    let fixture = fixture();
    fixture.store.add_lease("default", "theirs");
    let mut ingest = fixture.patient().ingest(&leased("theirs"), "").unwrap();
    ingest.write(b"blob").unwrap();
    fixture.store.delete_lease("default", "theirs");
    let error = ingest.commit(&Digest::sha256(b"blob"), &labels(&[])).unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "store.lease"), "{error}");
    assert_nothing_is_left(&fixture.store);
}

fn content_that_existed_comes_under_the_lease_too() {
    for call in [call("default"), leased("theirs")] {
        let fixture = fixture();
        let bytes = noise(100_000);
        // Written under a lease that ends before the second one does.
        fixture.store.add_lease("default", "first");
        let stored = fixture.put(&leased("first"), "", &bytes, &labels(&[])).unwrap();
        fixture.store.add_lease("default", "theirs");
        assert_eq!(fixture.put(&call, "", &bytes, &labels(&[])).unwrap(), stored);
        fixture.store.delete_lease("default", "first");
        fixture.store.collect(SystemTime::now());
        assert!(fixture.store.blob("default", &stored.digest).is_some(), "{call:?}");
    }
}

fn our_lease_goes_when_the_write_fails_after_the_commit() {
    let fixture = fixture();
    let mut ingest = fixture.patient().ingest(&call("default"), "").unwrap();
    ingest.write(b"blob").unwrap();
    fixture.store.fault(Fault::WrongSize(1));
    assert!(ingest.commit(&Digest::sha256(b"blob"), &labels(&[])).is_err());
    fixture.store.fault(None);
    assert_nothing_is_left(&fixture.store);
    fixture.store.collect(SystemTime::now());
    assert!(fixture.store.blob("default", &Digest::sha256(b"blob")).is_none());
}

/// A manifest that something refers to, with a label for the layer `digest`.
fn manifest(fixture: &Fixture, bytes: &str, label: &str, digest: &Digest) -> Digest {
    let manifest = fixture.store.add("default", bytes);
    fixture.store.label("default", &manifest, &[(label, &digest.to_string())]);
    manifest
}

fn ours(fixture: &Fixture) -> Vec<String> {
    let leases = fixture.store.leases().into_iter().map(|lease| lease.id);
    leases.filter(|id| id.starts_with("plywood-")).collect()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not after 20 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

const LAYER: &str = "containerd.io/gc.ref.content.l.0";

fn our_lease_goes_soon_after_a_manifest_refers_to_the_blob_and_the_blob_with_the_image() {
    for label in [LAYER, "containerd.io/gc.ref.content.0", "containerd.io/gc.ref.content"] {
        let fixture = fixture();
        let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
        // Nothing refers to it yet, nor does what another namespace or another blob says.
        fixture.store.add::<String>("default", "another");
        fixture.store.label("default", &Digest::sha256(b"another"), &[(label, "sha256:00")]);
        thread::sleep(Duration::from_millis(1700));
        assert_eq!(ours(&fixture).len(), 1);
        fixture.store.collect(SystemTime::now());

        let image = manifest(&fixture, "manifest", label, &stored.digest);
        wait_until("our lease is gone", || ours(&fixture).is_empty());
        fixture.store.collect(SystemTime::now());
        assert!(fixture.store.blob("default", &stored.digest).is_some());
        fixture.store.remove("default", &image);
        fixture.store.collect(SystemTime::now());
        assert!(fixture.store.blob("default", &stored.digest).is_none(), "{label}");
        // Nobody looks any more.
        let lists = fixture.store.lists();
        thread::sleep(Duration::from_millis(2500));
        assert_eq!(fixture.store.lists(), lists);
    }
}

fn our_lease_goes_when_another_holds_the_blob_but_not_for_one_of_ours() {
    let fixture = fixture();
    let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    let again = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    assert_eq!(again, stored);
    thread::sleep(Duration::from_millis(1700));
    assert_eq!(ours(&fixture).len(), 2, "each relied on the other");
    fixture.store.add_lease("default", "theirs");
    thread::sleep(Duration::from_millis(700));
    assert_eq!(ours(&fixture).len(), 2, "a lease on something else");
    fixture.store.hold("default", "theirs", &stored.digest);
    wait_until("both are gone", || ours(&fixture).is_empty());
    assert_eq!(only_lease(&fixture).id, "theirs");
}

/// It may be deleted before the new one refers to the blob.
fn an_older_image_with_the_same_layer_is_no_reason() {
    let fixture = fixture();
    let blob = fixture.store.add("default", "blob");
    manifest(&fixture, "older", LAYER, &blob);
    fixture.store.add_lease("default", "older");
    fixture.store.hold("default", "older", &blob);
    thread::sleep(Duration::from_millis(10));
    let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    assert_eq!(stored.digest, blob);
    thread::sleep(Duration::from_millis(1700));
    assert_eq!(ours(&fixture).len(), 1);
    manifest(&fixture, "newer", LAYER, &blob);
    wait_until("our lease is gone", || ours(&fixture).is_empty());
}

fn a_blob_that_nobody_wants_is_let_go_when_its_time_is_over() {
    let fixture = fixture();
    let client = fixture.patient().with_lease_lifetime(Duration::from_secs(3));
    let stored = put(&client, &call("default"), "", b"blob", &labels(&[])).unwrap();
    thread::sleep(Duration::from_millis(2000));
    assert_eq!(ours(&fixture).len(), 1);
    wait_until("our lease is gone", || ours(&fixture).is_empty());
    fixture.store.collect(SystemTime::now());
    assert!(fixture.store.blob("default", &stored.digest).is_none());
}

fn a_store_that_was_away_is_asked_again() {
    let mut fixture = fixture();
    let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    fixture.store.stop();
    thread::sleep(Duration::from_millis(1200));
    fixture.store.restart();
    manifest(&fixture, "manifest", LAYER, &stored.digest);
    wait_until("our lease is gone", || ours(&fixture).is_empty());
}

/// The lease of a write lasts as long as a write may take; who is killed later leaves one that ends in minutes.
fn a_lease_that_stays_is_replaced_by_one_that_ends_in_time() {
    let fixture = fixture();
    let client = fixture.patient().with_lease_lifetime(Duration::from_secs(120));
    let stored = put(&client, &call("default"), "", b"blob", &labels(&[])).unwrap();
    let first = only_lease(&fixture).id;
    wait_until("it is replaced", || {
        let leases = fixture.store.leases();
        leases.len() == 1 && leases[0].id != first
    });
    let lease = only_lease(&fixture);
    assert!(lease.id.starts_with("plywood-diff-") && holds(&lease, &stored.digest), "{lease:?}");
    let now = SystemTime::now();
    fixture.store.collect(now + Duration::from_secs(60));
    assert!(fixture.store.blob("default", &stored.digest).is_some());
    fixture.store.collect(now + Duration::from_secs(121));
    assert!(fixture.store.blob("default", &stored.digest).is_none());
}

fn before_the_end_what_is_held_is_let_go_and_the_rest_ends_in_time() {
    let fixture = fixture();
    let client = fixture.patient().with_lease_lifetime(Duration::from_secs(120));
    let held = put(&client, &call("default"), "", b"held", &labels(&[])).unwrap();
    let kept = put(&client, &call("default"), "", b"kept", &labels(&[])).unwrap();
    manifest(&fixture, "manifest", LAYER, &held.digest);
    // The task behind a write hands its lease on just after the writer has returned.
    wait_until("one is left, which ends in time", || {
        fixture.runtime.block_on(client.settle());
        let leases = fixture.store.leases();
        leases.len() == 1
            && holds(&leases[0], &kept.digest)
            && leases[0].labels["containerd.io/gc.expire"].parse::<prost_types::Timestamp>().is_ok_and(
                |end| SystemTime::try_from(end).unwrap() < SystemTime::now() + Duration::from_secs(130),
            )
    });
}
