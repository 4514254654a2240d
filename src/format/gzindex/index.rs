//! Reads an index: header, table of points, and windows when they are asked for.
//!
//! Source: `docs/formats/overlaybd.md`, "gzip index".

use std::fmt;

use super::{error::GzindexError, header::Header, point::Point};
use crate::{
    codec::{deflate::WINDOW_BYTES, zlib},
    format::ReadAt,
};

/// Header and points of an index. Windows stay in the file.
#[derive(Clone, Debug)]
pub struct Index {
    header: Header,
    points: Vec<Point>,
}

impl Index {
    /// Reads and checks header and points. Memory: as many points as the limit allows, 40 bytes each.
    pub fn read(file: &(impl ReadAt + ?Sized)) -> Result<Self, GzindexError> {
        let size_bytes = file.size_bytes();
        let mut record = [0; Header::LEN];
        if size_bytes < Header::LEN as u64 {
            return Err(GzindexError::Truncated { found: size_bytes, expected: Header::LEN as u64 });
        }
        read(file, 0, &mut record)?;
        let header = Header::decode(&record, size_bytes)?;
        let table = table(file, &header)?;
        let mut points: Vec<Point> = Vec::with_capacity(table.len() / Point::LEN);
        for (number, record) in (0..).zip(table.as_chunks().0) {
            points.push(Point::decode(record, number, points.last(), &header)?);
        }
        if points.is_empty() {
            return Err(GzindexError::Start { found: header.plain_bytes });
        }
        Ok(Self { header, points })
    }

    /// Header of the index.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All points, in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Number of the last point at or before byte `plain` of the stream.
    pub(super) fn point_before(&self, plain: u64) -> usize {
        // The first point is at 0.
        self.points.partition_point(|point| point.plain <= plain).saturating_sub(1)
    }

    /// Reads the window of a point: the 32768 uncompressed bytes before it, after zeros where there are fewer.
    pub(super) fn window(
        &self,
        file: &(impl ReadAt + ?Sized),
        number: usize,
    ) -> Result<Vec<u8>, GzindexError> {
        let Some(point) = self.points.get(number) else { return Ok(Vec::new()) };
        let mut window = vec![0; usize::try_from(point.window_bytes).unwrap_or_default()];
        read(file, point.window_offset, &mut window)?;
        if !self.header.is_packed {
            return Ok(window);
        }
        zlib::unpack(&window, WINDOW_BYTES).map_err(|fault| GzindexError::Window {
            point: number as u64,
            offset: point.window_offset,
            fault,
        })
    }

    /// Unpacks every window. Errors: the first one that is not right.
    pub fn verify(&self, file: &(impl ReadAt + ?Sized)) -> Result<(), GzindexError> {
        (0..self.points.len()).try_for_each(|number| self.window(file, number).map(drop))
    }
}

/// Header and points as text, one line each.
impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Header { is_packed, level, span_bytes, blob_bytes, file_bytes, plain_bytes, .. } = &self.header;
        writeln!(f, "blob: {blob_bytes} bytes")?;
        writeln!(f, "stream: {plain_bytes} bytes")?;
        writeln!(f, "index: {file_bytes} bytes")?;
        writeln!(f, "span: {span_bytes} bytes")?;
        match is_packed {
            true => writeln!(f, "windows: zlib, level {level}")?,
            false => writeln!(f, "windows: stored")?,
        }
        writeln!(f, "table: {} bytes at {}", self.header.table_bytes, self.header.table_offset)?;
        for (number, point) in self.points.iter().enumerate() {
            let Point { plain, byte, bits, window_offset, window_bytes } = point;
            writeln!(
                f,
                "point {number}: stream {plain}, blob {byte}, bits {bits}, window {window_bytes} bytes at {window_offset}"
            )?;
        }
        Ok(())
    }
}

/// The table of points, unpacked: exactly as many as the header says.
fn table(file: &(impl ReadAt + ?Sized), header: &Header) -> Result<Vec<u8>, GzindexError> {
    let refuse =
        |fault| GzindexError::TableData { points: header.points, offset: header.table_offset, fault };
    let len = usize::try_from(header.points).unwrap_or(usize::MAX).saturating_mul(Point::LEN);
    let stored = header.table_bytes;
    // The table as it stands in the file may be no longer than the points that it has to hold, and a little: that
    // bounds what is read.
    let most = if header.is_packed { len.saturating_add(len / 64).saturating_add(64) } else { len };
    if stored > most as u64 {
        return Err(refuse(zlib::ZlibError::Long { expected: len }));
    }
    if !header.is_packed && stored < len as u64 {
        return Err(refuse(zlib::ZlibError::Short { found: stored, expected: len }));
    }
    let mut table = vec![0; usize::try_from(stored).unwrap_or_default()];
    read(file, header.table_offset, &mut table)?;
    if header.is_packed { zlib::unpack(&table, len).map_err(refuse) } else { Ok(table) }
}

fn read(file: &(impl ReadAt + ?Sized), offset: u64, buf: &mut [u8]) -> Result<(), GzindexError> {
    let what = "reading the gzip index";
    file.read_exact_at(offset, buf).map_err(|source| GzindexError::Io { what, offset, source })
}
