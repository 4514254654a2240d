//! ZFiles: never a panic, a part is a part of the whole, and contents come out as they went in.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::zfile::fuzz(data));
