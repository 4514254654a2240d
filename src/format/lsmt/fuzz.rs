//! Fuzz entry: whatever opens as a layer can be read, committed and sealed, and stays the same device.
//!
//! Described in `docs/formats/overlaybd.md`, "LSMT".

use super::{CommitOptions, Device, Form, HEADER_BLOCK, Layer, LsmtError, Targets};
use crate::{format::ReadAt, tree::Extent};

/// Most data of a device that is compared: many entries may share the same few bytes of a file.
const DATA_BYTES: u64 = 1 << 20;

/// Takes the first byte of `data` for the kind of a layer, and the rest for its files: 0 a committed or sealed file, 1
/// a turboOCI file and its target, 2 data and index of a writable layer, 3 those of a turboOCI layer, 4 a sparse file.
/// Where there are two files, the length of the first stands before it.
///
/// # Panics
///
/// When two ways to read the same device differ.
pub fn fuzz(data: &[u8]) {
    let Ok(layer) = open(data) else { return };
    let (form, target) = (layer.form(), layer.target.is_some());
    let sealed = layer.seal();
    let Ok(device) = Device::new(vec![layer]) else { return };
    let Some(want) = contents(&device) else { return };
    let mut committed = Vec::new();
    let targets = if target { Targets::Keep } else { Targets::Store };
    let options = CommitOptions { targets, ..CommitOptions::default() };
    device.commit(&options, &mut committed).expect("small layers can be committed");
    let (_, (first, second)) = files(data).expect("it was opened");
    let again = match form {
        Form::TurboPair => Layer::open_turbo(&*committed, first),
        _ if target => Layer::open_turbo(&*committed, second),
        _ => Layer::open(&*committed),
    };
    let again = Device::new(vec![again.expect("what is committed can be opened")]).expect("one layer");
    assert_eq!(contents(&again), Some(want.clone()), "the committed device is the same");
    if let Ok(seal) = sealed {
        let mut file = first.to_vec();
        file.resize(usize::try_from(seal.offset).expect("a small file"), 0);
        file.extend([seal.index, seal.trailer].concat());
        let layer = Layer::open(&*file).expect("what is sealed can be opened");
        assert!(Layer::is_sealed(&&*file), "and is known to be sealed");
        let again = Device::new(vec![layer]).expect("one layer");
        assert_eq!(contents(&again), Some(want), "the sealed device is the same");
    }
}

/// Opens the layer that `data` describes, and returns the number of its entries.
pub fn entries(data: &[u8]) -> Result<u64, LsmtError> {
    open(data).map(|layer| layer.entries())
}

/// The two files of a layer; the second may be empty.
type Files<'a> = (&'a [u8], &'a [u8]);

/// The kind and the files of a layer; `None` when there is no kind.
fn files(data: &[u8]) -> Option<(u8, Files<'_>)> {
    let (kind, rest) = data.split_first()?;
    if !matches!(kind, 1..=3) {
        return Some((*kind, (rest, &[])));
    }
    let (len, rest) = rest.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    Some((*kind, rest.split_at_checked(len).unwrap_or((rest, &[]))))
}

fn open(data: &[u8]) -> Result<Layer<&[u8]>, LsmtError> {
    let (kind, (first, second)) = files(data).unwrap_or((0, (&[], &[])));
    match kind {
        1 => Layer::open_turbo(first, second),
        2 => Layer::open_pair(first, &second),
        3 => Layer::open_turbo_pair(first, &second, first),
        4 => {
            let block = usize::try_from(HEADER_BLOCK).unwrap_or(usize::MAX);
            let blocks = (0..).step_by(block).zip(first.chunks(block));
            let with_data = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
            Layer::open_sparse(
                first,
                with_data.map(|(at, block): (u64, _)| Extent { offset: at, len: block.len() as u64 }),
            )
        }
        _ => Layer::open(first),
    }
}

/// Data of a device; `None` when it is too much.
fn contents<R: ReadAt>(device: &Device<R>) -> Option<Vec<(Extent, Vec<u8>)>> {
    let extents: Vec<_> = device.data(0, device.size_bytes()).collect();
    if extents.iter().map(|extent| extent.len).sum::<u64>() > DATA_BYTES {
        return None;
    }
    let read = |extent: Extent| {
        // The device may end in the middle of a sector.
        let len = extent.len.min(device.size_bytes() - extent.offset);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        device.read_exact_at(extent.offset, &mut bytes).expect("what is mapped can be read");
        (extent, bytes)
    };
    Some(extents.into_iter().map(read).collect())
}
