//! containerd's content store and leases as another client of them sees them.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, Info, InfoRequest, ListContentRequest, ListRequest, ListStatusesRequest,
    ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::calls::{Caller, MESSAGE_BYTES, in_namespace};

/// A reference that is being written, and locked by that for as long as this lives.
#[derive(Debug)]
pub struct OpenWrite {
    _requests: mpsc::Sender<WriteContentRequest>,
    _replies: Streaming<WriteContentResponse>,
}

impl Caller {
    /// The size and the labels of a blob, if this namespace has it.
    pub fn content(&self, digest: &str) -> anyhow::Result<Option<(i64, BTreeMap<String, String>)>> {
        let request = in_namespace(InfoRequest { digest: digest.into() }, Some(&self.namespace))?;
        let mut client = ContentClient::new(self.containerd.clone());
        match self.runtime.block_on(client.info(request)) {
            Ok(answer) => {
                let info = answer.into_inner().info.context("an answer without a blob")?;
                Ok(Some((info.size, info.labels.into_iter().collect())))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// The digests of all blobs of this namespace.
    pub fn blobs(&self) -> anyhow::Result<Vec<String>> {
        let request = in_namespace(ListContentRequest::default(), Some(&self.namespace))?;
        let mut client = ContentClient::new(self.containerd.clone());
        Ok(self.runtime.block_on(async {
            let mut answers = client.list(request).await?.into_inner();
            let mut digests = Vec::new();
            while let Some(answer) = answers.message().await? {
                digests.extend(answer.info.into_iter().map(|info| info.digest));
            }
            Ok::<_, Status>(digests)
        })?)
    }

    /// Sets the labels of a blob to exactly these.
    pub fn set_labels(&self, digest: &str, labels: HashMap<String, String>) -> anyhow::Result<()> {
        let info = Info { digest: digest.into(), labels, ..Info::default() };
        let mask = prost_types::FieldMask { paths: vec!["labels".into()] };
        let message = UpdateRequest { info: Some(info), update_mask: Some(mask) };
        let request = in_namespace(message, Some(&self.namespace))?;
        self.runtime.block_on(ContentClient::new(self.containerd.clone()).update(request))?;
        Ok(())
    }

    /// The bytes of a blob.
    pub fn read(&self, digest: &str) -> anyhow::Result<Vec<u8>> {
        let message = ReadContentRequest { digest: digest.into(), ..ReadContentRequest::default() };
        let request = in_namespace(message, Some(&self.namespace))?;
        let mut client = ContentClient::new(self.containerd.clone()).max_decoding_message_size(MESSAGE_BYTES);
        Ok(self.runtime.block_on(async {
            let mut answers = client.read(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(answer) = answers.message().await? {
                bytes.extend(answer.data);
            }
            Ok::<_, Status>(bytes)
        })?)
    }

    /// The references of uncommitted blobs, with the bytes under each.
    pub fn ingests(&self) -> anyhow::Result<BTreeMap<String, i64>> {
        let request = in_namespace(ListStatusesRequest::default(), Some(&self.namespace))?;
        let mut client = ContentClient::new(self.containerd.clone());
        let answer = self.runtime.block_on(client.list_statuses(request))?.into_inner();
        Ok(answer.statuses.into_iter().map(|status| (status.r#ref, status.offset)).collect())
    }

    /// Writes the beginning of a blob and keeps the stream open.
    pub fn open_write(&self, reference: &str, bytes: &[u8]) -> anyhow::Result<OpenWrite> {
        let (requests, messages) = mpsc::channel(1);
        requests.try_send(WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: reference.into(),
            data: bytes.to_vec(),
            ..WriteContentRequest::default()
        })?;
        let request = in_namespace(ReceiverStream::new(messages), Some(&self.namespace))?;
        let mut client = ContentClient::new(self.containerd.clone());
        let replies = self.runtime.block_on(async {
            let mut replies = client.write(request).await?.into_inner();
            let reply = replies.message().await?.context("no reply")?;
            anyhow::ensure!(usize::try_from(reply.offset)? == bytes.len(), "{reply:?}");
            anyhow::Ok(replies)
        })?;
        Ok(OpenWrite { _requests: requests, _replies: replies })
    }

    /// The leases by id, with their labels.
    pub fn leases(&self) -> anyhow::Result<BTreeMap<String, HashMap<String, String>>> {
        let request = in_namespace(ListRequest::default(), Some(&self.namespace))?;
        let mut client = LeasesClient::new(self.containerd.clone());
        let answer = self.runtime.block_on(client.list(request))?.into_inner();
        Ok(answer.leases.into_iter().map(|lease| (lease.id, lease.labels)).collect())
    }

    /// Creates a lease without an end.
    pub fn create_lease(&self, id: &str) -> anyhow::Result<()> {
        let message = CreateRequest { id: id.into(), ..CreateRequest::default() };
        let request = in_namespace(message, Some(&self.namespace))?;
        self.runtime.block_on(LeasesClient::new(self.containerd.clone()).create(request))?;
        Ok(())
    }

    /// Deletes a lease and waits until what it alone held is collected.
    pub fn delete_lease(&self, id: &str) -> anyhow::Result<()> {
        let message = DeleteRequest { id: id.into(), sync: true };
        let request = in_namespace(message, Some(&self.namespace))?;
        self.runtime.block_on(LeasesClient::new(self.containerd.clone()).delete(request))?;
        Ok(())
    }

    /// Makes containerd collect its garbage now.
    pub fn collect(&self) -> anyhow::Result<()> {
        // The deletion of a lease that waits is the one call that does.
        self.create_lease("collect")?;
        self.delete_lease("collect")
    }
}
