//! Exports what a layer can be made of without its archive: the metadata of the archive, and the index of its gzip blob.
//!
//! Described in `docs/formats/overlaybd.md`, "Tar metadata" and "gzip index".

use crate::{
    error::{Error, Result},
    format::{Sink, gzindex, tar::metadata::Exporter},
    pipeline::{Facts, Pipeline, Plan, Source, buffer::Chunk, stage::Stage},
};

/// Files that were exported.
#[derive(Debug)]
pub struct Exported {
    /// Size of the metadata in bytes.
    pub metadata_bytes: u64,
    /// Header of the index; `None` when the blob is not gzip.
    pub index: Option<gzindex::Header>,
    /// Digests and sizes of the blob.
    pub facts: Facts,
}

/// Writes the metadata of the archive in `source`, compressed or not, to `metadata`, and the index of a gzip blob to
/// `index`. Both are empty; `index` stays so when the blob is not gzip.
///
/// Errors: those of the pipeline and of archives; a gzip blob of several members.
pub fn metadata<'a>(
    source: Source<'_>,
    plan: Plan<'a>,
    metadata: impl Sink + Send,
    index: impl Sink + Send + 'a,
) -> Result<Exported> {
    let export = Export { exporter: Exporter::new(), metadata, at: 0, ready: Vec::new() };
    let ran = Pipeline::new(source, plan).indexed(index).run(export)?;
    Ok(Exported { metadata_bytes: ran.output, index: ran.index, facts: ran.facts })
}

/// Writes the metadata of an archive as it comes.
struct Export<S> {
    exporter: Exporter,
    metadata: S,
    at: u64,
    ready: Vec<u8>,
}

impl<S: Sink> Export<S> {
    fn put(&mut self) -> Result<()> {
        self.metadata.write_at(self.at, &self.ready).map_err(Error::disk)?;
        self.at = self.at.saturating_add(self.ready.len() as u64);
        self.ready.clear();
        Ok(())
    }
}

impl<S: Sink + Send> Stage for Export<S> {
    type Output = u64;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.exporter.push(&chunk, &mut self.ready)?;
        self.put()
    }

    fn finish(mut self) -> Result<u64> {
        std::mem::take(&mut self.exporter).finish(&mut self.ready)?;
        self.put()?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write as _};

    use super::*;
    use crate::{
        call::{Cancel, Progress, Work},
        format::ReadAt as _,
        limits::Limits,
        pipeline::Resources,
    };

    const BLOB: &[u8] = include_bytes!("../../tests/fixtures/gzindex/base.tar.gz");
    const METADATA: &[u8] = include_bytes!("../../tests/fixtures/tar/base.tar.meta");

    fn archive() -> Vec<u8> {
        let mut archive = Vec::new();
        flate2::read::GzDecoder::new(BLOB).read_to_end(&mut archive).unwrap();
        archive
    }

    fn export(mut blob: &[u8]) -> Result<(Vec<u8>, Vec<u8>, Exported)> {
        let resources = Resources::new(Limits::default(), 3);
        let (cancel, progress) = (Cancel::new(), Progress::default());
        let lease = resources.budget.lease(&cancel)?;
        let plan = Plan {
            resources: &resources,
            lease: &lease,
            work: Work { cancel: &cancel, progress: &progress },
        };
        let source = Source { size_bytes: Some(blob.len() as u64), reader: &mut blob, digest: None };
        let (mut found, mut index) = (Vec::new(), Vec::new());
        let exported = metadata(source, plan, &mut found, &mut index)?;
        Ok((found, index, exported))
    }

    #[test]
    fn metadata_is_the_same_however_the_archive_is_compressed() {
        let zstd = zstd::bulk::compress(&archive(), 1).unwrap();
        for blob in [archive(), BLOB.to_vec(), zstd] {
            let (found, index, exported) = export(&blob).unwrap();
            assert!(found == METADATA);
            assert_eq!(exported.metadata_bytes, METADATA.len() as u64);
            assert_eq!(exported.index.is_some(), blob == BLOB);
            assert_eq!(index.is_empty(), blob != BLOB);
        }
    }

    #[test]
    fn the_index_reads_the_archive_out_of_its_blob() {
        let (_, index, _) = export(BLOB).unwrap();
        let reader = gzindex::Reader::open(BLOB, &*index).unwrap();
        let mut plain = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
        reader.read_exact_at(0, &mut plain).unwrap();
        assert!(plain == archive());
    }

    #[test]
    fn a_blob_of_two_members_has_no_export() {
        let mut encoder = flate2::write::GzEncoder::new(BLOB.to_vec(), flate2::Compression::fast());
        encoder.write_all(b"").unwrap();
        let blob = encoder.finish().unwrap();
        assert_eq!(export(&blob).err().map(|error| error.reason()), Some("gzindex.members"));
    }
}
