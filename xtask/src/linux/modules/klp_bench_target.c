// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * A module with a thousand functions to patch. Reading its parameter `call_ps` measures calls of
 * the first ten.
 */
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/sched.h>
#include "klp_bench.h"

#define FUNCTION(n) static noinline __used void bench_fn_##n(void) { asm volatile("" ::: "memory"); }
EACH(FUNCTION)

#define ROUNDS 20
#define CALLS 100000

/* How fast a call is depends on where code lies, too: so it is not one function that is called. */
#define LOOP(n)							\
	static noinline void loop_##n(void)			\
	{							\
		int i;						\
								\
		for (i = 0; i < CALLS; i++)			\
			bench_fn_##n();				\
	}
TEN(LOOP, 00)

#define LOOP_OF(n) loop_##n,
static void (*const loops[])(void) = { TEN(LOOP_OF, 00) };

static u64 fastest(void (*loop)(void))
{
	u64 best = U64_MAX;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		u64 begin = ktime_get_ns();

		loop();
		best = min(best, ktime_get_ns() - begin);
		cond_resched();
	}
	return best;
}

static int call_ps(char *buffer, const struct kernel_param *kp)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(loops); i++)
		sum += fastest(loops[i]);
	return sprintf(buffer, "%llu\n", div_u64(sum * 1000, ARRAY_SIZE(loops) * CALLS));
}

static const struct kernel_param_ops call_ps_ops = { .get = call_ps };
module_param_cb(call_ps, &call_ps_ops, NULL, 0444);
MODULE_PARM_DESC(call_ps, "Picoseconds of a call: the mean of ten functions, the fastest of 20 rounds of each");

static int __init target_init(void)
{
	return 0;
}

static void __exit target_exit(void)
{
}

module_init(target_init);
module_exit(target_exit);
MODULE_DESCRIPTION("A thousand functions to patch");
MODULE_LICENSE("Dual MIT/GPL");
