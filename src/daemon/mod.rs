//! The life of the daemon: open, confine, clean up, serve, drain.

mod notify;
mod places;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use rustix::{fs::Mode, thread::CapabilitySet};
use sd_notify::NotifyState;
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::timeout,
};

use self::places::{Places, Stale};
use crate::{
    apply::Processors,
    config::{self, Config, Origin, Server},
    error::{Error, Kind, Result},
    observe::{Observer, scrape},
    pipeline::processor::Start,
    processor::{Broker, Setup},
    rpc::{
        self, grpc, listener,
        socket::{Bound, Listening, SocketFile},
    },
    service::{Capacity, Domain, HealthCheck, MemoryGauge, Service},
    snapshot::{Roots, Sweep},
    sys::{capabilities, inherited, loop_device, sandbox, thread},
};

/// Threads of the runtime. They serve sockets only; the workers of the service do the work.
const RUNTIME_THREADS: usize = 2;
/// Longest time for which the sweep of the snapshots delays the start: the bound set for 100 000 directories. The rest
/// of the sweep runs beside the service.
const FIRST_SWEEP: Duration = Duration::from_secs(10);
/// Time for running requests when their directories are gone: their results would be in directories that no
/// snapshotter sees.
const GRACE_WITHOUT_ROOT: Duration = Duration::from_secs(1);
/// Longest time for [`Made::last`].
const LAST: Duration = Duration::from_secs(1);
/// Most connections that wait between the accept loop and the gRPC server.
const HANDOVER: usize = 8;

/// Builds the Applier and the Differ. Runs after confinement, because the threads it starts must be confined too.
pub trait MakeDomain {
    /// Builds the domain for `config`. Layers go through `processors`. Connections live on `runtime`.
    fn make(
        self,
        config: &Config,
        roots: Arc<Roots>,
        processors: Processors,
        runtime: &Runtime,
    ) -> Result<Made>;
}

/// A background task of the runtime.
pub type Beside = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Result of [`MakeDomain::make`].
pub struct Made {
    /// Runs the requests.
    pub domain: Domain,
    /// Returns the bytes of memory that are charged to requests.
    pub memory: MemoryGauge,
    /// Reports whether the content store answered when it was last asked.
    pub store: HealthCheck,
    /// Starts once the daemon is ready, and is aborted when it stops.
    pub beside: Option<Beside>,
    /// Runs after the last request, for a second at most.
    pub last: Option<Beside>,
}

/// Runs the daemon until a signal stops it. Call it before the process has other threads.
///
/// Errors: it cannot start; or directories were replaced meanwhile, so that it has to start again.
pub fn run(config: &Config, origin: &Origin, domain: impl MakeDomain) -> Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o077));
    tracing::info!(version = env!("PLYWOOD_VERSION"), %origin, "starting");
    let places = Arc::new(Places::note(config));
    let mut roots = Roots::open(&config.snapshots.roots).map_err(|error| {
        Error::from(error).context(
            "containerd makes it when it starts with its EROFS snapshotter; snapshots.roots names others",
        )
    })?;
    let overlayfs: &[_] = if config.diff.enabled { &config.snapshots.overlayfs_roots } else { &[] };
    roots = roots.also_read(overlayfs, config.shared_layers())?;
    roots = roots.with_overlaybd(&config.snapshots.overlaybd_roots)?;
    let roots = Arc::new(roots);
    let sockets = Sockets::open(&config.server)?;
    // Before the process gives up the right to run programs.
    let broker = launch_broker(config)?;
    if config.security.sandbox {
        confine(config)?;
    } else {
        tracing::warn!("security.sandbox is off: all capabilities and all files stay within reach");
    }
    // The threads start now, before any request: they cannot inherit capabilities that reading a snapshot raises. The
    // one for blocking work would start later, but nothing here uses it.
    let runtime = Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .max_blocking_threads(1)
        .thread_name("rpc")
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Exhausted, "server.threads", format!("no runtime: {error}")))?;
    let processors = processors(config, broker.as_ref())?;
    let Made { domain, memory, store, beside, last } =
        domain.make(config, Arc::clone(&roots), processors, &runtime)?;
    let capacity = Capacity::new(config.server.running_applies, config.server.waiting_applies);
    let service = Service::start(domain, Arc::new(Observer::new()), capacity, memory)
        .map_err(|error| Error::new(Kind::Exhausted, "server.threads", format!("no workers: {error}")))?;
    let held = Arc::clone(&places);
    let (ended, broker_ended) = watch::channel(false);
    let mut service = service.with_health(Box::new(move || held.health()), store);
    if let Some(broker) = &broker {
        let watched = broker.watch(move || _ = ended.send_replace(true));
        watched.map_err(|error| Error::from_io(error, Kind::Exhausted, "server.threads"))?;
        let broker = Arc::clone(broker);
        service = service.with_processors(Box::new(move || broker.health()));
    }
    sweep(roots.sweep());
    let broker_ended = broker.is_some().then_some(broker_ended);
    runtime.block_on(serve(&config.server, Arc::new(service), sockets, [beside, last], &places, broker_ended))
}

/// Starts the broker, if there are processors for it. Errors: one of them may not be run.
fn launch_broker(config: &Config) -> Result<Option<Arc<Broker>>> {
    if config.stream_processors.is_empty() {
        return Ok(None);
    }
    let setup = Setup {
        processors: config.stream_processors.clone(),
        user: 0,
        memory_bytes: config.limits.processor_memory_bytes,
        cpu_seconds: config.limits.processor_cpu_seconds,
        sandbox: config.security.sandbox,
        log: config.log.clone(),
    };
    let broker = Broker::launch(&setup)?;
    let ids: Vec<_> = config.stream_processors.keys().map(String::as_str).collect();
    tracing::info!(processors = ids.join(", "), "the broker runs");
    Ok(Some(broker))
}

/// The processors that `broker` starts. The check of the configuration leaves nothing to refuse.
fn processors(config: &Config, broker: Option<&Arc<Broker>>) -> Result<Processors> {
    let Some(broker) = broker else { return Ok(Processors::default()) };
    let routes = config::routes(&config.stream_processors).map_err(|error| {
        Error::new(Kind::Malformed, "config.value", format!("stream_processors: {error}"))
    })?;
    Ok(Processors::new(routes, Arc::clone(broker) as Arc<dyn Start>))
}

/// The daemon's sockets, before they listen.
struct Sockets {
    diff: Socket,
    metrics: Option<Socket>,
}

enum Socket {
    Bound(Bound),
    Inherited(std::os::unix::net::UnixListener),
}

impl Sockets {
    /// Takes the sockets that the service manager passed, and binds the missing ones.
    fn open(server: &Server) -> Result<Self> {
        let passed = inherited::listeners().map_err(|error| {
            Error::new(Kind::Malformed, "socket.inherited", format!("inherited sockets: {error}"))
        })?;
        let (mut diff, mut metrics) = (None, None);
        for inherited::Inherited { name, listener } in passed {
            let place = if name.contains("metrics") { &mut metrics } else { &mut diff };
            if place.replace(Socket::Inherited(listener)).is_some() {
                let message = format!(
                    "inherited socket {name:?} is one too many: one for the service, and one whose name contains \"metrics\""
                );
                return Err(Error::new(Kind::Malformed, "socket.inherited", message));
            }
        }
        let diff = match diff {
            Some(inherited) => inherited,
            None => Socket::Bound(Bound::new(&server.socket, server.gid)?),
        };
        if metrics.is_none() && !server.metrics_socket.as_os_str().is_empty() {
            metrics = Some(Socket::Bound(Bound::new(&server.metrics_socket, server.gid)?));
        }
        Ok(Self { diff, metrics })
    }
}

impl Socket {
    /// Starts to listen, on the current runtime.
    fn listen(self) -> Result<(UnixListener, SocketFile)> {
        let listening = match self {
            Self::Bound(bound) => bound.listen()?,
            Self::Inherited(listener) => Listening::inherited(listener),
        };
        let (listener, file) = listening.into_parts();
        let listener = UnixListener::from_std(listener)
            .map_err(|error| Error::new(Kind::Unavailable, "socket.io", error.to_string()))?;
        Ok((listener, file))
    }
}

/// Drops all capabilities but those that Diff needs, and limits the process to the files it works with.
fn confine(config: &Config) -> Result<()> {
    let server = &config.server;
    let socket_directories: Vec<_> =
        [&server.socket, &server.metrics_socket].into_iter().filter_map(|path| path.parent()).collect();
    let overlaybd = config.snapshots.overlaybd_roots.iter().filter(|root| root.exists());
    let mut roots: Vec<_> = config.snapshots.roots.iter().chain(overlaybd).map(AsRef::as_ref).collect();
    if config.diff.enabled && !config.diff.work_directory.as_os_str().is_empty() {
        roots.push(config.diff.work_directory.as_ref());
    }
    let mut read = config.content_roots();
    read.extend(config.read_roots());
    if config.diff.enabled {
        read.push(loop_device::to_read());
    }
    let read: Vec<_> = read.iter().map(AsRef::as_ref).collect();
    let paths = sandbox::Paths {
        read_write: &roots,
        read: &read,
        remove: &socket_directories,
        abstract_sockets: notify::uses_abstract_socket(),
    };
    let enforced = sandbox::confine(paths).unwrap_or_else(|error| {
        // A filter of system calls can forbid Landlock. The daemon then runs without it.
        tracing::warn!(%error, "landlock refuses");
        sandbox::Enforced { level: "none", abi: 0, missing: Vec::new() }
    });
    let needed = if config.diff.enabled { capabilities::READING } else { CapabilitySet::empty() };
    let kept = capabilities::drop_all_but(needed).map_err(|error| {
        let message = format!("cannot drop capabilities: {error} (security.sandbox = false starts with all)");
        Error::new(Kind::Denied, "server.sandbox", message)
    })?;
    if kept != needed {
        tracing::warn!(
            needed = capabilities::names(needed),
            kept = capabilities::names(kept),
            "Diff cannot read what containers wrote: the service manager took capabilities away"
        );
    }
    if enforced.level == "none" {
        tracing::warn!(
            "the kernel confines no file access: it has no Landlock, or a filter denies landlock_* calls"
        );
    }
    for path in config.content_roots().iter().filter(|path| !path.exists()) {
        tracing::warn!(path = %path.display(), "containerd has no content store there yet: blobs come over gRPC until the next start");
    }
    let missing = (!enforced.missing.is_empty()).then(|| enforced.missing.join(", "));
    tracing::info!(
        capabilities = capabilities::names(kept),
        landlock = enforced.level,
        landlock_abi = enforced.abi,
        missing,
        "confined"
    );
    Ok(())
}

/// Removes the files that a killed predecessor left. After [`FIRST_SWEEP`] the walk goes on beside the service.
fn sweep(mut sweep: Sweep) {
    let swept = sweep.run(FIRST_SWEEP);
    let report = |swept: &crate::snapshot::Swept| {
        tracing::info!(
            directories = swept.directories,
            removed = swept.removed,
            live = swept.live,
            failed = swept.failed,
            first_failure = swept.first_failure.as_deref(),
            finished = swept.finished,
            "swept the snapshot roots"
        );
    };
    report(&swept);
    if !swept.finished {
        let rest = thread::spawn("sweep", move || report(&sweep.run(Duration::MAX)));
        if let Err(error) = rest {
            tracing::warn!(%error, "the rest of the sweep waits for the next start");
        }
    }
}

/// Serves until the first signal, or until the daemon has to start again; then drains and returns. A second signal
/// ends the process at once.
async fn serve(
    server: &Server,
    service: Arc<Service>,
    sockets: Sockets,
    [beside, last]: [Option<Beside>; 2],
    places: &Places,
    broker_ended: Option<watch::Receiver<bool>>,
) -> Result<()> {
    let mut signals = Signals::new()?;
    // While the daemon restarts, calls wait in a socket that the service manager keeps open.
    let loses_no_call = matches!(sockets.diff, Socket::Inherited(_));
    let (diff, diff_file) = sockets.diff.listen()?;
    let mut _metrics_file = None;
    if let Some(metrics) = sockets.metrics {
        let (listener, file) = metrics.listen()?;
        _metrics_file = Some(file);
        tokio::spawn(scrape::serve(listener, Arc::clone(&service) as Arc<dyn scrape::Report>));
    }
    tokio::spawn(notify::watchdog(Arc::clone(&service)));
    let daemon = Daemon::start(diff, diff_file, server, Arc::clone(&service));
    if let Some(ended) = broker_ended {
        tokio::spawn(report_broker(ended, daemon.health.clone()));
    }
    notify::tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
    tracing::info!(socket = %server.socket.display(), "ready");
    let beside = beside.map(tokio::spawn);

    let mut grace = Duration::from_secs(server.drain_seconds);
    let failure = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, grace_seconds = grace.as_secs(), "stopping");
            None
        }
        Stale { error, is_root } = places.stale(loses_no_call, || service.quiet_for()) => {
            if is_root {
                grace = grace.min(GRACE_WITHOUT_ROOT);
            }
            tracing::error!(reason = error.reason(), %error, grace_seconds = grace.as_secs(), "stopping");
            Some(error)
        }
    };
    if let Some(beside) = beside {
        beside.abort();
    }
    notify::tell(&[NotifyState::Stopping, NotifyState::Status("finishing requests")]);
    tokio::select! {
        () = daemon.stop(grace) => {}
        name = signals.next() => {
            tracing::warn!(signal = name, "stopped at once");
            std::process::exit(1);
        }
    }
    if let Some(last) = last {
        let _late = timeout(LAST, last).await;
    }
    tracing::info!("stopped");
    failure.map_or(Ok(()), Err)
}

/// Reports on the health service whether processors can be started.
async fn report_broker(mut ended: watch::Receiver<bool>, health: tonic_health::server::HealthReporter) {
    health.set_service_status(rpc::PROCESSORS_SERVICE, tonic_health::ServingStatus::Serving).await;
    // An error means that nobody waits for the broker any more.
    if ended.wait_for(|ended| *ended).await.is_ok() {
        health.set_service_status(rpc::PROCESSORS_SERVICE, tonic_health::ServingStatus::NotServing).await;
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let watch = |kind| {
            signal(kind).map_err(|error| Error::new(Kind::Internal, "server.signals", error.to_string()))
        };
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Both protocols, gRPC and ttrpc, on one listener.
pub struct Daemon {
    service: Arc<Service>,
    stop: watch::Sender<bool>,
    health: tonic_health::server::HealthReporter,
    accepting: tokio::task::JoinHandle<()>,
    grpc: tokio::task::JoinHandle<()>,
}

impl Daemon {
    /// Accepts connections on `listener`, whose file is `file`, in tasks of the current runtime.
    pub fn start(listener: UnixListener, file: SocketFile, server: &Server, service: Arc<Service>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (connections, incoming) = mpsc::channel(HANDOVER);
        let admittance = listener::Admittance {
            allowed_uid: server.allowed_uid,
            max_connections: server.max_connections,
            max_streams: server.max_streams,
        };
        let health = tonic_health::server::HealthReporter::new();
        let accepting = tokio::spawn(listener::accept(
            listener,
            file,
            admittance,
            Arc::clone(&service),
            connections,
            stopped,
        ));
        let served = grpc::serve(Arc::clone(&service), health.clone(), incoming, server.max_streams);
        let grpc = tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the gRPC server ended");
            }
        });
        Self { service, stop, health, accepting, grpc }
    }

    /// Drains: every client is notified, and requests sent before the notice arrived are served within `grace`. Then
    /// cancels the rest and closes all connections.
    pub async fn stop(mut self, grace: Duration) {
        /// Time for the replies, which are written after their requests have ended.
        const LAST_WORDS: Duration = Duration::from_secs(1);
        self.service.stop();
        for name in ["", rpc::DIFF_SERVICE, rpc::PROCESSORS_SERVICE] {
            let stopped = tonic_health::ServingStatus::NotServing;
            self.health.set_service_status(name, stopped).await;
            // Ends the streams that watch the status: their connections would stay open until the time is over.
            self.health.clear_service_status(name).await;
            self.health.set_service_status(name, stopped).await;
        }
        self.stop.send_replace(true);
        let service = Arc::clone(&self.service);
        let mut served = pin!(async {
            // Both tasks end with their last connection. A connection whose task panicked counts as closed.
            let _ended = self.accepting.await;
            let _ended = self.grpc.await;
            service.idle().await;
        });
        if timeout(grace, &mut served).await.is_err() {
            self.service.close().await;
            let _late = timeout(LAST_WORDS, served).await;
        }
    }
}
