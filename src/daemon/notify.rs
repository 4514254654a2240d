//! Notifications to the service manager: ready, alive, stopping. No-op without one.
//!
//! Source: sd_notify(3), sd_watchdog_enabled(3).

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;

use crate::{observe::scrape::Report as _, service::Service};

/// Sends `state` to the service manager.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Whether the service manager listens on a socket without a path.
pub fn uses_abstract_socket() -> bool {
    std::env::var("NOTIFY_SOCKET").is_ok_and(|address| address.starts_with('@'))
}

/// Notifies the service manager's watchdog twice in every period. Stops when the daemon hangs: this task runs on the
/// runtime that serves requests, and takes the lock that every request takes.
pub async fn watchdog(service: Arc<Service>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    // Half the period leaves room for one late wake-up.
    let mut tick = tokio::time::interval((period / 2).max(Duration::from_millis(10)));
    loop {
        tick.tick().await;
        // The result is not used: a restart cures nothing that health reports, such as containerd being away.
        let _reported = service.health();
        tell(&[NotifyState::Watchdog]);
    }
}
