//! Merged metadata beside a layer (`fsmeta.erofs`): whether it is sound, and whether it is that of these very layers.
//!
//! The snapshotter mounts it in the place of the layer and of all below it, so a fault in it breaks containers whose layers
//! are sound. One that is empty is passed over, and the layers are mounted one by one; so they are without it.

use std::fs::File;

use super::{
    report::{Finding, State},
    same::{Open, difference},
    subject::{Judgement, Problem, Subject},
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        ReadAt,
        erofs::{device::DeviceSlot, reader::Image},
    },
    merge,
    pipeline::image,
    snapshot::{LayerSource, MERGED, MERGED_NAME, MountError, NewFile, Publication},
    view::ErofsView,
};

/// Reason id of merged metadata that belongs to other layers.
const REASON: &str = "scrub.merged";

impl Subject<'_> {
    /// Looks at the merged metadata beside the layer, which is sound. `None`: it is as it should be, or there is none.
    pub(super) fn judge_merged(&self, deep: bool) -> Result<Option<Judgement>> {
        let merged = match self.root.survey.merged(self.id()) {
            Ok(Some(merged)) => merged,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(Judgement::Merged(Error::from(error).into()))),
        };
        let layers = match self.layers() {
            Ok(layers) => layers,
            Err(error) => {
                let message = format!("{MERGED_NAME} is there, but a layer below cannot be read: {error}");
                return Ok(Some(Judgement::Unchecked(Problem::new("scrub.below", message))));
            }
        };
        let found = self.examine_merged(&merged, &layers).and_then(|()| match deep {
            true => self.compare_merged(&merged, &layers),
            false => Ok(()),
        });
        Ok(match found {
            Ok(()) => None,
            Err(error) => match Judgement::of(error)? {
                Judgement::Broken(problem) => Some(Judgement::Merged(problem)),
                judgement => Some(judgement),
            },
        })
    }

    /// The images of the layer and of those below it, the bottom one first. Errors: one is not there, or not whole.
    fn layers(&self) -> Result<Vec<File>> {
        let mut below = self.numbering.parents(self.id());
        below.reverse();
        below.push(self.id());
        let each = below.into_iter().map(|id| {
            let stack = self.root.scrub.roots.stack(&self.root.survey.view(id))?;
            match stack.layers.into_iter().next().map(|layer| layer.source) {
                Some(LayerSource::Erofs { image, .. }) => {
                    let superblock = *Image::open(&image)?.superblock();
                    let (declared, found) =
                        (superblock.blocks << superblock.block_bits.get(), image.size_bytes());
                    if found < declared {
                        let message = format!("layer {id} has {found} bytes instead of {declared}");
                        return Err(Error::new(Kind::DataLoss, "scrub.size", message));
                    }
                    Ok(image)
                }
                _ => Err(MountError::Missing(self.root.survey.layer(id).display().to_string()).into()),
            }
        });
        each.collect()
    }

    /// Checks the structure, with the layers as devices, and that these are the layers it was made of.
    fn examine_merged(&self, merged: &File, layers: &[File]) -> Result<()> {
        let slots = Image::open(merged)?.slots().to_vec();
        if slots.len() != layers.len() {
            let message = format!("it is made of {} layers, and there are {}", slots.len(), layers.len());
            return Err(Error::new(Kind::Malformed, REASON, message));
        }
        for (number, (slot, layer)) in (1..).zip(slots.iter().zip(layers)) {
            let uuid = uuid::Uuid::from_bytes(Image::open(layer)?.superblock().uuid).simple().to_string();
            if let Some(found) = identifier(slot).filter(|found| *found != uuid) {
                let message =
                    format!("it was made with the layer {found} as number {number}, which is {uuid} now");
                return Err(Error::new(Kind::Malformed, REASON, message));
            }
        }
        let (resources, cancel) = (self.root.scrub.resources, &self.call.cancel);
        let lease = resources.budget.lease(cancel)?;
        let devices: Vec<_> = layers.iter().map(|layer| layer as &dyn ReadAt).collect();
        image::examine(merged, &devices, &resources.limits, &lease, cancel).map(drop)
    }

    /// Merges the layers again, and compares. What another program has merged may differ in many ways and be right.
    fn compare_merged(&self, merged: &File, layers: &[File]) -> Result<()> {
        let (roots, limits) = (self.root.scrub.roots, &self.root.scrub.resources.limits);
        let directory = roots.resolve(&self.root.survey.active(self.id(), &[]))?;
        let publication = directory.rehearse(&MERGED, limits);
        let made = self.merge(layers, &publication)?;
        let cancel = &self.call.cancel;
        let view = |image, number, name: &str| {
            let devices = layers.iter().map(|layer| layer as &dyn ReadAt).collect();
            ErofsView::<&dyn ReadAt>::open(image, devices, (1, number), name.to_owned(), cancel)
        };
        let (found, want) = (view(merged, 0, MERGED_NAME)?, view(&made, 1, "the layers")?);
        if found.image().superblock().uuid != want.image().superblock().uuid {
            return Ok(());
        }
        match difference(&found, &want, Open { implied: false }, cancel)? {
            None => Ok(()),
            Some(text) => Err(Error::new(Kind::Malformed, "scrub.differs", text)),
        }
    }

    fn merge(&self, layers: &[File], publication: &Publication) -> Result<NewFile> {
        let (resources, cancel) = (self.root.scrub.resources, &self.call.cancel);
        let lease = resources.budget.lease(cancel)?;
        let devices: Vec<_> = layers.iter().map(|layer| layer as &dyn ReadAt).collect();
        let views = (0..).zip(&devices).map(|(number, layer)| {
            ErofsView::open(*layer, Vec::new(), (0, number), format!("layer {}", number + 1), cancel)
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let file = publication.file(MERGED_NAME)?;
        let (file, _) = merge::write(&views, file, &resources.limits, &lease, cancel)?;
        drop(views);
        image::verify_own(&file, &devices, &resources.limits, &lease, cancel)?;
        Ok(file)
    }

    /// Reports broken merged metadata, with those who have it mounted.
    pub(super) fn report_merged(&self, problem: Problem) -> Result<Finding> {
        let mut finding = self.merged_finding(problem);
        let uses = self.uses_of_merged()?;
        finding.notes = uses.iter().map(|place| format!("{place}: reads the damaged metadata")).collect();
        Ok(finding)
    }

    /// Makes merged metadata anew, or removes it where that fails: without it the layers are mounted one by one.
    pub(super) fn repair_merged(&self, problem: Problem) -> Result<Finding> {
        let mut finding = self.merged_finding(problem);
        let survey = self.root.survey;
        finding.state = State::Repaired;
        if !survey.has(self.id(), MERGED_NAME) {
            finding.notes = vec!["it was removed with a layer that was made anew".to_owned()];
            return Ok(finding);
        }
        let uses = self.uses_of_merged()?;
        match self.publish_merged() {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => match survey.forget_merged(self.id()) {
                Ok(_) => finding.notes.push(format!(
                    "removed, because the layers cannot be merged: {error} [{}]; they are mounted one by one",
                    error.reason()
                )),
                Err(removal) => {
                    finding.state = State::Broken;
                    finding.notes.push(format!("neither made anew, {error}, nor removed: {removal}"));
                }
            },
        }
        let again =
            uses.iter().map(|place| format!("{place}: sees the old metadata until it is started again"));
        finding.notes.extend(again);
        Ok(finding)
    }

    fn publish_merged(&self) -> Result<()> {
        let scrub = self.root.scrub;
        let directory = scrub.roots.resolve(&self.root.survey.active(self.id(), &[]))?;
        let publication = directory.publish(&MERGED, &scrub.resources.limits)?;
        let merged = self.merge(&self.layers()?, &publication)?;
        Ok(publication.commit([merged], scrub.converter.options().durability, true)?)
    }

    fn merged_finding(&self, problem: Problem) -> Finding {
        let path = self.root.survey.directory(self.id()).join(MERGED_NAME);
        Finding { path: path.display().to_string(), ..self.finding(State::Broken, problem) }
    }
}

/// Identifier of a layer's image in the tag of its slot, as mkfs.erofs and this program write it. Others write digests.
fn identifier(slot: &DeviceSlot) -> Option<String> {
    let (digits, rest) = slot.tag.split_at_checked(32)?;
    let is_one = digits.iter().all(u8::is_ascii_hexdigit) && rest.iter().all(|byte| *byte == 0);
    is_one.then(|| String::from_utf8_lossy(digits).to_ascii_lowercase())
}
