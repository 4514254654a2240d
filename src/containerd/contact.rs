//! Whether containerd answers: asked at the start, and again when a call found nobody.
//!
//! containerd may start after us, and may be away for a moment. That is no failure of ours, but somebody has
//! to know about an address where it will never be.

use std::time::Duration;

use tokio::time::sleep;

use super::{content::Containerd, sweep};

/// First and longest pause between two questions while nobody answers.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Containerd {
    /// Whether containerd answered [`Containerd::await_contact`] when it was last asked. Errors: why not.
    pub fn reachable(&self) -> Result<(), String> {
        match self.client.contact.trouble() {
            None => Ok(()),
            Some(trouble) => {
                Err(format!("containerd at {} does not answer: {trouble}", self.client.address.display()))
            }
        }
    }

    /// Asks until containerd answers. The first question without an answer is logged, and the answer after it.
    pub async fn await_contact(&self) {
        let address = self.client.address.display();
        let (mut pause, longest) = PAUSES;
        while let Err(error) = sweep::namespaces(&self.client).await {
            // A refusal is an answer, though none that containerd gives.
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

    /// Waits until a call has found nobody.
    pub async fn doubted(&self) {
        self.client.contact.doubted().await;
    }
}
