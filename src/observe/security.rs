//! Security events: counted, and logged apart from the requests at a limited rate.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::logging::one_line;
use crate::error::{Error, Kind};

/// Kind of a security event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecurityEvent {
    /// A process that is not root connected.
    PeerRefused,
    /// A request named a path below a configured root that cannot be a layer's. A path below no root is no event: it
    /// belongs to another snapshotter, and the reply is UNIMPLEMENTED.
    OddPath,
    /// A layer directory or its marker has the wrong owner, type or mode.
    OddOwner,
    /// The digest of a blob is not that of its descriptor.
    DigestMismatch,
    /// A layer or a client exceeded a limit.
    LimitHit,
    /// A request panicked.
    Panic,
}

/// Reason ids of refusals that are about where a path leads.
const ODD_PATHS: [&str; 6] =
    ["mount.path", "mount.option", "mount.link", "mount.foreign", "mount.shared-layer", "compare.mount"];

impl SecurityEvent {
    /// Name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerRefused => "peer-refused",
            Self::OddPath => "odd-path",
            Self::OddOwner => "odd-owner",
            Self::DigestMismatch => "digest-mismatch",
            Self::LimitHit => "limit-hit",
            Self::Panic => "panic",
        }
    }

    /// Returns the event that a failed request counts as, if any.
    pub fn of(error: &Error) -> Option<Self> {
        let reason = error.reason();
        match error.kind() {
            Kind::Internal if reason == "internal.panic" => Some(Self::Panic),
            Kind::Denied if ODD_PATHS.contains(&reason) => Some(Self::OddPath),
            // The service manager took capabilities away: nothing is wrong with the snapshot.
            Kind::Denied if ["diff.privileges", "compare.privilege"].contains(&reason) => None,
            Kind::Denied => Some(Self::OddOwner),
            Kind::DataLoss if reason == "blob.digest" => Some(Self::DigestMismatch),
            // A full disk is no attack, whatever filled it.
            Kind::Exhausted if reason == "limit.free-space" => None,
            Kind::Exhausted if reason.starts_with("limit.") => Some(Self::LimitHit),
            _ => None,
        }
    }
}

/// Capacity of the bucket: events that can be logged in one moment.
const BURST: u32 = 20;
/// Time after which the bucket gets one more token.
const REFILL: Duration = Duration::from_secs(1);

/// A token bucket in front of the log.
pub(super) struct SecurityLog {
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: u32,
    since: Instant,
    dropped: u64,
}

impl SecurityLog {
    pub(super) fn new(now: Instant) -> Self {
        Self { bucket: Mutex::new(Bucket { tokens: BURST, since: now, dropped: 0 }) }
    }

    pub(super) fn log(&self, event: SecurityEvent, detail: &str, now: Instant) {
        // A panic cannot leave a bucket half changed, so a poisoned lock is no matter.
        let admitted = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
        if let Some(dropped) = admitted {
            let detail = one_line(detail, 1024);
            tracing::warn!(target: "plywood::security", event = event.as_str(), detail, dropped);
        }
    }
}

impl Bucket {
    /// Takes a token. Returns the number of events dropped since the last one that was logged; `None` without a token.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let refills = now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs();
        if refills > 0 {
            self.tokens = u32::try_from(refills).unwrap_or(BURST).saturating_add(self.tokens).min(BURST);
            self.since = now;
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_what_was_cut_is_counted() {
        let start = Instant::now();
        let mut bucket = Bucket { tokens: BURST, since: start, dropped: 0 };
        let admitted = (0..1000).filter(|_| bucket.admit(start).is_some()).count();
        assert_eq!(admitted, 20);
        assert_eq!(bucket.admit(start + REFILL), Some(980));
        assert_eq!(bucket.admit(start + REFILL), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.admit(later), Some(1));
        assert_eq!((1..1000).filter(|_| bucket.admit(later).is_some()).count(), 19);
    }

    #[test]
    fn failures_that_an_attack_causes_are_events() {
        let event = |kind, reason| SecurityEvent::of(&Error::new(kind, reason, "x"));
        assert_eq!(event(Kind::NotImplemented, "mount.outside-root"), None);
        assert_eq!(event(Kind::Denied, "mount.path"), Some(SecurityEvent::OddPath));
        assert_eq!(event(Kind::Internal, "internal.panic"), Some(SecurityEvent::Panic));
        assert_eq!(event(Kind::Denied, "mount.shared-layer"), Some(SecurityEvent::OddPath));
        assert_eq!(event(Kind::Denied, "mount.owner"), Some(SecurityEvent::OddOwner));
        assert_eq!(event(Kind::Denied, "mount.file"), Some(SecurityEvent::OddOwner));
        assert_eq!(event(Kind::Denied, "compare.mount"), Some(SecurityEvent::OddPath));
        for reason in ["diff.privileges", "compare.privilege"] {
            assert_eq!(event(Kind::Denied, reason), None);
        }
        assert_eq!(event(Kind::DataLoss, "blob.digest"), Some(SecurityEvent::DigestMismatch));
        assert_eq!(event(Kind::Exhausted, "limit.nodes"), Some(SecurityEvent::LimitHit));
        assert_eq!(event(Kind::Exhausted, "limit.free-space"), None, "a full disk");
        assert_eq!(event(Kind::Exhausted, "disk.io"), None, "a full disk");
        assert_eq!(event(Kind::Malformed, "tar.checksum"), None);
        assert_eq!(event(Kind::Exhausted, "server.busy"), None);
    }
}
