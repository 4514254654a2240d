//! What a killed daemon left in the store: ingests that nobody will commit, and their leases.
//!
//! An ingest is told by its name ([`super::name`]), in whatever namespace it is. Its lease has the same name
//! and goes after it. A lease whose ingest is not there any more guards a blob that was written: it is looked
//! after from now on.
//!
//! Source: docs/formats/containerd.md, "Writing a blob"; containerd
//! `api/services/namespaces/v1/namespace.proto`, `core/metadata/content.go`.

use std::{future::Future, time::Duration};

use containerd_client::services::v1::{
    AbortRequest, ListNamespacesRequest, ListStatusesRequest, namespaces_client::NamespacesClient,
};
use tokio::time::timeout;
use tonic::{Code, Request, Status};

use super::{
    client::{Client, MESSAGE_BYTES, from_status, request},
    content::Containerd,
    lease, watch,
};
use crate::{
    call::Call,
    error::{Error, Kind, Result},
    store::reason,
};

/// How long one call may take. Removing a large file is the longest of them.
const CALL: Duration = Duration::from_secs(10);

/// What was found and taken away.
#[derive(Debug, Default)]
pub struct Swept {
    /// Ingests that are gone now.
    pub ingests: u64,
    /// Leases that are gone now.
    pub leases: u64,
    /// Leases on blobs, which go as soon as something else holds the blob.
    pub watched: u64,
    /// Why some may be left: that the store did not answer rather than that it refused.
    pub failure: Option<Error>,
}

impl Containerd {
    /// Takes away what this instance left in an earlier life, in every namespace. Never what anybody writes
    /// in this one. Call it on the runtime.
    ///
    /// Each call to the store takes 10 s at most. Worth another try when [`Swept::may_be_tried_again`].
    pub async fn sweep(&self) -> Swept {
        let mut swept = Swept::default();
        match namespaces(&self.client).await {
            Err(error) => swept.fail(error.context("namespaces")),
            Ok(calls) => {
                for call in &calls {
                    self.sweep_namespace(call, &mut swept).await;
                }
            }
        }
        swept
    }

    async fn sweep_namespace(&self, call: &Call, swept: &mut Swept) {
        let references = match references(&self.client, call).await {
            Ok(references) => references,
            // The namespace went meanwhile.
            Err(error) if error.kind() == Kind::NotFound => return,
            Err(error) => {
                return swept.fail(error.context(format!("ingests of {}", call.namespace.as_str())));
            }
        };
        for reference in references.into_iter().filter(|reference| self.names.is_left(reference)) {
            let outcome = take_away(&self.client, call, &reference, swept).await;
            if let Err(error) = outcome {
                swept.fail(error.context(format!("{reference} in {}", call.namespace.as_str())));
            }
        }
        match watch::left(&self.client, call, &self.names).await {
            Ok(left) => {
                for held in left {
                    swept.watched += u64::from(self.watch.add(held).await);
                }
            }
            Err(status) => {
                let error = from_status(status);
                swept.fail(error.context(format!("leases of {}", call.namespace.as_str())));
            }
        }
    }
}

impl Swept {
    /// Whether the store was not there, or not in time.
    pub fn may_be_tried_again(&self) -> bool {
        self.failure.as_ref().is_some_and(is_passing)
    }

    fn fail(&mut self, error: Error) {
        // One that passes decides that there is another try; that one meets the others again.
        if self.failure.is_none() || !self.may_be_tried_again() && is_passing(&error) {
            self.failure = Some(error);
        }
    }
}

pub(super) fn is_passing(error: &Error) -> bool {
    [reason::UNAVAILABLE, reason::STALL].contains(&error.reason())
}

/// The ingest first: without it nothing would lead to the lease again, but that ends by itself.
async fn take_away(client: &Client, call: &Call, name: &str, swept: &mut Swept) -> Result<()> {
    let message = request(call, AbortRequest { r#ref: name.to_owned() })?;
    let aborted = in_time(async {
        match client.content().abort(message).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    });
    swept.ingests += u64::from(aborted.await?);
    swept.leases += u64::from(in_time(lease::delete(client, call, name)).await?);
    Ok(())
}

/// A call for each namespace of the store.
pub(super) async fn namespaces(client: &Client) -> Result<Vec<Call>> {
    // Asked for in no namespace: it is about all of them.
    let message = Request::new(ListNamespacesRequest::default());
    let mut service = NamespacesClient::new(client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    let found = in_time(service.list(message)).await?.into_inner().namespaces;
    // A name that we do not take with a request is none that we have written to.
    Ok(found.into_iter().filter_map(|namespace| namespace.name.parse().ok()).map(Call::new).collect())
}

/// The references of a namespace, everybody's.
async fn references(client: &Client, call: &Call) -> Result<Vec<String>> {
    let message = request(call, ListStatusesRequest::default())?;
    let statuses = in_time(client.content().list_statuses(message)).await?.into_inner().statuses;
    Ok(statuses.into_iter().map(|status| status.r#ref).collect())
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T> {
    match timeout(CALL, call).await {
        Ok(answer) => answer.map_err(from_status),
        Err(_elapsed) => {
            let message = format!("no answer for {} s", CALL.as_secs());
            Err(Error::new(Kind::Unavailable, reason::STALL, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_passes_outweighs_one_that_stays() {
        let failed = |codes: &[Code]| {
            let mut swept = Swept::default();
            codes.iter().for_each(|code| swept.fail(from_status(Status::new(*code, ""))));
            swept.may_be_tried_again()
        };
        assert!(!failed(&[]));
        assert!(failed(&[Code::Unavailable]) && !failed(&[Code::PermissionDenied]));
        assert!(failed(&[Code::PermissionDenied, Code::Unavailable, Code::PermissionDenied]));
        assert!(!failed(&[Code::Unimplemented]), "a store without the service will not get it");
    }
}
