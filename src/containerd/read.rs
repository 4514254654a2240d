//! Reading: over gRPC, or from the store's directory where containerd says it is.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use containerd_client::services::v1::{
    PluginsRequest, ReadContentRequest, content_client::ContentClient,
    introspection_client::IntrospectionClient,
};
use tonic::{Request, transport::Channel};

use super::{
    client::{from_status, request},
    content::{Containerd, Discovery},
};
use crate::{
    call::Call,
    descriptor::Descriptor,
    digest::Digest,
    error::{Error, Kind, Result},
    store::{
        Blob, ContentStore,
        file::FileBlob,
        local::ContentRoot,
        memory::{check_size, in_memory},
        reason,
        stream::{Sender, stream},
    },
};

/// Plugin type of content stores.
const CONTENT_PLUGIN: &str = "io.containerd.content.v1";

impl Containerd {
    /// Returns the directory from which blobs are read; `None` when they are read over gRPC. Calls containerd if its
    /// introspection service is to be used.
    pub fn content_root(&self, call: &Call) -> Option<PathBuf> {
        self.root(call).map(|(path, _)| path)
    }

    /// Returns the store's directory, if it can be opened.
    fn root(&self, call: &Call) -> Option<(PathBuf, Arc<ContentRoot>)> {
        let lock = || self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut direct = lock();
            if let Discovery::Named(path) = &*direct {
                *direct = usable(path);
            }
            match &*direct {
                Discovery::Found(path, root) => return Some((path.clone(), Arc::clone(root))),
                Discovery::Unusable | Discovery::Named(_) => return None,
                Discovery::Unknown => {}
            }
        }
        // Without the lock, which would be held over a call. Two requests that both ask get the same answer.
        let discovered = match self.introspect(call) {
            Ok(Some(path)) => usable(&path),
            Ok(None) => Discovery::Unusable,
            Err(error) if error.kind() == Kind::Unavailable => return None,
            Err(error) => {
                tracing::debug!(%error, "introspection failed, blobs are read over gRPC");
                Discovery::Unusable
            }
        };
        let found = match &discovered {
            Discovery::Found(path, root) => Some((path.clone(), Arc::clone(root))),
            _ => None,
        };
        *lock() = discovered;
        found
    }

    /// Returns the root of containerd's content store, by its introspection service; `None` unless there is just one.
    fn introspect(&self, call: &Call) -> Result<Option<PathBuf>> {
        let response = self.client.retried(call, "introspection", |channel| {
            let filters = vec![format!("type=={CONTENT_PLUGIN}")];
            let request = request(call, PluginsRequest { filters });
            async move { IntrospectionClient::new(channel).plugins(request?).await.map_err(from_status) }
        })?;
        let mut plugins = response.into_inner().plugins;
        plugins.retain(|plugin| plugin.r#type == CONTENT_PLUGIN);
        let root = match plugins.as_slice() {
            [plugin] if plugin.init_err.is_none() => plugin.exports.get("root").map(PathBuf::from),
            // With several, the blobs may be in any of them.
            _ => None,
        };
        tracing::debug!(plugins = plugins.len(), ?root, "content stores of containerd");
        Ok(root.filter(|root| root.is_absolute()))
    }

    fn stream(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        let size_bytes = descriptor.size_bytes;
        let read = ReadContentRequest {
            digest: descriptor.digest.to_string(),
            offset: 0,
            size: i64::try_from(size_bytes).map_err(|_wide| {
                Error::new(Kind::Malformed, reason::SIZE, format!("{size_bytes} bytes are not a blob's size"))
            })?,
        };
        let request = request(call, read)?;
        let client = self.client.content();
        Ok(Box::new(stream(size_bytes, self.client.stall, call.cancel.clone(), |sender| {
            self.client.runtime.spawn(receive(client, request, size_bytes, sender)).abort_handle()
        })))
    }
}

impl ContentStore for Containerd {
    fn open(&self, call: &Call, descriptor: &Descriptor) -> Result<Box<dyn Blob>> {
        call.cancel.check()?;
        check_size(descriptor, self.client.info(call, &descriptor.digest)?.1)?;
        if descriptor.size_bytes == 0 {
            // containerd takes a size of 0 as "to the end".
            return Ok(in_memory(Arc::from([]), call.cancel.clone()));
        }
        if let Some((path, root)) = self.root(call) {
            match root.blob(descriptor) {
                Ok(file) => return Ok(Box::new(FileBlob::new(file, call.cancel.clone())?)),
                Err(error) => {
                    let root = path.display();
                    tracing::debug!(%error, %root, digest = %descriptor.digest, "blob is read over gRPC");
                    // Under Landlock every directory can be opened, but files can be read only where that is allowed.
                    let may_not = error.kind() == io::ErrorKind::PermissionDenied;
                    if may_not && !self.refused.swap(true, Relaxed) {
                        tracing::warn!(
                            %root,
                            "blobs are read over gRPC, which is slower: the sandbox allows the directory that containerd.content_root names and that exists at the start"
                        );
                    }
                    // The directory may have been made anew: the next read opens it again.
                    *self.direct.lock().unwrap_or_else(PoisonError::into_inner) = Discovery::Named(path);
                }
            }
        }
        self.stream(call, descriptor)
    }

    fn size_bytes(&self, call: &Call, digest: &Digest) -> Result<Option<u64>> {
        match self.client.info(call, digest) {
            Ok((_, size_bytes)) => Ok(Some(size_bytes)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn usable(path: &Path) -> Discovery {
    match ContentRoot::open(path) {
        Ok(root) => Discovery::Found(path.to_owned(), Arc::new(root)),
        Err(error) => {
            tracing::debug!(%error, root = %path.display(), "blobs are read over gRPC");
            Discovery::Named(path.to_owned())
        }
    }
}

/// Passes on the messages of one read, and checks that their offsets are contiguous and end at `size_bytes`.
async fn receive(
    mut client: ContentClient<Channel>,
    request: Request<ReadContentRequest>,
    size_bytes: u64,
    sender: Sender,
) {
    let outcome = async {
        let mut messages = client.read(request).await.map_err(from_status)?.into_inner();
        let mut received = 0_u64;
        while let Some(message) = messages.message().await.map_err(from_status)? {
            if u64::try_from(message.offset) != Ok(received) {
                let text = format!("bytes at offset {} follow byte {received}", message.offset);
                return Err(Error::new(Kind::DataLoss, reason::OFFSET, text));
            }
            received = received.saturating_add(message.data.len() as u64);
            if received > size_bytes {
                let text = format!("the store sent at least {received} bytes of {size_bytes}");
                return Err(Error::new(Kind::DataLoss, reason::LONG, text));
            }
            sender.send(message.data).await;
        }
        if received < size_bytes {
            let text = format!("the store sent {received} of {size_bytes} bytes");
            return Err(Error::new(Kind::DataLoss, reason::SHORT, text));
        }
        Ok(())
    }
    .await;
    sender.finish(outcome);
}
