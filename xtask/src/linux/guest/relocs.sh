# The livepatch sample of the kernel's tree; a patch with livepatch relocations, loaded before and
# after its target; and what klp-build has made.
fail() { echo "relocs: $*"; exit 1; }
unload() { # patch
	echo 0 > "/sys/kernel/livepatch/$1/enabled" || fail "$1 cannot be disabled"
	while [[ -e /sys/kernel/livepatch/$1 ]]; do sleep 0.1; done
	until rmmod "$1" 2> /dev/null; do sleep 0.1; done
}
load() { # patch
	insmod "$1.ko" || fail "$1 does not load"
	until [[ $(< "/sys/kernel/livepatch/$1/transition") == 0 ]]; do sleep 0.1; done
}
is() { # what, value, expected
	[[ $2 == "$3" ]] || fail "$1: $2 instead of $3"
	echo "relocs: $1: $2"
}
answer() { cat /sys/module/klp_rela_target/parameters/answer; }

original=$(< /proc/cmdline)
load livepatch_sample
is "the sample, enabled" "$(< /proc/cmdline)" "this has been live patched"
unload livepatch_sample
is "the sample, disabled" "$(< /proc/cmdline)" "$original"

# 41 * 2 + 1, less the L of "Linux", by way of a local function of the target; the original's answer
# is 3.
load klp_rela_patch
insmod klp_rela_target.ko || fail "klp_rela_target does not load"
is "the target came after its patch" "$(answer)" 7
rmmod klp_rela_target
insmod klp_rela_target.ko || fail "klp_rela_target does not load again"
is "the target came again" "$(answer)" 7
unload klp_rela_patch
is "the patch is gone" "$(answer)" 3
load klp_rela_patch
is "the patch came after its target" "$(answer)" 7
unload klp_rela_patch
is "the patch is gone again" "$(answer)" 3
rmmod klp_rela_target

load klp_cmdline_fix
read -rd '' patched < /proc/cmdline
is "the kernel's own function, patched by klp-build" "$patched" "$original!"
unload klp_cmdline_fix
is "the kernel's own function" "$(< /proc/cmdline)" "$original"

bill() { cat /sys/module/klp_shop/parameters/bill; }
insmod klp_shop.ko || fail "klp_shop does not load"
is "a wrong bill" "$(bill)" "1: cofee 110"
load klp_shop_fix
is "the bill, patched by klp-build" "$(bill)" "2: coffee 120"
is "the bill, counted on" "$(bill)" "3: coffee 120"
unload klp_shop_fix
is "a wrong bill again" "$(bill)" "4: cofee 110"
rmmod klp_shop
load klp_shop_fix
insmod klp_shop.ko || fail "klp_shop does not load again"
is "the bill of a module that came later" "$(bill)" "1: coffee 120"
unload klp_shop_fix
rmmod klp_shop
