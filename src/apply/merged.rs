//! Merged metadata beside a new layer: one mount instead of one for each layer.
//!
//! The snapshotter uses it for containers and layers above, and must find it complete: what was mounted without it would
//! look different with it. So it is written before the reply to Apply, and never later.
//!
//! Described in `docs/formats/merged.md`, "Beside a layer".

use super::parents::Parents;
use crate::{
    error::{Error, Kind, Result},
    format::ReadAt,
    merge,
    pipeline::{Plan, image},
    snapshot::{LayerSource, MERGED_NAME, NewFile, Publication, Stack, StackLayer},
    view::ErofsView,
};

/// Longest options of the mount with all `device=`, in bytes. containerd passes them in the one page that mount(2) takes,
/// and fails above; the rest is for its other options and for the path of the new layer.
const OPTION_BYTES: usize = 3584;

/// Merged metadata that was written and checked.
pub(super) struct Merged {
    pub(super) file: NewFile,
    /// Number of its layers.
    pub(super) layers: u64,
}

/// Merges the new layer `image` with those below, if more than `max_unmerged` layers would be mounted one by one
/// otherwise. `None`: there is nothing to merge, or no way to.
///
/// Errors: the request was cancelled. All else leaves the layers unmerged, which is a sound state.
pub(super) fn beside(
    image: &NewFile,
    max_unmerged: u32,
    parents: Option<Parents<'_>>,
    publication: &Publication,
    plan: Plan<'_>,
) -> Result<Option<Merged>> {
    let Some(parents) = parents.filter(|_| max_unmerged > 0) else { return Ok(None) };
    let merged = (parents.open)().and_then(|stack| match plain_images(&stack, max_unmerged) {
        Ok(()) => build(image, &stack, publication, plan).map(Some),
        Err(why) => {
            tracing::debug!(why, "layers are left unmerged");
            Ok(None)
        }
    });
    match merged {
        Err(error) if error.kind() == Kind::Cancelled => Err(error),
        Err(error) => {
            plan.work.cancel.check()?;
            tracing::warn!(reason = error.reason(), error = %error, "layers are left unmerged");
            Ok(None)
        }
        merged => merged,
    }
}

/// Returns why the layers below are not to be merged with a new one.
fn plain_images(stack: &Stack, max_unmerged: u32) -> Result<(), &'static str> {
    let above = stack.layers.len().saturating_sub(stack.merged);
    let is_image = |layer: &StackLayer| matches!(&layer.source, LayerSource::Erofs { devices, .. } if devices.is_empty());
    let options =
        stack.layers.iter().map(|layer| "device=,".len() + layer.path.as_os_str().len()).sum::<usize>();
    if stack.layers.is_empty() {
        Err("the request shows no layers below")
    } else if above < usize::try_from(max_unmerged).unwrap_or(usize::MAX) {
        Err("they are few")
    } else if stack.is_verified {
        // The mount of merged metadata goes past both.
        Err("dm-verity or fs-verity protects a layer")
    } else if !stack.layers.iter().all(is_image) {
        Err("not all layers below are EROFS images")
    } else if options > OPTION_BYTES {
        Err("the options of the mount would be too long")
    } else {
        Ok(())
    }
}

fn build(image: &NewFile, stack: &Stack, publication: &Publication, plan: Plan<'_>) -> Result<Merged> {
    let (lease, cancel, limits) = (plan.lease, plan.work.cancel, &plan.resources.limits);
    let mut files: Vec<&dyn ReadAt> = Vec::new();
    let mut views = Vec::new();
    for layer in stack.layers.iter().rev() {
        if let LayerSource::Erofs { image, .. } = &layer.source {
            let (image, name): (&dyn ReadAt, _) = (image, layer.path.display().to_string());
            files.push(image);
            views.push(ErofsView::open(image, Vec::new(), layer.key, name, cancel)?);
        }
    }
    let own: &dyn ReadAt = image;
    files.push(own);
    views.push(ErofsView::open(own, Vec::new(), (0, 0), "the new layer".to_owned(), cancel)?);
    let file = publication.file(MERGED_NAME).map_err(Error::from)?;
    let (file, _) = merge::write(&views, file, limits, lease, cancel)?;
    drop(views);
    image::verify_own(&file, &files, limits, lease, cancel)?;
    Ok(Merged { file, layers: files.len() as u64 })
}
