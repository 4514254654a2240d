//! Labels of a blob: checks that the store accepts them, and finds those it lacks.
//!
//! Source: containerd `pkg/labels/validate.go`.

use std::collections::BTreeMap;

use super::reason;
use crate::error::{Error, Kind, Quoted, Result};

/// Longest sum of one label's key and value, in bytes: containerd's own bound.
const LABEL_BYTES: usize = 4096;
/// Longest sum of all labels, in bytes: with the fields around them they fit into one message.
const LABELS_BYTES: usize = 8 << 20;

/// Checks that the store will accept `labels`. The store itself checks them only after all bytes
/// are written.
///
/// Errors: `Malformed` (`store.label`) for one that has no key or is too long; `Exhausted`
/// (`limit.labels`) when they are too many.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    let mut sum = 0;
    for (key, value) in labels {
        let len = key.len() + value.len();
        sum += len;
        let problem = match len {
            _ if key.is_empty() => "has no key".to_owned(),
            len if len > LABEL_BYTES => format!("has {len} bytes, the store takes {LABEL_BYTES}"),
            _ => continue,
        };
        let message = format!("label {} {problem}", Quoted(key.as_bytes()));
        return Err(Error::new(Kind::Malformed, reason::LABEL, message));
    }
    if sum > LABELS_BYTES {
        let message = format!("the labels have {sum} bytes, at most {LABELS_BYTES} are taken");
        return Err(Error::new(Kind::Exhausted, "limit.labels", message));
    }
    Ok(())
}

/// Labels of `wanted` that `found` lacks or has with another value. An empty value counts as none:
/// the store keeps no such label.
pub(crate) fn lacking<'a, S: std::hash::BuildHasher>(
    wanted: &'a BTreeMap<String, String>,
    found: &std::collections::HashMap<String, String, S>,
) -> BTreeMap<&'a str, &'a str> {
    let differs = |key, value: &str| found.get(key).map_or("", String::as_str) != value;
    wanted
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, value)| differs(*key, value))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_label_of_4096_bytes_fits_and_one_more_does_not() {
        let check = |value: usize| check_labels(&labels(&[("key", &"v".repeat(value))]));
        assert!(check(4093).is_ok());
        let error = check(4094).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Malformed, "store.label"));
        assert!(error.to_string().contains("\"key\" has 4097 bytes"), "{error}");
        assert_eq!(check_labels(&labels(&[("", "v")])).unwrap_err().reason(), "store.label");
        assert!(check_labels(&labels(&[("key", "")])).is_ok());
    }

    #[test]
    fn all_labels_together_fit_into_a_message() {
        let many: BTreeMap<_, _> = (0..2049).map(|i| (format!("{i:06}"), "v".repeat(4090))).collect();
        let error = check_labels(&many).unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Exhausted, "limit.labels"));
        assert!(check_labels(&many.into_iter().skip(1).collect()).is_ok());
    }

    #[test]
    fn lacking_is_what_is_absent_or_other() {
        let found: HashMap<String, String> =
            [("same", "1"), ("other", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let wanted = labels(&[("same", "1"), ("other", "3"), ("absent", "4"), ("empty", "")]);
        assert_eq!(lacking(&wanted, &found), [("absent", "4"), ("other", "3")].into());
    }
}
