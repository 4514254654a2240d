//! Content digests: `algorithm:hex`, parsed before they name anything, and the hashers that compute
//! them.
//!
//! Source: OCI image specification, descriptor.md, section "Digests".

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::error::{Classify, Kind};

/// Hash algorithm that a descriptor may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, whose digests have 32 bytes; every registry uses it.
    Sha256,
    /// SHA-384, whose digests have 48 bytes.
    Sha384,
    /// SHA-512, whose digests have 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Registered name, which stands before the colon of a digest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the digest in bytes; its hex form is twice as long.
    fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// Parsed digest. Its text is lower case, and the part after the colon is safe as a path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Refusal of a text that is no digest of an accepted algorithm.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("digest {text:?} is not sha256, sha384 or sha512 with lower-case hex of the exact length")]
pub struct DigestError {
    text: String,
}

impl Classify for DigestError {
    fn kind(&self) -> Kind {
        Kind::Malformed
    }
    fn reason(&self) -> &'static str {
        "request.digest"
    }
}

impl Digest {
    /// Computes the SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The SHA-256 with these bytes.
    pub fn of_sha256(bytes: [u8; 32]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: to_hex(&bytes) }
    }

    /// Algorithm, as named before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Hexadecimal digits after the colon, in lower case.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let refuse = || DigestError { text: text.chars().take(160).collect() };
        let (name, hex) = text.split_once(':').ok_or_else(refuse)?;
        let algorithm = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or_else(refuse)?;
        let lower_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !lower_hex || hex.len() != 2 * algorithm.digest_len() {
            return Err(refuse());
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes that two hashes take in turns. With more, the processor has begun the next turn too late to fill the waits of this
/// one; with one block of 64 bytes, the calls cost as much as they save.
const TURN_BYTES: usize = 128;

/// Running hash with one of the algorithms.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// Starts a hash of no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha384 => State::Sha384(Sha384::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds the next bytes to the hash.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha384(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Adds `bytes` to this hash and `others` to `other`. That takes two SHA-256 of as many bytes 0.75 of the time of one
    /// after the other: each step of a hash waits for the one before it, and the other's steps fill the waits.
    pub fn update_both(&mut self, bytes: &[u8], other: &mut Self, others: &[u8]) {
        let both = bytes.len().min(others.len());
        let (now, later) = bytes.split_at(both);
        let (others_now, others_later) = others.split_at(both);
        match (&mut self.0, &mut other.0) {
            (State::Sha256(state), State::Sha256(other)) => {
                for (step, other_step) in now.chunks(TURN_BYTES).zip(others_now.chunks(TURN_BYTES)) {
                    state.update(step);
                    other.update(other_step);
                }
            }
            _ => {
                self.update(now);
                other.update(others_now);
            }
        }
        self.update(later);
        other.update(others_later);
    }

    /// Digest of all bytes added.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self.0 {
            State::Sha256(state) => (Algorithm::Sha256, state.finalize().to_vec()),
            State::Sha384(state) => (Algorithm::Sha384, state.finalize().to_vec()),
            State::Sha512(state) => (Algorithm::Sha512, state.finalize().to_vec()),
        };
        Digest { algorithm, hex: to_hex(&bytes) }
    }
}

fn to_hex(bytes: &[u8]) -> Box<str> {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_that_take_turns_are_those_of_each_alone() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let algorithms = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];
        for (first, second) in
            algorithms.into_iter().flat_map(|first| algorithms.map(|second| (first, second)))
        {
            for (len, other_len) in [(0, 0), (1, 0), (0, 129), (127, 128), (256, 300), (1000, 5)] {
                let (bytes, others) = (&bytes[..len], &bytes[1000 - other_len..]);
                let (mut one, mut other) = (Hasher::new(first), Hasher::new(second));
                let (mut one_alone, mut other_alone) = (one.clone(), other.clone());
                for _ in 0..2 {
                    one.update_both(bytes, &mut other, others);
                    one_alone.update(bytes);
                    other_alone.update(others);
                }
                assert_eq!((one.finish(), other.finish()), (one_alone.finish(), other_alone.finish()));
            }
        }
    }

    #[test]
    fn digest_of_nothing_is_the_well_known_one() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::sha256(b""));
    }

    #[test]
    fn every_algorithm_round_trips_through_text() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512] {
            let digest = Hasher::new(algorithm).finish();
            assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        let long = format!("{EMPTY}0");
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &long,
            "sha256:e3b0c442",
            &EMPTY.to_uppercase(),
            &EMPTY.replace("e3b0", "e3g0"),
            "sha256:../../../../etc/passwd",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
