//! The surroundings in which tests run a pipeline.

use super::{Plan, Resources};
use crate::{
    call::{Cancel, Progress, Work},
    limits::Limits,
};

/// Things that a run gets, and that are looked at afterwards.
pub(super) struct Setup {
    pub(super) helpers: usize,
    pub(super) limits: Limits,
    pub(super) cancel: Cancel,
    pub(super) progress: Progress,
}

/// A setup with the usual limits.
pub(super) fn setup(helpers: usize) -> Setup {
    Setup { helpers, limits: Limits::default(), cancel: Cancel::new(), progress: Progress::default() }
}

impl Setup {
    /// Runs `work`, and checks that it has given all helpers back.
    pub(super) fn run<T>(&self, work: impl FnOnce(Plan<'_>) -> T) -> T {
        let resources = Resources::new(self.limits.clone(), self.helpers);
        let lease = resources.budget.lease(&Cancel::new()).unwrap();
        let outcome = work(Plan {
            resources: &resources,
            lease: &lease,
            work: Work { cancel: &self.cancel, progress: &self.progress },
        });
        assert_eq!(resources.helpers.free(), self.helpers, "all permits are back");
        outcome
    }
}
