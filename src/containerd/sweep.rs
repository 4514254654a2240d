//! Removal of the ingests that a killed daemon left in the store, and of their leases.
//!
//! Ingests are recognised by their names ([`super::name`]), in every namespace. The lease of an ingest has the same
//! name and is deleted after it. A lease without an ingest guards a blob that was written: it is watched from now on
//! ([`super::watch`]).
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

/// Longest time for one call. Most of it is for the removal of a large file.
const CALL: Duration = Duration::from_secs(10);

/// Result of a sweep.
#[derive(Debug, Default)]
pub struct Swept {
    /// Number of ingests that were removed.
    pub ingests: u64,
    /// Number of leases that were deleted.
    pub leases: u64,
    /// Number of leases on blobs that are watched from now on. They go as soon as something else holds the blob.
    pub watched: u64,
    /// Reason why some may be left. Of several failures, one that passes (the store did not answer) is kept.
    pub failure: Option<Error>,
}

impl Containerd {
    /// Removes ingests and leases that this instance left in an earlier life, in every namespace. Those of this life
    /// and of others stay. Call it on the runtime.
    ///
    /// Each call to the store takes 10 s at most. Try again if [`Swept::may_be_tried_again`].
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
            // The namespace was deleted meanwhile.
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
    /// Whether the store did not answer, or not in time.
    pub fn may_be_tried_again(&self) -> bool {
        self.failure.as_ref().is_some_and(is_passing)
    }

    fn fail(&mut self, error: Error) {
        // A failure that passes calls for another try, which meets the other failures again.
        if self.failure.is_none() || !self.may_be_tried_again() && is_passing(&error) {
            self.failure = Some(error);
        }
    }
}

pub(super) fn is_passing(error: &Error) -> bool {
    [reason::UNAVAILABLE, reason::STALL].contains(&error.reason())
}

/// Aborts the ingest `name`, and then deletes its lease. When the second step fails no ingest leads to the lease any
/// more, but it expires by itself.
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

/// Returns a call for each namespace of the store.
pub(super) async fn namespaces(client: &Client) -> Result<Vec<Call>> {
    // Sent without a namespace: the list is about all of them.
    let message = Request::new(ListNamespacesRequest::default());
    let mut service = NamespacesClient::new(client.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    let found = in_time(service.list(message)).await?.into_inner().namespaces;
    // Requests with such a name are refused, so nothing was written to it.
    Ok(found.into_iter().filter_map(|namespace| namespace.name.parse().ok()).map(Call::new).collect())
}

/// Lists the references of all ingests of a namespace.
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
