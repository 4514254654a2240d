//! Manifests: no dependency and no lint without its reason beside it.

use crate::house::Source;

/// An entry needs a comment above it; one comment may stand above several.
fn findings(manifests: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for Source { path, text } in manifests {
        let mut section = String::new();
        let mut explained = false;
        // Lines of an entry that goes on.
        let mut open = 0_usize;
        for line in text.lines() {
            if line.starts_with('[') && open == 0 {
                section = line.to_owned();
                explained = false;
            } else if line.starts_with('#') {
                explained = true;
            } else if line.trim().is_empty() {
                explained = false;
            } else if (section.contains("dependencies") || section.contains("lints")) && !explained {
                findings.push(format!("{path} {section}: {line}"));
            }
            if !line.starts_with(['#', '[']) {
                open = (open + line.matches(['[', '{']).count())
                    .saturating_sub(line.matches([']', '}']).count());
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_none, house::sources_below};

    fn manifest(text: &str) -> Vec<Source> {
        vec![Source { path: "Cargo.toml".to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn every_dependency_and_every_lint_has_a_reason_beside_it() {
        let all = sources_below("", "toml");
        let manifests: Vec<_> =
            all.into_iter().filter(|source| source.path.ends_with("Cargo.toml")).collect();
        assert!(manifests.iter().any(|source| source.path == "Cargo.toml"), "no manifest was found");
        assert_none(&findings(&manifests), "no entry without a reason");
    }

    #[test]
    fn an_entry_without_a_reason_is_found() {
        let text = "[package]\nname = \"x\"\n[dependencies]\n# Reads.\na = \"1\"\nb = { version = \"1\", features = [\n    \"x\",\n] }\n\nc = \"1\"\n[lints.rust]\nd = \"deny\"\n";
        assert_found(&findings(&manifest(text)), &["[dependencies]: c = \"1\"", "[lints.rust]: d"]);
        assert_none(
            &findings(&manifest("[features]\na = []\n[dependencies]\n# Why.\nb = \"1\"\n")),
            "made up",
        );
    }
}
