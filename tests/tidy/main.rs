//! Rules of the house that no compiler checks: which file may use which, where a thread may start and `unsafe` may
//! stand, how bytes become numbers, that nothing public is dead, and that every format file and every dependency
//! gives its source or reason.
//!
//! A rule is a function from sources to findings. Its tests run it over this package, over a small made-up house
//! that breaks it, and over one that does not.

mod house;
mod mentions;
mod production;
mod rules;

use std::{collections::BTreeMap, sync::LazyLock};

use house::House;

/// A rule over the library: its name, and what breaks it.
type Rule = (&'static str, fn(&House) -> Vec<String>);

/// Breaches of the rules in this package, by rule. Found all at once, because parsing takes longer than all rules
/// together.
static FINDINGS: LazyLock<BTreeMap<&str, Vec<String>>> = LazyLock::new(|| {
    let house = house::this_house();
    rules::RULES.iter().map(|(name, rule)| (*name, rule(&house))).collect()
});

/// Fails with what breaks the rule of this name in this package.
fn assert_kept(rule: &str) {
    assert_none(&FINDINGS[rule], rule);
}

fn assert_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// Fails unless there is one finding for each part of `want`, in any order.
fn assert_found(findings: &[String], want: &[&str]) {
    assert_eq!(findings.len(), want.len(), "{findings:#?}");
    for part in want {
        assert!(
            findings.iter().any(|finding| finding.contains(part)),
            "no finding has {part:?}: {findings:#?}"
        );
    }
}
