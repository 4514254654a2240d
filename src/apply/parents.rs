//! Attributes for directories that a layer does not list, taken from the layers below.

use crate::{
    call::Cancel,
    error::{Kind, Result},
    pipeline::{budget::Lease, image::ImageWriter},
    snapshot::Stack,
    view::stack::read_merged,
};

/// Access to the layers below a new one.
#[derive(Clone, Copy)]
pub struct Parents<'a> {
    /// Opens the layers, the newest first. Returns an empty stack when they are not known. Called only for
    /// a layer that needs them.
    pub open: &'a dyn Fn() -> Result<Stack>,
    /// Fail when the layers below are needed and cannot be read, instead of making the image as if there were none.
    pub required: bool,
}

/// Counts of the directories that a layer uses but does not list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Implied {
    pub(super) directories: u64,
    pub(super) inherited: u64,
    pub(super) without_parents: bool,
}

/// Copies attributes from the layers below to the directories that the archive implied. Runs at its end.
pub(super) fn inherit(
    writer: &mut ImageWriter<'_>,
    parents: Option<Parents<'_>>,
    lease: &Lease,
    cancel: &Cancel,
) -> Result<Implied> {
    let directories = writer.implied_directories();
    if directories == 0 {
        return Ok(Implied::default());
    }
    let without = Implied { directories, inherited: 0, without_parents: true };
    let Some(Parents { open, required }) = parents else { return Ok(without) };
    let mut look = || {
        let stack = open()?;
        if stack.layers.is_empty() {
            return Ok(None);
        }
        read_merged(stack, lease, cancel, |view| writer.inherit(view)).map(Some)
    };
    let found = look();
    match found {
        Ok(Some(inherited)) => Ok(Implied { directories, inherited, without_parents: false }),
        Ok(None) => Ok(without),
        Err(error) if !required && may_be_ignored(error.kind()) => {
            tracing::warn!(
                reason = error.reason(),
                error = %error,
                directories,
                "the layers below cannot be read: directories that the layer does not list are root's, mode 0755"
            );
            writer.disinherit();
            Ok(without)
        }
        Err(error) => Err(error.context("the layers below")),
    }
}

/// Whether an error lies in the layers below themselves, so that a retry would fail again. The kernel judges such
/// layers when they are mounted.
fn may_be_ignored(kind: Kind) -> bool {
    matches!(kind, Kind::NotImplemented | Kind::Malformed | Kind::Denied | Kind::Conflict)
}
