//! Threads: every one is started by `sys/thread.rs`, which lowers its capabilities first.
//!
//! Tasks on tokio's threads are none; what tokio runs on a thread of its own is one.

use syn::{
    Expr, ExprMethodCall, Macro,
    visit::{self, Visit},
};

use crate::{
    house::{House, Target},
    mentions::Tokens,
};

const HOME: &str = "sys/thread.rs";
/// Functions and types whose only use is to start a thread.
const STARTERS: [&[&str]; 6] = [
    &["std", "thread", "spawn"],
    &["std", "thread", "Builder"],
    &["tokio", "task", "spawn_blocking"],
    &["tokio", "task", "block_in_place"],
    &["tokio", "runtime", "Handle", "spawn_blocking"],
    &["rayon"],
];
/// Methods that start one, whatever they are called on.
const METHODS: [&str; 3] = ["spawn_scoped", "spawn_unchecked", "spawn_blocking"];
/// In a file that has a scope of threads, `spawn` starts one, unless what it gets is a future.
const SCOPES: [&[&str]; 2] = [&["std", "thread", "scope"], &["std", "thread", "Scope"]];

pub fn findings(house: &House) -> Vec<String> {
    let mut findings = Vec::new();
    let mut has_scope = vec![false; house.files.len()];
    for reference in &house.references {
        let file = house.modules[reference.module].file;
        for target in house.resolve(reference.module, &reference.path) {
            let Target::Outside(path) = target else { continue };
            let leads_to = |start: &&[&str]| {
                path.iter().zip(start.iter()).all(|(a, b)| a == b) && path.len() >= start.len()
            };
            if STARTERS.iter().any(leads_to) {
                findings.push(format!("{}: {}", house.files[file].path, path.join("::")));
            }
            has_scope[file] |= SCOPES.iter().any(leads_to);
        }
    }
    for (file, has_scope) in house.files.iter().zip(has_scope) {
        let mut calls = Calls { has_scope, found: Vec::new() };
        calls.visit_file(&file.code);
        findings.extend(calls.found.iter().map(|call| format!("{}: .{call}", file.path)));
    }
    findings.retain(|finding| !finding.starts_with(&format!("{HOME}:")));
    findings.sort();
    findings.dedup();
    findings
}

struct Calls {
    has_scope: bool,
    found: Vec<String>,
}

impl<'ast> Visit<'ast> for Calls {
    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let name = call.method.to_string();
        let starts = name == "spawn"
            && match call.args.first() {
                Some(Expr::Closure(closure)) => closure.asyncness.is_none(),
                Some(Expr::Async(_)) | None => false,
                Some(_) => self.has_scope,
            };
        if starts || METHODS.contains(&name.as_str()) {
            self.found.push(format!("{name}()"));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        for (name, has_closure) in Tokens::of(call).methods {
            if name == "spawn" && has_closure || METHODS.contains(&name.as_str()) {
                self.found.push(format!("{name}()"));
            }
        }
        visit::visit_macro(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_kept, assert_none, house::made_up};

    #[test]
    fn no_thread_starts_outside_its_room() {
        assert_kept("threads start in sys/thread.rs only");
    }

    #[test]
    fn a_thread_is_found_however_it_is_started() {
        for (code, want) in [
            ("fn f() { std::thread::spawn(g); }", "std::thread::spawn"),
            ("use std::{thread}; fn f() { thread::spawn(g); }", "std::thread::spawn"),
            (
                "use std::thread::{self as t}; fn f() { t::Builder::new().spawn(g); }",
                "std::thread::Builder::new",
            ),
            ("fn f(s: &S) { s.spawn(move || g()); }", ".spawn()"),
            ("fn f(s: &S) { s.spawn_scoped(t, g); }", ".spawn_scoped()"),
            ("use std::thread::Scope; fn f(s: &Scope) { s.spawn(g); }", ".spawn()"),
            ("async fn f() { tokio::task::spawn_blocking(g).await; }", "tokio::task::spawn_blocking"),
            ("async fn f(h: H) { h.spawn_blocking(g).await; }", ".spawn_blocking()"),
            ("fn f(s: &S) { vec![s.spawn(|| g())]; }", ".spawn()"),
        ] {
            let found = findings(&made_up(&[("apply.rs", code)]));
            assert!(
                found.iter().any(|finding| finding == &format!("apply.rs: {want}")),
                "{code}: {found:#?}"
            );
        }
    }

    #[test]
    fn tasks_scopes_processes_and_tests_start_no_thread() {
        let house = made_up(&[
            ("sys/mod.rs", "pub mod thread;"),
            ("sys/thread.rs", "pub fn start() { std::thread::Builder::new().spawn(f); std::thread::spawn(f); }"),
            (
                "apply.rs",
                "use std::thread::{self, Scope};
                 fn f() { thread::scope(|scope| crate::sys::thread::start(scope, || g())); thread::sleep(x); }
                 fn g(tasks: &mut Tasks) { tasks.spawn(async move { x }); tokio::spawn(task()); Command::new(a).spawn(); }
                 #[cfg(test)] mod tests { fn t() { std::thread::spawn(f); } }",
            ),
            ("rpc.rs", "fn f(handle: &Handle) { handle.spawn(task()); }"),
        ]);
        assert_none(&findings(&house), "made up");
        assert_found(
            &findings(&made_up(&[("sys.rs", "fn f() { std::thread::spawn(g); }")])),
            &["sys.rs: std::thread::spawn"],
        );
    }
}
