//! Decodes gzip or zstd on a thread of its own, with helpers that work ahead of it.
//!
//! The decoder takes the stream in order. Meanwhile each helper decodes a piece further on: a run of whole members or
//! frames. When the decoder comes to exactly the first byte of such a run, it takes what came of it and goes on behind. While
//! a helper is still at work on it, the decoder decodes another run itself, so that nothing is decoded twice. It waits for a
//! helper for a moment at most, and then does that work itself.
//!
//! In a gzip stream where no members are known a helper looks for a block, and decodes from there with the window unknown.
//! It hands over what it has at every few ends of blocks. When the decoder comes to exactly the first bit of such a piece,
//! it takes what is ready of it, and does not wait for the rest.
//!
//! With an index of the stream ([`Ztoc`](crate::format::ztoc::Ztoc)) a helper need not look: it decodes from a place that the index
//! lists, with the window that the index has for it. Such a piece counts only if the decoder comes to exactly its first bit,
//! and has given out exactly that window before.
//!
//! Either way what comes out is what decoding in order gives, and every error is one that the decoder met in order.
//!
//! Members of gzip and frames of zstd are found in the stream itself ([`Starts`]). So the table of contents of an indexed
//! layer, which lists the same places, is not needed, and cannot do harm.
//!
//! Helpers run when a processor has nothing else to do. They read the buffers that the digest of the blob was computed of,
//! never the blob itself: a blob that changes meanwhile cannot give other bytes than those that were hashed.

mod fuzz;
mod helper;
mod options;
mod piece;
mod run;
mod shared;
mod stream;

use std::{
    sync::Arc,
    thread::Scope,
    time::{Duration, Instant},
};

pub(super) use self::options::AheadPlan;
pub use self::{
    fuzz::{fuzz_ahead, fuzz_ahead_zstd},
    options::{AheadFacts, AheadOptions},
};
use self::{
    helper::Helper,
    piece::{Begins, Part, Ready, Taken},
    shared::{Shared, abandoned},
    stream::Stream,
};
use super::{
    budget::{Share, Use},
    buffer::{Chunk, Pool},
    decode::{Decoded, Outlet},
    helpers::{IdlePermit, Permit},
    resources::Plan,
    stage::Stage,
};
use crate::{
    codec::{Cut, Gzip, Starts, deflate::Window},
    error::Result,
    sys::thread::{Scoped, catch, lower_priority, spawn_scoped},
};

/// Most helpers of one stream. The digest of the stream is computed in order, and with four helpers it takes longer than
/// decoding.
const HELPERS_MAX: usize = 4;

/// The right to run one helper, and its memory.
pub(super) struct Hired {
    permit: IdlePermit,
    share: Share,
}

impl Hired {
    /// As many helpers as there are processors and memory for now, without waiting.
    pub(super) fn as_many_as_there_are(plan: Plan<'_>) -> Vec<Self> {
        Self::up_to(HELPERS_MAX, plan)
    }

    fn up_to(most: usize, plan: Plan<'_>) -> Vec<Self> {
        let helpers = &plan.resources.helpers;
        let hire = |_| Some(Self { permit: helpers.take_idle()?, share: plan.lease.share()? });
        (0..most).map_while(hire).collect()
    }
}

/// The near end of a decoder with helpers.
pub(super) struct Ahead<'scope, T> {
    shared: Arc<Shared>,
    starts: Starts,
    /// Taken when it is joined.
    decoder: Option<Scoped<'scope, Decoded<T>>>,
}

impl<'scope, T: Send + 'scope> Ahead<'scope, T> {
    /// Starts the decoder, whose output goes to `next` in buffers of `pool`, and its helpers.
    pub(super) fn new<'env, S: Stage<Output = T> + 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        ahead: AheadPlan<'env>,
        permit: Permit,
        hired: Vec<Hired>,
        pool: Arc<Pool>,
        plan: Plan<'env>,
        next: S,
    ) -> Result<Self> {
        let stream = Stream::new(ahead.coding, plan.resources.limits.zstd_window_bytes)?;
        let shared = Arc::new(Shared::new(ahead, hired.len()));
        // From here on an error ends the threads that were started.
        let (starts, index) = (Starts::of(ahead.coding), ahead.index);
        let mut ahead = Self { shared: Arc::clone(&shared), starts, decoder: None };
        for (number, Hired { permit, share }) in hired.into_iter().enumerate() {
            let helper = Helper::new(Arc::clone(&shared), Arc::clone(&pool), plan, number, index);
            let shared = Arc::clone(&shared);
            let yields = plan.resources.ahead.yields;
            let started = spawn_scoped(scope, "ahead", move || {
                let _held = (permit, share);
                if yields {
                    lower_priority();
                }
                help(&shared, || helper.work());
                Ok(())
            });
            if started.is_err() {
                // It goes without.
                break;
            }
        }
        let outlet = Outlet::new(Arc::clone(&pool), plan, next);
        let near = Near { shared: Arc::clone(&shared), stream, pool, outlet, plan };
        ahead.decoder = Some(spawn_scoped(scope, "decode", move || {
            let _held = permit;
            near.run()
        })?);
        Ok(ahead)
    }

    fn join(&mut self) -> Result<Decoded<T>> {
        let decoder = self.decoder.take().ok_or_else(abandoned)?;
        decoder.join()
    }
}

impl<'scope, T: Send + 'scope> Stage for Ahead<'scope, T> {
    type Output = Decoded<T>;

    fn push(&mut self, chunk: Chunk) -> Result<()> {
        if self.shared.add(chunk, &mut self.starts) {
            return Ok(());
        }
        self.join()?;
        Err(abandoned())
    }

    fn finish(mut self) -> Result<Self::Output> {
        self.shared.end_input();
        self.join()
    }
}

impl<T> Drop for Ahead<'_, T> {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

/// Does a helper's work. A panic fails the whole request, as everywhere else.
fn help(shared: &Shared, work: impl FnOnce() -> Result<()>) {
    if let Err(error) = catch(work) {
        shared.fail(error);
    }
}

/// The decoder, on its thread.
struct Near<'env, S> {
    shared: Arc<Shared>,
    stream: Stream,
    pool: Arc<Pool>,
    outlet: Outlet<'env, S>,
    plan: Plan<'env>,
}

/// Ends the helpers when the decoder ends, however it does.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<S: Stage> Near<'_, S> {
    fn run(self) -> Result<Decoded<S::Output>> {
        let Self { shared, mut stream, pool, mut outlet, plan } = self;
        let closing = Closing(&shared);
        let mut memory = 0;
        let mut busy = Duration::ZERO;
        while let Some((offset, chunk)) = shared.input(stream.taken())? {
            let skipped = usize::try_from(stream.taken() - offset).unwrap_or(usize::MAX);
            let mut input = chunk.get(skipped..).unwrap_or_default();
            loop {
                let cut = shared.next_piece(offset + chunk.len() as u64);
                if let Some(at) = stream.cut().filter(|at| cut.is_some_and(|cut| *at >= cut)) {
                    let mut started = Instant::now();
                    let (begins, window) = match stream.is_between_members() {
                        true => (Begins::Member, Vec::new()),
                        false => (Begins::Block, stream.window()),
                    };
                    let is_taken = match shared.take(at, begins, &window) {
                        Ready::Taken(taken) => splice(&shared, &mut stream, &mut outlet, taken, &window)?,
                        Ready::UnderWay => {
                            let run = shared.meanwhile(at);
                            started = Instant::now();
                            if let Some(run) = run {
                                let decoded = stream.decode_run(memory, |stream| {
                                    run::decode(&shared, &pool, stream, &mut memory, &run)
                                });
                                shared.complete(&run, decoded);
                            }
                            false
                        }
                        Ready::None => false,
                    };
                    busy += started.elapsed();
                    if is_taken {
                        break;
                    }
                    continue;
                }
                let started = Instant::now();
                let space = outlet.space();
                let (room, had) = (space.len(), input.len());
                let outcome = stream.decode_to(cut, &mut input, space);
                busy += started.elapsed();
                let filled = outcome?;
                outlet.fill(had - input.len(), filled)?;
                if stream.memory_bytes() > memory {
                    memory = stream.memory_bytes();
                    plan.lease.charge(Use::Window, memory, plan.work.cancel)?;
                    continue;
                }
                if filled < room && input.is_empty() {
                    break;
                }
            }
        }
        stream.finish()?;
        drop(closing);
        Ok(Decoded { output: outlet.finish()?, busy, ahead: shared.facts(), index: None })
    }
}

/// Puts what is ready of a piece behind what was decoded, of which `window` are the last bytes, and goes on behind it; `false`
/// when it refers to bytes before the start of the stream.
fn splice<S: Stage>(
    shared: &Shared,
    stream: &mut Stream,
    outlet: &mut Outlet<'_, S>,
    taken: Taken,
    window: &[u8],
) -> Result<bool> {
    match (taken.begins, stream) {
        (Begins::Block, Stream::Gzip(gzip)) => splice_blocks(shared, gzip, outlet, taken, window),
        (_, stream) => {
            splice_members(shared, stream, outlet, taken)?;
            Ok(true)
        }
    }
}

fn compressed_bytes(end: Cut, taken: u64) -> usize {
    usize::try_from((end.0 / 8).saturating_sub(taken)).unwrap_or(usize::MAX)
}

/// [`splice`] for members or frames, which refer to nothing before them and have checked their sums themselves.
fn splice_members<S: Stage>(
    shared: &Shared,
    stream: &mut Stream,
    outlet: &mut Outlet<'_, S>,
    taken: Taken,
) -> Result<()> {
    let Taken { parts, end, .. } = taken;
    outlet.fill(compressed_bytes(end, stream.taken()), 0)?;
    for part in parts {
        match part {
            Part::Marked(units) => shared.give_back_units(units),
            Part::Plain(chunk) => {
                shared.give_back_plain();
                outlet.pass(0, chunk)?;
            }
        }
    }
    stream.go_on_at_member(end.0 / 8);
    Ok(())
}

/// [`splice`] for blocks of one member.
fn splice_blocks<S: Stage>(
    shared: &Shared,
    gzip: &mut Gzip,
    outlet: &mut Outlet<'_, S>,
    taken: Taken,
    window: &[u8],
) -> Result<bool> {
    let window = Window::new(window);
    let Taken { parts, end, .. } = taken;
    let is_known = parts.iter().all(|part| match part {
        Part::Marked(units) => window.knows(units.units()),
        Part::Plain(_) => true,
    });
    if is_known {
        outlet.fill(compressed_bytes(end, gzip.taken()), 0)?;
    }
    for part in parts {
        match part {
            Part::Marked(units) => {
                let mut rest = units.units();
                while is_known && !rest.is_empty() {
                    let space = outlet.space();
                    let done = window.resolve(rest, space);
                    gzip.add(space.get(..done).unwrap_or_default());
                    outlet.fill(0, done)?;
                    rest = rest.get(done..).unwrap_or_default();
                }
                shared.give_back_units(units);
            }
            Part::Plain(chunk) => {
                shared.give_back_plain();
                if is_known {
                    gzip.add(&chunk);
                    outlet.pass(0, chunk)?;
                }
            }
        }
    }
    if is_known {
        gzip.go_on_at(end);
    }
    Ok(is_known)
}

#[cfg(test)]
mod tests;
