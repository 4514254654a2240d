//! The next daemon removes ingests and leases that a killed one left, and nothing else.

use std::path::Path;

use plywood::{
    containerd::{Containerd, Swept},
    store::BlobSink as _,
};
use testkit::Suite;

use super::{
    Fixture, call, fixture,
    write::{labels, put},
};

pub fn add(suite: &mut Suite) {
    testkit::tests![suite, &[];
        ingests_of_an_earlier_life_go_with_their_leases_in_every_namespace,
        what_is_written_now_and_what_others_left_stays,
        the_lease_of_a_blob_that_was_written_stays_and_so_does_the_blob,
        the_next_daemon_lets_a_lease_of_the_last_go_once_something_else_holds_the_blob,
        the_lease_is_called_like_the_ingest_it_guards,
        a_store_that_is_not_there_yet_is_swept_later,
    ];
}

impl Fixture {
    /// The client of the daemon that listens on `socket`, in a new life.
    fn instance(&self, socket: &str) -> Containerd {
        self.patient().with_instance(Path::new(socket)).unwrap()
    }

    fn sweep(&self, client: &Containerd) -> Swept {
        self.runtime.block_on(client.sweep())
    }

    /// Leaves an ingest under a lease as `client` does when it is killed, and returns their name.
    fn leave_as(&self, client: &Containerd, namespace: &str) -> String {
        let before = self.store.ingests();
        let ingest = client.ingest(&call(namespace), "").unwrap();
        let new = self.store.ingests().into_iter().find(|found| !before.contains(found)).unwrap();
        drop(ingest);
        // A drop takes everything back; a kill does not.
        assert!(!self.store.ingests().contains(&new));
        self.store.leave(namespace, &new.1, b"half a blob");
        self.store.add_lease(namespace, &new.1);
        new.1
    }

    fn ingests(&self) -> Vec<(String, String)> {
        self.store.ingests().into_iter().map(|(namespace, name, _)| (namespace, name)).collect()
    }

    fn leases(&self) -> Vec<(String, String)> {
        self.store.leases().into_iter().map(|lease| (lease.namespace, lease.id)).collect()
    }
}

const SOCKET: &str = "/run/plywood/plywood.sock";

fn ingests_of_an_earlier_life_go_with_their_leases_in_every_namespace() {
    let fixture = fixture();
    let before = fixture.instance(SOCKET);
    let names = ["default", "k8s.io"].map(|namespace| fixture.leave_as(&before, namespace));
    assert_ne!(names[0], names[1]);
    // One whose lease was the client's.
    let unleased = fixture.leave_as(&before, "k8s.io");
    fixture.store.delete_lease("k8s.io", &unleased);
    fixture.store.add_lease("k8s.io", "of-a-client");

    let swept = fixture.sweep(&fixture.instance(SOCKET));
    assert_eq!((swept.ingests, swept.leases), (3, 2), "{swept:?}");
    assert!(swept.failure.is_none(), "{swept:?}");
    assert!(fixture.ingests().is_empty());
    assert_eq!(fixture.leases(), [("k8s.io".to_owned(), "of-a-client".to_owned())]);
    let again = fixture.sweep(&fixture.instance(SOCKET));
    assert_eq!((again.ingests, again.leases), (0, 0), "{again:?}");
}

fn what_is_written_now_and_what_others_left_stays() {
    let fixture = fixture();
    fixture.leave_as(&fixture.instance("/run/other/plywood.sock"), "default");
    fixture.leave_as(&fixture.patient(), "default");
    let theirs = format!("plywood-diff-{}", "0".repeat(32));
    for name in ["layer-sha256:0", "plywood-diff-", &theirs] {
        fixture.store.leave("default", name, b"a client's");
        fixture.store.add_lease("default", name);
    }
    let client = fixture.instance(SOCKET);
    let mut running = client.ingest(&call("default"), "").unwrap();
    running.write(&vec![1; 3 << 20]).unwrap();
    let (ingests, leases) = (fixture.ingests(), fixture.leases());
    assert_eq!((ingests.len(), leases.len()), (6, 6), "{ingests:?} {leases:?}");

    let swept = fixture.sweep(&client);
    assert_eq!((swept.ingests, swept.leases), (0, 0), "{swept:?}");
    assert!(swept.failure.is_none(), "{swept:?}");
    assert_eq!((fixture.ingests(), fixture.leases()), (ingests, leases));
    let bytes = vec![1; 3 << 20];
    running.commit(&plywood::digest::Digest::sha256(&bytes), &labels(&[])).unwrap();
}

fn the_lease_of_a_blob_that_was_written_stays_and_so_does_the_blob() {
    let fixture = fixture();
    let before = fixture.instance(SOCKET);
    let stored = put(&before, &call("default"), "", b"blob", &labels(&[])).unwrap();
    let leases = fixture.leases();
    assert_eq!(leases.len(), 1, "{leases:?}");
    let swept = fixture.sweep(&fixture.instance(SOCKET));
    assert_eq!((swept.ingests, swept.leases), (0, 0), "{swept:?}");
    assert_eq!(fixture.leases(), leases);
    fixture.store.collect(std::time::SystemTime::now());
    assert!(fixture.store.blob("default", &stored.digest).is_some());
}

fn the_next_daemon_lets_a_lease_of_the_last_go_once_something_else_holds_the_blob() {
    let fixture = fixture();
    let before = fixture.instance(SOCKET);
    let stored = put(&before, &call("default"), "", b"blob", &labels(&[])).unwrap();
    let other =
        put(&fixture.instance("/run/other.sock"), &call("default"), "", b"other", &labels(&[])).unwrap();
    let after = fixture.instance(SOCKET);
    let swept = fixture.sweep(&after);
    assert_eq!((swept.ingests, swept.leases, swept.watched), (0, 0, 1), "{swept:?}");
    let again = fixture.sweep(&after);
    assert_eq!(again.watched, 0, "known already: {again:?}");
    // An image that was there before the lease does not count, one that came after does.
    fixture.runtime.block_on(after.settle());
    assert_eq!(fixture.leases().len(), 2);
    let manifest: String = fixture.store.add("default", "manifest");
    fixture.store.label(
        "default",
        &manifest,
        &[("containerd.io/gc.ref.content.l.0", &stored.digest.to_string())],
    );
    fixture.runtime.block_on(after.settle());
    assert_eq!(fixture.leases().len(), 1);
    fixture.store.collect(std::time::SystemTime::now());
    assert!(fixture.store.blob("default", &other.digest).is_some());
}

fn the_lease_is_called_like_the_ingest_it_guards() {
    let fixture = fixture();
    let client = fixture.instance(SOCKET);
    let ingest = client.ingest(&call("default"), "").unwrap();
    assert_eq!(fixture.ingests(), fixture.leases());
    drop(ingest);
    // Under a name of the client's nothing leads to it: it ends by itself.
    let ingest = client.ingest(&call("default"), "of-a-client").unwrap();
    let leases = fixture.leases();
    assert!(leases.len() == 1 && leases[0].1.starts_with("plywood-diff-"), "{leases:?}");
    drop(ingest);
}

fn a_store_that_is_not_there_yet_is_swept_later() {
    let mut fixture = fixture();
    fixture.leave_as(&fixture.instance(SOCKET), "default");
    let client = fixture.instance(SOCKET);
    fixture.store.stop();
    let swept = fixture.sweep(&client);
    assert!(swept.may_be_tried_again() && swept.ingests == 0, "{swept:?}");
    fixture.store.restart();
    let swept = fixture.sweep(&client);
    assert_eq!((swept.ingests, swept.leases), (1, 1), "{swept:?}");
    assert!(!swept.may_be_tried_again(), "{swept:?}");
}
