//! A look at a snapshot whose layer is one of a block device.

use super::{
    compare,
    subject::{Judgement, Problem, Subject},
};
use crate::{
    error::{Error, Kind, Result},
    kind::sniff::Overlaybd,
    overlaybd::{
        inspect::{Depth, Inspected},
        snapshot::top_layer,
    },
    pipeline::Plan,
    view::DeviceFile,
};

/// Looks at the layer of a snapshot, and with `deep` at all that is in it.
pub(super) fn judge(subject: &Subject<'_>, deep: bool) -> Result<Judgement> {
    let survey = subject.root.survey;
    if survey.is_half(subject.id()) {
        let message = "the archive is there, and the layer made of it is not";
        return Ok(Judgement::Broken(Problem::new("scrub.half", message)));
    }
    let device = match survey.device(subject.id()) {
        Ok(device) => device,
        Err(error) => return Judgement::of(error.into()),
    };
    let path = survey.layer(subject.id()).display().to_string();
    let layer = match device.open(&path) {
        Ok(layer) => layer,
        Err(error) => return Judgement::of(error.into()),
    };
    if device.is_described() {
        let resources = subject.root.scrub.resources;
        let lease = resources.budget.lease(&subject.call.cancel)?;
        let plan = Plan { resources, lease: &lease, work: subject.call.work() };
        match top_layer(&device, plan) {
            // A layer that is fetched when it is read, or one that was unpacked into a directory.
            Err(error) if error.kind() == Kind::NotFound && layer.is_none() => {
                return Ok(Judgement::Sound { compared: false });
            }
            Err(error) => return Judgement::of(error),
            Ok(_) => {}
        }
    }
    let Some(layer) = layer else { return Ok(Judgement::Sound { compared: false }) };
    if layer.metadata().map_err(Error::disk)?.len() == 0 {
        return Ok(Judgement::Broken(Problem::new("scrub.empty", "the layer is empty")));
    }
    let depth = if deep { Depth::Contents } else { Depth::Records };
    let open = || -> Result<Box<dyn DeviceFile>> { Ok(Box::new(layer.try_clone().map_err(Error::disk)?)) };
    match Inspected::of(Overlaybd::Layer, &open, depth, subject.call.work()) {
        Err(error) => Judgement::of(error),
        Ok(_) if deep => compare::device(subject, &layer),
        Ok(_) => Ok(Judgement::Sound { compared: false }),
    }
}
