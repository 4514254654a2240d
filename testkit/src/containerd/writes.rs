//! The writing half of the store: ingests, their locks, and what goes wrong with them.
//!
//! Source: containerd `plugins/services/content/contentserver/contentserver.go`, `core/metadata/content.go`,
//! `plugins/content/local/writer.go`.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use containerd_client::services::v1::{
    Status as IngestStatus, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming};

use crate::archive;

use super::{FakeContainerd, Held, State, disconnect, leases::Leases};

/// Longest label, key and value together, in bytes.
const LABEL: usize = 4096;

/// A fault of every write until it is cleared. Messages are counted from 0, which is the first
/// of a stream, its STAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// This message is answered with a status.
    Fail(usize, Code, &'static str),
    /// This message finds the disk full.
    Full(usize),
    /// Every connection is cut when this message comes.
    Disconnect(usize),
    /// This message and those after it are not taken, and the stream stays open.
    Stall(usize),
    /// The reply to this message says one byte more than there is.
    WrongOffset(usize),
    /// The stream ends well at this message, without a reply to it.
    Close(usize),
    /// The reply to the commit names another digest.
    WrongDigest,
    /// Nothing is truncated, and the replies say so.
    NoTruncation,
    /// The bytes of this message arrive with one bit turned.
    Flip(usize),
    /// The commit goes through, but every connection is cut before its reply.
    LostReply,
    /// The connections are cut after the commit's first reply.
    LostEnd,
    /// Every message takes so many milliseconds.
    Slow(u64),
    /// An ALREADY_EXISTS comes at this message, whatever it says.
    Exists(usize),
}

/// One message of a write stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub action: WriteAction,
    pub reference: String,
    pub offset: i64,
    pub total: i64,
    pub expected: String,
    pub data_bytes: usize,
    pub labels: BTreeMap<String, String>,
}

/// Ingests by namespace and reference.
#[derive(Default)]
pub(super) struct Writes {
    ingests: BTreeMap<(String, String), Ingest>,
    pub(super) fault: Option<WriteFault>,
    messages: Vec<Message>,
    active: usize,
}

#[derive(Default)]
struct Ingest {
    bytes: Vec<u8>,
    locked: bool,
    /// Begun under a lease: it goes with that.
    leased: bool,
}

impl FakeContainerd {
    /// Sets or clears what goes wrong with writes.
    pub fn write_fault(&self, fault: impl Into<Option<WriteFault>>) {
        self.state.lock().unwrap().writes.fault = fault.into();
    }

    /// The uncommitted ingests: namespace, reference, bytes.
    pub fn ingests(&self) -> Vec<(String, String, Vec<u8>)> {
        let state = self.state.lock().unwrap();
        let ingests = state.writes.ingests.iter();
        ingests
            .map(|((namespace, name), ingest)| (namespace.clone(), name.clone(), ingest.bytes.clone()))
            .collect()
    }

    /// Leaves bytes under a reference, as an earlier attempt would.
    pub fn leave(&self, namespace: &str, reference: &str, bytes: &[u8]) {
        let key = (namespace.to_owned(), reference.to_owned());
        let ingest = Ingest { bytes: bytes.to_vec(), ..Ingest::default() };
        self.state.lock().unwrap().writes.ingests.insert(key, ingest);
    }

    /// Locks or unlocks a reference, as another writer would.
    pub fn lock(&self, namespace: &str, reference: &str, locked: bool) {
        let key = (namespace.to_owned(), reference.to_owned());
        self.state.lock().unwrap().writes.ingests.entry(key).or_default().locked = locked;
    }

    /// The messages of all write streams so far, which are forgotten.
    pub fn take_messages(&self) -> Vec<Message> {
        std::mem::take(&mut self.state.lock().unwrap().writes.messages)
    }

    /// Write streams that have begun and not ended.
    pub fn active_writes(&self) -> usize {
        self.state.lock().unwrap().writes.active
    }
}

impl Writes {
    pub(super) fn status(&self, namespace: &str, reference: &str) -> Result<IngestStatus, Status> {
        let statuses = self.statuses(namespace);
        let found = statuses.into_iter().find(|status| status.r#ref == reference);
        found.ok_or_else(|| Status::not_found(format!("ingest {reference}: not found")))
    }

    pub(super) fn statuses(&self, namespace: &str) -> Vec<IngestStatus> {
        let ingests = self.ingests.iter().filter(|((of, _), _)| of == namespace);
        let status = |((_, name), ingest): (&(String, String), &Ingest)| IngestStatus {
            r#ref: name.clone(),
            offset: length(&ingest.bytes),
            ..IngestStatus::default()
        };
        ingests.map(status).collect()
    }

    pub(super) fn abort(&mut self, namespace: &str, reference: &str) -> Result<(), Status> {
        let removed = self.ingests.remove(&(namespace.to_owned(), reference.to_owned()));
        removed.map(drop).ok_or_else(|| Status::not_found(format!("ingest {reference}: not found")))
    }

    /// The namespaces of all ingests.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.ingests.keys().map(|(namespace, _)| namespace.as_str())
    }

    /// Removes ingests whose lease is gone.
    pub(super) fn collect(&mut self, leases: &Leases) {
        self.ingests
            .retain(|(namespace, name), ingest| !ingest.leased || leases.hold(namespace, "ingests", name));
    }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap()
}

/// Labels as the store keeps them, or why it does not.
pub(super) fn checked(mut labels: HashMap<String, String>) -> Result<HashMap<String, String>, Status> {
    if let Some((key, _)) = labels.iter().find(|(key, value)| key.len() + value.len() > LABEL) {
        let message =
            format!("label key and value length greater than maximum size ({LABEL} bytes), key: {key}");
        return Err(Status::invalid_argument(message));
    }
    labels.retain(|_, value| !value.is_empty());
    Ok(labels)
}

/// The replies of one stream.
pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<WriteContentResponse, Status>> + Send>>;

/// Serves a stream. As in containerd nothing is answered, not even headers, before the first message.
pub(super) async fn serve(
    state: &Arc<Mutex<State>>,
    namespace: String,
    lease: Option<String>,
    mut messages: Streaming<WriteContentRequest>,
) -> Result<Replies, Status> {
    let first = message(&mut messages).await?.ok_or_else(|| Status::unknown("EOF"))?;
    let writer = Writer::open(state, namespace, lease, &first)?;
    let (to, replies) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(status) = writer.run(first, messages, &to).await {
            let _ = to.send(Err(status)).await;
        }
        drop(to);
    });
    Ok(Box::pin(ReceiverStream::new(replies)))
}

async fn message(
    messages: &mut Streaming<WriteContentRequest>,
) -> Result<Option<WriteContentRequest>, Status> {
    messages.message().await.map_err(|status| match status.code() {
        // containerd's library has this code for a message that is too large.
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    })
}

/// The one stream that may write to a reference.
struct Writer {
    state: Arc<Mutex<State>>,
    key: (String, String),
    lease: Option<String>,
    expected: String,
    total: i64,
    number: usize,
}

impl Writer {
    fn open(
        shared: &Arc<Mutex<State>>,
        namespace: String,
        lease: Option<String>,
        first: &WriteContentRequest,
    ) -> Result<Self, Status> {
        if first.r#ref.is_empty() {
            return Err(Status::invalid_argument("first message must have a reference"));
        }
        let key = (namespace, first.r#ref.clone());
        let mut state = shared.lock().unwrap();
        let State { blobs, writes, leases, .. } = &mut *state;
        let known = (key.0.clone(), first.expected.clone());
        if blobs.contains_key(&known) {
            leases.add(&key.0, lease.as_deref(), "content", &first.expected)?;
            return Err(Status::already_exists(format!("content {}: already exists", first.expected)));
        }
        if writes.ingests.get(&key).is_some_and(|ingest| ingest.locked) {
            return Err(Status::unavailable(format!("ref {}/1/{} locked for 1s: unavailable", key.0, key.1)));
        }
        leases.add(&key.0, lease.as_deref(), "ingests", &key.1)?;
        let ingest = writes.ingests.entry(key.clone()).or_default();
        ingest.locked = true;
        ingest.leased = lease.is_some();
        writes.active += 1;
        drop(state);
        let (expected, total) = (first.expected.clone(), first.total);
        Ok(Self { state: Arc::clone(shared), key, lease, expected, total, number: 0 })
    }

    async fn run(
        mut self,
        first: WriteContentRequest,
        mut messages: Streaming<WriteContentRequest>,
        to: &mpsc::Sender<Result<WriteContentResponse, Status>>,
    ) -> Result<(), Status> {
        let mut next = Some(first);
        let mut last = WriteContentResponse::default();
        while let Some(request) = next {
            let action = request.action();
            let fault = self.state.lock().unwrap().writes.fault;
            match fault {
                Some(WriteFault::Slow(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Some(WriteFault::Stall(at)) if at == self.number => {
                    to.closed().await;
                    return Ok(());
                }
                Some(WriteFault::Disconnect(at)) if at == self.number => {
                    disconnect(&self.state);
                    return Ok(());
                }
                Some(WriteFault::Close(at)) if at == self.number => return Ok(()),
                _ => {}
            }
            last = self.answer(request, fault)?;
            let commit = action == WriteAction::Commit;
            if commit && fault == Some(WriteFault::LostReply) {
                disconnect(&self.state);
                return Ok(());
            }
            // A client that is gone does not end the stream by itself: the next read does.
            let _ = to.send(Ok(last.clone())).await;
            if commit && fault == Some(WriteFault::LostEnd) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                disconnect(&self.state);
                return Ok(());
            }
            self.number += 1;
            next = if commit { None } else { message(&mut messages).await? };
        }
        // The last one again.
        let _ = to.send(Ok(last)).await;
        Ok(())
    }

    fn answer(
        &mut self,
        request: WriteContentRequest,
        fault: Option<WriteFault>,
    ) -> Result<WriteContentResponse, Status> {
        let mut state = self.state.lock().unwrap();
        let State { blobs, writes, leases, .. } = &mut *state;
        writes.messages.push(Message {
            action: request.action(),
            reference: request.r#ref.clone(),
            offset: request.offset,
            total: request.total,
            expected: request.expected.clone(),
            data_bytes: request.data.len(),
            labels: request.labels.clone().into_iter().collect(),
        });
        match fault {
            Some(WriteFault::Fail(at, code, text)) if at == self.number => {
                return Err(Status::new(code, text));
            }
            Some(WriteFault::Full(at)) if at == self.number => {
                return Err(Status::unknown(
                    "write /var/lib/containerd/ingest/x/data: no space left on device",
                ));
            }
            Some(WriteFault::Exists(at)) if at == self.number => {
                return Err(Status::already_exists("exists"));
            }
            _ => {}
        }
        let expected = (self.key.0.clone(), request.expected.clone());
        if !request.expected.is_empty() {
            self.expected.clone_from(&request.expected);
            if blobs.contains_key(&expected) {
                // Here containerd looks for the blob only: no lease gets it.
                writes.ingests.remove(&self.key);
                let text = format!("blob with expected digest {} exists", request.expected);
                return Err(Status::already_exists(text));
            }
        }
        if request.total > 0 {
            self.total = request.total;
        }
        let Some(ingest) = writes.ingests.get_mut(&self.key) else {
            return Err(Status::unknown("the ingest was aborted"));
        };
        let mut reply = WriteContentResponse { action: request.action, ..WriteContentResponse::default() };
        if request.action() != WriteAction::Stat {
            let at = length(&ingest.bytes);
            if request.offset > 0 && request.offset != at {
                let text = format!("write @{} must occur at current offset {at}", request.offset);
                return Err(Status::out_of_range(text));
            }
            if request.offset == 0 && fault != Some(WriteFault::NoTruncation) {
                ingest.bytes.clear();
            }
            ingest.bytes.extend_from_slice(&request.data);
            if let (Some(WriteFault::Flip(at)), Some(byte)) = (fault, ingest.bytes.last_mut())
                && at == self.number
            {
                *byte ^= 1;
            }
        }
        reply.offset = length(&ingest.bytes);
        let digest = archive::digest(&ingest.bytes);
        if request.action() == WriteAction::Commit {
            if self.total != 0 && self.total != reply.offset {
                let text =
                    format!("{:?} failed size validation: {} != {}", self.key.1, reply.offset, self.total);
                return Err(Status::failed_precondition(text));
            }
            if !self.expected.is_empty() && self.expected != digest {
                let text = format!("unexpected commit digest {digest}, expected {}", self.expected);
                return Err(Status::failed_precondition(text));
            }
            let labels = checked(request.labels.clone())?;
            leases.add(&self.key.0, self.lease.as_deref(), "content", &digest)?;
            let bytes = std::mem::take(&mut ingest.bytes);
            leases.remove(&self.key.0, "ingests", &self.key.1);
            writes.ingests.remove(&self.key);
            let key = (self.key.0.clone(), digest.clone());
            if blobs.contains_key(&key) {
                return Err(Status::already_exists(format!("content {digest}: already exists")));
            }
            blobs.insert(
                key,
                Held { bytes: Arc::new(bytes), labels, rooted: false, updated: Some(SystemTime::now()) },
            );
        }
        reply.digest = digest;
        if fault == Some(WriteFault::WrongDigest) && request.action() == WriteAction::Commit {
            reply.digest = archive::digest(b"another");
        }
        if let Some(WriteFault::WrongOffset(at)) = fault
            && at == self.number
        {
            reply.offset += 1;
        }
        Ok(reply)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let writes = &mut self.state.lock().unwrap().writes;
        writes.active -= 1;
        if let Some(ingest) = writes.ingests.get_mut(&self.key) {
            ingest.locked = false;
        }
    }
}
