//! Writing: a blob is sent in pieces, a few of them in flight at a time.
//!
//! Source: docs/formats/containerd.md, "Writing a blob"; containerd
//! `api/services/content/v1/content.proto`.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use containerd_client::services::v1::{Info, UpdateRequest, WriteAction, WriteContentRequest};
use prost_types::FieldMask;
use tokio::sync::{mpsc, watch};

use super::{
    client::{Client, from_status, request},
    content::Containerd,
    ingest::{Awaited, Kept, Outcome, PIECE_BYTES, Progress},
    lease,
    upload::{Leaving, Manner, Upload},
};
use crate::{
    call::Call,
    digest::Digest,
    error::{Error, Kind, Quoted, Result},
    store::{BlobSink, Ingest, Stored, check_labels, labels::lacking, reason},
};

/// Longest reference that is passed on, in bytes: well below the longest key of the store's database.
const REFERENCE_BYTES: usize = 4096;
/// Longest time for which a writer that failed waits for the clean-up of the store. The rest of it goes on without
/// the writer.
const CLEAN_UP: Duration = Duration::from_millis(500);
/// Slowest rate, in bytes per second, at which the store is expected to sync a blob. A commit may be silent for the
/// time that the blob takes at this rate, besides the usual stall.
const SYNC_RATE: u64 = 16 << 20;

impl BlobSink for Containerd {
    fn ingest(&self, call: &Call, reference: &str) -> Result<Box<dyn Ingest>> {
        self.write(call, reference, Manner::Anew)
    }
}

impl Containerd {
    /// Like [`BlobSink::ingest`], but goes on where an earlier attempt under the same reference ended. The commit fails
    /// if that attempt has written other bytes.
    pub fn resume(&self, call: &Call, reference: &str) -> Result<Box<dyn Ingest>> {
        self.write(call, reference, Manner::Resume)
    }

    fn write(&self, call: &Call, reference: &str, manner: Manner) -> Result<Box<dyn Ingest>> {
        call.cancel.check()?;
        if reference.len() > REFERENCE_BYTES {
            let message = format!(
                "reference {} has {} bytes, at most {REFERENCE_BYTES} are taken",
                Quoted(reference.as_bytes()),
                reference.len()
            );
            return Err(Error::new(Kind::Malformed, reason::REFERENCE, message));
        }
        let name = self.names.unique()?;
        let reference = if reference.is_empty() { name.clone() } else { reference.to_owned() };
        let client = self.client.clone();
        let progress = Arc::new(Progress::default());
        let (wanted, still_wanted) = watch::channel(());
        let upload = Upload::new(
            client.clone(),
            call.clone(),
            reference.clone(),
            name,
            self.watch.clone(),
            self.lease_lifetime,
            manner,
        );
        client.runtime.spawn(upload.run(Leaving(Arc::clone(&progress)), still_wanted));
        let mut writer = Writer {
            client,
            call: call.clone(),
            reference,
            progress,
            requests: None,
            wanted: Some(wanted),
            piece: Vec::new(),
            kept_bytes: 0,
            sent_bytes: 0,
            size_bytes: 0,
        };
        match writer.progress.opened(&call.cancel) {
            Ok(opened) => {
                (writer.requests, writer.call) = (opened.requests, opened.call);
                (writer.kept_bytes, writer.sent_bytes) = (opened.left_bytes, opened.left_bytes);
            }
            Err(error) => return Err(writer.name(error)),
        }
        Ok(Box::new(writer))
    }
}

/// The blocking side of an ingest.
struct Writer {
    client: Client,
    /// The call, with the lease in use.
    call: Call,
    reference: String,
    progress: Arc<Progress>,
    /// Channel to the task; `None` when nothing is to be sent any more.
    requests: Option<mpsc::Sender<WriteContentRequest>>,
    /// Dropped with the writer, which ends the task.
    wanted: Option<watch::Sender<()>>,
    piece: Vec<u8>,
    /// Bytes that the store had before.
    kept_bytes: u64,
    /// Bytes that were passed to the task, and those that the store had before.
    sent_bytes: u64,
    /// Bytes that the caller has written.
    size_bytes: u64,
}

impl Ingest for Writer {
    fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.call.cancel.check()?;
        let there = usize::try_from(self.kept_bytes.saturating_sub(self.size_bytes)).unwrap_or(usize::MAX);
        self.size_bytes += bytes.len() as u64;
        let mut bytes = bytes.get(there..).unwrap_or_default();
        while !bytes.is_empty() {
            let room = PIECE_BYTES - self.piece.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE_BYTES {
                self.flush().map_err(|error| self.name(error))?;
            }
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<Stored> {
        self.finish(digest, labels).map_err(|error| self.name(error))
    }
}

impl Writer {
    /// Sends the bytes gathered in `piece`.
    fn flush(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let data = mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let (action, offset) = (WriteAction::Write, self.sent_bytes);
        self.sent_bytes += data.len() as u64;
        let message = WriteContentRequest { data, ..self.message(action, offset)? };
        self.send(message, Awaited { action, offset: self.sent_bytes, digest: None })
    }

    fn finish(&mut self, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<Stored> {
        check_labels(labels)?;
        self.call.cancel.check()?;
        if self.size_bytes < self.kept_bytes {
            let message = format!("the store has {} bytes of a blob of {}", self.kept_bytes, self.size_bytes);
            return Err(Error::new(Kind::DataLoss, reason::OFFSET, message));
        }
        self.flush()?;
        let (action, offset) = (WriteAction::Commit, self.sent_bytes);
        let message = self.message(action, offset)?;
        let message = WriteContentRequest {
            total: message.offset,
            expected: digest.to_string(),
            labels: labels.clone().into_iter().collect(),
            ..message
        };
        self.send(message, Awaited { action, offset, digest: Some(digest.to_string()) })?;
        // No more messages: the store closes the stream.
        self.requests = None;
        let patience = self.client.stall + Duration::from_secs(self.size_bytes / SYNC_RATE);
        let outcome = self.progress.outcome(&self.call.cancel, patience)?;
        if outcome == Outcome::Existed {
            self.take_under_lease(digest)?;
        }
        self.check(digest, labels)?;
        self.progress.keep(Kept { digest: digest.clone(), is_new: outcome == Outcome::Committed });
        tracing::debug!(%digest, size_bytes = self.size_bytes, ?outcome, lease = ?self.call.lease, "blob written");
        Ok(Stored { digest: digest.clone(), size_bytes: self.size_bytes })
    }

    fn message(&self, action: WriteAction, offset: u64) -> Result<WriteContentRequest> {
        let offset = i64::try_from(offset).map_err(|_wide| {
            Error::new(Kind::Exhausted, reason::SIZE, format!("{offset} bytes are too many for a blob"))
        })?;
        let (action, r#ref) = (action.into(), self.reference.clone());
        Ok(WriteContentRequest { action, r#ref, offset, ..WriteContentRequest::default() })
    }

    /// Passes a message to the task once there is room for it.
    fn send(&mut self, message: WriteContentRequest, asks: Awaited) -> Result<()> {
        let Some(requests) = &self.requests else { return Ok(()) };
        if !self.progress.begin(&self.call.cancel, self.client.stall, asks)? {
            self.requests = None;
            return Ok(());
        }
        // Refused only when the stream has just ended; the next wait returns the reason.
        let _ended = requests.try_send(message);
        Ok(())
    }

    /// Adds a blob that was in the store before to the lease. The store does not: it looks for the blob before it looks
    /// at the lease, and stops there.
    fn take_under_lease(&self, digest: &Digest) -> Result<()> {
        let Some(id) = &self.call.lease else { return Ok(()) };
        self.client.retried(&self.call, "lease of a blob", |_channel| {
            let (client, call) = (self.client.clone(), self.call.clone());
            let (id, digest) = (id.clone(), digest.clone());
            async move { lease::add(&client, &call, &id, &digest).await.map_err(from_status) }
        })
    }

    /// Compares the size of the store's blob with the bytes written, and adds the labels that are missing.
    fn check(&self, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<()> {
        let (info, found) = self.client.info(&self.call, digest)?;
        if found != self.size_bytes {
            let message = format!("{} bytes were written, the store has {found}", self.size_bytes);
            return Err(Error::new(Kind::DataLoss, reason::SIZE, message));
        }
        let missing = lacking(labels, &info.labels);
        if missing.is_empty() {
            return Ok(());
        }
        let response = self.client.retried(&self.call, "content update", |_channel| {
            let labels =
                missing.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let info = Info { digest: digest.to_string(), labels, ..Info::default() };
            let paths = missing.keys().map(|key| format!("labels.{key}")).collect();
            let update = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
            let update = request(&self.call, update);
            let mut content = self.client.content();
            async move { content.update(update?).await.map_err(from_status) }
        })?;
        let after = response.into_inner().info.unwrap_or_default();
        match lacking(labels, &after.labels).into_keys().next() {
            None => Ok(()),
            Some(key) => {
                let message = format!("the store did not take label {}", Quoted(key.as_bytes()));
                Err(Error::new(Kind::DataLoss, reason::LABEL, message))
            }
        }
    }

    /// Adds address and reference to an error. `NotFound` becomes `Unavailable`: a lease or a blob was collected
    /// meanwhile, which is nothing that the caller asked for.
    fn name(&self, error: Error) -> Error {
        let error = match error.kind() {
            Kind::NotFound => Error::new(Kind::Unavailable, reason::LEASE, error.to_string()),
            _ => error,
        };
        let reference = Quoted(self.reference.as_bytes()).to_string();
        error.context(format!(
            "write to containerd at {}, reference {reference}",
            self.client.address.display()
        ))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        self.progress.abandon();
        self.wanted = None;
        if self.progress.kept().is_none() {
            self.progress.gone(CLEAN_UP);
        }
    }
}
