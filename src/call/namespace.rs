//! The namespace a request works in.
//!
//! Source: containerd `pkg/identifiers/validate.go`.

use std::{fmt, str::FromStr};

use crate::error::{Classify, Kind};

/// A containerd namespace, checked against containerd's identifier grammar.
///
/// Source: containerd `pkg/identifiers/validate.go`: at most 76 bytes, runs of `[A-Za-z0-9]` joined
/// by single `.`, `_` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

/// Why a namespace header is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    /// The header is absent; containerd answers with the same status.
    #[error("the request names no namespace")]
    Missing,
    /// Not an identifier.
    #[error("namespace {0:?} is not an identifier of at most 76 bytes")]
    Malformed(String),
}

impl Classify for NamespaceError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing => Kind::Conflict,
            Self::Malformed(_) => Kind::Malformed,
        }
    }
    fn reason(&self) -> &'static str {
        "request.namespace"
    }
}

impl Namespace {
    /// Longest identifier containerd accepts, in bytes.
    const MAX_LEN: usize = 76;

    /// The identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let runs = text.split(['.', '_', '-']);
        let well_formed =
            runs.into_iter().all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric()));
        if text.len() > Self::MAX_LEN || !well_formed {
            return Err(NamespaceError::Malformed(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_follow_containerds_identifier_grammar() {
        for good in ["default", "k8s.io", "moby", "a_b-c.d0", &"a".repeat(76)] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a-", "a/b", "a b", "é", &"a".repeat(77)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
    }
}
