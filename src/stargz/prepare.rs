//! The metadata of one layer, as files.

use std::path::Path;

use super::{
    files::NewFiles,
    layer::{BlobId, StargzLayer},
};
use crate::{
    error::Result,
    format::{
        ReadAt,
        rafs::{self, Metadata},
    },
};

/// Mode of the metadata and of the table of contents.
pub(super) const MODE: u32 = 0o440;
/// Name of the table of contents beside the metadata.
pub(super) const TOC_NAME: &str = "stargz.index.json";

/// Metadata of a layer that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Names of the files, and their sizes in bytes.
    pub files: Vec<(String, u64)>,
    /// Size of the data device in bytes.
    pub data_bytes: u64,
}

/// Makes the metadata of `layer`, whose blob is `id`, in the directory `storage` of its snapshot: `stargz.index.json`,
/// `<id>.blob.meta`, and `<id>` last. The compression context goes into `cache` where that is another directory.
///
/// `None`: `<id>` is there already, and nothing was done. Errors: the layer has no such metadata, or a file cannot be
/// written; then nothing is left, and the layer is an ordinary one.
pub fn prepare_stargz_meta_layer<R: ReadAt>(
    layer: &StargzLayer<R>,
    id: BlobId,
    storage: &Path,
    cache: Option<&Path>,
) -> Result<Option<Prepared>> {
    let image_path = storage.join(id.to_string());
    if image_path.exists() {
        return Ok(None);
    }
    let (json, toc) = layer.table()?;
    let Metadata { image, context, data_bytes } = rafs::write(&toc, id.bytes())?;
    drop(toc);
    let mut files = NewFiles::default();
    files.add_bytes(&storage.join(TOC_NAME), Some(MODE), &json)?;
    let mut made = vec![(TOC_NAME.to_owned(), json.len() as u64)];
    if let Some(context) = context {
        let name = context_name(&id.to_string());
        // The mode is the umask's, as that of any file of the builder which the snapshotter runs.
        files.add_bytes(&cache.unwrap_or(storage).join(&name), None, &context)?;
        made.push((name, context.len() as u64));
    }
    files.add_bytes(&image_path, Some(MODE), &image)?;
    made.push((id.to_string(), image.len() as u64));
    files.keep();
    Ok(Some(Prepared { files: made, data_bytes }))
}

/// Name of the compression context of a blob.
pub(super) fn context_name(id: &str) -> String {
    format!("{id}.blob.meta")
}

/// Name of the data device of a blob.
pub(super) fn device_name(id: &str) -> String {
    format!("{id}.blob.data")
}
