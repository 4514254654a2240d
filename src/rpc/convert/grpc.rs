//! Converts the gRPC messages that requests of both methods contain.

use containerd_client::types;

use super::wire_size;
use crate::{descriptor::Descriptor, error::Error, snapshot::Mount};

pub(super) fn mounts(messages: Vec<types::Mount>) -> Vec<Mount> {
    let mount = |mount: types::Mount| Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    messages.into_iter().map(mount).collect()
}

pub(super) fn to_mounts(mounts: &[Mount]) -> Vec<types::Mount> {
    let message = |mount: &Mount| types::Mount {
        r#type: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    mounts.iter().map(message).collect()
}

pub(super) fn to_descriptor(descriptor: &Descriptor) -> types::Descriptor {
    let Descriptor { media_type, digest, size_bytes, annotations } = descriptor.clone();
    types::Descriptor {
        media_type,
        digest: digest.to_string(),
        size: wire_size(size_bytes),
        annotations: annotations.into_iter().collect(),
    }
}

pub(super) fn descriptor(message: types::Descriptor) -> Result<Descriptor, Error> {
    let types::Descriptor { media_type, digest, size, annotations } = message;
    let descriptor = Descriptor::new(&media_type, digest.parse()?, size)?;
    Ok(descriptor.annotated(annotations.into_iter().collect())?)
}
