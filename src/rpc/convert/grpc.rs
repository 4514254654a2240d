//! The messages of which both methods' gRPC messages are made.

use std::collections::HashMap;

use containerd_client::types;

use super::wire_size;
use crate::{digest::Digest, snapshot::Mount};

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

pub(super) fn descriptor(media_type: &str, digest: &Digest, size_bytes: u64) -> types::Descriptor {
    types::Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: wire_size(size_bytes),
        annotations: HashMap::new(),
    }
}
