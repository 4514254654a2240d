//! Counters, gauges and histograms, in the OpenMetrics text format.
//!
//! Labels come from fixed sets only: methods, kinds of layers, codes, reason ids, stages. A request cannot create a
//! new time series.

use std::{sync::Mutex, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{process::Usage, security::SecurityEvent};
use crate::{apply::Applied, compare::Compared};

/// Labels of a finished request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Method: Apply or Diff.
    pub method: &'static str,
    /// Protocol: grpc or ttrpc.
    pub wire: &'static str,
    /// Kind of the layer: tar, erofs, overlaybd, turbo or other.
    pub layer: &'static str,
    /// Status code, or ok.
    pub code: &'static str,
    /// Reason id of the error; empty for ok.
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Layer {
    layer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    method: &'static str,
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    event: &'static str,
}

/// Values of the gauges at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Number of requests that are being worked on.
    pub running: u64,
    /// Number of requests that wait for their blobs, and gave up their turn meanwhile.
    pub stalled: u64,
    /// Number of requests that wait for their turn, or for the reply to an equal request.
    pub waiting: u64,
    /// Bytes of metadata memory charged to requests.
    pub memory_bytes: u64,
}

/// All metrics of the daemon.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Open connections on the Diff socket.
    pub connections: Gauge,
    /// 1 while the content store answers, 0 otherwise.
    pub containerd_reachable: Gauge,
    /// 0 when stream processors are configured and cannot be started, 1 otherwise.
    pub processors_available: Gauge,
    requests: Family<Outcome, Counter>,
    seconds: Family<Layer, Histogram>,
    queue_seconds: Histogram,
    stage_seconds: Family<Stage, Histogram>,
    bytes_in: Family<Layer, Counter>,
    bytes_out: Family<Layer, Counter>,
    nodes: Counter,
    implied: Counter,
    inherited: Counter,
    without_parents: Counter,
    diff_seconds: Family<Layer, Histogram>,
    diff_in: Family<Layer, Counter>,
    diff_out: Family<Layer, Counter>,
    diff_entries: Counter,
    security: Family<Event, Counter>,
    running: Gauge,
    stalled: Gauge,
    waiting: Gauge,
    memory: Gauge,
    resident: Gauge,
    descriptors: Gauge,
    threads: Gauge,
}

/// A histogram of seconds, with buckets from 1 ms to 524 s: from a tiny layer to one of many GiB.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            connections: Gauge::default(),
            containerd_reachable: Gauge::default(),
            processors_available: Gauge::default(),
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            queue_seconds: seconds(),
            stage_seconds: Family::new_with_constructor(seconds),
            bytes_in: Family::default(),
            bytes_out: Family::default(),
            nodes: Counter::default(),
            implied: Counter::default(),
            inherited: Counter::default(),
            without_parents: Counter::default(),
            diff_seconds: Family::new_with_constructor(seconds),
            diff_in: Family::default(),
            diff_out: Family::default(),
            diff_entries: Counter::default(),
            security: Family::default(),
            running: Gauge::default(),
            stalled: Gauge::default(),
            waiting: Gauge::default(),
            memory: Gauge::default(),
            resident: Gauge::default(),
            descriptors: Gauge::default(),
            threads: Gauge::default(),
        };
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("plywood");
        own.register("requests", "Finished requests", metrics.requests.clone());
        own.register_with_unit(
            "apply_duration",
            "Time from request to reply, waiting included, of layers that were applied",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        own.register_with_unit(
            "queue_duration",
            "Time that requests waited for their turn",
            Unit::Seconds,
            metrics.queue_seconds.clone(),
        );
        own.register_with_unit(
            "stage_duration",
            "Time that stages of a request took",
            Unit::Seconds,
            metrics.stage_seconds.clone(),
        );
        own.register_with_unit(
            "layer_read",
            "Bytes of layer blobs that were applied",
            Unit::Bytes,
            metrics.bytes_in.clone(),
        );
        own.register_with_unit(
            "layer_uncompressed",
            "Uncompressed bytes of layers that were applied",
            Unit::Bytes,
            metrics.bytes_out.clone(),
        );
        own.register("layer_nodes", "Files, directories, links and whiteouts written", metrics.nodes.clone());
        own.register(
            "implied_directories",
            "Directories written that their layer does not list",
            metrics.implied.clone(),
        );
        own.register(
            "inherited_directories",
            "Those of them that are like the directory below that they shadow",
            metrics.inherited.clone(),
        );
        own.register(
            "layers_without_parents",
            "Layers with directories they do not list that were applied without the layers below",
            metrics.without_parents.clone(),
        );
        own.register_with_unit(
            "diff_duration",
            "Time from request to reply, waiting included, of layers that were written",
            Unit::Seconds,
            metrics.diff_seconds.clone(),
        );
        own.register_with_unit(
            "diff_uncompressed",
            "Uncompressed bytes of layers that were written",
            Unit::Bytes,
            metrics.diff_in.clone(),
        );
        own.register_with_unit(
            "diff_written",
            "Bytes of layer blobs that were written",
            Unit::Bytes,
            metrics.diff_out.clone(),
        );
        own.register(
            "diff_entries",
            "Entries of layers that were written, whiteouts included",
            metrics.diff_entries.clone(),
        );
        own.register(
            "security_events",
            "Events of the security log, those it dropped included",
            metrics.security.clone(),
        );
        own.register("connections", "Open connections on the Diff socket", metrics.connections.clone());
        own.register(
            "containerd_reachable",
            "Whether containerd answered when it was last asked",
            metrics.containerd_reachable.clone(),
        );
        own.register(
            "processors_available",
            "Whether stream processors can be started, if any are configured",
            metrics.processors_available.clone(),
        );
        own.register("requests_running", "Requests that are worked on", metrics.running.clone());
        let stalled = "Requests that wait for their blobs, and gave their turn away";
        own.register("requests_stalled", stalled, metrics.stalled.clone());
        own.register("requests_waiting", "Requests that wait for their turn", metrics.waiting.clone());
        own.register_with_unit(
            "metadata_memory",
            "Metadata memory charged to requests",
            Unit::Bytes,
            metrics.memory.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Resident memory",
            Unit::Bytes,
            metrics.resident.clone(),
        );
        registry.register("process_open_fds", "Open descriptors", metrics.descriptors.clone());
        registry.register("process_threads", "Threads", metrics.threads.clone());
        Self { registry: Mutex::new(registry), ..metrics }
    }

    /// Counts a request that ended.
    pub fn count_request(&self, outcome: &Outcome) {
        self.requests.get_or_create(outcome).inc();
    }

    /// Counts a layer of kind `layer` that was applied. `took` is the time from request to reply.
    pub fn count_applied(&self, layer: &'static str, applied: &Applied, took: Duration) {
        let layer = Layer { layer };
        let stats = &applied.stats;
        self.seconds.get_or_create(&layer).observe(took.as_secs_f64());
        self.bytes_in.get_or_create(&layer).inc_by(stats.blob_bytes);
        self.bytes_out.get_or_create(&layer).inc_by(applied.descriptor.size_bytes);
        self.nodes.inc_by(stats.contents.nodes);
        self.implied.inc_by(stats.contents.implied_directories);
        self.inherited.inc_by(stats.contents.inherited_directories);
        self.without_parents.inc_by(u64::from(stats.contents.without_parents));
        self.count_stages("Apply", stats.times.steps());
    }

    /// Counts a layer of kind `layer` that Diff wrote. `took` is the time from request to reply.
    pub fn count_compared(&self, layer: &'static str, compared: &Compared, took: Duration) {
        let layer = Layer { layer };
        let stats = &compared.stats;
        self.diff_seconds.get_or_create(&layer).observe(took.as_secs_f64());
        self.diff_in.get_or_create(&layer).inc_by(stats.uncompressed_bytes);
        self.diff_out.get_or_create(&layer).inc_by(compared.descriptor.size_bytes);
        self.diff_entries.inc_by(stats.contents.entries);
        self.count_stages("Diff", stats.times.steps());
    }

    fn count_stages(&self, method: &'static str, steps: impl IntoIterator<Item = (&'static str, Duration)>) {
        for (stage, took) in steps {
            self.stage_seconds.get_or_create(&Stage { method, stage }).observe(took.as_secs_f64());
        }
    }

    /// Counts the time for which a request waited for its turn.
    pub fn count_queued(&self, queued: Duration) {
        self.queue_seconds.observe(queued.as_secs_f64());
    }

    pub(super) fn count_security(&self, event: SecurityEvent) {
        self.security.get_or_create(&Event { event: event.as_str() }).inc();
    }

    /// Returns all metrics as OpenMetrics text, with `load` and the present resources of the process.
    pub fn text(&self, load: Load) -> String {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.running.set(gauge(load.running));
        self.stalled.set(gauge(load.stalled));
        self.waiting.set(gauge(load.waiting));
        self.memory.set(gauge(load.memory_bytes));
        let usage = Usage::now();
        self.resident.set(gauge(usage.resident_bytes.unwrap_or_default()));
        self.descriptors.set(gauge(usage.descriptors.unwrap_or_default()));
        self.threads.set(gauge(usage.threads.unwrap_or_default()));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        encode(&mut text, &registry).expect("writing to a string succeeds");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apply::{Contents, Stats},
        codec::Coding,
        descriptor::Descriptor,
        digest::Digest,
        pipeline::{AheadFacts, StageTimes},
    };

    #[test]
    fn every_metric_is_documented() {
        let documented = include_str!("../../docs/operations.md");
        let metrics = Metrics::new();
        let text = metrics.text(Load::default());
        let named = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        for (name, kind) in named {
            let name = if kind == "counter" { format!("`{name}_total`") } else { format!("`{name}`") };
            assert!(documented.contains(&name), "{name} is not in docs/operations.md");
        }
    }

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::new();
        let outcome = Outcome { method: "Apply", wire: "grpc", layer: "tar", code: "ok", reason: "" };
        metrics.count_request(&outcome);
        metrics.count_request(&outcome);
        let stats = Stats {
            blob: Digest::sha256(b""),
            blob_bytes: 10,
            coding: Coding::Gzip,
            image_bytes: 4096,
            contents: Contents {
                nodes: 3,
                implied_directories: 2,
                inherited_directories: 1,
                without_parents: true,
                ..Contents::default()
            },
            times: StageTimes { read: Duration::from_millis(3), ..StageTimes::default() },
            ahead: AheadFacts::default(),
            total: Duration::from_millis(4),
        };
        let applied = Applied { descriptor: Descriptor::of("x", Digest::sha256(b""), 70), stats };
        metrics.count_applied("tar", &applied, Duration::from_millis(5));
        metrics.count_security(SecurityEvent::PeerRefused);
        let text = metrics.text(Load { running: 1, stalled: 4, waiting: 2, memory_bytes: 3 });
        for line in [
            "plywood_requests_total{method=\"Apply\",wire=\"grpc\",layer=\"tar\",code=\"ok\",reason=\"\"} 2",
            "plywood_apply_duration_seconds_count{layer=\"tar\"} 1",
            "plywood_stage_duration_seconds_bucket{le=\"0.004\",method=\"Apply\",stage=\"read\"} 1",
            "plywood_layer_read_bytes_total{layer=\"tar\"} 10",
            "plywood_layer_uncompressed_bytes_total{layer=\"tar\"} 70",
            "plywood_layer_nodes_total 3",
            "plywood_implied_directories_total 2",
            "plywood_inherited_directories_total 1",
            "plywood_layers_without_parents_total 1",
            "plywood_security_events_total{event=\"peer-refused\"} 1",
            "plywood_requests_running 1",
            "plywood_requests_stalled 4",
            "plywood_requests_waiting 2",
            "plywood_metadata_memory_bytes 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(text.contains("\nprocess_resident_memory_bytes ") && text.ends_with("# EOF\n"));
    }
}
