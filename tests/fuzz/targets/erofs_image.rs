//! EROFS images: never a panic, and whatever the check accepts can be read.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::erofs::fuzz_image(data));
