//! `plywood scrub`: finds broken snapshots, and mends them.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use super::{output, serve, store};
use crate::{
    apply::Converter,
    call::{Call, Cancel, Namespace},
    config::{self, Config},
    containerd::{Containerd, Direct},
    error::{Error, Kind, Result},
    observe::scrub::last_run,
    pipeline::{Resources, helpers::Helpers},
    scrub::{Counts, Finding, Report, Scrub, Settings, State},
    snapshot::{NewFile, Publication, Roots},
};

/// Reason id of a run that leaves broken snapshots behind.
pub const BROKEN: &str = "scrub.broken";
/// Reason id of a run that leaves nothing worse than leftovers, or snapshots that could not be judged.
pub const UNTIDY: &str = "scrub.untidy";

/// Arguments of `plywood scrub`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 all is well, or was mended; 1 the scrub failed; 2 wrong usage;
3 broken snapshots are left; 4 only leftovers, or what could not be judged.

Examples:
  Is every unpacked layer of this node sound?
    plywood scrub
  Is it what its image says, byte for byte?
    plywood scrub --deep
  Make what is broken anew, from the layers in the content store:
    plywood scrub --deep --repair")]
pub struct Arguments {
    /// Configuration of the daemon [default: /etc/plywood/config.toml if there is one]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// containerd's socket [default: that of the configuration]
    #[arg(short, long, value_name = "SOCKET", env = "CONTAINERD_ADDRESS")]
    pub address: Option<PathBuf>,
    /// Make every layer again from its blob, and compare the two. Takes as long as unpacking all images
    #[arg(long)]
    pub deep: bool,
    /// Make broken snapshots anew, and remove leftovers
    #[arg(long)]
    pub repair: bool,
    /// Write metrics of this run to FILE, for the textfile collector of Prometheus' node exporter
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Print the result as a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Scrubs all roots of the configuration, and prints what was found. Errors: [`BROKEN`] and [`UNTIDY`] besides those of
/// the scrub itself.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(Kind::Denied, "scrub.root", "snapshots are root's: scrub must run as root"));
    }
    let (config, _) = config::load(arguments.config.as_deref())?;
    let report = scrub(arguments, &config)?;
    if let Some(path) = &arguments.metrics {
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        write_metrics(path, &last_run(&report, ended)?)
            .map_err(|error| error.context(path.display().to_string()))?;
    }
    output::result(&match arguments.json {
        true => format!("{:#}\n", json!(report)),
        false => for_people(&report),
    })?;
    verdict(&report)
}

fn scrub(arguments: &Arguments, config: &Config) -> Result<Report> {
    let cancel = Cancel::new();
    let runtime = store::runtime(&cancel)?;
    let limits = config.limits();
    let direct = if config.containerd.direct_content { Direct::Introspect } else { Direct::Off };
    let address = arguments.address.as_ref().unwrap_or(&config.containerd.address);
    let client = Containerd::new(address, runtime.handle().clone(), direct, limits.stall);
    let roots = roots(config)?;
    let resources =
        Resources::with_ahead(limits, Helpers::default_threads(), config.apply.decode_ahead.options());
    let converter = Converter::new(serve::options(config)?, std::sync::Arc::clone(&resources));
    let settings = Settings { deep: arguments.deep, repair: arguments.repair };
    let overlaybd = &config.overlaybd.snapshotter;
    let scrub = Scrub {
        client: &client,
        roots: &roots,
        converter: &converter,
        resources: &resources,
        overlaybd,
        settings,
    };
    // The namespace of questions that are about none.
    let namespace: Namespace = "default".parse()?;
    scrub.run(&Call { cancel, ..Call::new(namespace) })
}

/// Opens the roots of the configuration, those that exist.
fn roots(config: &Config) -> Result<Roots> {
    let there: Vec<_> = config.snapshots.roots.iter().filter(|root| root.exists()).cloned().collect();
    let roots = Roots::open(&there)?;
    let roots = roots.also_read(&[], &config.snapshots.shared_layers)?;
    Ok(roots.with_overlaybd(&config.snapshots.overlaybd_roots)?)
}

/// Replaces the file at once, so that a collector never reads half of it.
fn write_metrics(path: &Path, text: &str) -> Result<()> {
    let publication = Publication::beside(path)?;
    let mut file: NewFile = publication.file(crate::snapshot::LAYER_NAME)?;
    crate::format::Sink::write_at(&mut file, 0, text.as_bytes()).map_err(Error::disk)?;
    Ok(publication.commit([file], crate::snapshot::Durability::Request, false)?)
}

/// The failure that follows from what is left.
fn verdict(report: &Report) -> Result<()> {
    let Counts { broken, leftovers, unchecked, .. } = report.counts;
    if broken > 0 {
        let message =
            format!("{broken} broken {} left", if broken == 1 { "snapshot is" } else { "snapshots are" });
        return Err(Error::new(Kind::DataLoss, BROKEN, message));
    }
    if leftovers + unchecked > 0 {
        let message = format!("{leftovers} leftovers, {unchecked} snapshots that could not be judged");
        return Err(Error::new(Kind::Conflict, UNTIDY, message));
    }
    Ok(())
}

fn for_people(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &of_finding(finding);
    }
    for image in &report.unread_images {
        text += &format!("not read: image {image}\n");
    }
    let Counts { snapshots, sound, compared, broken, repaired, unchecked, in_use, leftovers, removed } =
        report.counts;
    let mut sums = vec![format!("{snapshots} snapshots"), format!("{sound} sound")];
    let compared =
        if report.deep { format!(", {compared} compared with their layers") } else { String::new() };
    if let Some(last) = sums.last_mut() {
        last.push_str(&compared);
    }
    for (count, what) in [
        (broken, "broken"),
        (repaired, "repaired"),
        (unchecked, "not judged"),
        (leftovers, "leftovers"),
        (removed, "leftovers removed"),
        (in_use, "active or views, left alone"),
    ] {
        if count > 0 {
            sums.push(format!("{count} {what}"));
        }
    }
    text += &format!("{}; {:.1} s\n", sums.join(", "), report.seconds);
    text
}

fn of_finding(finding: &Finding) -> String {
    let Finding { state, reason, message, path, namespace, name, image, layer, notes, commands, .. } =
        finding;
    let state = match state {
        State::Broken => "broken",
        State::Repaired => "repaired",
        State::Leftover => "leftover",
        State::Removed => "removed",
        State::Unchecked => "not judged",
    };
    let mut text = format!("{state}: {path}: {message} [{reason}]\n");
    if let (Some(namespace), Some(name)) = (namespace, name) {
        text += &format!("  snapshot  {namespace} {name}\n");
    }
    if let (Some(image), Some(layer)) = (image, layer) {
        text += &format!("  layer     {layer} of {image}\n");
    }
    for note in notes {
        text += &format!("  note      {note}\n");
    }
    for command in commands {
        text += &format!("  do        {command}\n");
    }
    text
}
