#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| klp_fuzz::diff::check(input));
