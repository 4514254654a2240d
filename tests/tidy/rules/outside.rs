//! Uses of the system, of other crates and of `unsafe`, and the places where they are allowed.

use syn::{
    Macro,
    visit::{self, Visit},
};

use crate::{
    house::{File, From, House, Target},
    mentions::Tokens,
};

/// Rooms that turn bytes into values and back, so that all of them can be fuzzed.
const PURE: [&str; 3] = ["codec", "tree", "format"];
/// Files, sockets, clocks, threads, the environment and the log.
const SYSTEM: [&[&str]; 23] = [
    &["std", "fs"],
    &["std", "net"],
    &["std", "os", "fd"],
    &["std", "os", "linux"],
    &["std", "os", "unix", "fs"],
    &["std", "os", "unix", "io"],
    &["std", "os", "unix", "net"],
    &["std", "os", "unix", "process"],
    &["std", "thread"],
    &["std", "process"],
    &["std", "env"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["std", "io", "stdin"],
    &["std", "io", "stdout"],
    &["std", "io", "stderr"],
    &["libc"],
    &["log"],
    &["nix"],
    &["rustix"],
    &["tempfile"],
    &["tokio"],
    &["tracing"],
];
/// Crates of sockets and messages: at the edges, and in the rooms that talk to containerd.
const WIRE: [&str; 5] = ["tokio", "tokio_stream", "tonic", "containerd_client", "hyper_util"];
/// Crates of the edges alone.
const EDGE: [&str; 8] =
    ["ttrpc", "clap", "clap_complete", "clap_mangen", "prometheus_client", "indicatif", "hyper", "toml"];
const EDGES: [&str; 7] = ["config", "observe", "service", "rpc", "daemon", "cli", "main"];
const CLIENTS: [&str; 2] = ["store", "containerd"];

/// The paths of other crates that a file uses.
fn outside_paths(house: &House) -> Vec<(&File, Vec<String>)> {
    let mut found = Vec::new();
    for reference in &house.references {
        // A single word that nothing in the house is called is a variable.
        let is_variable = |path: &[String]| path.len() == 1 && reference.from == From::Code;
        for target in house.resolve(reference.module, &reference.path) {
            if let Target::Outside(path) = target
                && !is_variable(&path)
            {
                found.push((house.file_of(reference.module), path));
            }
        }
    }
    found.sort_by(|one, other| (&one.0.path, &one.1).cmp(&(&other.0.path, &other.1)));
    found.dedup_by(|one, other| one.0.path == other.0.path && one.1 == other.1);
    found
}

pub fn pure_rooms(house: &House) -> Vec<String> {
    let used = outside_paths(house).into_iter().filter(|(file, _)| file.is_in(&PURE));
    used.filter(|(_, path)| SYSTEM.iter().any(|start| starts_with(path, start)))
        .map(|(file, path)| format!("{}: {}", file.path, path.join("::")))
        .collect()
}

fn starts_with(path: &[String], start: &[&str]) -> bool {
    path.len() >= start.len() && path.iter().zip(start).all(|(part, want)| part == want)
}

pub fn crates_of_the_edges(house: &House) -> Vec<String> {
    let mut findings = Vec::new();
    for (file, path) in outside_paths(house) {
        let name = path.first().map_or("", String::as_str);
        let is_edge = file.is_in(&EDGES);
        let is_allowed =
            !(EDGE.contains(&name) && !is_edge || WIRE.contains(&name) && !is_edge && !file.is_in(&CLIENTS));
        if !is_allowed {
            findings.push(format!("{}: {}", file.path, path.join("::")));
        }
    }
    findings
}

/// Files outside of sys/ with `unsafe`: each was measured to pay, and does nothing else.
const UNSAFE: [&str; 2] = ["codec/deflate/copy.rs", "codec/deflate/cpu.rs"];

/// `unsafe` in code and in tests, and what would allow it.
pub fn unsafe_code(house: &House) -> Vec<String> {
    let is_allowed = |file: &File| file.is_in(&["sys"]) || UNSAFE.contains(&&*file.path);
    let elsewhere = house.files.iter().filter(|file| !is_allowed(file));
    let count = |file: &&File| {
        let mut found = Unsafe::default();
        found.visit_file(&file.whole);
        found.0 > 0
    };
    elsewhere.filter(count).map(|file| file.path.clone()).collect()
}

#[derive(Default)]
struct Unsafe(usize);

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.0 += 1;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.0 += usize::from(signature.unsafety.is_some());
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        self.0 += usize::from(block.unsafety.is_some());
        visit::visit_item_impl(self, block);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.0 += usize::from(item.unsafety.is_some());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_foreign_mod(&mut self, block: &'ast syn::ItemForeignMod) {
        self.0 += 1;
        visit::visit_item_foreign_mod(self, block);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.0 += usize::from(list.tokens.to_string().contains("unsafe_code"));
        }
        self.0 += usize::from(attribute.path().is_ident("unsafe"));
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.0 += usize::from(Tokens::of(call).words.contains("unsafe"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_kept, assert_none, house::made_up};

    #[test]
    fn formats_and_codecs_touch_no_file_thread_clock_or_log() {
        assert_kept("formats, codecs and trees are bytes in, values out");
    }

    #[test]
    fn async_and_wire_crates_stay_at_the_edges() {
        assert_kept("sockets, messages and terminals belong to the edges");
    }

    #[test]
    fn unsafe_code_stays_in_sys() {
        assert_kept("unsafe stays in sys/");
    }

    #[test]
    fn a_format_that_reaches_outside_is_found_in_every_spelling() {
        for (code, want) in [
            ("use std::{fs, io};", "std::fs"),
            ("use std::{fs::{self, File}, io};", "std::fs::File"),
            ("use std::{self}; fn f() { std::env::var(\"x\"); }", "std::env::var"),
            ("use std::time; fn f() { time::Instant::now(); }", "std::time::Instant::now"),
            ("use std::{time::{Duration, SystemTime as Clock}};", "std::time::SystemTime"),
            ("fn f() { tracing::debug!(\"x\"); }", "tracing::debug"),
            ("use std::thread as t;", "std::thread"),
            ("use std::os::unix::fs::FileExt as _;", "std::os::unix::fs::FileExt"),
            ("use std::os::unix::{ffi, net::*};", "std::os::unix::net"),
            ("fn f() { assert!(std::fs::exists(a)) }", "std::fs::exists"),
            ("fn f(_: &rustix::fd::OwnedFd) {}", "rustix::fd::OwnedFd"),
        ] {
            for room in ["codec", "tree", "format"] {
                let house = made_up(&[(&format!("{room}.rs"), code)]);
                let findings = pure_rooms(&house);
                assert!(findings.contains(&format!("{room}.rs: {want}")), "{code}: {findings:#?}");
            }
        }
    }

    #[test]
    fn a_format_may_use_values_and_its_tests_anything() {
        let house = made_up(&[
            (
                "format/mod.rs",
                "mod fs; use self::fs::read; use std::{io::Read, os::unix::ffi::OsStrExt, time::Duration};",
            ),
            ("format/fs.rs", "pub fn read() {} #[cfg(test)] mod tests { use std::{fs, env}; }"),
            ("sys.rs", "use std::{fs, thread}; use tracing::debug;"),
        ]);
        assert_none(&pure_rooms(&house), "made up");
    }

    #[test]
    fn a_socket_in_the_domain_is_found() {
        let house = made_up(&[
            ("apply.rs", "use tokio::sync::mpsc; fn f() { tonic::Status::ok(x); indicatif::new(); }"),
            ("store.rs", "use tokio::runtime::Handle; use clap::Parser;"),
            ("kind.rs", "#[derive(Clone, clap::ValueEnum)] enum Kind {}"),
            ("cli.rs", "use clap::Parser; use tokio::net; use indicatif::Bar;"),
        ]);
        assert_found(
            &crates_of_the_edges(&house),
            &[
                "apply.rs: tokio::sync::mpsc",
                "apply.rs: tonic::Status::ok",
                "apply.rs: indicatif::new",
                "store.rs: clap::Parser",
                "kind.rs: clap::ValueEnum",
            ],
        );
    }

    #[test]
    fn unsafe_code_is_found_in_every_form() {
        for code in [
            "fn f() { unsafe { g() } }",
            "unsafe fn f() {}",
            "unsafe impl Send for X {}",
            "unsafe trait T {}",
            "extern \"C\" { fn g(); }",
            "#![allow(unsafe_code)]",
            "#[unsafe(no_mangle)] fn f() {}",
            "fn f() { assert!(unsafe { g() }) }",
            "#[cfg(test)] mod tests { fn f() { unsafe { g() } } }",
        ] {
            assert_found(&unsafe_code(&made_up(&[("codec.rs", code)])), &["codec.rs"]);
        }
        let house = made_up(&[
            ("sys.rs", "fn f() { unsafe { g() } }"),
            ("codec.rs", "fn f() { say(\"unsafe\") } // unsafe"),
        ]);
        assert_none(&unsafe_code(&house), "made up");
    }
}
