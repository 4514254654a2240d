//! What a scrub looks at: the roots, each snapshot, and the judgement about it.

use std::collections::BTreeMap;

use super::{
    catalog::{Catalog, Origin},
    numbering::Numbering,
};
use crate::{
    apply::{Asked, Converter, Strategy, choose},
    call::{Call, Cancel},
    containerd::{Containerd, Snapshots},
    error::{Error, Kind, Result},
    kind::LayerType,
    pipeline::Resources,
    snapshot::{DEVICE_LAYER, FileSet, Holds, LAYER, Numbered, Roots, Survey, TRACE, TURBO},
};

/// What a scrub does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Makes every layer again, and compares: finds changes that leave the image sound.
    pub deep: bool,
    /// Makes broken snapshots anew, and removes leftovers.
    pub repair: bool,
}

/// A scrub of the snapshots of one containerd.
pub struct Scrub<'a> {
    /// containerd.
    pub client: &'a Containerd,
    /// Roots of its snapshotters.
    pub roots: &'a Roots,
    /// Makes layers, with the settings of the daemon: only then are they the same bytes.
    pub converter: &'a Converter,
    /// Memory and limits; those of `converter`.
    pub resources: &'a Resources,
    /// Name of the overlaybd snapshotter in containerd, which does not export its root.
    pub overlaybd: &'a str,
    /// What is done.
    pub settings: Settings,
}

/// A root, and what containerd has of it.
pub(super) struct Root<'a> {
    pub(super) scrub: &'a Scrub<'a>,
    pub(super) survey: Survey<'a>,
    pub(super) snapshots: Option<Snapshots>,
    /// One call for each namespace.
    pub(super) calls: &'a [Call],
    pub(super) cancel: &'a Cancel,
    pub(super) catalog: &'a Catalog,
}

/// Reason of a judgement.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// Stable id.
    pub(super) reason: &'static str,
    /// In words.
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

/// Judgement about a snapshot.
#[derive(Debug)]
pub(super) enum Judgement {
    /// It is as it should be.
    Sound {
        /// It was compared with its layer.
        compared: bool,
    },
    /// It is not.
    Broken(Problem),
    /// The layer is as it should be, and its merged metadata is not.
    Merged(Problem),
    /// It cannot be judged.
    Unchecked(Problem),
}

impl Judgement {
    /// The judgement that follows from an error met while a layer was read. Errors: those that are not about the layer.
    pub(super) fn of(error: Error) -> Result<Self> {
        match error.kind() {
            Kind::Cancelled | Kind::DeadlineExceeded => Err(error),
            // Limits, and features of sound images that this program cannot read.
            Kind::Exhausted | Kind::NotImplemented | Kind::Conflict | Kind::Internal => {
                Ok(Self::Unchecked(error.into()))
            }
            _ => Ok(Self::Broken(error.into())),
        }
    }
}

/// A committed snapshot.
pub(super) struct Subject<'a> {
    pub(super) root: &'a Root<'a>,
    pub(super) numbering: &'a Numbering,
    pub(super) record: &'a Numbered,
    /// Its layer, if an image has it.
    pub(super) origin: Option<&'a Origin>,
    /// A call in its namespace.
    pub(super) call: Call,
}

impl Subject<'_> {
    /// Number of its directory.
    pub(super) fn id(&self) -> u64 {
        self.record.id
    }

    /// Row of the layer's type, without processors. `None` without a known layer.
    pub(super) fn layer_type(&self) -> Option<&'static LayerType> {
        let blob = &self.origin?.blob;
        LayerType::of_blob(&blob.media_type, &blob.annotations)
    }

    /// The way in which Apply makes the layer; `None` when it does not, or when the layer is not known.
    pub(super) fn strategy(&self) -> Option<Strategy> {
        static IMAGES: &[&FileSet] = &[&LAYER];
        static DEVICES: &[&FileSet] = &[&DEVICE_LAYER, &TRACE, &TURBO];
        let accepted = match self.root.survey.holds() {
            Holds::Images => IMAGES,
            Holds::Devices => DEVICES,
        };
        let (origin, layer_type) = (self.origin?, self.layer_type()?);
        let annotations = &origin.blob.annotations;
        let overlaybd = &self.root.scrub.converter.options().overlaybd;
        let labels = BTreeMap::new();
        choose(&Asked { layer_type, annotations, labels: &labels, accepted, overlaybd })
    }

    /// Whether the snapshot has been removed, or has got another state, since the records were read.
    pub(super) fn is_gone(&self) -> Result<bool> {
        let is_same = |record: &Numbered| {
            (record.id, &record.name, record.state) == (self.id(), &self.record.name, self.record.state)
        };
        if let Some(records) = self.root.survey.records()? {
            return Ok(!records.iter().any(is_same));
        }
        match &self.root.snapshots {
            Some(snapshots) => Ok(!snapshots.committed(&self.call)?.contains_key(&self.record.name)),
            None => Ok(false),
        }
    }
}
