//! Images in the store of a node.

use containerd_client::types::Descriptor;

use crate::{
    archive::digest,
    node::{GZIP, NAMESPACE, Node},
};

/// An image that containerd has: digests of its parts, the layers lowest first.
pub struct Image {
    pub blobs: Vec<String>,
    pub diff_ids: Vec<String>,
    pub chain_ids: Vec<String>,
    pub config: String,
}

impl Image {
    /// Puts an image of this machine's platform into the store and records it. `annotations`: a JSON object that every
    /// layer gets.
    pub fn record(
        node: &Node,
        name: &str,
        diff_ids: &[String],
        blobs: &[Vec<u8>],
        annotations: &str,
    ) -> Self {
        let add = |bytes: &[u8]| node.store.add::<String>(NAMESPACE, bytes);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
        );
        let layers = blobs.iter().map(|blob| {
            let (digest, size) = (add(blob), blob.len());
            format!(
                r#"{{"mediaType":"{GZIP}","digest":"{digest}","size":{size},"annotations":{annotations}}}"#
            )
        });
        let layers = layers.collect::<Vec<_>>().join(",");
        let (config_digest, config_size) = (add(config.as_bytes()), config.len());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{config_size}}},"layers":[{layers}]}}"#
        );
        let target = Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: add(manifest.as_bytes()),
            size: i64::try_from(manifest.len()).unwrap(),
            ..Descriptor::default()
        };
        node.store.record_image(NAMESPACE, name, target);
        let mut chain_ids: Vec<String> = Vec::new();
        for diff_id in diff_ids {
            let next = chain_ids.last().map(|below| digest(format!("{below} {diff_id}").as_bytes()));
            chain_ids.push(next.unwrap_or_else(|| diff_id.clone()));
        }
        let blobs = blobs.iter().map(|blob| digest(blob)).collect();
        Self { blobs, diff_ids: diff_ids.to_vec(), chain_ids, config: config_digest }
    }
}
