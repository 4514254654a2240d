//! The rules, one file for each kind.

mod circles;
mod dead;
mod documents;
mod floors;
mod headers;
mod manifests;
mod numbers;
mod outside;
mod threads;

use crate::Rule;

/// The rules over the library's sources.
pub const RULES: [Rule; 10] = [
    ("a file uses its own floor and those above it", floors::uses_go_up),
    ("the table of floors in lib.rs is the one that is checked", floors::table_is_documented),
    ("the edges and the rooms of the domain use those before them only", floors::order_is_kept),
    ("files do not use each other in a circle", circles::findings),
    ("threads start in sys/thread.rs only", threads::findings),
    ("formats, codecs and trees are bytes in, values out", outside::pure_rooms),
    ("sockets, messages and terminals belong to the edges", outside::crates_of_the_edges),
    ("unsafe stays in sys/", outside::unsafe_code),
    ("byte order is written out, and widths are converted with try_from", numbers::findings),
    ("a file opens with what it is and where that comes from, and is declared", headers::findings),
];
