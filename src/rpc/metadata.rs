//! Metadata beside a message: namespace, lease, deadline, trace.
//!
//! Source: containerd `pkg/namespaces` and `core/leases` for the keys; gRPC over HTTP/2 for `grpc-timeout`;
//! ttrpc's `Request.timeout_nano`; W3C Trace Context for `traceparent`.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

use crate::{
    call::{Call, Cancel, Namespace, NamespaceError, Progress, TraceParent},
    error::{Error, Kind},
    limits,
};

/// Header of the lease on both wires. containerd's ttrpc clients send none.
const LEASE: &str = "containerd-lease";
const TRACE_PARENT: &str = "traceparent";

/// Builds the call from the headers of a gRPC request.
pub fn grpc_call(metadata: &MetadataMap) -> Result<Call, Error> {
    // The first of several values counts, as in containerd.
    let first = |key: &str| match metadata.get(key).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_not_ascii)) => Err(header(key, "holds bytes that are not printable ASCII")),
    };
    let timeout = first("grpc-timeout")?.map(grpc_timeout).transpose()?;
    call(first("containerd-namespace")?, first(LEASE)?, first(TRACE_PARENT)?, timeout)
}

/// Builds the call from the metadata of a ttrpc request. `timeout_nano` of 0 or less means no
/// deadline.
pub fn ttrpc_call(
    metadata: &std::collections::HashMap<String, Vec<String>>,
    timeout_nano: i64,
) -> Result<Call, Error> {
    let first = |key: &str| metadata.get(key).and_then(|values| values.first()).map(String::as_str);
    let timeout = u64::try_from(timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    call(first("containerd-namespace-ttrpc"), first(LEASE), first(TRACE_PARENT), timeout)
}

fn call(
    namespace: Option<&str>,
    lease: Option<&str>,
    trace_parent: Option<&str>,
    timeout: Option<Duration>,
) -> Result<Call, Error> {
    let namespace: Namespace =
        namespace.filter(|name| !name.is_empty()).ok_or(NamespaceError::Missing)?.parse()?;
    let lease = lease.filter(|lease| !lease.is_empty());
    if let Some(lease) = lease {
        let printable = lease.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable || lease.len() > limits::LEASE_BYTES {
            return Err(header(LEASE, "is not 1 to 255 bytes of printable ASCII"));
        }
    }
    // A deadline too far away for the clock counts as none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    Ok(Call {
        namespace,
        lease: lease.map(str::to_owned),
        trace_parent: trace_parent.and_then(TraceParent::parse),
        cancel: deadline.map_or_else(Cancel::new, Cancel::with_deadline),
        progress: Progress::default(),
    })
}

/// Parses `TimeoutValue TimeoutUnit`: at most 8 digits and one of H, M, S, m, u, n.
fn grpc_timeout(text: &str) -> Result<Duration, Error> {
    let refuse = || header("grpc-timeout", "is not up to 8 digits and a unit");
    let (unit_at, unit) = text.char_indices().last().ok_or_else(refuse)?;
    let digits = text.get(..unit_at).unwrap_or_default();
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse());
    }
    let value: u64 = digits.parse().map_err(|_checked_above: std::num::ParseIntError| refuse())?;
    match unit {
        'H' => Ok(Duration::from_secs(value * 3600)),
        'M' => Ok(Duration::from_secs(value * 60)),
        'S' => Ok(Duration::from_secs(value)),
        'm' => Ok(Duration::from_millis(value)),
        'u' => Ok(Duration::from_micros(value)),
        'n' => Ok(Duration::from_nanos(value)),
        _ => Err(refuse()),
    }
}

fn header(key: &str, problem: &str) -> Error {
    Error::new(Kind::Malformed, "request.header", format!("header {key} {problem}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.append(*key, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn the_first_namespace_counts_and_none_is_an_error() {
        let call = grpc_call(&headers(&[
            ("containerd-namespace", "k8s.io"),
            ("containerd-namespace", "default"),
            ("containerd-lease", "lease-1"),
        ]))
        .unwrap();
        assert_eq!((call.namespace.as_str(), call.lease.as_deref()), ("k8s.io", Some("lease-1")));
        assert_eq!(call.cancel.deadline(), None);

        let error = grpc_call(&headers(&[])).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Conflict, "request.namespace"));
        let error = grpc_call(&headers(&[("containerd-namespace", "../x")])).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "request.namespace"));
    }

    #[test]
    fn ttrpc_keys_carry_their_suffix() {
        let metadata = |key: &str| HashMap::from([(key.to_owned(), vec!["moby".to_owned(), "x".to_owned()])]);
        let call = ttrpc_call(&metadata("containerd-namespace-ttrpc"), 0).unwrap();
        assert_eq!((call.namespace.as_str(), call.cancel.deadline()), ("moby", None));
        assert!(ttrpc_call(&metadata("containerd-namespace"), 0).is_err());
        assert!(ttrpc_call(&HashMap::from([("containerd-namespace-ttrpc".into(), vec![])]), 0).is_err());
    }

    #[test]
    fn deadlines_come_from_either_wire() {
        let within = |call: Call, seconds| {
            let left = call.cancel.deadline().unwrap() - Instant::now();
            left <= Duration::from_secs(seconds) && left > Duration::from_secs(seconds - 1)
        };
        let timeout = |text| grpc_call(&headers(&[("containerd-namespace", "a"), ("grpc-timeout", text)]));
        assert!(within(timeout("30S").unwrap(), 30));
        assert!(within(timeout("2M").unwrap(), 120));
        assert!(within(timeout("10000m").unwrap(), 10));
        assert!(timeout("99999999H").is_ok());
        for bad in ["", "S", "1", "-1S", "1 S", "123456789S", "1X", "1é"] {
            if let Ok(value) = bad.parse() {
                let mut map = headers(&[("containerd-namespace", "a")]);
                map.insert("grpc-timeout", value);
                assert!(grpc_call(&map).is_err(), "{bad}");
            }
        }
        let names = HashMap::from([("containerd-namespace-ttrpc".to_owned(), vec!["a".to_owned()])]);
        assert!(within(ttrpc_call(&names, 30_000_000_000).unwrap(), 30));
        assert_eq!(ttrpc_call(&names, -1).unwrap().cancel.deadline(), None);
        assert!(ttrpc_call(&names, i64::MAX).is_ok());
    }

    #[test]
    fn a_lease_comes_over_either_wire_and_an_empty_one_is_none() {
        for lease in ["lease-1", &"x".repeat(limits::LEASE_BYTES)] {
            let call = grpc_call(&headers(&[("containerd-namespace", "a"), ("containerd-lease", lease)]));
            assert_eq!(call.unwrap().lease.as_deref(), Some(lease));
            let metadata = [("containerd-namespace-ttrpc", "a"), ("containerd-lease", lease)];
            let metadata = metadata.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into();
            assert_eq!(ttrpc_call(&metadata, 0).unwrap().lease.as_deref(), Some(lease));
        }
        let empty = grpc_call(&headers(&[("containerd-namespace", "a"), ("containerd-lease", "")]));
        assert_eq!(empty.unwrap().lease, None);
    }

    #[test]
    fn a_lease_that_cannot_be_a_header_is_refused() {
        let long = "x".repeat(256);
        for lease in ["a b", &long] {
            let error = grpc_call(&headers(&[("containerd-namespace", "a"), ("containerd-lease", lease)]))
                .unwrap_err();
            assert_eq!(error.reason(), "request.header");
        }
    }
}
