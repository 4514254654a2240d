//! Converts the ttrpc messages that requests of both methods contain.

use super::wire_size;
use crate::{
    descriptor::Descriptor,
    error::Error,
    rpc::proto::ttrpc::{descriptor, mount},
    snapshot::Mount,
};

pub(super) fn mounts(messages: Vec<mount::Mount>) -> Vec<Mount> {
    let mount = |mount: mount::Mount| Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    messages.into_iter().map(mount).collect()
}

pub(super) fn to_mounts(mounts: &[Mount]) -> Vec<mount::Mount> {
    let message = |mount: &Mount| {
        let mut message = mount::Mount::new();
        message.type_ = mount.kind.clone();
        message.source = mount.source.clone();
        message.target = mount.target.clone();
        message.options = mount.options.clone();
        message
    };
    mounts.iter().map(message).collect()
}

pub(super) fn to_descriptor(descriptor: &Descriptor) -> descriptor::Descriptor {
    let Descriptor { media_type, digest, size_bytes, annotations } = descriptor.clone();
    let mut message = descriptor::Descriptor::new();
    message.media_type = media_type;
    message.digest = digest.to_string();
    message.size = wire_size(size_bytes);
    message.annotations = annotations.into_iter().collect();
    message
}

pub(super) fn descriptor(message: descriptor::Descriptor) -> Result<Descriptor, Error> {
    let descriptor = Descriptor::new(&message.media_type, message.digest.parse()?, message.size)?;
    Ok(descriptor.annotated(message.annotations.into_iter().collect())?)
}
