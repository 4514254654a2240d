//! Log lines, security events and metrics of the daemon.

pub mod logging;
pub mod metrics;
pub mod process;
pub mod record;
pub mod scrape;
pub mod scrub;
pub mod security;

use std::time::Instant;

pub use logging::one_line;
pub use metrics::{Load, Metrics};
pub use record::{About, Figures, Record, Subject, Success};
pub use security::SecurityEvent;

/// Counts and logs the daemon's requests and security events.
pub struct Observer {
    /// Counters, gauges and histograms.
    pub metrics: Metrics,
    security: security::SecurityLog,
}

impl Observer {
    /// An observer whose counters are at 0.
    pub fn new() -> Self {
        Self { metrics: Metrics::new(), security: security::SecurityLog::new(Instant::now()) }
    }

    /// Counts a security event, and logs it unless too many came in a short time.
    pub fn security(&self, event: SecurityEvent, detail: &str) {
        self.metrics.count_security(event);
        self.security.log(event, detail, Instant::now());
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self::new()
    }
}
