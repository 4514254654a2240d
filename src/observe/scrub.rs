//! Metrics of a scrub, as a file for the textfile collector of Prometheus' node exporter.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use std::sync::atomic::AtomicU64;

use crate::{
    error::{Error, Kind, Result},
    scrub::{Counts, Report},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    state: &'static str,
}

/// The metrics of the run that made `report` and `ended` so long after 1970.
pub fn last_run(report: &Report, ended: Duration) -> Result<String> {
    let mut registry = Registry::with_prefix("plywood_scrub");
    let snapshots = Family::<Labels, Gauge>::default();
    let leftovers = Family::<Labels, Gauge>::default();
    let Counts { sound, compared, broken, repaired, unchecked, in_use, leftovers: left, removed, .. } =
        report.counts;
    let set = |family: &Family<Labels, Gauge>, state, count| {
        family.get_or_create(&Labels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    };
    for (state, count) in [
        ("sound", sound),
        ("broken", broken),
        ("repaired", repaired),
        ("unchecked", unchecked),
        ("in-use", in_use),
    ] {
        set(&snapshots, state, count);
    }
    set(&leftovers, "left", left);
    set(&leftovers, "removed", removed);
    let (compared_gauge, deep) = (Gauge::<i64>::default(), Gauge::<i64>::default());
    compared_gauge.set(i64::try_from(compared).unwrap_or(i64::MAX));
    deep.set(i64::from(report.deep));
    let (duration, end) = (Gauge::<f64, AtomicU64>::default(), Gauge::<f64, AtomicU64>::default());
    duration.set(report.seconds);
    end.set(ended.as_secs_f64());
    registry.register(
        "snapshots",
        "Committed snapshots by their state; in use are those left alone",
        snapshots,
    );
    registry.register("leftovers", "Directories and files that nobody owns", leftovers);
    registry.register("compared", "Sound snapshots that were compared with their layers", compared_gauge);
    registry.register("deep", "1 if layers were compared with their blobs", deep);
    registry.register_with_unit("duration", "Duration of the last run", Unit::Seconds, duration);
    registry.register_with_unit("end_time", "End of the last run, since 1970", Unit::Seconds, end);
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|error| Error::new(Kind::Internal, "internal.metrics", error.to_string()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_of_prometheus_finds_every_number() {
        let counts =
            Counts { snapshots: 9, sound: 5, broken: 2, repaired: 1, leftovers: 3, ..Counts::default() };
        let report = Report { counts, seconds: 1.5, deep: true, ..Report::default() };
        let text = last_run(&report, Duration::from_millis(1_700_000_000_250)).unwrap();
        for line in [
            "plywood_scrub_snapshots{state=\"sound\"} 5",
            "plywood_scrub_snapshots{state=\"broken\"} 2",
            "plywood_scrub_snapshots{state=\"repaired\"} 1",
            "plywood_scrub_leftovers{state=\"left\"} 3",
            "plywood_scrub_deep 1",
            "plywood_scrub_duration_seconds 1.5",
            "plywood_scrub_end_time_seconds 1700000000.25",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        // The collector's format is the older one: of comments it knows HELP and TYPE, and passes over others.
        assert!(
            text.lines().all(|line| line.starts_with("# ") || line.starts_with("plywood_scrub_")),
            "{text}"
        );
    }
}
