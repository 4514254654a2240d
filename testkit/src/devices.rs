//! Snapshots of the overlaybd snapshotter on a [`Node`]: its directories, descriptions of devices, and mounts.
//!
//! Source: accelerated-container-image `pkg/snapshot/overlay.go`, `pkg/snapshot/storage.go`.

use std::{collections::HashMap, fs, path::PathBuf};

use containerd_client::{
    services::v1::ApplyRequest,
    types::{Descriptor, Mount},
};

use crate::node::{NAMESPACE, Node};

/// A turboOCI layer that overlaybd made, and its archive.
const LAYER: &[u8] = include_bytes!("../../tests/fixtures/overlaybd/turbo/base.erofs.fs.meta");
const ARCHIVE: &[u8] = include_bytes!("../../tests/fixtures/overlaybd/turbo/base.tar");

/// The files that a layer may have, in the order in which they are published.
pub const FILES: [&str; 3] = ["layer.tar", "layer.tar.erofs", "fs/overlaybd.commit"];

impl Node {
    /// The directory of the snapshotter.
    pub fn devices(&self) -> PathBuf {
        self.scratch.path().join("overlaybd")
    }

    /// The directory of a snapshot.
    pub fn device(&self, id: u32) -> PathBuf {
        self.devices().join("snapshots").join(id.to_string())
    }

    /// A fresh directory as the snapshotter leaves it for the differ.
    pub fn device_snapshot(&self, id: u32) -> PathBuf {
        let directory = self.device(id);
        for name in ["fs", "work", "block/mountpoint"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        fs::write(directory.join("block/init-debug.log"), "").unwrap();
        directory
    }

    /// Commits the last of these snapshots as the snapshotter does. The others are the layers below, the lowest one first.
    pub fn commit_device(&self, stack: &[u32]) {
        let at = |id: u32, name: &str| self.device(id).join(name).display().to_string();
        let lowers: Vec<_> = stack
            .iter()
            .map(|id| match self.device(*id).join("layer.tar").exists() {
                true => format!(
                    "{{\"targetFile\": {:?}, \"file\": {:?}}}",
                    at(*id, "layer.tar"),
                    at(*id, "fs/overlaybd.commit")
                ),
                false => format!("{{\"dir\": {:?}}}", at(*id, "fs")),
            })
            .collect();
        self.describe_device(*stack.last().unwrap(), &format!("{{\"lowers\": [{}]}}", lowers.join(", ")));
    }

    /// Describes the device of a snapshot.
    pub fn describe_device(&self, id: u32, config: &str) {
        fs::write(self.device(id).join("block/config.v1.json"), config).unwrap();
    }

    /// A committed snapshot with the layer of another tool.
    pub fn lowest_device(&self, id: u32) {
        let directory = self.device_snapshot(id);
        fs::write(directory.join("layer.tar"), ARCHIVE).unwrap();
        fs::write(directory.join("fs/overlaybd.commit"), LAYER).unwrap();
        self.commit_device(&[id]);
    }

    /// Mounts of an active snapshot without a parent, or with hidden ones; with `ro`, those of a view.
    pub fn device_bind(&self, id: u32, access: &str) -> Vec<Mount> {
        let source = self.device(id).join("fs").display().to_string();
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { r#type: "bind".to_owned(), source, options, ..Mount::default() }]
    }

    /// Mounts of an active snapshot. `lower` are the directories below, such as `3/fs` or `3/block/mountpoint`.
    pub fn device_overlay(&self, id: u32, lower: &[&str]) -> Vec<Mount> {
        let at = |name: &str| self.devices().join("snapshots").join(name).display().to_string();
        let lower: Vec<_> = lower.iter().map(|name| at(name)).collect();
        let options = vec![
            format!("workdir={}", at(&format!("{id}/work"))),
            format!("upperdir={}", at(&format!("{id}/fs"))),
            format!("lowerdir={}", lower.join(":")),
        ];
        let (r#type, source) = ("overlay".to_owned(), "overlay".to_owned());
        vec![Mount { r#type, source, options, ..Mount::default() }]
    }

    /// Puts `blob` into the store; the request to apply it to the snapshot with these mounts.
    pub fn device_request(
        &self,
        mounts: Vec<Mount>,
        media_type: &str,
        annotations: &[(&str, &str)],
        blob: &[u8],
    ) -> ApplyRequest {
        let digest = self.store.add(NAMESPACE, blob);
        let size = i64::try_from(blob.len()).unwrap();
        let annotations: HashMap<_, _> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let diff = Descriptor { media_type: media_type.to_owned(), digest, size, annotations };
        ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() }
    }

    /// The files of a snapshot's layer, and whatever else the snapshotter did not make, by their paths.
    pub fn device_files(&self, id: u32) -> Vec<(String, Vec<u8>)> {
        let known =
            ["work", "fs", "block", "block/mountpoint", "block/init-debug.log", "block/config.v1.json"];
        let mut found = Vec::new();
        for below in ["", "fs/", "block/"] {
            for entry in fs::read_dir(self.device(id).join(below)).unwrap() {
                let name = format!("{below}{}", entry.unwrap().file_name().into_string().unwrap());
                if !known.contains(&name.as_str()) {
                    found.push((name.clone(), fs::read(self.device(id).join(&name)).unwrap_or_default()));
                }
            }
        }
        found.sort();
        found
    }
}
