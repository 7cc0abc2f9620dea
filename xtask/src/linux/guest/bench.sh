# Measures livepatch with modules that are the same for every kernel. Prints lines "klp-bench: NAME VALUE UNIT".
sleep_step=0.02

say() { echo "klp-bench: $1 $2 $3"; }
now() { echo "${EPOCHREALTIME/./}"; } # microseconds
parameter() { cat "/sys/module/$1/parameters/$2"; }

# Kilobytes that the kernel holds for itself.
kernel_memory() { awk '/^(Slab|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo; }

enable() { # functions [parameters]
	insmod klp_bench_patch.ko count="$1" "${@:2}"
	until [[ $(< /sys/kernel/livepatch/klp_bench_patch/transition) == 0 ]]; do sleep $sleep_step; done
}

disable() { # prints how many microseconds it took
	local begin
	begin=$(now)
	echo 0 > /sys/kernel/livepatch/klp_bench_patch/enabled
	gone
	echo $(($(now) - begin))
	remove
}

gone() { while [[ -e /sys/kernel/livepatch/klp_bench_patch ]]; do sleep $sleep_step; done; }

remove() {
	until [[ $(< /sys/module/klp_bench_patch/refcnt) == 0 ]]; do sleep $sleep_step; done
	rmmod klp_bench_patch
}

set -e
insmod klp_bench_target.ko

unpatched=$(parameter klp_bench_target call_ps)
say call_unpatched "$unpatched" ps

# Once for warmth: the first patch of a kernel pays for much that stays.
enable 1; disable > /dev/null

before=$(kernel_memory)
enable 1
one=$(($(kernel_memory) - before))
say enable_1 "$(parameter klp_bench_patch enable_us)" us
settled=$(parameter klp_bench_target call_ps)
say call_settled "$settled" ps
say call_overhead $((settled - unpatched)) ps
say disable_1 "$(disable)" us

before=$(kernel_memory)
enable 1000
thousand=$(($(kernel_memory) - before))
say memory_per_function $(((thousand - one) * 1024 / 999)) bytes
disable > /dev/null

# Enables and disables 1,000 functions, three times if that is a matter of seconds; sets `on` and `off` to the best times.
thousand_functions() {
	local end=$((SECONDS + 30)) try us
	on= off=
	for try in 1 2 3; do
		enable 1000
		us=$(parameter klp_bench_patch enable_us)
		if [[ ! $on ]] || ((us < on)); then on=$us; fi
		us=$(disable)
		if [[ ! $off ]] || ((us < off)); then off=$us; fi
		if ((SECONDS > end)); then break; fi
	done
}

thousand_functions
say enable_1000 "$on" us
say disable_1000 "$off" us

# While somebody is in a new function the patch cannot go, so the answer to `disable` is one look at all stacks.
insmod klp_bench_threads.ko count=2000
enable 1000 waits=Y
parameter klp_bench_target wait > /tmp/waited &
until [[ $(parameter klp_bench_patch waiters) == 1 ]]; do sleep $sleep_step; done
begin=$(now)
echo 0 > /sys/kernel/livepatch/klp_bench_patch/enabled
say stack_check $(($(now) - begin)) us
echo N > /sys/module/klp_bench_patch/parameters/waits
wait
gone
remove
rmmod klp_bench_threads

insmod klp_bench_shadow.ko count=100000
for work in alloc get free; do say shadow_$work "$(parameter klp_bench_shadow ${work}_ps)" ps; done
