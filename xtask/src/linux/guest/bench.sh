# Measures livepatch with modules that are the same for every kernel. Prints lines "klp-bench: NAME
# VALUE UNIT".
sleep_step=0.02

say() { echo "klp-bench: $1 $2 $3"; }
now() { echo "${EPOCHREALTIME/./}"; } # microseconds
parameter() { cat "/sys/module/$1/parameters/$2"; }

# Kilobytes that the kernel holds for itself.
kernel_memory() { awk '/^(Slab|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo; }

# A call's time, when nothing else runs on either processor, nor beside the guest: the best of some
# tries.
call() {
	local try ps best=
	for try in 1 2 3 4 5; do
		sleep 0.2
		ps=$(parameter klp_bench_target call_ps)
		if [[ ! $best ]] || ((ps < best)); then best=$ps; fi
	done
	echo "$best"
}

enable() { # functions [patch]
	local patch=${2:-klp_bench_patch}
	insmod "$patch.ko" count="$1"
	until [[ $(< "/sys/kernel/livepatch/$patch/transition") == 0 ]]; do sleep $sleep_step; done
}

disable() { # [patch]; prints how many microseconds it took
	local patch=${1:-klp_bench_patch} begin
	begin=$(now)
	echo 0 > "/sys/kernel/livepatch/$patch/enabled"
	while [[ -e /sys/kernel/livepatch/$patch ]]; do sleep $sleep_step; done
	echo $(($(now) - begin))
	until [[ $(< "/sys/module/$patch/refcnt") == 0 ]]; do sleep $sleep_step; done
	rmmod "$patch"
}

# A patch over another one changes no code, and klp_enable_patch() ends with the first look at all
# stacks. Keeps the best time in the variable that is named.
over_another() { # variable
	local us
	enable 1000 klp_bench_over
	us=$(parameter klp_bench_over enable_us)
	if [[ ! ${!1} ]] || ((us < ${!1})); then printf -v "$1" %s "$us"; fi
	disable klp_bench_over > /dev/null
}

# Enables and disables 1,000 functions, three times if that is a matter of seconds; sets `on` and
# `off` to the best times.
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

set -e
insmod klp_bench_target.ko

unpatched=$(call)
say call_unpatched "$unpatched" ps

# Once for warmth: the first patch of a kernel pays for much that stays.
enable 1; disable > /dev/null

enable 10
settled=$(call)
say call_settled "$settled" ps
say call_overhead $((settled - unpatched)) ps
disable > /dev/null

before=$(kernel_memory)
enable 1
one=$(($(kernel_memory) - before))
say enable_1 "$(parameter klp_bench_patch enable_us)" us
say disable_1 "$(disable)" us

before=$(kernel_memory)
enable 1000
thousand=$(($(kernel_memory) - before))
say memory_per_function $(((thousand - one) * 1024 / 999)) bytes
# By turns, as the machine is faster at one time than at another.
alone= among=
for try in 1 2 3 4 5; do
	over_another alone
	insmod klp_bench_threads.ko count=2000
	over_another among
	rmmod klp_bench_threads
	# What was theirs is freed by and by.
	sleep 2
done
say enable_over "$alone" us
say enable_over_with_threads "$among" us
say stack_check $((among - alone)) us
disable > /dev/null

thousand_functions
say enable_1000 "$on" us
say disable_1000 "$off" us

insmod klp_bench_shadow.ko count=100000
for work in alloc get read free; do say shadow_$work "$(parameter klp_bench_shadow ${work}_ps)" ps; done
