//! Annotations of indexed layers: what a descriptor declares about the table of contents.
//!
//! Source: stargz-snapshotter `estargz/types.go`, `estargz/zstdchunked/zstdchunked.go`; containers/storage
//! `pkg/chunked/internal/minimal/compression.go`.

use std::collections::BTreeMap;

use super::{error::StargzError, footer::Position};
use crate::digest::{Algorithm, Digest};

/// Digest of the table, uncompressed.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

pub(super) const STARGZ_CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
pub(super) const STARGZ_POSITION: &str = "io.containers.zstd-chunked.manifest-position";
pub(super) const CONTAINERS_CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
pub(super) const CONTAINERS_POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
pub(super) const CONTAINERS_TAR_SPLIT: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// Table of contents as the annotations of a descriptor declare it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Digest of the table, uncompressed.
    pub(super) toc_digest: Option<Digest>,
    /// Place of the table in a blob of zstd, and the digest of its compressed bytes.
    pub(super) manifest: Option<Manifest>,
}

/// Declared place of a table in a blob of zstd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) is_containers: bool,
    pub(super) checksum: Digest,
    pub(super) place: Position,
    /// Place of the tar-split data.
    pub(super) tar_split: Option<Position>,
}

impl Declared {
    /// Reads the annotations of a descriptor. Without any of an indexed layer, nothing is declared.
    ///
    /// Errors: a value that does not belong there; those of two kinds of layers at once.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self, StargzError> {
        let toc_digest = digest(annotations, TOC_DIGEST)?;
        let stargz = manifest(annotations, STARGZ_CHECKSUM, STARGZ_POSITION, false)?;
        let mut containers = manifest(annotations, CONTAINERS_CHECKSUM, CONTAINERS_POSITION, true)?;
        if let (Some(containers), Some(value)) = (&mut containers, annotations.get(CONTAINERS_TAR_SPLIT)) {
            let Some([offset, compressed_bytes, uncompressed_bytes]) = numbers(value) else {
                return Err(wrong(CONTAINERS_TAR_SPLIT, value, "offset:length:uncompressed length"));
            };
            containers.tar_split = Some(Position { offset, compressed_bytes, uncompressed_bytes });
        }
        // A reader of one kind would see other files than a reader of the other.
        let first =
            if toc_digest.is_some() { Some(TOC_DIGEST) } else { stargz.as_ref().map(|_| STARGZ_CHECKSUM) };
        if let (Some(first), Some(_)) = (first, &containers) {
            return Err(StargzError::Contradiction { first, second: CONTAINERS_CHECKSUM });
        }
        Ok(Self { toc_digest, manifest: stargz.or(containers) })
    }
}

impl Declared {
    /// Compares a table of contents, uncompressed, with what is declared about it.
    pub fn compare(&self, json: &[u8]) -> Result<(), StargzError> {
        let found = Digest::sha256(json);
        match &self.toc_digest {
            Some(expected) if found != *expected => {
                Err(StargzError::TocDigest { expected: expected.clone(), found })
            }
            _ => Ok(()),
        }
    }
}

fn wrong(name: &'static str, value: &str, want: &'static str) -> StargzError {
    StargzError::Annotation { name, value: value.chars().take(160).collect(), want }
}

fn digest(annotations: &BTreeMap<String, String>, name: &'static str) -> Result<Option<Digest>, StargzError> {
    let Some(value) = annotations.get(name) else { return Ok(None) };
    let digest = value.parse::<Digest>().ok().filter(|digest| digest.algorithm() == Algorithm::Sha256);
    digest.map(Some).ok_or_else(|| wrong(name, value, "sha256 and 64 hexadecimal digits"))
}

fn manifest(
    annotations: &BTreeMap<String, String>,
    checksum: &'static str,
    position: &'static str,
    is_containers: bool,
) -> Result<Option<Manifest>, StargzError> {
    let Some(checksum) = digest(annotations, checksum)? else { return Ok(None) };
    let Some(value) = annotations.get(position) else { return Ok(None) };
    match numbers(value) {
        Some([offset, compressed_bytes, uncompressed_bytes, Position::TOC_TYPE]) => {
            let place = Position { offset, compressed_bytes, uncompressed_bytes };
            Ok(Some(Manifest { is_containers, checksum, place, tar_split: None }))
        }
        _ => Err(wrong(position, value, "offset:length:uncompressed length:1")),
    }
}

/// As many numbers as a position has.
fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let numbers: Vec<u64> = text.split(':').map(number).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// A number in decimal, without a sign.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Classify as _;

    const SUM: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn declared(pairs: &[(&str, &str)]) -> Result<Declared, StargzError> {
        Declared::of(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn annotations_declare_digest_and_place() {
        assert_eq!(declared(&[("a", "b")]).unwrap(), Declared::default());
        let estargz =
            declared(&[(TOC_DIGEST, SUM), ("io.containers.estargz.uncompressed-size", "7")]).unwrap();
        assert_eq!((estargz.toc_digest.unwrap().to_string().as_str(), estargz.manifest), (SUM, None));
        let chunked = declared(&[(CONTAINERS_CHECKSUM, SUM), (CONTAINERS_POSITION, "9:8:7:1")]).unwrap();
        let manifest = chunked.manifest.unwrap();
        let place = Position { offset: 9, compressed_bytes: 8, uncompressed_bytes: 7 };
        assert_eq!((manifest.is_containers, manifest.place, manifest.tar_split), (true, place, None));
        let position =
            [(CONTAINERS_CHECKSUM, SUM), (CONTAINERS_POSITION, "9:8:7:1"), (CONTAINERS_TAR_SPLIT, "9:8:7")];
        assert_eq!(declared(&position).unwrap().manifest.unwrap().tar_split, Some(place));
        let both = [(TOC_DIGEST, SUM), (STARGZ_CHECKSUM, SUM), (STARGZ_POSITION, "9:8:7:1")];
        assert!(!declared(&both).unwrap().manifest.unwrap().is_containers);
    }

    #[test]
    fn annotations_that_contradict_each_other_or_make_no_sense_are_refused() {
        let containers = [(CONTAINERS_CHECKSUM, SUM), (CONTAINERS_POSITION, "9:8:7:1")];
        let stargz = [(STARGZ_CHECKSUM, SUM), (STARGZ_POSITION, "9:8:7:1")];
        for pairs in [
            &[containers[0], containers[1], (TOC_DIGEST, SUM)][..],
            &[containers[0], containers[1], stargz[0], stargz[1]],
            &[(TOC_DIGEST, "sha256:12")],
            &[(TOC_DIGEST, &SUM.replace("sha256", "md5"))],
            &[containers[0], (CONTAINERS_POSITION, "9:8:7:2")],
            &[containers[0], (CONTAINERS_POSITION, "9:8:7")],
            &[containers[0], (CONTAINERS_POSITION, "9:-8:7:1")],
            &[containers[0], (CONTAINERS_POSITION, "99999999999999999999:8:7:1")],
            &[containers[0], containers[1], (CONTAINERS_TAR_SPLIT, "9:8:7:1")],
            &[containers[0], containers[1], (CONTAINERS_TAR_SPLIT, "9:8:")],
        ] {
            assert_eq!(declared(pairs).unwrap_err().reason(), "stargz.annotation", "{pairs:?}");
        }
    }
}
