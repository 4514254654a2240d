//! One layer: a snapshot is prepared, filled by the differ, compared with the diffID, and committed.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::SystemTime,
};

use super::unpacker::{Applied, Layer, Unpacker};
use crate::{
    call::{Call, Cancel},
    containerd::{Applying, EXTRACT, Place, Prepared, UNCOMPRESSED},
    digest::Digest,
    error::{Error, Kind, Result},
    image::{
        chain::chain_id,
        error::ImageError,
        progress::{Board, State},
        transfer::object,
    },
    snapshot::Mount,
    sys::file,
};

/// Label with the name that the snapshot will have: containerd looks for it first.
const REF: &str = "containerd.io/snapshot.ref";
/// Prefix of the annotations of a layer that snapshotters see as labels.
const INHERITED: &str = "containerd.io/snapshot/";
/// Label with the diffID of the layer.
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// Label with the chainID of the layer below.
const PARENT: &str = "containerd.io/snapshot/parent-chain-id";
/// Snapshotter that binds the upper directory of a snapshot without a parent.
const OVERLAYFS: &str = "overlayfs";
/// Most keys that are tried.
const TRIES: u32 = 3;

/// A layer on its way to become a snapshot.
pub(super) struct Step<'a> {
    pub(super) unpacker: &'a Unpacker,
    /// The call, with the lease that holds what is made and the counter of the layer.
    call: Call,
    layer: &'a Layer,
    pub(super) chain_id: Digest,
    pub(super) parent: Option<Digest>,
    row: usize,
}

/// An active snapshot of a layer.
pub(super) struct Active {
    place: Place,
    mounts: Vec<Mount>,
}

impl Active {
    /// Whether the snapshotter has the layer in it already. It mounts it read-only then.
    ///
    /// Only the last mount counts: the ones before it are what it consists of.
    pub(super) fn is_staged(&self) -> bool {
        self.mounts.last().is_some_and(|mount| mount.options.iter().any(|option| option == "ro"))
    }
}

/// Unpacks a layer of the content store on top of `parent`, the chainID of the layers below it. Returns its chainID.
///
/// Without a lease in `call`, containerd may collect the snapshot at once. Errors: `image.digest` when the layer has
/// another diffID; `unpack.apply` when the differ fails. No active snapshot stays.
pub fn apply_layer(
    unpacker: &Unpacker,
    call: &Call,
    layer: &Layer,
    parent: Option<&Digest>,
) -> Result<Applied> {
    let chain_id = chain_id(parent, &layer.diff_id);
    let step = Step::new(unpacker, call, layer, (chain_id, parent.cloned()));
    step.run().map_err(|error| step.named(error))
}

impl<'a> Step<'a> {
    pub(super) fn new(
        unpacker: &'a Unpacker,
        call: &Call,
        layer: &'a Layer,
        (chain_id, parent): (Digest, Option<Digest>),
    ) -> Self {
        let row = row(&unpacker.board, layer, State::Waiting);
        let progress = unpacker.board.set(row, State::Waiting);
        Self { unpacker, call: Call { progress, ..call.clone() }, layer, chain_id, parent, row }
    }

    /// Adds the name of the layer to an error.
    pub(super) fn named(&self, error: Error) -> Error {
        error.context(self.layer.descriptor.digest.to_string())
    }

    fn run(&self) -> Result<Applied> {
        let Some(active) = self.prepare(self.parent.as_ref())? else {
            return Ok(Applied::before(self.chain_id.clone()));
        };
        let done = self.fill(&active).and_then(|()| self.commit(&active, None));
        if done.is_err() {
            self.remove(&active);
        }
        Ok(Applied { chain_id: self.chain_id.clone(), is_new: done? })
    }

    /// Makes an active snapshot on top of `parent`. `None` if the layer is there already; the lease holds it then.
    pub(super) fn prepare(&self, parent: Option<&Digest>) -> Result<Option<Active>> {
        let Unpacker { containerd, snapshotter, board, .. } = self.unpacker;
        for _ in 0..TRIES {
            let key = format!("{EXTRACT}{} {}", unique()?, self.chain_id);
            let place = Place { snapshotter: snapshotter.clone(), key, labels: self.labels() };
            match containerd.prepare_snapshot(&self.call, &place, parent) {
                Ok(Prepared::Active(mounts)) => return Ok(Some(Active { place, mounts })),
                Ok(Prepared::Exists) => {}
                Err(error) => {
                    // Without an answer it may have been made all the same.
                    self.remove(&Active { place, mounts: Vec::new() });
                    return Err(error);
                }
            }
            if containerd.has_snapshot(&self.call, snapshotter, &self.chain_id.to_string())? {
                board.set(self.row, State::AlreadyExists);
                return Ok(None);
            }
            tracing::debug!(chain_id = %self.chain_id, "the key of a new snapshot was taken");
        }
        let message = format!("{TRIES} keys for the snapshot {} were taken", self.chain_id);
        Err(Error::new(Kind::Conflict, "unpack.key", message))
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let annotations = self.layer.descriptor.annotations.iter();
        let mut labels: BTreeMap<String, String> = annotations
            .filter(|(key, _)| key.starts_with(INHERITED))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        labels.insert(REF.to_owned(), self.chain_id.to_string());
        labels.insert(DIFF_ID.to_owned(), self.layer.diff_id.to_string());
        if let Some(parent) = &self.parent {
            labels.insert(PARENT.to_owned(), parent.to_string());
        }
        labels
    }

    /// Lets the differ apply the layer, and waits for the end. Nothing is done where the layer is there.
    fn fill(&self, active: &Active) -> Result<()> {
        if active.is_staged() {
            return Ok(());
        }
        let (send, answer) = sync_channel(1);
        // Without a receiver after the call was cancelled.
        let _applying = self.begin(active, &active.mounts, move |found| drop(send.send(found)))?;
        self.verify(&wait(&answer, &self.call.cancel)??)
    }

    /// Like [`Step::fill`], but returns at once.
    pub(super) fn begin(
        &self,
        active: &Active,
        mounts: &[Mount],
        done: impl FnOnce(Result<Digest>) + Send + 'static,
    ) -> Result<Applying> {
        tracing::debug!(key = active.place.key, layer = %self.layer.descriptor.digest, "applied");
        self.unpacker.board.set(self.row, State::Extracting);
        self.unpacker.differ.begin(&self.call, &self.layer.descriptor, mounts, done)
    }

    /// The mounts of a snapshot that does not have its parent yet.
    pub(super) fn mounts_without_parent(&self, active: &Active) -> Vec<Mount> {
        match (active.mounts.as_slice(), &self.parent) {
            ([mount], Some(_)) if self.unpacker.snapshotter == OVERLAYFS => vec![as_overlay(mount)],
            (mounts, _) => mounts.to_vec(),
        }
    }

    /// Compares the diffID that the differ has found with that of the image.
    pub(super) fn verify(&self, found: &Digest) -> Result<()> {
        let expected = &self.layer.diff_id;
        if found == expected {
            return Ok(());
        }
        let (expected, found) = (expected.clone(), found.clone());
        Err(ImageError::Digest { what: "the uncompressed layer".to_owned(), expected, found }.into())
    }

    /// Commits the snapshot under its chainID. Returns `false` if another client was faster. `parent`: for a snapshot that
    /// was made without one.
    pub(super) fn commit(&self, active: &Active, parent: Option<&Digest>) -> Result<bool> {
        let Unpacker { containerd, board, .. } = self.unpacker;
        let is_new = containerd.commit_snapshot(&self.call, &active.place, &self.chain_id, parent)?;
        if !is_new {
            self.remove(active);
        }
        if !active.is_staged() {
            let (digest, diff_id) = (&self.layer.descriptor.digest, self.layer.diff_id.to_string());
            containerd.set_label(&self.call, digest, UNCOMPRESSED, &diff_id)?;
        }
        board.set(self.row, State::Extracted);
        Ok(is_new)
    }

    /// Removes the active snapshot, also after a cancellation. One that cannot be removed goes with the lease.
    pub(super) fn remove(&self, active: &Active) {
        let Place { snapshotter, key, .. } = &active.place;
        let call = Call { cancel: Cancel::new(), ..self.call.clone() };
        if let Err(error) = self.unpacker.containerd.remove_snapshot(&call, snapshotter, key) {
            tracing::warn!(key, %error, "a snapshot of ours stays until its lease ends");
        }
    }
}

/// Waits for what another thread sends. Errors: cancelled meanwhile.
pub(super) fn wait<T>(receiver: &Receiver<T>, cancel: &Cancel) -> Result<T> {
    loop {
        match receiver.recv_timeout(Cancel::POLL) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => cancel.check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(
                    Kind::Internal,
                    "internal.differ",
                    "the call of the differ has ended",
                ));
            }
        }
    }
}

/// The row of a layer.
pub(super) fn row(board: &Board, layer: &Layer, state: State) -> usize {
    let Layer { descriptor, .. } = layer;
    board.row(object("layer", Some(&descriptor.digest)), state, descriptor.size_bytes)
}

/// The overlay that a bind mount of an upper directory stands for. A whiteout that is written through the bind mount
/// would be an ordinary file.
fn as_overlay(mount: &Mount) -> Mount {
    if mount.kind != "bind" {
        return mount.clone();
    }
    let kept = mount.options.iter().filter(|option| *option != "rbind").cloned();
    let upper = format!("upperdir={}", mount.source);
    let (kind, source) = ("overlay".to_owned(), "overlay".to_owned());
    Mount { kind, source, target: String::new(), options: kept.chain([upper]).collect() }
}

/// The part of a key that no other has: nanoseconds, and three random bytes in base64, as containerd's clients do.
fn unique() -> Result<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let random = file::random_hex().map_err(Error::disk)?;
    let bits = random.get(..6).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    let digit = |shift: u32| usize::try_from((bits >> shift) & 63).ok().and_then(|digit| DIGITS.get(digit));
    let digits: String =
        [18, 12, 6, 0].into_iter().filter_map(digit).map(|digit| char::from(*digit)).collect();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{digits}", now.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { kind: kind.to_owned(), source: "/s/1/fs".to_owned(), target: String::new(), options }
    }

    #[test]
    fn a_bind_mount_of_an_upper_directory_becomes_an_overlay_of_it() {
        let overlay = as_overlay(&mount("bind", &["rw", "rbind"]));
        assert_eq!(
            (overlay.kind.as_str(), overlay.options),
            ("overlay", vec!["rw".to_owned(), "upperdir=/s/1/fs".to_owned()])
        );
        let other = mount("overlay", &["lowerdir=/a"]);
        assert_eq!(as_overlay(&other), other);
    }

    #[test]
    fn a_snapshot_whose_last_mount_is_read_only_has_its_layer() {
        let place = Place { snapshotter: String::new(), key: String::new(), labels: BTreeMap::new() };
        for (mounts, is_staged) in [
            (vec![], false),
            (vec![mount("bind", &["rw", "rbind"])], false),
            (vec![mount("erofs", &["ro", "loop"]), mount("overlay", &["upperdir=/x"])], false),
            (vec![mount("erofs", &["ro", "loop"])], true),
        ] {
            assert_eq!(Active { place: place.clone(), mounts }.is_staged(), is_staged);
        }
    }

    #[test]
    fn keys_are_unique_and_of_the_form_of_containerds_own() {
        let keys: std::collections::BTreeSet<_> = (0..100).map(|_| unique().unwrap()).collect();
        assert_eq!(keys.len(), 100);
        for key in keys {
            let (nanoseconds, random) = key.split_once('-').unwrap();
            assert!(nanoseconds.parse::<u32>().unwrap() < 1_000_000_000, "{key}");
            let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            assert!(random.len() == 4 && random.bytes().all(is_digit), "{key}");
        }
    }
}
