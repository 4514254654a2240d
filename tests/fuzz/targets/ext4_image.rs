//! ext4 file systems: never a panic, and whatever can be read adds up.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::ext4::fuzz_image(data));
