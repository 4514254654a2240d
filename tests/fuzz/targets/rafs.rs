//! RAFS metadata: never a panic, and tables that are read keep their promises.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::rafs::fuzz(data));
