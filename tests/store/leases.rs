//! What keeps a blob until its caller refers to it.

use std::time::{Duration, SystemTime};

use plywood::{call::Call, digest::Digest, error::Kind, store::BlobSink as _};

use super::{
    Fixture, call, fixture,
    support::containerd::{Fault, LeaseView},
    write::{assert_nothing_is_left, labels, noise},
};

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

#[test]
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
    let lifetime = SystemTime::try_from(end).unwrap().duration_since(before).unwrap();
    assert!(lifetime.abs_diff(Duration::from_secs(90)) < Duration::from_secs(30), "{lifetime:?}");
    assert!(holds(&lease, &stored.digest));

    // It goes with every call that puts something into the store.
    let seen = fixture.store.take_seen();
    let writes: Vec<_> = seen.iter().filter(|seen| seen.method == "write").collect();
    assert!(
        !writes.is_empty() && writes.iter().all(|seen| seen.lease.as_ref() == Some(&lease.id)),
        "{seen:?}"
    );
}

#[test]
fn the_blob_outlives_a_collection_and_goes_when_the_lease_is_over() {
    let fixture = fixture();
    let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    let now = SystemTime::now();
    fixture.store.collect(now + Duration::from_secs(3500));
    assert!(fixture.store.blob("default", &stored.digest).is_some());
    fixture.store.collect(now + Duration::from_secs(3700));
    assert!(fixture.store.blob("default", &stored.digest).is_none());
    assert!(fixture.store.leases().is_empty());
}

#[test]
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

#[test]
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

#[test]
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

#[test]
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

#[test]
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
