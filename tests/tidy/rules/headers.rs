//! A file says what it is before anything else, a format file also where that is written, and a module leads to it.

use crate::house::{File, House};

pub fn findings(house: &House) -> Vec<String> {
    let mut findings: Vec<_> =
        house.orphans.iter().map(|path| format!("{path}: no mod leads to it")).collect();
    for file in house.files.iter().filter(|file| !file.is_test()) {
        let header = header_of(file);
        if header.is_empty() {
            findings.push(format!("{}: does not open with //!", file.path));
        }
        let is_format = file.is_in(&["format", "codec"]) && file.path != "format/mod.rs";
        if is_format && !header.contains("Source:") && !header.contains("docs/formats/") {
            findings.push(format!("{}: names no source", file.path));
        }
    }
    findings
}

fn header_of(file: &File) -> String {
    file.text.lines().take_while(|line| line.starts_with("//!")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_found, assert_kept, assert_none, house::made_up};

    #[test]
    fn every_file_says_what_it_is_and_every_format_file_gives_its_source() {
        assert_kept("a file opens with what it is and where that comes from, and is declared");
    }

    #[test]
    fn files_without_a_header_a_source_or_a_module_are_found() {
        let house = made_up(&[
            ("lib.rs", "//! The library.\nmod format; mod codec; mod call;"),
            ("format/mod.rs", "//! Formats.\npub mod tar; mod zip;"),
            ("format/tar.rs", "//! Archives.\nfn f() {}"),
            ("format/zip.rs", "//! Archives.\n//!\n//! Source: a book.\nfn f() {}"),
            ("codec.rs", "//! Described in `docs/formats/x.md`.\nfn f() {}"),
            ("call.rs", "// Late.\nfn f() {}"),
            ("attic.rs", "//! Nobody comes here."),
        ]);
        assert_found(
            &findings(&house),
            &["format/tar.rs: names no source", "call.rs: does not open", "attic.rs: no mod leads to it"],
        );
    }

    #[test]
    fn a_test_needs_no_header() {
        let house = made_up(&[
            ("lib.rs", "//! The library.\n#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;"),
            ("x_tests.rs", "fn t() {}"),
        ]);
        assert_none(&findings(&house), "made up");
    }
}
