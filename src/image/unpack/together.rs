//! Several layers at once: applied in any order, committed from the lowest one up.
//!
//! The snapshots are made without parents, and get them when they are committed.

use std::sync::mpsc::{Sender, channel};

use super::{
    step::{Active, Step, wait},
    unpacker::Applied,
};
use crate::{
    call::Cancel,
    containerd::Applying,
    digest::Digest,
    error::{Error, Result},
};

/// A layer's number, and the diffID that the differ has found.
type Answer = (usize, Result<Digest>);

enum Stage {
    /// Not begun.
    Waiting,
    /// The differ is at work.
    Running(Active, Applying),
    /// Ready to be committed.
    Filled(Active),
    /// A snapshot; `true` if it was not there before.
    Done(bool),
}

struct Together<'a> {
    steps: &'a [Step<'a>],
    /// Number of layers below them, for messages.
    below: usize,
    stages: Vec<Stage>,
    /// Layers from this one on are given up: one failed.
    end: usize,
    /// The first failure.
    failure: Option<Error>,
}

/// Applies at most `at_once` layers at a time. After a failure the layers below it are still committed, and no active
/// snapshot stays. Errors: the first failure.
pub(super) fn run(steps: &[Step<'_>], below: usize, at_once: usize, cancel: &Cancel) -> Result<Vec<Applied>> {
    let (send, receive) = channel::<Answer>();
    let stages = steps.iter().map(|_| Stage::Waiting).collect();
    let mut work = Together { steps, below, stages, end: steps.len(), failure: None };
    let (mut next, mut committed) = (0, 0);
    loop {
        while next < work.end && work.running() < at_once.max(1) {
            work.begin(next, &send);
            next += 1;
        }
        while committed < work.end && work.commit(committed) {
            committed += 1;
        }
        if committed >= work.end {
            break;
        }
        match wait(&receive, cancel) {
            Ok((number, found)) => work.take(number, found),
            Err(error) => {
                work.failure.get_or_insert(error);
                break;
            }
        }
    }
    work.clear(0);
    match work.failure {
        Some(error) => Err(error),
        None => Ok(work.applied()),
    }
}

impl Together<'_> {
    fn running(&self) -> usize {
        self.stages.iter().filter(|stage| matches!(stage, Stage::Running(..))).count()
    }

    fn begin(&mut self, number: usize, send: &Sender<Answer>) {
        let Some(step) = self.steps.get(number) else { return };
        let stage = step.prepare(None).and_then(|active| {
            let Some(active) = active else { return Ok(Stage::Done(false)) };
            if active.is_staged() {
                return Ok(Stage::Filled(active));
            }
            let send = send.clone();
            let mounts = step.mounts_without_parent(&active);
            // Without a receiver after a failure.
            match step.begin(&active, &mounts, move |found| drop(send.send((number, found)))) {
                Ok(applying) => Ok(Stage::Running(active, applying)),
                Err(error) => {
                    step.remove(&active);
                    Err(error)
                }
            }
        });
        match stage {
            Ok(stage) => self.set(number, stage),
            Err(error) => self.fail(number, step.named(error)),
        }
    }

    /// Takes the answer of the differ.
    fn take(&mut self, number: usize, found: Result<Digest>) {
        let Some(step) = self.steps.get(number) else { return };
        if !matches!(self.stages.get(number), Some(Stage::Running(..))) {
            // The layer was given up meanwhile.
            return;
        }
        let Some(Stage::Running(active, _ended)) = self.replace(number, Stage::Waiting) else { return };
        let outcome = found.and_then(|found| step.verify(&found));
        self.set(number, Stage::Filled(active));
        if let Err(error) = outcome {
            self.fail(number, step.named(error));
        }
    }

    /// Commits a layer if it is ready. Returns whether the next one may follow.
    fn commit(&mut self, number: usize) -> bool {
        let Some(step) = self.steps.get(number) else { return false };
        let active = match self.replace(number, Stage::Waiting) {
            Some(Stage::Filled(active)) => active,
            Some(stage) => {
                let is_done = matches!(stage, Stage::Done(_));
                self.set(number, stage);
                return is_done;
            }
            None => return false,
        };
        match step.commit(&active, step.parent.as_ref()) {
            Ok(is_new) => {
                self.set(number, Stage::Done(is_new));
                true
            }
            Err(error) => {
                self.set(number, Stage::Filled(active));
                self.fail(number, step.named(error));
                false
            }
        }
    }

    /// Gives up this layer and those above it.
    fn fail(&mut self, number: usize, error: Error) {
        let place = (self.below + number + 1, self.below + self.steps.len());
        self.failure.get_or_insert_with(|| error.context(format!("layer {} of {}", place.0, place.1)));
        if number < self.end {
            self.end = number;
            self.clear(number);
        }
    }

    /// Removes the active snapshots from this layer on.
    fn clear(&mut self, from: usize) {
        for number in from..self.stages.len() {
            let Some(stage) = self.replace(number, Stage::Waiting) else { return };
            let active = match stage {
                // Without its answer the differ is cancelled.
                Stage::Running(active, _applying) => active,
                Stage::Filled(active) => active,
                stage => {
                    self.set(number, stage);
                    continue;
                }
            };
            if let Some(step) = self.steps.get(number) {
                step.remove(&active);
            }
        }
    }

    fn applied(self) -> Vec<Applied> {
        let each = self.steps.iter().zip(&self.stages);
        let applied = each.map(|(step, stage)| Applied {
            chain_id: step.chain_id.clone(),
            is_new: matches!(stage, Stage::Done(true)),
        });
        applied.collect()
    }

    fn set(&mut self, number: usize, stage: Stage) {
        self.replace(number, stage);
    }

    fn replace(&mut self, number: usize, stage: Stage) -> Option<Stage> {
        self.stages.get_mut(number).map(|place| std::mem::replace(place, stage))
    }
}
