//! The walk over all roots and snapshots.

use std::{
    collections::BTreeMap,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use super::{
    catalog::Catalog,
    numbering::Numbering,
    report::{Counts, Finding, Report, RootReport, State},
    subject::{Judgement, Root, Scrub, Settings, Subject},
};
use crate::{
    call::Call,
    containerd::Snapshotter,
    error::Result,
    snapshot::{Holds, State as Kind, Survey},
    sys::thread::{Scoped, spawn_scoped},
};

/// Most snapshots that are looked at side by side: more would only make a disk seek.
const THREADS: usize = 4;

impl Scrub<'_> {
    /// Looks at every committed snapshot of every root. `call` is repeated in all namespaces.
    ///
    /// Errors: containerd does not answer; a root or its records cannot be read; the work was cancelled. What is wrong
    /// with a snapshot is no error but a finding.
    pub fn run(&self, call: &Call) -> Result<Report> {
        let started = Instant::now();
        let namespaces = self.client.namespaces(call)?;
        let calls: Vec<_> =
            namespaces.into_iter().map(|namespace| Call { namespace, ..call.clone() }).collect();
        let snapshotters = self.client.snapshotter_roots(call)?;
        let catalog = Catalog::read(self.client, &calls)?;
        let Settings { deep, repair } = self.settings;
        let mut report = Report { deep, repair, ..Report::default() };
        report.unread_images =
            catalog.unread.iter().map(|(image, error)| format!("{image}: {error}")).collect();
        for survey in self.roots.surveys() {
            let name = self.name_of(survey, &snapshotters);
            let snapshots = name.map(|name| self.client.snapshots(name));
            report
                .roots
                .push(RootReport { path: survey.path().to_owned(), snapshotter: name.map(str::to_owned) });
            let (calls, cancel, catalog) = (calls.as_slice(), &call.cancel, &catalog);
            let root = Root { scrub: self, survey, snapshots, calls, cancel, catalog };
            root.walk(&mut report)?;
        }
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Name of the snapshotter that has this root.
    fn name_of<'s>(&self, survey: Survey<'_>, snapshotters: &'s [Snapshotter]) -> Option<&'s str> {
        let has_root = |snapshotter: &&Snapshotter| {
            snapshotter
                .root
                .as_ref()
                .and_then(|root| root.to_str())
                .is_some_and(|root| survey.spellings().iter().any(|spelling| spelling == root))
        };
        let by_root = snapshotters.iter().find(has_root);
        let is_overlaybd = |snapshotter: &&Snapshotter| snapshotter.name == self.overlaybd;
        let by_name = || snapshotters.iter().find(is_overlaybd).filter(|_| survey.holds() == Holds::Devices);
        by_root.or_else(by_name).map(|snapshotter| snapshotter.name.as_str())
    }
}

impl Root<'_> {
    fn walk(&self, report: &mut Report) -> Result<()> {
        let Settings { deep, repair } = self.scrub.settings;
        let numbering = Numbering::read(self.survey, self.snapshots.as_ref(), self.calls)?;
        let Counts { in_use, snapshots, sound, compared, .. } = &mut report.counts;
        let mut records: Vec<_> = numbering.all().collect();
        *in_use += records.iter().filter(|record| record.state != Kind::Committed).count() as u64;
        records.retain(|record| record.state == Kind::Committed);
        // Those below first: a layer may take attributes from them.
        records.sort_by_key(|record| (numbering.parents(record.id).len(), record.id));
        let subjects: Vec<_> = records
            .into_iter()
            .filter_map(|record| {
                let call = self.call_in(&record.namespace)?;
                let origin = self.catalog.origin(&record.namespace, &record.name);
                Some(Subject { root: self, numbering: &numbering, record, origin, call })
            })
            .collect();
        let mut found: Vec<Finding> = Vec::new();
        for (subject, judgement) in subjects.iter().zip(self.judge(&subjects)?) {
            self.cancel.check()?;
            let judgement = match judgement {
                // What it takes from the layers below may be there by now.
                Judgement::Unchecked(_) if repair => subject.judge(deep)?,
                judgement => judgement,
            };
            let is_sound = matches!(judgement, Judgement::Sound { .. });
            // Removed since the records were read.
            if !is_sound && subject.is_gone()? {
                continue;
            }
            *snapshots += 1;
            match judgement {
                Judgement::Sound { compared: is_compared } => {
                    *sound += 1;
                    *compared += u64::from(is_compared);
                }
                Judgement::Unchecked(problem) => found.push(subject.finding(State::Unchecked, problem)),
                Judgement::Broken(problem) if repair => found.push(subject.repair(problem, deep)?),
                Judgement::Broken(problem) => found.push(subject.report(problem)?),
                Judgement::Merged(problem) if repair => found.push(subject.repair_merged(problem)?),
                Judgement::Merged(problem) => found.push(subject.report_merged(problem)?),
            }
        }
        found.extend(self.leftovers(repair)?);
        for finding in &found {
            report.counts.add(finding.state);
        }
        report.findings.append(&mut found);
        Ok(())
    }

    /// Judges all subjects. One thread reads while another one thinks: a look takes hardly longer than the disk.
    fn judge(&self, subjects: &[Subject<'_>]) -> Result<Vec<Judgement>> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).clamp(1, THREADS);
        let (next, judged) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Relaxed);
                let Some(subject) = subjects.get(index) else { return Ok(()) };
                let judgement = subject.judge(self.scrub.settings.deep).inspect_err(|_| {
                    // The others need not go on.
                    next.store(subjects.len(), Relaxed);
                })?;
                judged.lock().unwrap_or_else(PoisonError::into_inner).insert(index, judgement);
            }
        };
        thread::scope(|scope| {
            let workers =
                (0..threads).map(|_| spawn_scoped(scope, "scrub", work)).collect::<Result<Vec<_>>>()?;
            workers.into_iter().try_for_each(Scoped::join)
        })?;
        Ok(judged.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
    }

    /// A call in a namespace. `None` for a name that no namespace has: nothing can be asked about its snapshots.
    fn call_in(&self, namespace: &str) -> Option<Call> {
        self.calls.iter().find(|call| call.namespace.as_str() == namespace).cloned()
    }
}
