//! One request's log line and its counters, written once when the request ends, however it ends.

use std::time::{Duration, Instant};

use super::{Observer, metrics::Outcome, security::SecurityEvent};
use crate::{
    apply::{Applied, Request},
    call::Call,
    error::Error,
    media_type::LayerType,
    server::Caller,
    snapshot::Mount,
};

/// What is known about a request while it is worked on.
#[derive(Clone, Debug)]
pub struct Record {
    caller: Caller,
    namespace: String,
    trace_parent: Option<String>,
    digest: String,
    media_type: String,
    layer: &'static str,
    snapshot: Option<String>,
    since: Instant,
    queued: Duration,
}

impl Record {
    /// A request that could be read.
    pub fn new(caller: &Caller, call: &Call, request: &Request) -> Self {
        let layer = match LayerType::of(&request.diff.media_type) {
            Some(LayerType::Tar) => "tar",
            Some(LayerType::NativeErofs { .. }) => "erofs",
            None => "other",
        };
        Self {
            caller: *caller,
            namespace: call.namespace.to_string(),
            trace_parent: call.trace_parent.as_ref().map(|parent| parent.as_str().to_owned()),
            digest: request.diff.digest.to_string(),
            media_type: request.diff.media_type.clone(),
            layer,
            snapshot: snapshot_id(&request.mounts).map(str::to_owned),
            since: Instant::now(),
            queued: Duration::ZERO,
        }
    }

    /// A request that was refused before it was understood.
    pub fn unread(caller: &Caller) -> Self {
        Self {
            caller: *caller,
            namespace: String::new(),
            trace_parent: None,
            digest: String::new(),
            media_type: String::new(),
            layer: "other",
            snapshot: None,
            since: Instant::now(),
            queued: Duration::ZERO,
        }
    }

    /// What a message about this request begins with.
    pub fn subject(&self) -> String {
        let snapshot = self.snapshot.as_deref().map(|id| format!(" to snapshot {id}")).unwrap_or_default();
        format!("apply {} ({}){snapshot}", self.digest, self.media_type)
    }

    /// The request got its turn after `queued`.
    pub fn started(&mut self, queued: Duration, observer: &Observer) {
        self.queued = queued;
        observer.metrics.count_queued(queued);
    }

    /// Writes the line and counts.
    pub fn finish(&self, observer: &Observer, outcome: Result<&Applied, &Error>) {
        let took = self.since.elapsed();
        let (code, reason) = match outcome {
            Ok(_) => ("ok", ""),
            Err(error) => (error.kind().as_str(), error.reason()),
        };
        observer.metrics.count_request(&Outcome {
            method: self.caller.method.as_str(),
            wire: self.caller.wire.as_str(),
            layer: self.layer,
            code,
            reason,
        });
        if let Ok(applied) = outcome {
            observer.metrics.count_applied(self.layer, applied, took);
        }
        if let Err(error) = outcome
            && let Some(event) = SecurityEvent::of(error)
        {
            observer.security(event, &error.to_string());
        }
        let peer = self.caller.peer;
        let stats = outcome.ok().map(|applied| &applied.stats);
        tracing::info!(
            target: "plywood::request",
            method = self.caller.method.as_str(),
            wire = self.caller.wire.as_str(),
            namespace = some(&self.namespace),
            digest = some(&self.digest),
            media_type = some(&self.media_type),
            snapshot = self.snapshot.as_deref(),
            code,
            reason = some(reason),
            diff_id = outcome.ok().map(|applied| applied.digest.to_string()),
            coding = stats.map(|stats| stats.coding.as_str()),
            bytes_in = stats.map(|stats| stats.blob_bytes),
            bytes_out = outcome.ok().map(|applied| applied.size_bytes),
            image_bytes = stats.map(|stats| stats.image_bytes),
            nodes = stats.map(|stats| stats.contents.nodes),
            duration_ms = milliseconds(took),
            queued_ms = milliseconds(self.queued),
            peer_pid = peer.and_then(|peer| peer.pid),
            peer_uid = peer.map(|peer| peer.uid),
            trace_parent = self.trace_parent.as_deref(),
            error = outcome.err().map(|error| one_line(&error.to_string(), 2048)),
        );
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

/// The snapshot's number as it stands in the mounts: for people to read, not to find anything by.
fn snapshot_id(mounts: &[Mount]) -> Option<&str> {
    let id = |path| -> Option<&str> {
        let (_, rest) = str::split_once(path, "/snapshots/")?;
        let digits = rest.split('/').next()?;
        let decimal =
            !digits.is_empty() && digits.len() <= 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        decimal.then_some(digits)
    };
    let upper = |mount: &'_ Mount| mount.options.iter().position(|option| option.starts_with("upperdir="));
    mounts.iter().rev().find_map(|mount| match upper(mount) {
        Some(index) => mount.options.get(index).and_then(|option| id(option)),
        None => id(&mount.source),
    })
}

/// `text` on one line: control characters escaped, cut to `max_len` bytes.
pub fn one_line(text: &str, max_len: usize) -> String {
    const CUT: &str = "...";
    let mut line = String::new();
    for part in text.chars() {
        let before = line.len();
        if part.is_control() {
            line.extend(part.escape_default());
        } else {
            line.push(part);
        }
        if line.len() > max_len.saturating_sub(CUT.len()) {
            line.truncate(before);
            line.push_str(CUT);
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_named_as_its_mounts_name_it() {
        let mount = |source: &str, options: &[&str]| Mount {
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Mount::default()
        };
        let bind = [mount("/r/snapshots/12/fs", &["rw", "rbind"])];
        assert_eq!(snapshot_id(&bind), Some("12"));
        let overlay = [
            mount("/r/snapshots/3/layer.erofs", &["ro"]),
            mount(
                "overlay",
                &["workdir=/r/snapshots/7/work", "upperdir=/r/snapshots/7/fs", "lowerdir={{ mount 0 }}"],
            ),
        ];
        assert_eq!(snapshot_id(&overlay), Some("7"));
        assert_eq!(snapshot_id(&[mount("/r/snapshots/x7/fs", &[])]), None);
        assert_eq!(snapshot_id(&[]), None);
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(one_line("a\nb\x1b[2J", 100), "a\\nb\\u{1b}[2J");
        assert_eq!(one_line("abcdef", 5), "ab...");
        assert_eq!(one_line("ééé", 6), "é...");
        assert_eq!(one_line("", 5), "");
    }
}
