//! One Diff: from a request to a blob in the content store.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use super::{Compare, Compared, Composer, Form, Request, Sides, Stats, Times};
use crate::{
    call::Call,
    descriptor::Descriptor,
    error::{Classify, Error, Kind, Result},
    pipeline::stage,
    snapshot::{Roots, Stack},
    store::{BlobSink, Stored, check_labels},
};

/// The label that says what a blob is uncompressed: clients look for it on every layer.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Why a request is not begun.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// Another differ may know the type.
    #[error("this differ does not write layers of type {0:?}")]
    MediaType(String),
}

impl Classify for CompareError {
    fn kind(&self) -> Kind {
        match self {
            Self::MediaType(_) => Kind::NotImplemented,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::MediaType(_) => "diff.media-type",
        }
    }
}

/// Compares snapshots below some roots, and puts the layers into a content store.
pub struct Differ {
    sink: Arc<dyn BlobSink>,
    roots: Arc<Roots>,
    composer: Composer,
}

impl Differ {
    /// Snapshots lie where `roots` allows, layers go to `sink`.
    pub fn new(sink: Arc<dyn BlobSink>, roots: Arc<Roots>, composer: Composer) -> Self {
        Self { sink, roots, composer }
    }

    fn write(&self, call: &Call, request: &Request, form: Form, sides: Sides) -> Result<Compared> {
        let started = Instant::now();
        check_labels(&request.labels)?;
        let mut ingest = self.sink.ingest(call, &request.reference)?;
        let composed = self.composer.compose(
            &call.cancel,
            sides,
            form,
            request.source_date_epoch,
            &mut |bytes| ingest.write(bytes),
            &mut |_| {},
        )?;
        call.cancel.check()?;
        let committing = Instant::now();
        let mut labels = request.labels.clone();
        // A plain layer has it as well: several clients fail without.
        labels.insert(UNCOMPRESSED.to_owned(), composed.diff_id.to_string());
        let Stored { digest, size_bytes } = ingest.commit(&composed.blob, &labels)?;
        let stats = Stats {
            diff_id: composed.diff_id,
            uncompressed_bytes: composed.uncompressed_bytes,
            coding: form.coding,
            contents: composed.contents,
            times: Times { commit: committing.elapsed(), ..composed.times },
            total: started.elapsed(),
        };
        let media_type = form.media_type.to_owned();
        Ok(Compared { descriptor: Descriptor { media_type, digest, size_bytes }, stats })
    }
}

impl Compare for Differ {
    fn compare(&self, call: &Call, request: &Request) -> Result<Compared> {
        // Up to here and including both stacks nothing has been written, and no layer has been read.
        let form = Form::of(&request.media_type)
            .ok_or_else(|| CompareError::MediaType(request.media_type.clone()))
            .map_err(|error| Error::from(error).context("diff"))?;
        let stack = |mounts, side: &str| -> Result<Stack> {
            self.roots.stack(mounts).map_err(|error| {
                Error::from(error).context(side).context(format!("diff ({})", form.media_type))
            })
        };
        let lower = stack(&request.left, "the older side")?;
        let upper = stack(&request.right, "the newer side")?;
        let sides = Sides { lower, upper };
        let context = format!("diff of {} to {} ({})", top(&sides.lower), top(&sides.upper), form.media_type);
        catch_unwind(AssertUnwindSafe(|| self.write(call, request, form, sides)))
            .unwrap_or_else(|panic| Err(stage::panicked(&*panic)))
            .map_err(|error| error.context(context))
    }
}

/// A stack in a message: its newest layer, and how many are below.
fn top(stack: &Stack) -> String {
    match stack.layers.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.path.display().to_string(),
        [newest, rest @ ..] => format!("{} and {} below", newest.path.display(), rest.len()),
    }
}
