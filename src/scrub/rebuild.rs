//! Repair: the layer is made again from its blob, and published by the strategies and the publication of Apply.

use std::path::PathBuf;

use super::{
    make::{UNREPAIRABLE, make},
    report::{Finding, State},
    subject::{Judgement, Problem, Subject},
};
use crate::{
    apply::Strategy,
    error::{Error, Kind, Result},
    snapshot::MERGED_NAME,
    sys::mounted::{Mounted, mounted},
};

impl Subject<'_> {
    /// A finding about the snapshot.
    pub(super) fn finding(&self, state: State, problem: Problem) -> Finding {
        let Problem { reason, message } = problem;
        let path = match reason {
            "scrub.directory" => self.root.survey.directory(self.id()),
            _ => self.root.survey.layer(self.id()),
        };
        Finding {
            state,
            reason,
            message,
            path: path.display().to_string(),
            snapshot: Some(self.id()),
            namespace: Some(self.record.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(self.record.name.clone()),
            image: self.origin.map(|origin| origin.image.clone()),
            layer: self.origin.map(|origin| origin.blob.digest.to_string()),
            notes: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// Reports a broken snapshot, with what a repair takes.
    pub(super) fn report(&self, problem: Problem) -> Result<Finding> {
        let mut finding = self.finding(State::Broken, problem);
        finding
            .notes
            .extend(self.uses()?.iter().map(|used| format!("{}: reads the damaged layer", place(used))));
        finding.commands = self.commands(None)?;
        Ok(finding)
    }

    /// Makes a broken snapshot anew. A failure becomes part of the finding.
    pub(super) fn repair(&self, problem: Problem, deep: bool) -> Result<Finding> {
        let mut finding = self.finding(State::Broken, problem);
        match self.mend(deep) {
            Ok(notes) => {
                finding.state = State::Repaired;
                finding.notes = notes;
            }
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => {
                finding.commands = self.commands(Some(&error))?;
                finding.notes.push(format!("not repaired: {error} [{}]", error.reason()));
            }
        }
        Ok(finding)
    }

    /// Makes the snapshot anew. Returns what happens to those who use it.
    fn mend(&self, deep: bool) -> Result<Vec<String>> {
        let survey = self.root.survey;
        let mut notes = Vec::new();
        let missing = survey.missing(self.id())?;
        if !missing.is_empty() {
            survey.mend(self.id(), &missing)?;
            let names = if missing == [""] { "the directory".to_owned() } else { missing.join(", ") };
            notes.push(format!("made {names} again"));
            if let Judgement::Sound { .. } = self.judge(deep)? {
                return Ok(notes);
            }
        }
        let refuse = |message: &str| Err(Error::new(Kind::Conflict, UNREPAIRABLE, message));
        if self.origin.is_none() {
            return refuse("no image of containerd has this layer");
        }
        let Some(strategy) = self.strategy() else {
            return refuse("layers of this type are not made without a stream processor or another differ");
        };
        if survey.has_verity(self.id()) {
            return refuse("dm-verity protects the layer, and this program makes no hash trees");
        }
        let used = self.uses()?;
        self.publish(strategy)?;
        notes.extend(self.release(&used)?);
        match self.judge(false)? {
            Judgement::Sound { .. } => Ok(notes),
            Judgement::Broken(problem) | Judgement::Merged(problem) | Judgement::Unchecked(problem) => {
                Err(Error::new(Kind::Internal, problem.reason, problem.message).context("after the repair"))
            }
        }
    }

    fn publish(&self, strategy: Strategy) -> Result<()> {
        let (root, survey) = (self.root, self.root.survey);
        let directory = root.scrub.roots.resolve(&survey.active(self.id(), &[]))?;
        let frozen = directory.thaw()?;
        let publish = || -> Result<()> {
            let publication = directory.publish(strategy.files(), &root.scrub.resources.limits)?;
            let (files, _) = make(self, strategy, &publication)?;
            // Merged metadata says where the data of files is in the layer as it was.
            for id in self.numbering.above(self.id()) {
                survey.forget_merged(id)?;
            }
            Ok(publication.commit(files, root.scrub.converter.options().durability, true)?)
        };
        let published = publish();
        frozen.again();
        published
    }

    /// Mounts of the layer, of merged metadata that it is part of, and overlays on top of it.
    fn uses(&self) -> Result<Vec<Mounted>> {
        let survey = self.root.survey;
        let directories = |id: u64| -> Vec<PathBuf> {
            let below = format!("snapshots/{id}");
            survey.spellings().iter().map(|root| PathBuf::from(root).join(&below)).collect()
        };
        let own = directories(self.id());
        let above: Vec<_> = self.numbering.above(self.id()).into_iter().flat_map(directories).collect();
        // Merged metadata and devices have the layers below in them.
        let has = |paths: &[&str], directories: &[PathBuf], used: &Mounted| {
            paths.iter().any(|path| used.is(directories, path))
        };
        let split = |paths: &'static [&'static str]| paths.split_at(1.min(paths.len()));
        let ((own_lower, merged_lower), (own_image, merged_image)) =
            (split(survey.lowers()), split(survey.images()));
        let is_used = |used: &Mounted| match used.is_overlay {
            true => has(own_lower, &own, used) || has(merged_lower, &above, used),
            false => has(own_image, &own, used) || has(merged_image, &above, used),
        };
        let all = mounted().map_err(|error| Error::disk(error).context("/proc"))?;
        Ok(all.into_iter().filter(is_used).collect())
    }

    /// Places of the mounts of the merged metadata, for people.
    pub(super) fn uses_of_merged(&self) -> Result<Vec<String>> {
        let survey = self.root.survey;
        let below = format!("snapshots/{}", self.id());
        let own: Vec<_> = survey.spellings().iter().map(|root| PathBuf::from(root).join(&below)).collect();
        let all = mounted().map_err(|error| Error::disk(error).context("/proc"))?;
        let is_used = |used: &&Mounted| !used.is_overlay && used.is(&own, MERGED_NAME);
        Ok(all.iter().filter(is_used).map(place).collect())
    }

    /// Says what those see who use the layer that was replaced, and releases the snapshotter's own mount of it.
    fn release(&self, used: &[Mounted]) -> Result<Vec<String>> {
        let survey = self.root.survey;
        let own: Vec<_> = survey
            .spellings()
            .iter()
            .map(|root| PathBuf::from(root).join(format!("snapshots/{}/fs", self.id())))
            .collect();
        let is_own = |used: &Mounted| !used.is_overlay && own.contains(&used.point);
        let mut notes = Vec::new();
        if used.iter().any(is_own) {
            match survey.release(self.id()) {
                Ok(_) if !self.uses()?.iter().any(is_own) => notes.push(
                    "released the snapshotter's mount of the old layer; it mounts the new one when it needs it"
                        .to_owned(),
                ),
                outcome => {
                    let why = outcome.err().map(|error| format!(" ({error})")).unwrap_or_default();
                    let point = own.first().map(|point| point.display().to_string()).unwrap_or_default();
                    notes.push(format!(
                        "new containers see the old layer until its mount is released{why}: umount {point}"
                    ));
                }
            }
        }
        for used in used.iter().filter(|used| !is_own(used)) {
            notes.push(format!("{}: sees the old layer until it is started again", place(used)));
        }
        Ok(notes)
    }

    /// Commands for a layer whose blob is missing or damaged.
    fn commands(&self, failure: Option<&Error>) -> Result<Vec<String>> {
        let Some(origin) = self.origin else { return Ok(Vec::new()) };
        let ctr = format!("ctr --namespace {}", quoted(&self.record.namespace));
        let fetch = format!("{ctr} content fetch {}", quoted(&origin.image));
        if self.root.scrub.client.blob_bytes(&self.call, &origin.blob.digest)?.is_none() {
            return Ok(vec![fetch]);
        }
        let is_damaged = failure
            .is_some_and(|error| error.kind() == Kind::DataLoss || error.reason().starts_with("blob."));
        match is_damaged {
            true => Ok(vec![format!("{ctr} content rm {}", origin.blob.digest), fetch]),
            false => Ok(Vec::new()),
        }
    }
}

/// Place of a mount, for people.
fn place(used: &Mounted) -> String {
    let what = if used.is_overlay { "the container at" } else { "the mount at" };
    format!("{what} {} (seen by process {})", used.point.display(), used.pid)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@+".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell_where_they_have_to_be() {
        assert_eq!(quoted("docker.io/library/alpine:3@sha256:ab"), "docker.io/library/alpine:3@sha256:ab");
        assert_eq!(quoted("a b;'c"), r"'a b;'\''c'");
        assert_eq!(quoted(""), "''");
    }
}
