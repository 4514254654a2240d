//! A layer, made again from its blob.

use super::subject::Subject;
use crate::{
    apply::{Applied, Layer, Parents, Strategy},
    error::{Error, Kind, Result},
    snapshot::{Holds, NewFile, Publication},
    store::ContentStore as _,
};

/// Reason id of a snapshot that cannot be made anew.
pub(super) const UNREPAIRABLE: &str = "scrub.unrepairable";

/// Makes the files of a layer from its blob, and checks them.
pub(super) fn make(
    subject: &Subject<'_>,
    strategy: Strategy,
    publication: &Publication,
) -> Result<(Vec<NewFile>, Applied)> {
    let (Some(origin), Some(layer_type)) = (subject.origin, subject.layer_type()) else {
        return Err(Error::new(Kind::NotFound, UNREPAIRABLE, "no image of containerd has this layer"));
    };
    let (root, call) = (subject.root, &subject.call);
    let mut blob = root.scrub.client.open(call, &origin.blob)?;
    let below = subject.numbering.parents(subject.id());
    let device = match (root.survey.holds(), below.first()) {
        (Holds::Devices, Some(below)) => Some(root.survey.device(*below)?),
        _ => None,
    };
    let mounts = root.survey.active(subject.id(), &below);
    let open = || Ok(root.scrub.roots.parents(&mounts)?);
    let layer = Layer {
        layer_type,
        annotations: &origin.blob.annotations,
        reader: &mut blob,
        file: None,
        size_bytes: Some(origin.blob.size_bytes),
        digest: Some(origin.blob.digest.clone()),
        chain: None,
        ztoc: None,
        parents: Some(Parents { open: &open, required: false }),
        device,
        target_bytes: None,
    };
    let (files, applied) = root.scrub.converter.rehearse(call.work(), strategy, layer, publication)?;
    if applied.descriptor.digest != origin.diff_id {
        let message = format!(
            "the layer has diffID {} instead of {}, which the image names",
            applied.descriptor.digest, origin.diff_id
        );
        return Err(Error::new(Kind::DataLoss, "image.digest", message));
    }
    Ok((files, applied))
}
