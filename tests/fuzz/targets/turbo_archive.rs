//! Published turboOCI layers: never a panic, nothing but members, and what is written is read again.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::format::turbo::fuzz(data));
