//! Reachability of containerd: checked at the start, and again when a call got no answer.
//!
//! containerd may start after the daemon, and may be away for a moment. Neither ends the daemon, but an address
//! where containerd will never be has to show in the log.

use std::time::Duration;

use tokio::time::sleep;

use super::{content::Containerd, sweep};

/// First and longest pause between two checks while containerd does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Containerd {
    /// Returns whether containerd answered the last check of [`Containerd::await_contact`]. Errors: the reason why not.
    pub fn reachable(&self) -> Result<(), String> {
        match self.client.contact.trouble() {
            None => Ok(()),
            Some(trouble) => {
                Err(format!("containerd at {} does not answer: {trouble}", self.client.address.display()))
            }
        }
    }

    /// Checks until containerd answers. Logs the first check without an answer, and the answer after it.
    pub async fn await_contact(&self) {
        let address = self.client.address.display();
        let (mut pause, longest) = PAUSES;
        while let Err(error) = sweep::namespaces(&self.client).await {
            // A refusal is an answer, though not one of containerd's.
            if !sweep::is_passing(&error) {
                tracing::warn!(%address, %error, "who answers may not be containerd (containerd.address)");
                break;
            }
            let text = error.to_string();
            if self.client.contact.replace(Some(text.clone())).is_none() {
                tracing::warn!(%address, error = text, "containerd does not answer (containerd.address)");
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        if self.client.contact.replace(None).is_some() {
            tracing::info!(%address, "containerd answers");
        }
    }

    /// Waits until a call has got no answer.
    pub async fn doubted(&self) {
        self.client.contact.doubted().await;
    }
}
