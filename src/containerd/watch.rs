//! The watch on leases of ours: each is deleted as soon as something else holds its blob.
//!
//! The client that asked for a blob refers to it within moments, by the label of a manifest or by a lease of its own.
//! From then on our lease would only keep the blob after its image was deleted. One task checks all leases, in pauses
//! that grow, and ends with the last of them. A lease that it cannot delete expires by its label.
//!
//! For a blob that was in the store before, only holders younger than our lease count: an older image may be deleted
//! before the new one refers to the blob.
//!
//! Source: docs/formats/containerd.md, "Writing a blob"; containerd `docs/garbage-collection.md`,
//! `core/content/adaptor.go` (what filters see).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use containerd_client::services::v1::{Lease, ListContentRequest};
use prost_types::Timestamp;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;

use super::{
    client::{Client, request},
    lease,
    name::{self, Names},
};
use crate::{
    call::{Call, Namespace},
    digest::Digest,
};

/// First and longest pause between two checks. A check costs containerd a walk over its list of blobs.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Time after which a lease that is still there is replaced by one that expires when it should, even if this process
/// is not there any more. Most leases are gone before.
const REPLACE: Duration = Duration::from_secs(10);
/// Longest time for one call.
const CALL: Duration = Duration::from_secs(10);
/// Prefix of the labels by which one blob holds another.
const REFERENCE: &str = "containerd.io/gc.ref.content";
/// Endings of labels of which a blob that holds others has at least one: those that containerd's clients, Docker,
/// BuildKit and nerdctl give a manifest.
const HOLDERS: [&str; 4] = ["", ".0", ".config", ".l.0"];
/// Most leases of others whose contents are listed in one check, the newest first. Docker has one for each container.
const OTHERS: usize = 256;

/// A lease of ours on a blob.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Namespace of lease and blob.
    pub(super) namespace: Namespace,
    pub(super) id: String,
    pub(super) digest: Digest,
    /// Time of its creation, by containerd's clock.
    pub(super) since: Timestamp,
    /// The blob was not in the store before, so that every holder is younger than the lease.
    pub(super) is_new: bool,
}

/// A watched lease.
struct Open {
    held: Held,
    next: Instant,
    pause: Duration,
    /// Time at which it is replaced; `None` once it was.
    replace: Option<Instant>,
    /// Time at which it is deleted even if nothing else holds the blob.
    end: Instant,
}

/// The watched leases of one client. Clones share them.
#[derive(Clone)]
pub(super) struct Watch {
    open: Arc<Mutex<State>>,
    client: Client,
    names: Names,
    lifetime: Duration,
}

#[derive(Default)]
struct State {
    leases: Vec<Open>,
    /// Whether the task is running.
    running: bool,
}

impl Watch {
    /// A watch without leases. Each is deleted `lifetime` after its blob was written at the latest.
    pub(super) fn new(client: Client, names: Names, lifetime: Duration) -> Self {
        Self { open: Arc::default(), client, names, lifetime }
    }

    /// Watches `held` from now on. Returns `false` if it is watched already.
    pub(super) async fn add(&self, held: Held) -> bool {
        let now = Instant::now();
        let mut state = self.open.lock().await;
        let key = |held: &Held| (held.namespace.clone(), held.id.clone());
        if state.leases.iter().any(|open| key(&open.held) == key(&held)) {
            return false;
        }
        let pause = PAUSES.0.min(self.lifetime);
        state.leases.push(Open {
            held,
            next: now + pause,
            pause,
            replace: Some(now + REPLACE),
            end: now + self.lifetime,
        });
        if !state.running {
            state.running = true;
            self.client.runtime.spawn(self.clone().run());
        }
        true
    }

    /// Deletes the leases that nothing needs any more, and replaces the others by ones that expire in time. The next
    /// daemon watches those that are left.
    pub(super) async fn settle(&self) {
        let mut state = self.open.lock().await;
        let mut leases = std::mem::take(&mut state.leases);
        let now = Instant::now();
        leases.iter_mut().for_each(|open| open.replace = open.replace.map(|_| now));
        state.leases = self.look(leases).await;
    }

    async fn run(self) {
        loop {
            let next = {
                let mut state = self.open.lock().await;
                let Some(next) = state.leases.iter().map(|open| open.next).min() else {
                    state.running = false;
                    return;
                };
                next
            };
            sleep_until(next).await;
            let mut state = self.open.lock().await;
            let now = Instant::now();
            // One check serves all leases of a namespace.
            let due: HashSet<_> = state
                .leases
                .iter()
                .filter(|open| open.next <= now)
                .map(|open| open.held.namespace.clone())
                .collect();
            let (due, later) = std::mem::take(&mut state.leases)
                .into_iter()
                .partition(|open| due.contains(&open.held.namespace));
            state.leases = later;
            let left = self.look(due).await;
            state.leases.extend(left);
        }
    }

    /// Checks leases of any namespaces. Returns those that stay.
    async fn look(&self, leases: Vec<Open>) -> Vec<Open> {
        let mut by_namespace: HashMap<Namespace, Vec<Open>> = HashMap::new();
        for open in leases {
            by_namespace.entry(open.held.namespace.clone()).or_default().push(open);
        }
        let mut left = Vec::new();
        for (namespace, open) in by_namespace {
            left.extend(self.look_in(&Call::new(namespace), open).await);
        }
        left
    }

    /// Checks leases of one namespace. Returns those that stay.
    async fn look_in(&self, call: &Call, leases: Vec<Open>) -> Vec<Open> {
        let all: Vec<_> = leases.iter().map(|open| open.held.clone()).collect();
        let free = self.free(call, &all).await.unwrap_or_else(|status| {
            tracing::debug!(%status, namespace = call.namespace.as_str(), "leases cannot be looked at yet");
            BTreeSet::new()
        });
        let mut left = Vec::new();
        for mut open in leases {
            let now = Instant::now();
            let is_over = now >= open.end;
            if is_over || free.contains(&open.held.id) {
                let gone = in_time(lease::delete(&self.client, call, &open.held.id)).await;
                let Held { id, digest, .. } = &open.held;
                tracing::debug!(lease = id, %digest, is_over, ?gone, "a lease is let go");
                // A lease that cannot be deleted when its time is over expires by its label.
                if gone.is_ok() || is_over {
                    continue;
                }
            } else if open.replace.is_some_and(|at| now >= at) && self.replace(call, &mut open).await.is_ok()
            {
                open.replace = None;
            }
            open.pause = (open.pause * 2).min(PAUSES.1);
            open.next = (Instant::now() + open.pause).min(open.end.max(Instant::now()));
            left.push(open);
        }
        left
    }

    /// Adds the blob to a new lease that expires at [`Open::end`], and deletes the lease of the write, which had to
    /// last longer than any write.
    async fn replace(&self, call: &Call, open: &mut Open) -> Result<(), Status> {
        let refused = |error: crate::error::Error| Status::internal(error.to_string());
        let id = self.names.unique().map_err(refused)?;
        let left = open.end.saturating_duration_since(Instant::now());
        in_time(lease::create(&self.client, call, &id, left)).await?;
        let added = in_time(lease::add(&self.client, call, &id, &open.held.digest)).await;
        // The blob stays under one of the two, whatever fails.
        let unneeded = if added.is_ok() { std::mem::replace(&mut open.held.id, id) } else { id };
        in_time(lease::delete(&self.client, call, &unneeded)).await?;
        added
    }

    /// Returns the ids of the leases whose blob something else holds, or that are gone.
    async fn free(&self, call: &Call, held: &[Held]) -> Result<BTreeSet<String>, Status> {
        let leases = in_time(lease::list(&self.client, call)).await?;
        let known: HashSet<_> = leases.iter().map(|lease| lease.id.as_str()).collect();
        let mut free: BTreeSet<_> =
            held.iter().map(|held| &held.id).filter(|id| !known.contains(id.as_str())).cloned().collect();
        if free.len() < held.len() {
            timeout(CALL, self.referred(call, held, &mut free)).await.map_err(|_elapsed| late())??;
        }
        // Leases of ours do not count: two Diffs with one result would each rely on the other's.
        let mut others: Vec<_> = leases.iter().filter(|lease| !name::is_ours(&lease.id)).collect();
        others.sort_by_key(|lease| std::cmp::Reverse(instant(lease.created_at.as_ref())));
        for lease in others.into_iter().take(OTHERS) {
            if free.len() >= held.len() {
                break;
            }
            self.leased(call, lease, held, &mut free).await?;
        }
        Ok(free)
    }

    /// Adds to `free` the leases on blobs to which another blob refers.
    async fn referred(&self, call: &Call, held: &[Held], free: &mut BTreeSet<String>) -> Result<(), Status> {
        let filters = HOLDERS.map(|ending| format!("labels.\"{REFERENCE}{ending}\"")).into();
        let message = request(call, ListContentRequest { filters }).map_err(lease::refused)?;
        let mut list = self.client.content().list(message).await?.into_inner();
        while let Some(part) = list.message().await? {
            for info in part.info {
                let refers = |digest: &Digest| {
                    let digest = digest.to_string();
                    info.digest != digest
                        && info
                            .labels
                            .iter()
                            .any(|(key, value)| key.starts_with(REFERENCE) && *value == digest)
                };
                for held in held.iter().filter(|held| held.counts(info.updated_at.as_ref())) {
                    if refers(&held.digest) {
                        free.insert(held.id.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds to `free` the leases on blobs that `lease` holds as well.
    async fn leased(
        &self,
        call: &Call,
        lease: &Lease,
        held: &[Held],
        free: &mut BTreeSet<String>,
    ) -> Result<(), Status> {
        let counting = |held: &&Held| !free.contains(&held.id) && held.counts(lease.created_at.as_ref());
        let held: Vec<_> = held.iter().filter(counting).collect();
        if held.is_empty() {
            return Ok(());
        }
        let contents = match in_time(lease::contents(&self.client, call, &lease.id)).await {
            Ok(contents) => contents,
            // The lease was deleted meanwhile.
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
            Err(status) => return Err(status),
        };
        let holds = |held: &&&Held| contents.contains(&held.digest.to_string());
        free.extend(held.iter().filter(holds).map(|held| held.id.clone()));
        Ok(())
    }
}

impl Held {
    /// Whether a holder created `at` counts: it is not older than the lease, or the blob is new.
    fn counts(&self, at: Option<&Timestamp>) -> bool {
        self.is_new || instant(at) >= instant(Some(&self.since))
    }
}

/// Sort key of a time. `None` is the earliest.
fn instant(time: Option<&Timestamp>) -> Option<(i64, i32)> {
    time.map(|time| (time.seconds, time.nanos))
}

fn late() -> Status {
    Status::deadline_exceeded(format!("no answer for {} s", CALL.as_secs()))
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(CALL, call).await.map_err(|_elapsed| late())?
}

/// Lists the leases that `names` made in an earlier life, with the blob that each holds.
pub(super) async fn left(client: &Client, call: &Call, names: &Names) -> Result<Vec<Held>, Status> {
    let mut found = Vec::new();
    for lease in in_time(lease::list(client, call)).await? {
        if !names.is_left(&lease.id) {
            continue;
        }
        let contents = match in_time(lease::contents(client, call, &lease.id)).await {
            Ok(contents) => contents,
            Err(status) if status.code() == tonic::Code::NotFound => continue,
            Err(status) => return Err(status),
        };
        let digest = contents.first().and_then(|digest| digest.parse().ok());
        found.extend(digest.map(|digest| Held {
            namespace: call.namespace.clone(),
            id: lease.id,
            digest,
            since: lease.created_at.unwrap_or_default(),
            // Not recorded, so older holders must not count.
            is_new: false,
        }));
    }
    Ok(found)
}
