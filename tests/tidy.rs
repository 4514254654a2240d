//! Rules of the house that no compiler checks: who may import whom, where `unsafe` may stand, how
//! bytes become numbers, and that every format file and every dependency gives its source or reason.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The floors of the house: a module uses its own floor and those before it.
const LAYERS: [&[&str]; 7] = [
    &["error", "digest", "descriptor", "limits", "call"],
    &["codec"],
    &["tree", "format"],
    &["kind"],
    &["sys", "store", "containerd", "snapshot"],
    &["pipeline", "view", "apply", "compare"],
    &["config", "observe", "service", "rpc", "daemon", "cli", "main"],
];

/// One source file of the library: its path below `src/`, and its code without tests and comments.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    /// The first component: the module whose layer counts.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().expect("a path has a component");
        first.strip_suffix(".rs").unwrap_or(first)
    }

    fn is_in(&self, modules: &[&str]) -> bool {
        modules.contains(&self.module())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("the directory is readable") {
            let path = entry.expect("the entry is readable").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("sources are UTF-8");
        // Unit tests close a file; they may do what they like.
        let production = text.split("\n#[cfg(test)]\nmod ").next().expect("split gives one part at least");
        let code = production
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| line.split(" // ").next().expect("split gives one part at least"))
            .collect::<Vec<_>>()
            .join("\n");
        let path = path.strip_prefix(&src).expect("below src").to_string_lossy().into_owned();
        Source { path, text, code }
    };
    // A file that a module includes only for its tests is a test.
    let is_test =
        |path: &Path| path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    files_below(&src, "rs").into_iter().filter(|path| !is_test(path)).map(read).collect()
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The modules that `code` names as `crate::module`, through nested imports too.
fn imported_modules(code: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut modules = Vec::new();
    for (at, marker) in code.match_indices("crate::") {
        let rest = code.get(at + marker.len()..).expect("the match ends on a boundary");
        let Some(list) = rest.strip_prefix('{') else {
            modules.push(word(rest));
            continue;
        };
        let mut depth = 0_usize;
        let mut item_starts = true;
        for (offset, c) in list.char_indices() {
            if depth == 0 && item_starts && !c.is_whitespace() && c != '}' {
                modules.push(word(list.get(offset..).expect("an index of this text")));
                item_starts = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => item_starts = true,
                _ => {}
            }
        }
    }
    modules
}

fn assert_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

#[test]
fn imports_are_found_in_every_spelling() {
    let code = "use crate::digest::Digest;\nuse crate::{call::{Call, Cancel}, error, tree::path::clean};\ncrate::sys::x()";
    assert_eq!(imported_modules(code), ["digest", "call", "error", "tree", "sys"]);
}

#[test]
fn every_module_has_a_layer_and_imports_only_from_its_own_or_lower_ones() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.path != "lib.rs") {
        let Some(own) = layer_of(source.module()) else {
            findings.push(format!("{}: in no layer", source.path));
            continue;
        };
        for module in imported_modules(&source.code) {
            match layer_of(&module) {
                Some(layer) if layer <= own => {}
                Some(layer) => {
                    findings.push(format!("{}: layer {own} imports {module}, layer {layer}", source.path))
                }
                None => {
                    findings.push(format!("{}: imports crate::{module}, which is in no layer", source.path))
                }
            }
        }
    }
    assert_none(&findings, "imports go down");
}

#[test]
fn async_and_wire_crates_stay_at_the_edges() {
    let mut findings = Vec::new();
    for source in sources() {
        let edge = layer_of(source.module()) == Some(6);
        let store = source.is_in(&["store", "containerd"]);
        for (name, allowed) in [
            ("tokio", edge || store),
            ("tonic", edge || store),
            ("containerd_client", edge || store),
            ("ttrpc", edge),
            ("clap", edge),
            ("prometheus_client", edge),
            ("indicatif", edge),
        ] {
            if !allowed && source.code.contains(&format!("{name}::")) {
                findings.push(format!("{}: uses {name}", source.path));
            }
        }
    }
    assert_none(&findings, "sockets and terminals belong to the edges");
}

#[test]
fn formats_and_codecs_touch_no_file_thread_or_clock() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is_in(&["codec", "tree", "format"])) {
        for name in [
            "std::fs",
            "std::net",
            "std::thread",
            "std::env",
            "Instant",
            "SystemTime",
            "tracing::",
            "rustix::",
        ] {
            if source.code.contains(name) {
                findings.push(format!("{}: {name}", source.path));
            }
        }
    }
    assert_none(&findings, "formats are bytes in, values out");
}

#[test]
fn unsafe_stays_in_sys_and_in_the_inflate_wrapper() {
    let mut findings = Vec::new();
    for source in sources() {
        let allowed = source.is_in(&["sys"]) || source.path == "codec/inflate.rs";
        let word =
            |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        if !allowed && source.code.lines().any(word) {
            findings.push(source.path);
        }
    }
    assert_none(&findings, "unsafe outside its rooms");
}

#[test]
fn numbers_from_outside_are_converted_with_care() {
    let mut findings = Vec::new();
    for source in sources() {
        for (number, line) in source.code.lines().enumerate() {
            for pattern in ["_ne_bytes", " as usize", "native_endian", "transmute"] {
                if line.contains(pattern) {
                    findings.push(format!("{} (code line {}): {}", source.path, number + 1, line.trim()));
                }
            }
        }
    }
    assert_none(&findings, "byte order is written out and widths are converted with try_from");
}

#[test]
fn every_module_says_what_it_is_and_every_format_file_gives_its_source() {
    let mut findings = Vec::new();
    for source in sources() {
        let header: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        if header.is_empty() {
            findings.push(format!("{}: does not open with //!", source.path));
        }
        let is_format = source.is_in(&["format", "codec"]) && source.path != "format/mod.rs";
        if is_format && !header.contains("Source:") && !header.contains("docs/formats/") {
            findings.push(format!("{}: names no source", source.path));
        }
    }
    assert_none(&findings, "a module opens with what it is, and its source");
}

#[test]
fn every_dependency_and_every_lint_has_a_reason_beside_it() {
    let mut findings = Vec::new();
    for manifest in ["Cargo.toml", "integration/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).expect("the manifest is there");
        let mut section = String::new();
        let mut explained = false;
        for line in text.lines() {
            if line.starts_with('[') {
                section = line.to_owned();
                explained = false;
            } else if line.starts_with('#') {
                explained = true;
            } else if line.trim().is_empty() {
                explained = false;
            } else if (section.contains("dependencies") || section.contains("lints")) && !explained {
                findings.push(format!("{manifest} {section}: {line}"));
            }
        }
    }
    assert_none(&findings, "no entry without a reason");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    let mut documents = files_below(&root().join("docs"), "md");
    documents.push(root().join("README.md"));
    for document in documents {
        let text = fs::read_to_string(&document).expect("documents are UTF-8");
        for (at, _) in text.match_indices("](") {
            let rest = text.get(at + 2..).expect("the match ends on a boundary");
            let target = rest.split([')', '#', ' ']).next().expect("split gives one part at least");
            let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            let beside = document.parent().expect("a file has a directory").join(target);
            if !outside && !beside.exists() {
                findings.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert_none(&findings, "broken links");
}

/// Behind Plywood it does only harm: docs/operations.md, "Leave out containerd's EROFS differ".
#[test]
fn no_list_of_differs_names_containerds_erofs_differ() {
    let mut files = vec![root().join("README.md")];
    for (directory, extension) in [
        ("docs", "md"),
        ("src/cli", "rs"),
        ("integration/deploy", "toml"),
        ("integration/src", "rs"),
        ("integration", "sh"),
    ] {
        files.extend(files_below(&root().join(directory), extension));
    }
    let (mut lists, mut findings) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).expect("documents and sources are UTF-8");
        for list in text.split('[').filter_map(|rest| rest.split([']', '\n']).next()) {
            if list.contains("\"plywood\"") || list.contains("\"walking\"") {
                lists += 1;
                if list.contains("\"erofs\"") {
                    findings.push(format!("{}: [{list}]", file.display()));
                }
            }
        }
    }
    assert!(lists >= 6, "only {lists} lists of differs were found");
    assert_none(&findings, "no list with \"erofs\"");
}

/// A list of them replaces containerd's own, and pulls for ordinary snapshots then fail: "no unpack platforms defined".
#[test]
fn every_documented_unpack_config_has_an_entry_for_overlayfs() {
    let mut texts = vec![root().join("README.md")];
    for (directory, extension) in [("docs", "md"), ("src/cli", "rs"), ("integration/deploy", "toml")] {
        texts.extend(files_below(&root().join(directory), extension));
    }
    let (mut lists, mut findings) = (0, Vec::new());
    for file in texts {
        let text = fs::read_to_string(&file).expect("documents and sources are UTF-8");
        // Each block of a document is copied by itself.
        for block in text.split("```").filter(|block| block.contains(".unpack_config]]")) {
            lists += 1;
            if !block.contains("snapshotter = \"overlayfs\"") {
                findings.push(file.display().to_string());
            }
        }
    }
    assert!(lists >= 3, "only {lists} lists were found");
    assert_none(&findings, "an unpack_config without overlayfs");
}

#[test]
fn source_files_cite_documents_that_exist() {
    let mut cited = BTreeMap::new();
    for source in sources() {
        for (at, _) in source.text.match_indices("docs/") {
            let rest = source.text.get(at..).expect("the match starts on a boundary");
            let name: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || "/._-".contains(*c)).collect();
            // Documents of other projects, containerd's for one, lie elsewhere below their docs/.
            if name.starts_with("docs/formats/") && name.ends_with(".md") {
                cited.insert(name, source.path.clone());
            }
        }
    }
    let missing: Vec<_> = cited
        .into_iter()
        .filter(|(name, _)| !root().join(name).exists())
        .map(|(name, source)| format!("{source}: {name}"))
        .collect();
    assert_none(&missing, "cited documents are missing");
}
