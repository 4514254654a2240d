//! The records that a snapshotter keeps about its snapshots: which directory belongs to which name.
//!
//! containerd's own service tells names and mounts, but no directory of a snapshot whose layer is damaged: the mounts of
//! everything above it are refused. So the records are read where the snapshotter has them, in the file `metadata.db` of
//! its root, while it is in use. The file's transactions make that safe ([`crate::format::bolt`]).
//!
//! Source: containerd `core/snapshots/storage/bolt.go`, `core/metadata/snapshot.go` (`createKey`).

use std::{collections::BTreeMap, fs::File, io};

use crate::{
    error::{Error, Kind, Result},
    format::bolt::{Bolt, BoltError, Bucket, Value},
    limits,
};

/// Name of the file below the root.
pub(super) const RECORDS: &str = "metadata.db";
/// Attempts to read one whole transaction. Each takes a few milliseconds, and two others would have to end meanwhile.
const ATTEMPTS: u32 = 16;

/// State of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A view of a committed snapshot.
    View,
    /// A snapshot that may be written to.
    Active,
    /// A snapshot that others may be on top of.
    Committed,
}

/// A snapshot as its snapshotter has it on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Number of its directory.
    pub id: u64,
    /// Namespace of containerd. Empty for a record that containerd did not make.
    pub namespace: String,
    /// Name in the namespace: the chainID for layers of images, a key for what is not committed.
    pub name: String,
    /// Whether it is committed.
    pub state: State,
    /// Number of the snapshot below.
    pub parent: Option<u64>,
}

/// Reads the records in `file`, which the snapshotter may be writing to, in the order of their numbers.
pub(super) fn read(file: &File) -> Result<Vec<Numbered>> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let before = Bolt::open(file)?;
        let records = snapshots(&before);
        let after = Bolt::open(file)?.transaction();
        // Pages of a transaction are not used again before the end of the next one.
        if after == before.transaction() {
            return records;
        }
        if attempts.next().is_none() {
            let message = format!("it changed {ATTEMPTS} times while it was read");
            return Err(Error::new(Kind::Changed, "scrub.records", message));
        }
    }
}

fn snapshots(bolt: &Bolt<&File>) -> Result<Vec<Numbered>> {
    let Some(version) = bolt.bucket(&bolt.root(), b"v1")? else { return Ok(Vec::new()) };
    let Some(all) = bolt.bucket(&version, b"snapshots")? else { return Ok(Vec::new()) };
    let mut buckets = Vec::new();
    bolt.each(&all, &mut |key, value| {
        if let Value::Bucket(value) = value {
            buckets.push((String::from_utf8_lossy(key).into_owned(), Bucket::within(value)?));
        }
        Ok(())
    })?;
    if buckets.len() > limits::SNAPSHOTS {
        let message = format!("more than {} snapshots", limits::SNAPSHOTS);
        return Err(Error::new(Kind::Exhausted, "limit.snapshots", message));
    }
    let mut found: BTreeMap<String, (u64, State, String)> = BTreeMap::new();
    for (key, bucket) in buckets {
        if let Some(record) = record(bolt, &bucket)? {
            found.insert(key, record);
        }
    }
    let number = |key: &String| found.get(key).map(|(id, _, _)| *id);
    let mut numbered: Vec<_> = found
        .iter()
        .map(|(key, (id, state, parent))| {
            let (namespace, name) = split(key);
            Numbered { id: *id, namespace, name, state: *state, parent: number(parent) }
        })
        .collect();
    numbered.sort_by_key(|numbered| numbered.id);
    Ok(numbered)
}

/// Number, state and the key of the parent. `None` for a record of a kind that there is not.
fn record(bolt: &Bolt<&File>, bucket: &Bucket) -> Result<Option<(u64, State, String)>, BoltError> {
    let (mut id, mut state, mut parent) = (None, None, String::new());
    bolt.each(bucket, &mut |key, value| {
        match (key, value) {
            (b"id", Value::Bytes(bytes)) => id = varint(bytes),
            (b"kind", Value::Bytes([1])) => state = Some(State::View),
            (b"kind", Value::Bytes([2])) => state = Some(State::Active),
            (b"kind", Value::Bytes([3])) => state = Some(State::Committed),
            (b"parent", Value::Bytes(bytes)) => parent = String::from_utf8_lossy(bytes).into_owned(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(id.zip(state).map(|(id, state)| (id, state, parent)))
}

/// Namespace and name of a key, which containerd writes as `NAMESPACE/SEQUENCE/NAME`.
fn split(key: &str) -> (String, String) {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(sequence), Some(name))
            if !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            (namespace.to_owned(), name.to_owned())
        }
        _ => (String::new(), key.to_owned()),
    }
}

/// Decodes an unsigned number of Go's `encoding/binary`.
fn varint(bytes: &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (index, byte) in (0_u32..).zip(bytes) {
        let bits = u64::from(byte & 0x7f);
        let shift = index.checked_mul(7)?;
        if shift > 63 || bits.checked_shl(shift).is_none_or(|moved| moved >> shift != bits) {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Opens `metadata.db`. `None` when there is none.
pub(super) fn open(dir: &crate::sys::dir::Dir) -> io::Result<Option<File>> {
    match dir.open_file_beneath(RECORDS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_name_the_directory_of_every_snapshot() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bolt/metadata.db");
        let records = read(&File::open(path).unwrap()).unwrap();
        let committed: Vec<_> = records.iter().filter(|record| record.state == State::Committed).collect();
        assert!(committed.len() > 1, "{records:?}");
        assert!(committed.iter().all(|record| record.name.starts_with("sha256:")), "{records:?}");
        assert!(records.iter().all(|record| record.namespace == "default" && record.id > 0), "{records:?}");
        assert!(records.iter().any(|record| record.state == State::Active), "{records:?}");
        let has = |id: u64| records.iter().any(|record| record.id == id);
        assert!(records.iter().all(|record| record.parent.is_none_or(has)), "{records:?}");
        assert!(records.iter().any(|record| record.parent.is_some()), "{records:?}");
    }

    #[test]
    fn keys_that_containerd_did_not_make_belong_to_no_namespace() {
        for (key, want) in [
            ("default/12/sha256:ab", ("default", "sha256:ab")),
            ("k8s.io/3/extract-1 a/b", ("k8s.io", "extract-1 a/b")),
            ("default/x/sha256:ab", ("", "default/x/sha256:ab")),
            ("default//x", ("", "default//x")),
            ("alone", ("", "alone")),
        ] {
            let (namespace, name) = split(key);
            assert_eq!((namespace.as_str(), name.as_str()), want, "{key}");
        }
    }

    #[test]
    fn numbers_are_decoded_as_go_writes_them() {
        for (bytes, want) in [
            (&[0][..], Some(0)),
            (&[0x7f], Some(127)),
            (&[0x80, 1], Some(128)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(u64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
            (&[0x80; 11], None),
            (&[0x80], None),
            (&[], None),
        ] {
            assert_eq!(varint(bytes), want, "{bytes:?}");
        }
    }
}
