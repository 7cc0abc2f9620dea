//! Enabling and disabling in this process: every kind of entry, every kind of argument.

use klp_os_linux_fixtures::*;

#[test]
fn every_kind_of_entry_is_redirected_and_restored() {
    let before = text();
    let entry = [
        ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ("fx_endbr", 0, addr_of_fn!(fx_endbr_new)),
        ("fx_mcount", 0, addr_of_fn!(fx_mcount_new)),
        ("fx_many", 0, addr_of_fn!(fx_many_new)),
        ("fx_sum", 0, sum_new()),
        ("fx_local", 2, addr_of_fn!(fx_value_new)),
    ];
    let call = || {
        (
            (fx_value(), fx_endbr(), fx_mcount(1000)),
            fx_many(1, 2, 3, 4, 5, 6, 7, 8.0, 9.0),
            sum3(1.0, 2.0, 4.0),
            (fx_call_local1(), fx_call_local2()),
        )
    };
    let unpatched = call();
    assert_eq!(unpatched, ((1, 31, 1041), 285, 7.0, (11, 22)));

    let patch = add("entries", &entry);
    for _ in 0..3 {
        enable(patch);
        let locals = (fx_call_local1(), fx_call_local2());
        assert!(
            [(2, 22), (11, 2)].contains(&locals),
            "exactly one of the local functions is patched: {locals:?}"
        );
        assert_eq!(call(), ((2, 32, 1042), -285, 1007.0, locals));
        assert_ne!(text(), before);

        disable(patch);
        assert_eq!(call(), unpatched);
        assert_eq!(text(), before, "the code is what it was");
    }
    livepatch().unload(patch).expect("it is disabled");
}
