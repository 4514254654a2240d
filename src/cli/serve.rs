//! `plywood serve`: the daemon.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{runtime::Runtime, time::sleep};

use crate::{
    apply::{Applier, Converter, NativeVerify, Options, Processors, Snapshotter},
    codec::{Coding, encode::Compression},
    compare::{self, Composer, Differ, changes::XattrFilter},
    config::{self, Config},
    containerd::{Containerd as Client, Direct},
    daemon::{self, Beside, Made, MakeDomain},
    error::{Error, Kind, Result},
    format::erofs::writer::WriteOptions,
    observe::logging,
    pipeline::{Resources, helpers::Helpers},
    service::Domain,
    snapshot::{Durability, Roots},
    store::ContentStore,
};

/// Pause before the content store is swept again after it went away.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `plywood serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  In the foreground, with the default configuration:
    plywood serve
  With another configuration, and a more detailed log:
    RUST_LOG=debug plywood serve --config /etc/plywood/test.toml")]
pub struct Arguments {
    /// Configuration file [default: /etc/plywood/config.toml if there is one]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(arguments: &Arguments) -> Result<()> {
    let user = rustix::process::geteuid();
    if !user.is_root() {
        let message = format!("serve must run as root, not as uid {}", user.as_raw());
        return Err(Error::new(Kind::Denied, "server.root", message));
    }
    let (config, origin) = config::load(arguments.config.as_deref())?;
    logging::start(&config.log)?;
    daemon::run(&config, &origin, Containerd)
}

/// Builds the domain on the content store of a containerd.
struct Containerd;

impl MakeDomain for Containerd {
    fn make(
        self,
        config: &Config,
        roots: Arc<Roots>,
        processors: Processors,
        runtime: &Runtime,
    ) -> Result<Made> {
        let config::Containerd { address, direct_content, .. } = &config.containerd;
        let direct = if *direct_content { Direct::Introspect } else { Direct::Off };
        let limits = config.limits();
        let store = Client::new(address, runtime.handle().clone(), direct, limits.stall)
            .with_lease_lifetime(Duration::from_secs(config.diff.lease_seconds))
            .with_instance(&config.server.socket)?;
        let options = options(config)?;
        if options.durability == Durability::Never {
            tracing::warn!("apply.durability is \"never\": a power cut may leave torn layers");
        }
        if options.native_verify == NativeVerify::Off {
            tracing::warn!("apply.native_verify is \"off\": layers that are images reach the kernel unread");
        }
        let store = Arc::new(store);
        let blobs: Arc<dyn ContentStore> = Arc::clone(&store) as _;
        let resources =
            Resources::with_ahead(limits, Helpers::default_threads(), config.apply.decode_ahead.options());
        let converter = Converter::new(options.clone(), Arc::clone(&resources));
        let name = config.overlaybd.snapshotter.clone();
        let snapshotter = Snapshotter { records: Arc::new(store.snapshots(&name)), name };
        let applier = Applier::new(blobs, Arc::clone(&roots), converter)
            .with_processors(processors)
            .with_snapshotter(snapshotter);
        let applier = Arc::new(applier);
        let beside = Box::pin(attend(Arc::clone(&store), config.diff.enabled)) as Beside;
        let last = Arc::clone(&store);
        let last = config.diff.enabled.then(|| Box::pin(async move { last.settle().await }) as Beside);
        let contact = Arc::clone(&store);
        let comparer = match config.diff.enabled {
            true => {
                let composer = Composer::new(diff_options(config)?, Arc::clone(&resources));
                let device_layers = config.overlaybd.diff == config::DeviceDiff::Overlaybd;
                let differ = Differ::new(store, roots, composer).with_device_layers(device_layers);
                Some(Arc::new(differ) as _)
            }
            false => None,
        };
        let domain = Domain { applier, comparer };
        Ok(Made {
            domain,
            memory: Box::new(move || resources.budget.charged_bytes()),
            store: Box::new(move || contact.reachable()),
            beside: Some(beside),
            last,
        })
    }
}

/// Checks whether containerd answers, at the start and after every call without an answer. Sweeps its content store
/// once it does: removes what a killed predecessor left there. containerd may start after the daemon.
async fn attend(store: Arc<Client>, mut sweep: bool) {
    let (mut ingests, mut leases, mut watched) = (0, 0, 0);
    loop {
        store.await_contact().await;
        if sweep {
            let swept = store.sweep().await;
            ingests += swept.ingests;
            leases += swept.leases;
            watched += swept.watched;
            sweep = swept.may_be_tried_again();
            if sweep {
                tracing::debug!(failure = ?swept.failure, "the content store is swept later");
                sleep(SWEEP_PAUSE).await;
                continue;
            }
            let failure = swept.failure.map(|error| error.to_string());
            tracing::info!(ingests, leases, watched, failure, "swept the content store");
        }
        store.doubted().await;
    }
}

/// Converts the settings for Apply.
pub(super) fn options(config: &Config) -> Result<Options> {
    Ok(Options {
        image: image(config, config.erofs.inline_limit)?,
        durability: config.apply.durability,
        native_verify: config.apply.native_verify,
        implied_directories: config.apply.implied_directories,
        max_unmerged_layers: config.apply.max_unmerged_layers,
        overlaybd: config.overlaybd(),
    })
}

/// Returns the layout of images with this inline limit. The check of the configuration leaves nothing to refuse.
fn image(config: &Config, inline_limit: u32) -> Result<WriteOptions> {
    let block_size = config.erofs.block_size;
    WriteOptions::of_bytes(block_size, inline_limit).ok_or_else(|| {
        Error::new(Kind::Malformed, "config.value", format!("erofs.block_size = {block_size}"))
    })
}

/// Converts the settings for Diff.
fn diff_options(config: &Config) -> Result<compare::Options> {
    let diff = &config.diff;
    // Without a work directory images are laid out in the first snapshot root.
    let config::Snapshots { roots, overlaybd_roots, .. } = &config.snapshots;
    let first = roots.first().or(overlaybd_roots.first());
    let beside = first.filter(|_| diff.work_directory.as_os_str().is_empty());
    Ok(compare::Options {
        image: compare::erofs::Options {
            compression: Compression::PLAIN,
            image: image(config, diff.inline_limit.bytes(config.erofs.inline_limit))?,
            work_directory: beside.unwrap_or(&diff.work_directory).clone(),
        },
        gzip: Compression::at_level(Coding::Gzip, diff.gzip_level)?,
        zstd: Compression::at_level(Coding::Zstd, diff.zstd_level)?,
        nanoseconds: diff.timestamps == config::Timestamps::Nanoseconds,
        xattrs: XattrFilter::new(&diff.xattrs)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_settings_are_the_defaults_of_the_domain() {
        let (ours, theirs) = (options(&Config::default()).unwrap(), Options::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let ours = diff_options(&Config::default()).unwrap();
        let first_root = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs";
        let theirs = compare::Options::in_directory(first_root.into());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    #[test]
    fn layers_of_diff_have_the_inline_limit_of_other_images_unless_they_have_their_own() {
        for (text, want) in [
            ("", 1024),
            ("[erofs]\ninline_limit = 7", 7),
            ("[diff]\ninline_limit = 0", 0),
            ("[erofs]\ninline_limit = 7\n[diff]\ninline_limit = \"inherit\"", 7),
            ("[erofs]\ninline_limit = 0\n[diff]\ninline_limit = 9", 9),
        ] {
            let config = config::parse(text, "test").unwrap();
            let found = diff_options(&config).unwrap();
            assert_eq!(found.image.image.inline_limit, want, "{text}");
        }
        let message = config::parse("[diff]\ninline_limit = \"none\"", "test").unwrap_err().to_string();
        assert!(message.contains("expected a number of bytes, or \"inherit\""), "{message}");
    }
}
