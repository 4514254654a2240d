//! All layers of an image, from the lowest up.

use super::{
    step::{Step, apply_layer, row},
    together,
    unpacker::{Applied, Layer, Unpacker},
};
use crate::{
    call::Call,
    digest::Digest,
    error::{Error, Kind, Result},
    image::{chain::chain_ids, error::ImageError, progress::State},
    store::reason,
};

/// Makes snapshots of `layers`, lowest first, and leaves out those that are there. Returns them in this order: the last one
/// is the root file system.
///
/// The blobs have to be in the content store. They and the snapshots are put under the lease of `call`.
/// Errors: those of [`apply_layer`]; `image.missing` before anything is made. No active snapshot stays.
pub fn prepare(unpacker: &Unpacker, call: &Call, layers: &[Layer]) -> Result<Vec<Applied>> {
    let Unpacker { containerd, snapshotter, at_once, board, .. } = unpacker;
    let can_rebase = containerd.can_rebase(call, snapshotter)?;
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let chain = chain_ids(&diff_ids);
    let there = there(unpacker, call, &chain)?;
    let (old, new) = layers.split_at_checked(there).unwrap_or_default();
    for layer in old {
        board.set(row(board, layer, State::AlreadyExists), State::AlreadyExists);
    }
    let place = |at: usize| format!("layer {} of {}", there + at + 1, layers.len());
    for (at, layer) in new.iter().enumerate() {
        hold(unpacker, call, layer).map_err(|error| error.context(place(at)))?;
        row(board, layer, State::Waiting);
    }
    let mut parent = there.checked_sub(1).and_then(|top| chain.get(top).cloned());
    let mut applied: Vec<_> = chain.iter().take(there).cloned().map(Applied::before).collect();
    if can_rebase && *at_once > 1 && new.len() > 1 {
        let mut steps = Vec::new();
        for (layer, chain_id) in new.iter().zip(chain.iter().skip(there)) {
            steps.push(Step::new(unpacker, call, layer, (chain_id.clone(), parent)));
            parent = Some(chain_id.clone());
        }
        applied.extend(together::run(&steps, there, *at_once, &call.cancel)?);
        return Ok(applied);
    }
    for (at, layer) in new.iter().enumerate() {
        call.cancel.check()?;
        let done =
            apply_layer(unpacker, call, layer, parent.as_ref()).map_err(|error| error.context(place(at)))?;
        parent = Some(done.chain_id.clone());
        applied.push(done);
    }
    Ok(applied)
}

/// Number of layers that are snapshots already, the lowest ones. A snapshot keeps those below it.
fn there(unpacker: &Unpacker, call: &Call, chain: &[Digest]) -> Result<usize> {
    for (at, chain_id) in chain.iter().enumerate().rev() {
        if unpacker.containerd.hold_snapshot(call, &unpacker.snapshotter, chain_id)? {
            return Ok(at + 1);
        }
    }
    Ok(0)
}

/// Puts the blob of a layer under the lease.
fn hold(unpacker: &Unpacker, call: &Call, layer: &Layer) -> Result<()> {
    let digest = &layer.descriptor.digest;
    unpacker.containerd.hold(call, digest)?;
    match unpacker.containerd.blob_bytes(call, digest)? {
        Some(found) if found == layer.descriptor.size_bytes => Ok(()),
        Some(found) => {
            let expected = layer.descriptor.size_bytes;
            let message = format!("the store's blob {digest} has {found} bytes instead of {expected}");
            Err(Error::new(Kind::DataLoss, reason::SIZE, message))
        }
        None => Err(ImageError::NotFetched { digest: digest.clone(), fetch: unpacker.fetch.clone() }.into()),
    }
}
