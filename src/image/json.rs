//! JSON from outside: bounded, UTF-8, every key once.
//!
//! Readers disagree about an object that has a key twice (Go takes the last one, others the first), so a scanner may
//! have seen another image than the one that runs.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor},
};

/// Parses one document. Errors, in words: too long, not UTF-8, not JSON, a key twice, not of the form of `T`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}"))?;
    if text.starts_with('\u{feff}') {
        return Err("begins with a byte order mark".to_owned());
    }
    let wrong = |error: serde_json::Error| format!("is not the JSON it should be: {error}");
    let EveryKeyOnce = serde_json::from_str(text).map_err(wrong)?;
    serde_json::from_str(text).map_err(wrong)
}

/// Any value, kept nowhere, in which no object has a key twice.
struct EveryKeyOnce;

impl<'de> Deserialize<'de> for EveryKeyOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for EveryKeyOnce {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_element::<Self>()?.is_some() {}
        Ok(Self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some((key, Self)) = entries.next_entry::<String, Self>()? {
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format!("key {key:?} stands twice")));
            }
        }
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"c":[],"a":2}}]"#, r#"{"a":1,"\u0061":2}"#] {
            let error = parse::<Value>(text.as_bytes()).unwrap_err();
            assert!(error.contains("stands twice"), "{text}: {error}");
        }
        assert!(parse::<Value>(br#"[{"a":1},{"a":{"a":null}}]"#).is_ok());
    }

    #[test]
    fn what_is_no_single_document_is_refused() {
        for bytes in [&b"{} {}"[..], b"\xef\xbb\xbf{}", b"\"\xff\"", b"", b"{", &[b'['; 100_000]] {
            assert!(parse::<Value>(bytes).is_err(), "{:?}", bytes.get(..8));
        }
        assert!(parse::<Value>(b" {} \n").is_ok());
    }
}
