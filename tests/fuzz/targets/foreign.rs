//! xz, LZ4, bzip2 and brotli streams: never a panic, and the same bytes or the same refusal whatever the steps.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plywood::codec::foreign::fuzz(data));
