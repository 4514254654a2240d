//! A look at one committed snapshot: whether its layer is there, and sound.

use std::fs::File;

use super::{
    compare, device,
    subject::{Judgement, Problem, Subject},
};
use crate::{
    apply::Strategy,
    error::{Error, Result},
    format::{ReadAt as _, erofs::reader::Image},
    pipeline::image,
    snapshot::{Holds, LayerSource, MountError},
};

/// Bytes behind an image that are no fault: writers fill up to a page.
const PAGE: u64 = 4096;
/// Start of the superblock of dm-verity's hash tree, which follows the image.
const VERITY: &[u8; 8] = b"verity\0\0";

impl Subject<'_> {
    /// Looks at the snapshot, and with `deep` compares it with its layer.
    pub(super) fn judge(&self, deep: bool) -> Result<Judgement> {
        let survey = self.root.survey;
        let missing = match survey.missing(self.id()) {
            Ok(missing) => missing,
            Err(error) => return Ok(Judgement::Broken(Error::from(error).into())),
        };
        if missing == [""] {
            return Ok(Judgement::Broken(Problem::new("scrub.directory", "the directory is missing")));
        }
        if let Some(name) = missing.first() {
            let message = format!("{name} is missing or something else");
            return Ok(Judgement::Broken(Problem::new("scrub.side-file", message)));
        }
        match survey.holds() {
            Holds::Images => self.judge_image(deep),
            Holds::Devices => device::judge(self, deep),
        }
    }

    fn judge_image(&self, deep: bool) -> Result<Judgement> {
        Ok(match self.judge_layer(deep)? {
            Judgement::Sound { compared } => {
                self.judge_merged(deep)?.unwrap_or(Judgement::Sound { compared })
            }
            judgement => judgement,
        })
    }

    fn judge_layer(&self, deep: bool) -> Result<Judgement> {
        let stack = match self.root.scrub.roots.stack(&self.root.survey.view(self.id())) {
            Ok(stack) => stack,
            Err(error) if self.may_be_shared(&error) => {
                let error = Error::from(error);
                let message = format!("{error}; it may be a shared layer (snapshots.shared_layers)");
                return Ok(Judgement::Unchecked(Problem::new("scrub.shared", message)));
            }
            // Whatever is there, containerd cannot mount it either.
            Err(error) => return Ok(Judgement::Broken(Error::from(error).into())),
        };
        let source = stack.layers.into_iter().next().map(|layer| layer.source);
        let Some(LayerSource::Erofs { image, .. }) = source else {
            return Ok(Judgement::Broken(Problem::new("mount.missing", "the snapshot has no image")));
        };
        let size_bytes = image.size_bytes();
        if size_bytes == 0 {
            return Ok(Judgement::Broken(Problem::new("scrub.empty", "the image is empty")));
        }
        let cancel = &self.call.cancel;
        let examined = {
            let resources = self.root.scrub.resources;
            let lease = resources.budget.lease(cancel)?;
            image::examine(&image, &[], &resources.limits, &lease, cancel)
        };
        let is_native = self.strategy().is_some_and(|strategy| matches!(strategy, Strategy::Native { .. }));
        let image_bytes = match examined {
            Ok(report) => report.image_bytes,
            // Somebody else made it: what its digest says counts, not whether this program can read all of it.
            Err(_) if is_native && compare::is_native_layer(self, &image)? => {
                return Ok(Judgement::Sound { compared: true });
            }
            Err(error) => return Judgement::of(error),
        };
        if let Some(problem) = self.behind(&image, image_bytes, is_native) {
            return Ok(Judgement::Broken(problem));
        }
        match deep {
            true => compare::image(self, image),
            false => Ok(Judgement::Sound { compared: false }),
        }
    }

    /// Whether the layer may be one of those that several snapshots share: a link to an image elsewhere, as containerd 2.4
    /// made them at first, or no file at all, as it does since.
    fn may_be_shared(&self, error: &MountError) -> bool {
        match error {
            MountError::Shared { target, .. } => target.trim_end_matches('"').ends_with(".erofs"),
            MountError::Missing(_) => self.root.scrub.roots.shares_layers(),
            _ => false,
        }
    }

    /// What is behind the end of the image and should not be there.
    fn behind(&self, image: &File, image_bytes: u64, is_native: bool) -> Option<Problem> {
        let size_bytes = image.size_bytes();
        let has_side_file = self.root.survey.has_verity(self.id());
        let tree_at = image_bytes.next_multiple_of(PAGE);
        let mut found = [0; VERITY.len()];
        let has_tree = image.read_exact_at(tree_at, &mut found).is_ok() && found == *VERITY;
        if has_tree != has_side_file {
            let message = match has_tree {
                true => "layer.erofs.dmverity is missing, and the image has a hash tree",
                false => "the image has no hash tree at its end, and there is layer.erofs.dmverity",
            };
            return Some(Problem::new("scrub.verity", message));
        }
        // Whoever makes a native layer may put there what he likes. Of an indexed archive, it is the archive.
        let is_ours = self.origin.is_some() && !is_native && !has_tree;
        let is_alone = || Image::open(image).is_ok_and(|image| image.slots().is_empty());
        (is_ours && size_bytes > image_bytes.saturating_add(PAGE) && is_alone()).then(|| {
            let message = format!("the file has {size_bytes} bytes, the image {image_bytes}");
            Problem::new("scrub.size", message)
        })
    }
}
