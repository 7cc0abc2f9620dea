#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| klp_fuzz::pair::check(input));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    klp_fuzz::mutate::pair(data, size, most, seed)
});
