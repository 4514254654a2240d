//! An indexed layer: its blob and its table of contents.

use std::{collections::BTreeMap, fmt};

use crate::{
    error::{Error, Kind, Result},
    format::{
        ReadAt,
        rafs::is_digest,
        stargz::{Declared, Layout, Toc},
    },
};

/// End of the payload of a table without its layer.
const UNKNOWN_END: u64 = i64::MAX.unsigned_abs();

/// Name of a blob: its SHA-256 in 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobId([u8; 64]);

impl BlobId {
    /// The name that `hex` is; `None` unless it has 64 hexadecimal digits in lower case.
    pub fn parse(hex: &str) -> Option<Self> {
        hex.as_bytes().try_into().ok().filter(|id: &[u8; 64]| is_digest(id)).map(Self)
    }

    /// The bytes of its text.
    pub fn bytes(self) -> [u8; 64] {
        self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// An eStargz layer, or its table of contents alone.
#[derive(Debug)]
pub struct StargzLayer<R> {
    /// `None` for a table alone.
    blob: Option<Opened<R>>,
    /// The table from elsewhere.
    beside: Option<Vec<u8>>,
}

/// A blob, the places of its parts, and what its descriptor says.
#[derive(Debug)]
struct Opened<R> {
    blob: R,
    layout: Layout,
    declared: Declared,
}

/// Whether the blob of a descriptor with `annotations` is eStargz, found by its footer. Its table may be in another blob.
///
/// Errors: why it is none. The layer is then an ordinary one.
pub fn is_stargz_data_layer<R: ReadAt>(
    blob: R,
    annotations: &BTreeMap<String, String>,
) -> Result<StargzLayer<R>> {
    let declared = Declared::of(annotations)?;
    let layout =
        Layout::find(&blob, &declared)?.ok_or_else(|| refuse("it is no indexed layer".to_owned()))?;
    if layout.form.is_zstd() {
        let form = layout.form.as_str();
        return Err(refuse(format!("it is {form}, and only eStargz has metadata of chunks in members")));
    }
    Ok(StargzLayer { blob: Some(Opened { blob, layout, declared }), beside: None })
}

fn refuse(message: String) -> Error {
    Error::new(Kind::NotImplemented, "rafs.form", message)
}

impl<R: ReadAt> StargzLayer<R> {
    /// A table of contents without its layer.
    pub fn of_table(json: Vec<u8>) -> Self {
        Self { blob: None, beside: Some(json) }
    }

    /// This layer with a table of contents from elsewhere.
    pub fn with_table(self, json: Vec<u8>) -> Self {
        Self { beside: Some(json), ..self }
    }

    /// The blob and where its parts are; `None` for a table alone.
    pub fn blob(&self) -> Option<(&R, &Layout)> {
        self.blob.as_ref().map(|Opened { blob, layout, .. }| (blob, layout))
    }

    /// Reads the table of contents, and compares it with the annotations: as it is, and its entries.
    pub fn table(&self) -> Result<(Vec<u8>, Toc)> {
        let end = self.blob.as_ref().map_or(UNKNOWN_END, |opened| opened.layout.payload_end);
        let json = match (&self.beside, &self.blob) {
            (Some(json), Some(opened)) => {
                opened.declared.compare(json)?;
                Some(json.clone())
            }
            (Some(json), None) => Some(json.clone()),
            (None, Some(Opened { blob, layout, declared })) => layout.read_toc(blob, declared)?,
            (None, None) => None,
        };
        let json = json.ok_or_else(|| refuse("its table of contents is in another file".to_owned()))?;
        let toc = Toc::read(&json, end)?;
        Ok((json, toc))
    }
}
