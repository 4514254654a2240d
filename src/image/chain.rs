//! ChainIDs: names of the snapshots that hold the layers of an image up to one of them.
//!
//! Source: OCI image specification, config.md, "Layer ChainID"; docs/formats/archives.md, "Identities".

use crate::digest::Digest;

/// Returns the chainID of every layer, given the diffIDs, lowest first. That of the lowest is its diffID.
///
/// ```
/// use plywood::{digest::Digest, image::chain::chain_ids};
/// let diff_ids = [Digest::sha256(b"a"), Digest::sha256(b"b")];
/// let text = format!("{} {}", diff_ids[0], diff_ids[1]);
/// assert_eq!(chain_ids(&diff_ids), [diff_ids[0].clone(), Digest::sha256(text.as_bytes())]);
/// ```
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(chain_id(chain.last(), diff_id));
    }
    chain
}

/// Returns the chainID of the layer `diff_id` on top of `below`.
pub fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Example {
        what: String,
        diff_ids: Vec<String>,
        chain_ids: Vec<String>,
    }

    /// Examples of which the last one is an image that containerd unpacked.
    #[test]
    fn chain_ids_are_those_of_the_examples() {
        let examples = include_str!("../../tests/fixtures/separated/chainids.json");
        let examples: Vec<Example> = serde_json::from_str(examples).unwrap();
        assert_eq!(examples.len(), 5);
        for Example { what, diff_ids, chain_ids: want } in examples {
            let diff_ids: Vec<Digest> = diff_ids.iter().map(|id| id.parse().unwrap()).collect();
            let found: Vec<_> = chain_ids(&diff_ids).iter().map(ToString::to_string).collect();
            assert_eq!(found, want, "{what}");
        }
        assert!(chain_ids(&[]).is_empty());
    }
}
