//! One request's log line and its counters, written once when the request ends, however it ends.

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
    snapshot::snapshot_id,
};

/// What a request is about.
pub trait Subject {
    /// What its log line tells of it.
    fn about(&self) -> About;
}

/// What a request came to when it succeeded.
pub trait Success {
    /// What its log line tells of it.
    fn figures(&self) -> Figures;

    /// Adds it to the metrics. `layer` is [`About::layer`], `took` the time from request to reply.
    fn count(&self, metrics: &Metrics, layer: &'static str, took: Duration);
}

/// A request in words.
#[derive(Clone, Debug)]
pub struct About {
    /// What a message about it begins with.
    pub subject: String,
    /// Digest of the blob that is named; empty when none is.
    pub digest: String,
    /// Media type that is asked for.
    pub media_type: String,
    /// tar, erofs or other.
    pub layer: &'static str,
    /// Number of the snapshot.
    pub snapshot: Option<String>,
    /// Number of the one it is compared with.
    pub parent: Option<String>,
}

/// The result of a request in numbers.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Digest of the blob, read or written.
    pub digest: Digest,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// How the blob is compressed.
    pub coding: Coding,
    /// Bytes that came in: the blob's, or those of the uncompressed layer that was put together.
    pub bytes_in: u64,
    /// Bytes that went out: those of the uncompressed layer, or the blob's.
    pub bytes_out: u64,
    /// Size of the image, for Apply.
    pub image_bytes: Option<u64>,
    /// Files, directories, links and whiteouts.
    pub nodes: u64,
    /// Directories that the layer does not list, for Apply, and how many of them are like those below. `None`
    /// without such directories.
    pub implied: Option<(u64, u64)>,
    /// Sockets that were left out, for Diff.
    pub sockets: Option<u64>,
}

impl Subject for apply::Request {
    fn about(&self) -> About {
        let layer = label(LayerType::of(&self.diff.media_type));
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

/// The label of a layer type in metrics.
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
            sockets: None,
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
            sockets: Some(self.stats.contents.sockets),
        }
    }

    fn count(&self, metrics: &Metrics, layer: &'static str, took: Duration) {
        metrics.count_compared(layer, self, took);
    }
}

/// What is known about a request while it is worked on.
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
    /// A request that could be read.
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

    /// A request that was refused before it was understood.
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

    /// What a message about this request begins with.
    pub fn subject(&self) -> &str {
        &self.about.subject
    }

    /// The request got its turn after `queued`.
    pub fn started(&mut self, queued: Duration, observer: &Observer) {
        self.queued = queued;
        observer.metrics.count_queued(queued);
    }

    /// Writes the line and counts.
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
        // The macros of tracing take a level only when it is a constant.
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
                    sockets = done.and_then(|done| done.sockets),
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

/// A request that failed is a warning, by our own fault an error. A client that cancels, or whom
/// `UNIMPLEMENTED` sends to its next differ, has not seen a failure.
fn level(outcome: Result<&dyn Success, &Error>) -> Level {
    match outcome.err().map(Error::kind) {
        None | Some(Kind::Cancelled | Kind::NotImplemented) => Level::INFO,
        Some(Kind::Internal) => Level::ERROR,
        Some(_) => Level::WARN,
    }
}

/// An empty field is left out.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn milliseconds(duration: Duration) -> f64 {
    // Three digits behind the point are what the clock is good for.
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
