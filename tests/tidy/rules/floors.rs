//! Who may use whom: the floors of the house, and the order of the rooms on two of them.

use std::collections::BTreeSet;

use crate::house::{File, From, House, Target};

/// A room uses its own floor and those before it.
const FLOORS: [&[&str]; 7] = [
    &["error", "digest", "descriptor", "limits", "call"],
    &["codec"],
    &["tree", "format"],
    &["kind"],
    &["sys", "store", "containerd", "snapshot"],
    &["pipeline", "view", "overlaybd", "merge", "stargz", "apply", "compare", "image", "scrub"],
    &["config", "processor", "observe", "service", "rpc", "daemon", "cli"],
];
/// Within these floors a room uses only the steps before its own. Rooms of one step do not use each other.
const STEPS: [&[&[&str]]; 2] = [
    &[
        &["pipeline"],
        &["view"],
        &["overlaybd", "merge"],
        &["stargz"],
        &["apply", "compare", "image"],
        &["scrub"],
    ],
    &[&["config"], &["processor"], &["observe"], &["service"], &["rpc"], &["daemon"], &["cli"]],
];
/// The binary, whose file is in no room.
const BINARY: &str = "main";

fn floor_of(room: &str) -> Option<usize> {
    if room == BINARY {
        return Some(FLOORS.len());
    }
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// The rooms that each file names or reaches, through re-exports too: file, room, and the path as it is written.
fn uses(house: &House) -> BTreeSet<(&str, String, String)> {
    let mut found = BTreeSet::new();
    for reference in &house.references {
        let file = house.file_of(reference.module);
        if file.path == "lib.rs" {
            continue;
        }
        let written = reference.path.join("::");
        // The module that the path begins with may be a room itself.
        let named = reference.path.iter().position(|part| part != "super" && part != "self");
        let prefixes = named.map(|head| (head + 1..=reference.path.len()).map(|end| &reference.path[..end]));
        for path in prefixes.into_iter().flatten() {
            for target in house.resolve(reference.module, path) {
                let (Target::Module(module) | Target::Item(module, _)) = target else { continue };
                let room = house.file_of(module).room();
                if room != "lib" && room != file.room() {
                    found.insert((file.path.as_str(), room.to_owned(), written.clone()));
                }
            }
        }
    }
    found
}

/// Floors: no file uses a room below its own, and every room is in the table.
pub fn uses_go_up(house: &House) -> Vec<String> {
    let strays = house.files.iter().filter(|file| file.path != "lib.rs" && floor_of(file.room()).is_none());
    let mut findings: Vec<_> = strays.map(|file| format!("{}: on no floor", file.path)).collect();
    for (path, room, written) in uses(house) {
        let own = floor_of(room_of(house, path));
        match (own, floor_of(&room)) {
            (Some(own), Some(floor)) if floor > own => {
                findings.push(format!("{path}, floor {own}, uses {written}, in {room} on floor {floor}"));
            }
            _ => {}
        }
    }
    findings
}

/// Steps: within a floor that has an order, no file uses a room beside or after its own.
pub fn order_is_kept(house: &House) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, room, written) in uses(house) {
        for steps in STEPS {
            let step_of = |room: &str| steps.iter().position(|rooms| rooms.contains(&room));
            if let (Some(own), Some(step)) = (step_of(room_of(house, path)), step_of(&room))
                && step >= own
            {
                findings.push(format!("{path} uses {written}, in {room}, which does not come before it"));
            }
        }
    }
    findings
}

fn room_of<'a>(house: &'a House, path: &str) -> &'a str {
    house.files.iter().find(|file| file.path == path).map_or("", File::room)
}

/// The table in the documentation of the library: rooms of each row, in order.
pub fn table_is_documented(house: &House) -> Vec<String> {
    let text = house.files.iter().find(|file| file.path == "lib.rs").map_or("", |file| &file.text);
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! |")).skip(2);
    let documented: Vec<Vec<&str>> = rows
        .map(|row| {
            let links = row.split("[`").skip(1).filter_map(|rest| rest.split('`').next());
            links.map(|link| link.strip_prefix("mod@").unwrap_or(link)).collect()
        })
        .collect();
    let checked: Vec<_> = FLOORS.iter().map(|rooms| rooms.to_vec()).collect();
    let mut findings = Vec::new();
    if documented != checked {
        findings.push(format!("lib.rs has {documented:?}, the test has {checked:?}"));
    }
    for steps in STEPS {
        let order: Vec<_> = steps.iter().flat_map(|rooms| rooms.iter()).copied().collect();
        let is_in_order = |row: &Vec<&str>| {
            row.iter().filter(|room| order.contains(room)).eq(order.iter().filter(|room| row.contains(room)))
        };
        if !documented.iter().all(is_in_order) {
            findings.push(format!("lib.rs lists {order:?} in another order"));
        }
    }
    // A re-export at the root would hide which room a name is from.
    let root = house.references.iter().filter(|reference| reference.from == From::ReExport);
    let at_root = root.filter(|reference| house.file_of(reference.module).path == "lib.rs");
    findings.extend(at_root.map(|reference| format!("lib.rs re-exports {}", reference.path.join("::"))));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_kept, assert_none, house::made_up};

    #[test]
    fn every_room_has_a_floor_and_uses_those_above_it_only() {
        assert_kept("a file uses its own floor and those above it");
    }

    #[test]
    fn the_documented_floors_are_those_that_are_checked() {
        assert_kept("the table of floors in lib.rs is the one that is checked");
    }

    #[test]
    fn the_edges_and_the_domain_keep_their_order() {
        assert_kept("the edges and the rooms of the domain use those before them only");
    }

    #[test]
    fn a_use_of_a_room_below_is_found_in_every_spelling() {
        for code in [
            "use crate::cli::Run;",
            "use crate::{error, sys::{dir, file}};",
            "use super::store as shop;",
            "fn f() { crate::apply::run(); }",
            "fn f() { use super::sys::x; x() }",
            "fn f() { println!(\"{}\", crate::sys::name()); }",
            "use crate::*; fn f() { sys::x() }",
            "pub use crate::sys::Dir;",
            "fn f(_: &dyn crate::store::Blob) {}",
            "use crate::error::Shop; fn f() -> Shop { todo() }",
        ] {
            let house = made_up(&[
                ("format.rs", code),
                ("error.rs", "pub use crate::store::Shop;"),
                ("sys.rs", "pub fn x() {} pub fn name() {} pub struct Dir; pub mod dir {} pub mod file {}"),
                ("store.rs", "pub trait Blob {} pub struct Shop;"),
                ("apply.rs", "pub fn run() {}"),
                ("cli.rs", "pub struct Run;"),
            ]);
            let findings = uses_go_up(&house);
            assert!(findings.iter().any(|finding| finding.starts_with("format.rs")), "{code}: {findings:#?}");
        }
    }

    #[test]
    fn a_room_without_a_floor_is_found() {
        assert_found(&uses_go_up(&made_up(&[("attic.rs", "")])), &["attic.rs: on no floor"]);
    }

    #[test]
    fn uses_of_rooms_above_and_in_tests_are_fine() {
        let house = made_up(&[
            ("error.rs", "pub struct Error;"),
            (
                "format.rs",
                "use crate::error::Error; use std::sys::x; #[cfg(test)] mod tests { use crate::cli; }",
            ),
            ("cli.rs", "use crate::{error::Error, format};"),
            ("main.rs", "fn main() { plywood::cli::run() }"),
        ]);
        assert_none(&uses_go_up(&house), "made up");
        assert_none(&order_is_kept(&house), "made up");
    }

    #[test]
    fn a_step_forward_or_aside_is_found() {
        let house = made_up(&[
            ("apply.rs", "use crate::compare::Differ; pub struct Applier;"),
            ("compare.rs", "use crate::pipeline::Stage; pub struct Differ;"),
            ("pipeline.rs", "pub struct Stage;"),
            ("observe.rs", "use crate::{config::Settings, rpc};"),
            ("config.rs", "pub struct Settings;"),
            ("rpc.rs", ""),
        ]);
        assert_found(
            &order_is_kept(&house),
            &["apply.rs uses crate::compare::Differ", "observe.rs uses crate::rpc, in rpc"],
        );
    }

    #[test]
    fn another_table_is_found() {
        let table =
            "//! | floor | rooms |\n//! |---|---|\n//! | 0 | [`error`], [`codec`] |\npub use error::Error;";
        let house = made_up(&[("lib.rs", &format!("{table} mod error;")), ("error.rs", "pub struct Error;")]);
        assert_found(
            &table_is_documented(&house),
            &["lib.rs has [[\"error\", \"codec\"]]", "re-exports error::Error"],
        );
        let rows = [
            "[`error`], [`digest`], [`descriptor`], [`limits`], [`call`]",
            "[`codec`]",
            "[`tree`], [`mod@format`]",
            "[`kind`]",
            "[`sys`], [`store`], [`containerd`], [`snapshot`]",
            "[`pipeline`], [`view`], [`overlaybd`], [`merge`], [`stargz`], [`apply`], [`compare`], [`image`], [`scrub`]",
            "[`config`], [`processor`], [`observe`], [`service`], [`rpc`], [`daemon`], [`cli`]",
        ];
        let table: String = rows.iter().map(|row| format!("//! | x | {row} |\n")).collect();
        let house = made_up(&[("lib.rs", &format!("//! | floor | rooms |\n//! |---|---|\n{table}"))]);
        assert_none(&table_is_documented(&house), "made up");
    }
}
