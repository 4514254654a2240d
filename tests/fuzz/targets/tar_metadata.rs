//! Metadata of archives: never a panic, and the entries and places of the archive itself.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::tar::metadata::fuzz(data));
