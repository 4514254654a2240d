//! Names of our ingests in the store, and of their leases, which bear the name of the ingest.
//!
//! `plywood-diff-<instance>-<life>-<random>`. The instance is a daemon, known by its socket, through all its starts;
//! the life is one start of it. So the next daemon finds without a record what a killed one left.
//!
//! Source: docs/formats/containerd.md, "Writing a blob".

use std::{os::unix::ffi::OsStrExt as _, path::Path};

use crate::{
    digest::Digest,
    error::{Error, Result},
    sys,
};

/// Prefix of all names.
const PREFIX: &str = "plywood-diff-";
/// Number of hexadecimal digits of an instance and of a life.
const SHORT: usize = 8;
/// Number of hexadecimal digits of the random part.
const RANDOM: usize = 32;

/// Generator of unique names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// Prefix of the names of this instance, in all its lives; `None` for a client without a socket.
    instance: Option<String>,
    /// Prefix of the names of this life.
    life: String,
}

impl Names {
    /// Names without instance and life.
    pub(super) fn anonymous() -> Self {
        Self { instance: None, life: PREFIX.to_owned() }
    }

    /// Names of the daemon that listens on `socket`, in a life that begins now. Errors: no random numbers.
    pub(super) fn of(socket: &Path) -> Result<Self> {
        let short = |text: &str| text.chars().take(SHORT).collect::<String>();
        let digest = Digest::sha256(socket.as_os_str().as_bytes());
        let instance = format!("{PREFIX}{}-", short(digest.hex()));
        let life = format!("{instance}{}-", short(&random()?));
        Ok(Self { instance: Some(instance), life })
    }

    /// Returns a new name. Errors: no random numbers.
    pub(super) fn unique(&self) -> Result<String> {
        Ok(format!("{}{}", self.life, random()?))
    }

    /// Whether `name` was made by this instance in an earlier life.
    pub(super) fn is_left(&self, name: &str) -> bool {
        let Some(rest) = self.instance.as_ref().and_then(|instance| name.strip_prefix(instance)) else {
            return false;
        };
        let parts =
            rest.split_once('-').filter(|(life, random)| is_hex(life, SHORT) && is_hex(random, RANDOM));
        parts.is_some() && !name.starts_with(&self.life)
    }
}

/// Whether `name` was made by any instance.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Returns 32 random hexadecimal digits.
pub(super) fn random() -> Result<String> {
    sys::file::random_hex().map_err(Error::disk)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_are_identifiers() {
        for names in [Names::anonymous(), Names::of(Path::new("/run/plywood/plywood.sock")).unwrap()] {
            let (one, other) = (names.unique().unwrap(), names.unique().unwrap());
            assert_ne!(one, other);
            // Names follow the grammar of namespaces.
            assert!(one.parse::<crate::call::Namespace>().is_ok(), "{one}");
        }
    }

    #[test]
    fn left_is_what_the_same_instance_made_in_another_life() {
        let socket = Path::new("/run/plywood/plywood.sock");
        let (before, now) = (Names::of(socket).unwrap(), Names::of(socket).unwrap());
        let elsewhere = Names::of(Path::new("/run/other.sock")).unwrap();
        let name = before.unique().unwrap();
        assert!(now.is_left(&name), "{name}");
        assert!(!before.is_left(&name) && !elsewhere.is_left(&name));
        let none = Names::anonymous();
        assert!(!none.is_left(&name) && !none.is_left(&none.unique().unwrap()));
        assert!(!now.is_left(&none.unique().unwrap()));
        assert_eq!(Names::of(socket).unwrap().instance, now.instance);
    }

    #[test]
    fn a_name_of_another_shape_is_not_ours_to_take_away() {
        let now = Names::of(Path::new("/run/plywood/plywood.sock")).unwrap();
        let instance = now.instance.clone().unwrap();
        let (life, random) = ("0".repeat(8), "f".repeat(32));
        assert!(now.is_left(&format!("{instance}{life}-{random}")));
        for rest in [
            String::new(),
            life.clone(),
            format!("{life}-"),
            format!("{life}-{random}0"),
            format!("{life}0-{random}"),
            format!("{life}-{}", random.to_uppercase()),
            format!("{life}-{random}-of-a-client"),
        ] {
            assert!(!now.is_left(&format!("{instance}{rest}")), "{rest}");
        }
        assert!(!now.is_left(&format!("x{instance}{life}-{random}")));
    }
}
