//! Writes that fail or are given up: the error that is reported, and that nothing stays behind.

use std::time::{Duration, Instant};

use plywood::{
    call::{Call, Cancel},
    digest::Digest,
    error::Kind,
    store::BlobSink as _,
};
use testkit::{
    Suite,
    containerd::{Fault, WriteFault},
};
use tonic::Code;

use super::{
    call, fixture,
    write::{assert_nothing_is_left, labels, noise, put},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        whatever_goes_wrong_with_a_write_is_named_and_leaves_nothing,
        a_stream_that_breaks_after_the_commits_reply_is_a_success,
        a_store_that_says_another_size_afterwards_is_data_loss,
        a_given_reference_is_left_to_its_owner_and_one_of_ours_is_aborted,
        an_ingest_that_is_dropped_at_once_leaves_nothing,
        a_hundred_failures_leave_no_reference_and_no_lease,
        a_cancellation_ends_every_wait_soon,
        a_cancellation_ends_the_wait_for_a_lock_within_its_poll,
        a_deadline_is_kept,
        a_store_that_went_away_is_unavailable_and_cleaned_when_it_is_back,
        a_store_that_restarts_is_written_to_when_it_is_back,
        without_its_runtime_a_write_is_unavailable_and_does_not_wait,
    ];
}

fn whatever_goes_wrong_with_a_write_is_named_and_leaves_nothing() {
    let bytes = noise(3_500_000);
    let fixture = fixture();
    // Message 0 is the STAT, 1 to 4 are writes, 5 is the commit.
    for (fault, want) in [
        (WriteFault::Full(1), (Kind::Exhausted, "store.full")),
        (WriteFault::Full(5), (Kind::Exhausted, "store.full")),
        (WriteFault::Fail(2, Code::Unknown, "write: input/output error"), (Kind::Unavailable, "store.write")),
        (WriteFault::Fail(0, Code::PermissionDenied, "no"), (Kind::Denied, "store.refused")),
        (WriteFault::Fail(3, Code::OutOfRange, "write @1"), (Kind::DataLoss, "store.offset")),
        (WriteFault::Fail(3, Code::NotFound, "lease"), (Kind::Unavailable, "store.lease")),
        (WriteFault::Fail(5, Code::InvalidArgument, "label"), (Kind::Malformed, "store.refused")),
        (WriteFault::Fail(2, Code::Unimplemented, "no"), (Kind::Unavailable, "store.refused")),
        (WriteFault::Flip(2), (Kind::DataLoss, "store.digest")),
        (WriteFault::WrongOffset(1), (Kind::DataLoss, "store.offset")),
        (WriteFault::WrongOffset(4), (Kind::DataLoss, "store.offset")),
        (WriteFault::WrongOffset(5), (Kind::DataLoss, "store.offset")),
        (WriteFault::WrongDigest, (Kind::DataLoss, "store.digest")),
        (WriteFault::Disconnect(2), (Kind::Unavailable, "store.unavailable")),
        (WriteFault::Disconnect(5), (Kind::Unavailable, "store.unavailable")),
        (WriteFault::LostReply, (Kind::Unavailable, "store.unavailable")),
        (WriteFault::Close(1), (Kind::Unavailable, "store.unavailable")),
        (WriteFault::Close(5), (Kind::Unavailable, "store.unavailable")),
        (WriteFault::Stall(0), (Kind::Unavailable, "store.stall")),
        (WriteFault::Stall(1), (Kind::Unavailable, "store.stall")),
        (WriteFault::Stall(5), (Kind::Unavailable, "store.stall")),
    ] {
        fixture.store.write_fault(fault);
        let client = match fault {
            WriteFault::Stall(_) => fixture.impatient(),
            _ => fixture.patient(),
        };
        let error = put(&client, &call("default"), "", &bytes, &labels(&[])).expect_err("unnoticed");
        assert_eq!((error.kind(), error.reason()), want, "{fault:?} {error}");
        assert!(error.to_string().contains("reference \"plywood-diff-"), "{error}");
        fixture.store.write_fault(None);
        assert_nothing_is_left(&fixture.store);
        fixture.store.collect(std::time::SystemTime::now());
        assert!(fixture.store.blob("default", &Digest::sha256(&bytes)).is_none(), "{fault:?}");
    }
    assert!(fixture.put(&call("default"), "", &bytes, &labels(&[])).is_ok());
}

fn a_stream_that_breaks_after_the_commits_reply_is_a_success() {
    let fixture = fixture();
    fixture.store.write_fault(WriteFault::LostEnd);
    let stored = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    fixture.store.collect(std::time::SystemTime::now());
    assert!(fixture.store.blob("default", &stored.digest).is_some(), "its lease was taken away");
}

fn a_store_that_says_another_size_afterwards_is_data_loss() {
    let fixture = fixture();
    for more in [1, -1, -100] {
        fixture.store.fault(Fault::WrongSize(more));
        let error = fixture.put(&call("default"), "", b"blob", &labels(&[])).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::DataLoss, "store.size"), "{more}");
        fixture.store.fault(None);
        assert_nothing_is_left(&fixture.store);
    }
}

fn a_given_reference_is_left_to_its_owner_and_one_of_ours_is_aborted() {
    let fixture = fixture();
    let bytes = noise(1 << 20);
    let mut given = fixture.patient().ingest(&call("default"), "given").unwrap();
    given.write(&bytes).unwrap();
    let mut ours = fixture.patient().ingest(&call("default"), "").unwrap();
    ours.write(&bytes).unwrap();
    drop(given);
    drop(ours);
    let names: Vec<_> = fixture.store.ingests().into_iter().map(|(_, name, _)| name).collect();
    assert_eq!(names, ["given"]);
    let aborts = fixture.store.take_seen().into_iter().filter(|seen| seen.method == "abort").count();
    assert_eq!(aborts, 1);
    assert!(fixture.store.leases().is_empty());
}

fn an_ingest_that_is_dropped_at_once_leaves_nothing() {
    let fixture = fixture();
    for _ in 0..20 {
        drop(fixture.patient().ingest(&call("default"), "").unwrap());
        assert!(fixture.store.ingests().is_empty() && fixture.store.leases().is_empty());
    }
}

fn a_hundred_failures_leave_no_reference_and_no_lease() {
    let fixture = fixture();
    let bytes = noise(1_200_000);
    let faults = [
        Some(WriteFault::Full(1)),
        Some(WriteFault::Fail(0, Code::Unknown, "no")),
        Some(WriteFault::Flip(1)),
        Some(WriteFault::Disconnect(2)),
        Some(WriteFault::Close(1)),
        Some(WriteFault::LostReply),
        None,
    ];
    for (number, fault) in (0..100).zip(faults.into_iter().cycle()) {
        fixture.store.write_fault(fault);
        let call = call("default");
        let mut ingest = match fixture.patient().ingest(&call, "") {
            Ok(ingest) => ingest,
            Err(_) => continue,
        };
        let written = ingest.write(&bytes);
        match (number % 3, written) {
            (0, Ok(())) => drop(ingest),
            (1, Ok(())) => {
                call.cancel.cancel();
                assert!(ingest.commit(&Digest::sha256(&bytes), &labels(&[])).is_err());
            }
            // The wrong digest, where nothing else is wrong.
            (_, Ok(())) => assert!(ingest.commit(&Digest::sha256(b""), &labels(&[])).is_err()),
            (_, Err(_)) => {}
        }
    }
    fixture.store.write_fault(None);
    assert_nothing_is_left(&fixture.store);
    let seen = fixture.store.take_seen();
    let count = |method| seen.iter().filter(|seen| seen.method == method).count();
    assert_eq!(count("create lease"), 100);
}

fn a_cancellation_ends_every_wait_soon() {
    let bytes = noise(8 << 20);
    for fault in [WriteFault::Stall(0), WriteFault::Stall(1), WriteFault::Stall(9), WriteFault::Slow(60_000)]
    {
        let fixture = fixture();
        fixture.store.write_fault(fault);
        let call = call("default");
        let cancel = call.cancel.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            cancel.cancel();
            Instant::now()
        });
        let outcome = fixture.patient().ingest(&call, "").and_then(|mut ingest| {
            ingest.write(&bytes)?;
            ingest.commit(&Digest::sha256(&bytes), &labels(&[]))
        });
        let cancelled_at = canceller.join().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), Kind::Cancelled, "{fault:?}");
        // 100 ms until it is seen, 500 ms for cleaning up.
        assert!(
            cancelled_at.elapsed() < Duration::from_millis(900),
            "{fault:?} {:?}",
            cancelled_at.elapsed()
        );
        if !matches!(fault, WriteFault::Slow(_)) {
            fixture.store.write_fault(None);
            assert_nothing_is_left(&fixture.store);
        }
    }
}

fn a_cancellation_ends_the_wait_for_a_lock_within_its_poll() {
    let fixture = fixture();
    fixture.store.lock("default", "given", true);
    let call = call("default");
    let cancel = call.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cancel.cancel();
        Instant::now()
    });
    let error = fixture.patient().ingest(&call, "given").err().unwrap();
    let cancelled_at = canceller.join().unwrap();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert!(cancelled_at.elapsed() < Duration::from_millis(500), "{:?}", cancelled_at.elapsed());
    assert!(fixture.store.leases().is_empty());
}

fn a_deadline_is_kept() {
    let fixture = fixture();
    fixture.store.write_fault(WriteFault::Stall(1));
    let deadline = Instant::now() + Duration::from_millis(200);
    let call = Call { cancel: Cancel::with_deadline(deadline), ..call("default") };
    let mut ingest = fixture.patient().ingest(&call, "").unwrap();
    let error = ingest.write(&noise(8 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    drop(ingest);
    assert!(deadline.elapsed() < Duration::from_millis(800), "{:?}", deadline.elapsed());
}

fn a_store_that_went_away_is_unavailable_and_cleaned_when_it_is_back() {
    let mut fixture = fixture();
    let mut ingest = fixture.patient().ingest(&call("default"), "").unwrap();
    ingest.write(&noise(3 << 20)).unwrap();
    fixture.store.stop();
    let mut outcome = Ok(());
    let end = Instant::now() + Duration::from_secs(10);
    while outcome.is_ok() && Instant::now() < end {
        outcome = ingest.write(&noise(1 << 20));
    }
    assert_eq!(outcome.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(fixture.store.ingests().len(), 1);
    drop(ingest);
    fixture.store.restart();
    assert_nothing_is_left(&fixture.store);
    let error_free = fixture.put(&call("default"), "", b"blob", &labels(&[]));
    assert!(error_free.is_ok(), "{error_free:?}");
}

fn a_store_that_restarts_is_written_to_when_it_is_back() {
    let mut fixture = fixture();
    fixture.store.add_lease("default", "theirs");
    let client = fixture.patient();
    fixture.store.stop();
    // With a lease, opening the reference is the first thing that is asked for.
    let leased = Call { lease: Some("theirs".to_owned()), ..call("default") };
    let written = std::thread::spawn(move || put(&client, &leased, "", b"blob", &labels(&[])));
    std::thread::sleep(Duration::from_millis(100));
    fixture.store.restart();
    let stored = written.join().unwrap().unwrap();
    assert!(fixture.store.blob("default", &stored.digest).is_some());
}

fn without_its_runtime_a_write_is_unavailable_and_does_not_wait() {
    let fixture = fixture();
    let client = fixture.patient();
    let mut open = client.ingest(&call("default"), "").unwrap();
    let super::Fixture { runtime, store, .. } = fixture;
    drop(runtime);
    let error = client.ingest(&call("default"), "").err().unwrap();
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "store.unavailable"));
    assert_eq!(open.write(&noise(2 << 20)).unwrap_err().kind(), Kind::Unavailable);
    drop(store);
}
