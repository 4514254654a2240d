//! Threads, memory and limits that all requests share.

use std::sync::Arc;

use super::{
    ahead::AheadOptions,
    budget::{Budget, Lease},
    helpers::Helpers,
};
use crate::{call::Work, limits::Limits};

/// Threads, memory and limits: made once for a process, lent to everything that turns layers into something else.
#[derive(Debug)]
pub struct Resources {
    /// Permits for helper threads.
    pub helpers: Arc<Helpers>,
    /// Memory for metadata and decoder windows.
    pub budget: Arc<Budget>,
    /// Bounds on one request, and on all together.
    pub limits: Limits,
    /// When helpers decode ahead.
    pub ahead: AheadOptions,
}

impl Resources {
    /// Up to `helper_threads` threads beside those of the callers, and the memory that `limits` allows. Starts and
    /// allocates nothing.
    pub fn new(limits: Limits, helper_threads: usize) -> Arc<Self> {
        Self::with_ahead(limits, helper_threads, AheadOptions::AUTO)
    }

    /// Like [`Self::new`], with a choice of when helpers decode ahead.
    pub fn with_ahead(limits: Limits, helper_threads: usize, ahead: AheadOptions) -> Arc<Self> {
        Arc::new(Self { helpers: Helpers::new(helper_threads), budget: Budget::new(&limits), limits, ahead })
    }
}

/// Everything that one run may use.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Threads and limits, shared with other requests.
    pub resources: &'a Resources,
    /// Memory of this request.
    pub lease: &'a Lease,
    /// Cancellation, looked at once a buffer, and progress of this request.
    pub work: Work<'a>,
}
