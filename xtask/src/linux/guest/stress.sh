# Patches come, replace each other, turn round and go while everything that they patch is in use.
# CYCLES, and how many of them are MANY, is set by the caller.
fail() { echo "stress: $*"; exit 1; }
enabled() { echo "$2" 2> /dev/null > "/sys/kernel/livepatch/$1/enabled"; }

settle() { # patch; until no transition runs
	local tries=0
	while [[ -e /sys/kernel/livepatch/$1 && $(cat "/sys/kernel/livepatch/$1/transition" 2> /dev/null || echo 0) == 1 ]]; do
		((tries++ < 6000)) || fail "the transition of $1 does not end"
		sleep 0.01
	done
}

unload() { # patch
	local tries=0
	until rmmod "$1" 2> /dev/null; do
		((tries++ < 6000)) || fail "$1 cannot be unloaded"
		sleep 0.01
	done
}

cycle() { # number
	insmod klp_stress_a.ko || fail "klp_stress_a does not load"
	# Every other time the transition is turned round on its way, and round again.
	if (($1 % 2)); then enabled klp_stress_a 0; enabled klp_stress_a 1; fi
	settle klp_stress_a
	if [[ ! -e /sys/kernel/livepatch/klp_stress_a ]]; then unload klp_stress_a; return; fi
	insmod klp_stress_b.ko || fail "klp_stress_b does not load"
	if (($1 % 3 == 0)); then enabled klp_stress_b 0; enabled klp_stress_b 1; fi
	settle klp_stress_b
	for patch in klp_stress_b klp_stress_a; do
		enabled $patch 0
		if (($1 % 5 == 0)); then enabled $patch 1; settle $patch; enabled $patch 0; fi
		settle $patch
		while [[ -e /sys/kernel/livepatch/$patch ]]; do enabled $patch 0; sleep 0.01; done
	done
	unload klp_stress_b
	unload klp_stress_a
}

# Numbers of live objects: the smallest of some, as what lies in the processors' stocks counts as
# live.
snapshot() {
	local try cache
	for try in 1 2 3 4 5; do
		echo 3 > /proc/sys/vm/drop_caches
		sleep 1
		for cache in /sys/kernel/slab/*; do echo 1 > "$cache/shrink"; done 2> /dev/null
		cat /proc/slabinfo
	done | awk '/^[^#]/ && NF > 4 {
		if (!($1 in size) || $2 < live[$1]) live[$1] = $2
		size[$1] = $4
	}
	END { for (cache in size) print cache, live[cache], size[cache] }'
}

visits() { # modules come and go
	# With a trap, bash waits for the command that runs: none outlives the loop and loads the module
	# behind the back of the next one.
	trap exit TERM
	while :; do
		insmod klp_stress_visitor.ko 2>> /tmp/refused
		rmmod klp_stress_visitor
	done
}
forks() { while :; do /usr/bin/true; done; }

insmod klp_stress_target.ko || fail "klp_stress_target does not load"
work=()
start() { "$@" & work+=($!); }
begin_load() {
	start ./hammer; start visits; start forks
	insmod klp_stress_shadow.ko || fail "klp_stress_shadow does not load"
}
end_load() {
	local shadow=/sys/module/klp_stress_shadow/parameters wrong
	kill "${work[@]}"
	wait "${work[@]}" 2> /dev/null
	work=()
	rmmod klp_stress_visitor 2> /dev/null
	wrong=$(cat $shadow/wrong)
	echo "stress: $(cat $shadow/looked_up) lookups of shadow variables"
	[[ $wrong == 0 ]] || fail "$wrong wrong answers about shadow variables"
	rmmod klp_stress_shadow || fail "klp_stress_shadow cannot be unloaded"
}

begin_load
for ((i = 0; i < 10; i++)); do cycle $i; done
end_load
snapshot > /tmp/before

begin_load
for ((i = 0; i < CYCLES; i++)); do
	cycle $i
	((i % 50)) || echo "stress: cycle $i of $CYCLES"
done
end_load
snapshot > /tmp/after

echo "stress: $(cat /sys/module/klp_stress_target/parameters/calls) calls of patched functions by kernel threads"
mixes=$(cat /sys/module/klp_stress_target/parameters/mixes)
[[ $mixes == 0 ]] || fail "$mixes calls saw a mix of versions"
# An input/output error is the module's own word for a mix of versions.
[[ ! -s /tmp/refused ]] || fail "modules that came during transitions were refused: $(sort -u /tmp/refused)"
rmmod klp_stress_target || fail "klp_stress_target cannot be unloaded"

# A leak per cycle shows as that many objects; what comes and goes by chance is far below.
awk -v cycles="$CYCLES" -v many="$MANY" '
	NR == FNR { before[$1] = $2; next }
	{ grown = $2 - before[$1]; total += grown * $3 }
	grown * 2 > cycles && grown > 64 { print "stress: cache " $1 " grew from " before[$1] " to " $2 " objects"; leak = 1 }
	END {
		print "stress: slab caches grew by " total + 0 " bytes in all"
		if (cycles < many) print "stress: too few cycles to tell a leak from chance"
		exit leak && cycles >= many
	}
' /tmp/before /tmp/after || fail "memory leaks"
