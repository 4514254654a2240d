//! Log line and counters of one request, written once when it ends.

use std::time::{Duration, Instant};

use tracing::Level;

use super::{Metrics, Observer, logging::one_line, metrics::Outcome, security::SecurityEvent};
use crate::{
    apply::{self, Applied, Contents},
    call::{Call, Caller},
    codec::Coding,
    compare::{self, Compared},
    digest::Digest,
    error::{Error, Kind},
    kind::LayerType,
    pipeline::AheadFacts,
    snapshot::snapshot_id,
};

/// A request that can be logged.
pub trait Subject {
    /// Returns the fields of the log line that are known before the request runs.
    fn about(&self) -> About;
}

/// The result of a request that succeeded.
pub trait Success {
    /// Returns the fields of the log line that are known at the end.
    fn figures(&self) -> Figures;

    /// Adds the result to the metrics. `layer` is [`About::layer`], `took` the time from request to reply.
    fn count(&self, metrics: &Metrics, layer: &'static str, took: Duration);
}

/// Fields of a request's log line that are known before it runs.
#[derive(Clone, Debug)]
pub struct About {
    /// Begins the messages about the request: method, blob or media type, snapshot.
    pub subject: String,
    /// Digest of the blob that the request names; empty for Diff.
    pub digest: String,
    /// Media type of the blob to read or to write.
    pub media_type: String,
    /// Label of the layer in metrics: tar, erofs, overlaybd, turbo or other.
    pub layer: &'static str,
    /// Number of the snapshot, where its mounts show it.
    pub snapshot: Option<String>,
    /// Number of the snapshot that it is compared with, for Diff.
    pub parent: Option<String>,
}

/// Fields of a request's log line that are known once it has succeeded.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Digest of the blob that was read or written.
    pub digest: Digest,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Compression of the blob.
    pub coding: Coding,
    /// Size of the blob for Apply, of the uncompressed layer for Diff, in bytes.
    pub bytes_in: u64,
    /// Size of the uncompressed layer for Apply, of the blob for Diff, in bytes.
    pub bytes_out: u64,
    /// Size of the image in bytes, for Apply.
    pub image_bytes: Option<u64>,
    /// Number of files, directories, links and whiteouts.
    pub nodes: u64,
    /// Number of directories that the layer does not list, and of those among them that took their attributes from
    /// the layers below. For Apply; `None` without such directories.
    pub implied: Option<(u64, u64)>,
    /// Layers that merged metadata was written of, if it was.
    pub merged: Option<u64>,
    /// Number of sockets that were left out, for Diff.
    pub sockets: Option<u64>,
    /// Work of helpers that decoded ahead, for Apply; `None` when there was none.
    pub ahead: Option<AheadFacts>,
}

impl Subject for apply::Request {
    fn about(&self) -> About {
        let layer = label(LayerType::of_blob(&self.diff.media_type, &self.diff.annotations));
        let (digest, media_type) = (self.diff.digest.to_string(), self.diff.media_type.clone());
        let snapshot = snapshot_id(&self.mounts).map(str::to_owned);
        let place = snapshot.as_deref().map(|id| format!(" to snapshot {id}")).unwrap_or_default();
        let subject = format!("apply {digest} ({media_type}){place}");
        About { subject, digest, media_type, layer, snapshot, parent: None }
    }
}

impl Subject for compare::Request {
    fn about(&self) -> About {
        let layer_type = LayerType::to_write(&self.media_type);
        let layer = label(layer_type);
        let media_type =
            layer_type.map_or_else(|| self.media_type.clone(), |layer_type| layer_type.media_type.to_owned());
        let [snapshot, parent] =
            [&self.right, &self.left].map(|mounts| snapshot_id(mounts).map(str::to_owned));
        let name = snapshot.as_deref().map(|id| format!(" of snapshot {id}")).unwrap_or_default();
        let subject = format!("diff{name} ({media_type})");
        About { subject, digest: String::new(), media_type, layer, snapshot, parent }
    }
}

/// Label of a layer type in metrics.
fn label(row: Option<&LayerType>) -> &'static str {
    row.map_or("other", |row| row.container.as_str())
}

impl Success for Applied {
    fn figures(&self) -> Figures {
        Figures {
            digest: self.stats.blob.clone(),
            diff_id: self.descriptor.digest.clone(),
            coding: self.stats.coding,
            bytes_in: self.stats.blob_bytes,
            bytes_out: self.descriptor.size_bytes,
            image_bytes: Some(self.stats.image_bytes),
            nodes: self.stats.contents.nodes,
            implied: match &self.stats.contents {
                Contents { implied_directories: 0, .. } => None,
                contents => Some((contents.implied_directories, contents.inherited_directories)),
            },
            merged: Some(self.stats.contents.merged_layers).filter(|layers| *layers > 0),
            sockets: None,
            ahead: Some(self.stats.ahead).filter(|ahead| *ahead != AheadFacts::default()),
        }
    }

    fn count(&self, metrics: &Metrics, layer: &'static str, took: Duration) {
        metrics.count_applied(layer, self, took);
    }
}

impl Success for Compared {
    fn figures(&self) -> Figures {
        Figures {
            digest: self.descriptor.digest.clone(),
            diff_id: self.stats.diff_id.clone(),
            coding: self.stats.coding,
            bytes_in: self.stats.uncompressed_bytes,
            bytes_out: self.descriptor.size_bytes,
            image_bytes: None,
            nodes: self.stats.contents.entries,
            implied: None,
            merged: None,
            sockets: Some(self.stats.contents.sockets),
            ahead: None,
        }
    }

    fn count(&self, metrics: &Metrics, layer: &'static str, took: Duration) {
        metrics.count_compared(layer, self, took);
    }
}

/// A request that is running, with the fields of its log line.
#[derive(Clone, Debug)]
pub struct Record {
    caller: Caller,
    namespace: String,
    trace_parent: Option<String>,
    about: About,
    since: Instant,
    queued: Duration,
}

impl Record {
    /// Record of a request whose message was decoded. Its time starts now.
    pub fn new(caller: &Caller, call: &Call, subject: &impl Subject) -> Self {
        Self {
            caller: *caller,
            namespace: call.namespace.to_string(),
            trace_parent: call.trace_parent.as_ref().map(|parent| parent.as_str().to_owned()),
            about: subject.about(),
            since: Instant::now(),
            queued: Duration::ZERO,
        }
    }

    /// Record of a request that was refused before its message was decoded.
    pub fn unread(caller: &Caller) -> Self {
        let about = About {
            subject: String::new(),
            digest: String::new(),
            media_type: String::new(),
            layer: "other",
            snapshot: None,
            parent: None,
        };
        let (since, queued) = (Instant::now(), Duration::ZERO);
        Self { caller: *caller, namespace: String::new(), trace_parent: None, about, since, queued }
    }

    /// Beginning of the messages about this request.
    pub fn subject(&self) -> &str {
        &self.about.subject
    }

    /// Notes that the request got its turn after it had waited for `queued`, and counts that time.
    pub fn started(&mut self, queued: Duration, observer: &Observer) {
        self.queued = queued;
        observer.metrics.count_queued(queued);
    }

    /// Writes the log line, and adds the request to the metrics.
    pub fn finish(&self, observer: &Observer, outcome: Result<&dyn Success, &Error>) {
        let took = self.since.elapsed();
        let About { digest, media_type, layer, snapshot, parent, .. } = &self.about;
        let (code, reason) = match outcome {
            Ok(_) => ("ok", ""),
            Err(error) => (error.kind().as_str(), error.reason()),
        };
        observer.metrics.count_request(&Outcome {
            method: self.caller.method.as_str(),
            wire: self.caller.wire.as_str(),
            layer,
            code,
            reason,
        });
        if let Ok(done) = outcome {
            done.count(&observer.metrics, layer, took);
        }
        if let Err(error) = outcome
            && let Some(event) = SecurityEvent::of(error)
        {
            observer.security(event, &error.to_string());
        }
        let peer = self.caller.peer;
        let done = outcome.ok().map(Success::figures);
        let done = done.as_ref();
        let written = done.map(|done| done.digest.to_string());
        // The macros of tracing accept only a constant as level.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "plywood::request",
                    method = self.caller.method.as_str(),
                    wire = self.caller.wire.as_str(),
                    namespace = some(&self.namespace),
                    digest = some(digest).or(written.as_deref()),
                    media_type = some(media_type),
                    snapshot = snapshot.as_deref(),
                    parent = parent.as_deref(),
                    code,
                    reason = some(reason),
                    diff_id = done.map(|done| done.diff_id.to_string()),
                    coding = done.map(|done| done.coding.as_str()),
                    bytes_in = done.map(|done| done.bytes_in),
                    bytes_out = done.map(|done| done.bytes_out),
                    image_bytes = done.and_then(|done| done.image_bytes),
                    nodes = done.map(|done| done.nodes),
                    implied = done.and_then(|done| done.implied).map(|(implied, _)| implied),
                    inherited = done.and_then(|done| done.implied).map(|(_, inherited)| inherited),
                    merged = done.and_then(|done| done.merged),
                    sockets = done.and_then(|done| done.sockets),
                    ahead_used = done.and_then(|done| done.ahead).map(|ahead| ahead.used),
                    ahead_missed = done.and_then(|done| done.ahead).map(|ahead| ahead.missed),
                    duration_ms = milliseconds(took),
                    queued_ms = milliseconds(self.queued),
                    peer_pid = peer.and_then(|peer| peer.pid),
                    peer_uid = peer.map(|peer| peer.uid),
                    trace_parent = self.trace_parent.as_deref(),
                    error = outcome.err().map(|error| one_line(&error.to_string(), 2048)),
                )
            };
        }
        match level(outcome) {
            Level::ERROR => line!(error),
            Level::WARN => line!(warn),
            _ => line!(info),
        }
    }
}

/// Level of the log line: `WARN` for a request that failed, `ERROR` for a bug of ours. `INFO` for a cancelled request
/// and for one that `UNIMPLEMENTED` sends to the next differ: their clients have not seen a failure.
fn level(outcome: Result<&dyn Success, &Error>) -> Level {
    match outcome.err().map(Error::kind) {
        None | Some(Kind::Cancelled | Kind::NotImplemented) => Level::INFO,
        Some(Kind::Internal) => Level::ERROR,
        Some(_) => Level::WARN,
    }
}

/// `None` for an empty text: its field is left out of the line.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn milliseconds(duration: Duration) -> f64 {
    // Three digits behind the point: the clock is no more precise.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_warning_and_a_fault_of_ours_an_error() {
        let of = |kind| level(Err(&Error::new(kind, "x", "y")));
        for kind in [
            Kind::Malformed,
            Kind::Denied,
            Kind::Conflict,
            Kind::Exhausted,
            Kind::DataLoss,
            Kind::NotFound,
            Kind::Unavailable,
            Kind::DeadlineExceeded,
            Kind::Changed,
        ] {
            assert_eq!(of(kind), Level::WARN, "{kind:?}");
        }
        assert_eq!(of(Kind::Internal), Level::ERROR);
        assert_eq!([of(Kind::Cancelled), of(Kind::NotImplemented)], [Level::INFO; 2]);
    }
}
