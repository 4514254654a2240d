//! Reads a zTOC: its sizes and checkpoints, and windows when they are asked for.
//!
//! Source: `docs/formats/ztoc.md`.

use super::{
    checkpoint::Checkpoint,
    error::ZtocError,
    flatbuffer::{File, List, Table, read, read_into},
};
use crate::{
    codec::{Cut, deflate::WINDOW_BYTES},
    format::record::get,
    limits::ZTOC_CHECKPOINTS,
};

/// Fields of the tables, by their numbers.
const COMPRESSED_ARCHIVE_SIZE: u16 = 2;
const COMPRESSION_INFO: u16 = 5;
const COMPRESSION_ALGORITHM: u16 = 0;
const MAX_SPAN_ID: u16 = 1;
const CHECKPOINTS: u16 = 3;

const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;
/// Bytes before the first checkpoint: the number of checkpoints, and their distance in uncompressed bytes.
const HEADER_LEN: u64 = 12;

/// Size of the blob and checkpoints of a zTOC. Windows stay in the file.
#[derive(Clone)]
pub struct Ztoc<'f> {
    file: &'f File<'f>,
    blob_bytes: u64,
    checkpoints: Vec<Checkpoint>,
}

impl<'f> Ztoc<'f> {
    /// Reads and checks the heads of all checkpoints. The zTOC of an uncompressed layer has none. Memory: as many checkpoints
    /// as the limit allows, 24 bytes each.
    pub fn read(file: &'f File<'f>) -> Result<Self, ZtocError> {
        let root = Table::root(file)?;
        let what = "the size of the blob";
        let size = root.number(COMPRESSED_ARCHIVE_SIZE, what)?.ok_or(ZtocError::Missing { what })?;
        let size = i64::from_le_bytes(size);
        let blob_bytes = u64::try_from(size).map_err(|_negative| ZtocError::Size { found: size })?;
        let info = root.table(COMPRESSION_INFO, "the table of the compression")?;
        let found = info.number(COMPRESSION_ALGORITHM, "the compression")?.map_or(GZIP, i8::from_le_bytes);
        let checkpoints = match found {
            GZIP => checkpoints(file, &info, blob_bytes)?,
            UNCOMPRESSED => Vec::new(),
            _ => return Err(ZtocError::Compression { found }),
        };
        Ok(Self { file, blob_bytes, checkpoints })
    }

    /// Size of the compressed layer in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// Checkpoints in their order.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// Places at which a decoder can start that has a whole window, and the numbers of their checkpoints.
    pub fn starts(&self) -> impl Iterator<Item = (Cut, usize)> {
        let checkpoints = self.checkpoints.iter().enumerate();
        let whole = checkpoints.filter(|(_, checkpoint)| checkpoint.plain >= WINDOW_BYTES as u64);
        whole.map(|(number, checkpoint)| (Cut(checkpoint.bit), number))
    }

    /// Reads the 32768 bytes before checkpoint number `number`; those before the first one if there is none.
    pub fn window(&self, number: usize) -> Result<Vec<u8>, ZtocError> {
        let mut window = vec![0; WINDOW_BYTES];
        if let Some(checkpoint) = self.checkpoints.get(number) {
            read_into(self.file, checkpoint.window_offset, &mut window, "a window")?;
        }
        Ok(window)
    }
}

/// The checkpoints of a gzip layer, which the older version lacks the first of.
fn checkpoints(file: &File<'_>, info: &Table<'_>, blob_bytes: u64) -> Result<Vec<Checkpoint>, ZtocError> {
    let List { offset, len: bytes } = info.list(CHECKPOINTS, 1, "the checkpoints")?;
    if bytes < HEADER_LEN {
        return Err(ZtocError::Checkpoints { bytes, count: 0 });
    }
    let header: [u8; 12] = read(file, offset, "the checkpoints")?;
    let claimed = i32::from_le_bytes(get::<0, _, _>(&header));
    let claimed = u64::try_from(claimed).map_err(|_negative| ZtocError::Count { found: claimed })?;
    if claimed > ZTOC_CHECKPOINTS {
        return Err(ZtocError::Limit { found: claimed, limit: ZTOC_CHECKPOINTS });
    }
    let whole = |count: u64| count.saturating_mul(Checkpoint::LEN).saturating_add(HEADER_LEN) == bytes;
    let count = match claimed.checked_sub(1) {
        _ if whole(claimed) => claimed,
        Some(without_first) if whole(without_first) => without_first,
        _ => return Err(ZtocError::Checkpoints { bytes, count: claimed }),
    };
    let spans = info.number(MAX_SPAN_ID, "the number of spans")?.map_or(0, i32::from_le_bytes);
    let spans = i64::from(spans).saturating_add(1);
    if u64::try_from(spans) != Ok(claimed) {
        return Err(ZtocError::Spans { spans, checkpoints: claimed });
    }
    let mut checkpoints: Vec<Checkpoint> = Vec::new();
    for number in 0..count {
        let at = offset.saturating_add(HEADER_LEN).saturating_add(number.saturating_mul(Checkpoint::LEN));
        let head = read(file, at, "a checkpoint")?;
        checkpoints.push(Checkpoint::decode(&head, at, number, checkpoints.last(), blob_bytes)?);
    }
    Ok(checkpoints)
}
