//! No circles: a file that another one uses does not use that one, directly or around corners.
//!
//! A re-export uses nothing: what it passes on is used where the path that goes through it is written. Nor does a
//! `mod`. What a test uses does not count.

use std::collections::{BTreeMap, BTreeSet};

use crate::house::{From, House, Target};

/// File to file, with a path that leads there.
type Uses = BTreeMap<usize, BTreeMap<usize, String>>;

pub fn findings(house: &House) -> Vec<String> {
    let uses = uses(house);
    let reach: BTreeMap<_, _> = uses.keys().map(|file| (*file, reached(&uses, *file))).collect();
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, others) in &reach {
        if !others.contains(file) || seen.contains(file) {
            continue;
        }
        // All files that reach each other are one finding.
        let both_ways = |other: &&usize| reach.get(other).is_some_and(|back| back.contains(file));
        let circle: BTreeSet<_> = others.iter().filter(both_ways).copied().collect();
        let name = |file: &usize| house.files[*file].path.as_str();
        let inside = circle.iter().flat_map(|from| uses[from].iter().map(move |(to, path)| (from, to, path)));
        let edges = inside.filter(|(_, to, _)| circle.contains(to));
        let edges: Vec<_> =
            edges.map(|(from, to, path)| format!("{} -> {} ({path})", name(from), name(to))).collect();
        findings.push(edges.join(", "));
        seen.extend(circle);
    }
    findings
}

fn uses(house: &House) -> Uses {
    let mut uses = Uses::new();
    for reference in house.references.iter().filter(|reference| reference.from != From::ReExport) {
        let from = house.modules[reference.module].file;
        for target in house.resolve(reference.module, &reference.path) {
            // A module that is named alone is used by the paths that begin with it.
            let Target::Item(module, _) = target else { continue };
            let to = house.modules[module].file;
            if to != from {
                uses.entry(from).or_default().entry(to).or_insert_with(|| reference.path.join("::"));
            }
        }
    }
    uses
}

fn reached(uses: &Uses, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        open.extend(
            uses.get(&file).into_iter().flatten().map(|(to, _)| *to).filter(|to| reached.insert(*to)),
        );
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_kept, assert_none, house::made_up};

    #[test]
    fn no_files_use_each_other_in_a_circle() {
        assert_kept("files do not use each other in a circle");
    }

    #[test]
    fn a_circle_around_three_corners_is_found_once() {
        let house = made_up(&[
            ("a/mod.rs", "mod b; mod c; use self::b::B; pub struct A;"),
            ("a/b.rs", "use super::c; pub struct B; fn f() { c::f() }"),
            ("a/c.rs", "pub fn f() -> super::A { loop {} }"),
            ("d.rs", "use crate::a::A;"),
        ]);
        assert_found(
            &findings(&house),
            &["a/mod.rs -> a/b.rs (self::b::B), a/b.rs -> a/c.rs (c::f), a/c.rs -> a/mod.rs"],
        );
    }

    #[test]
    fn a_circle_through_a_re_export_a_glob_or_a_macro_is_found() {
        for code in [
            "use super::B;",
            "use super::*; fn f(_: B) {}",
            "fn f() { assert!(super::B::is()) }",
            "use crate::a as up; fn f(_: up::B) {}",
        ] {
            let house = made_up(&[
                ("a/mod.rs", "mod b; mod c; pub use self::b::B;"),
                ("a/b.rs", "use super::c::C; pub struct B;"),
                ("a/c.rs", &format!("{code} pub struct C;")),
            ]);
            assert_found(&findings(&house), &["a/b.rs -> a/c.rs (super::c::C), a/c.rs -> a/b.rs"]);
        }
    }

    #[test]
    fn a_facade_and_tests_make_no_circle() {
        let house = made_up(&[
            ("a/mod.rs", "mod b; mod c; pub use self::{b::B, c::C};"),
            ("a/b.rs", "use super::C; pub struct B; #[cfg(test)] mod tests { use super::super::c::probe; }"),
            ("a/c.rs", "pub struct C; #[cfg(test)] use super::B; #[cfg(test)] mod c_tests;"),
            ("a/c/c_tests.rs", "use crate::a::B;"),
        ]);
        assert_none(&findings(&house), "made up");
    }
}
