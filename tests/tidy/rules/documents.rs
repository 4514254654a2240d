//! Documents: links lead somewhere, examples are safe to copy, and what sources cite is there.

use std::{collections::BTreeSet, path::Path};

use crate::house::{Source, root, sources_below};

/// Links from document to document. `is_there` gets paths below the root of the package.
fn broken_links(documents: &[Source], is_there: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for Source { path, text } in documents {
        for (at, _) in text.match_indices("](") {
            let target =
                text.split_at(at + 2).1.split([')', '#', ' ']).next().expect("split gives one part at least");
            let is_outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            let beside = Path::new(path).parent().expect("a file has a directory").join(target);
            if !is_outside && !is_there(&beside) {
                findings.push(format!("{path}: {target}"));
            }
        }
    }
    findings
}

/// Lists of differs in documents and scripts. Returns how many there are, and those with containerd's EROFS differ,
/// which behind Plywood does only harm: docs/operations.md, "Leave out containerd's EROFS differ".
fn lists_of_differs(sources: &[Source]) -> (usize, Vec<String>) {
    let (mut lists, mut findings) = (0, Vec::new());
    for Source { path, text } in sources {
        for list in text.split('[').filter_map(|rest| rest.split([']', '\n']).next()) {
            if list.contains("\"plywood\"") || list.contains("\"walking\"") {
                lists += 1;
                if list.contains("\"erofs\"") {
                    findings.push(format!("{path}: [{list}]"));
                }
            }
        }
    }
    (lists, findings)
}

/// Lists of `unpack_config`. Returns how many there are, and the files of those without an entry for overlayfs: a list
/// replaces containerd's own, and pulls for ordinary snapshots then fail with "no unpack platforms defined".
fn lists_of_unpacking(sources: &[Source]) -> (usize, Vec<String>) {
    let (mut lists, mut findings) = (0, Vec::new());
    for Source { path, text } in sources {
        // Each block of a document is copied by itself.
        for block in text.split("```").filter(|block| block.contains(".unpack_config]]")) {
            lists += 1;
            if !block.contains("snapshotter = \"overlayfs\"") {
                findings.push(path.clone());
            }
        }
    }
    (lists, findings)
}

/// Descriptions of formats that sources cite and that are not there.
fn missing_documents(sources: &[Source], is_there: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut cited = BTreeSet::new();
    for Source { path, text } in sources {
        for (at, _) in text.match_indices("docs/") {
            let is_of_name = |c: &char| c.is_alphanumeric() || "/._-".contains(*c);
            let name: String = text.split_at(at).1.chars().take_while(is_of_name).collect();
            // Documents of other projects, containerd's for one, lie elsewhere below their docs/.
            if name.starts_with("docs/formats/") && name.ends_with(".md") {
                cited.insert((name, path));
            }
        }
    }
    let missing = cited.into_iter().filter(|(name, _)| !is_there(Path::new(name)));
    missing.map(|(name, path)| format!("{path}: {name}")).collect()
}

fn is_in_package(path: &Path) -> bool {
    root().join(path).exists()
}

/// The documents at the root of the package and below docs/.
fn documents() -> Vec<Source> {
    sources_below("", "md")
        .into_iter()
        .filter(|document| !document.path.contains('/') || document.path.starts_with("docs/"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_none};

    fn made_up(text: &str) -> Vec<Source> {
        vec![Source { path: "docs/x.md".to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn links_between_documents_lead_somewhere() {
        let documents = documents();
        for name in ["README.md", "docs/operations.md"] {
            assert!(documents.iter().any(|document| document.path == name), "{name} was not read");
        }
        assert_none(&broken_links(&documents, is_in_package), "broken links");
    }

    #[test]
    fn a_broken_link_is_found() {
        let text = "[a](gone.md#x) [b](y.md#z) [c](https://h/gone) [d](#here) [e](../z.md)";
        let is_there = |path: &Path| path.ends_with("docs/y.md") || path.ends_with("docs/../z.md");
        assert_found(&broken_links(&made_up(text), is_there), &["docs/x.md: gone.md"]);
    }

    #[test]
    fn no_list_of_differs_names_containerds_erofs_differ() {
        let mut sources = documents();
        for (directory, extension) in [
            ("src/cli", "rs"),
            ("integration/deploy", "toml"),
            ("integration/src", "rs"),
            ("integration", "sh"),
        ] {
            sources.extend(sources_below(directory, extension));
        }
        let (lists, findings) = lists_of_differs(&sources);
        assert!(lists >= 6, "only {lists} lists of differs were found");
        assert_none(&findings, "no list with \"erofs\"");
    }

    #[test]
    fn a_list_with_containerds_erofs_differ_is_found() {
        let (lists, findings) = lists_of_differs(&made_up(
            "a = [\"plywood\", \"erofs\"]\nb = [\"plywood\", \"walking\"]\nc = [\"erofs\"]",
        ));
        assert_eq!(lists, 2);
        assert_found(&findings, &["[\"plywood\", \"erofs\"]"]);
    }

    #[test]
    fn every_documented_unpack_config_has_an_entry_for_overlayfs() {
        let mut sources = documents();
        for (directory, extension) in [("src/cli", "rs"), ("integration/deploy", "toml")] {
            sources.extend(sources_below(directory, extension));
        }
        let (lists, findings) = lists_of_unpacking(&sources);
        assert!(lists >= 3, "only {lists} lists were found");
        assert_none(&findings, "an unpack_config without overlayfs");
    }

    #[test]
    fn an_unpack_config_without_overlayfs_is_found() {
        let good = "```\n[[x.unpack_config]]\nsnapshotter = \"erofs\"\n[[x.unpack_config]]\nsnapshotter = \"overlayfs\"\n```\n";
        assert_eq!(lists_of_unpacking(&made_up(good)), (1, vec![]));
        let bad = format!("{good}```\n[[x.unpack_config]]\nsnapshotter = \"erofs\"\n```\n");
        assert_eq!(lists_of_unpacking(&made_up(&bad)), (2, vec!["docs/x.md".to_owned()]));
    }

    #[test]
    fn source_files_cite_documents_that_exist() {
        assert_none(
            &missing_documents(&sources_below("src", "rs"), is_in_package),
            "cited documents are missing",
        );
    }

    #[test]
    fn a_cited_document_that_is_missing_is_found() {
        let text = "see docs/formats/gone.md, docs/formats/here.md and containerd docs/garbage-collection.md";
        let findings = missing_documents(&made_up(text), |path| path.ends_with("here.md"));
        assert_found(&findings, &["docs/x.md: docs/formats/gone.md"]);
    }
}
