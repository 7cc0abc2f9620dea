// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/* A module with a thousand functions to patch. Reading its parameter `call_ps` measures a call of the first one. */
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/sched.h>
#include "klp_bench.h"

#define FUNCTION(n) static noinline __used void bench_fn_##n(void) { asm volatile("" ::: "memory"); }
EACH(FUNCTION)

#define ROUNDS 20
#define CALLS 200000

static int call_ps(char *buffer, const struct kernel_param *kp)
{
	u64 best = U64_MAX;
	int round, i;

	for (round = 0; round < ROUNDS; round++) {
		u64 begin = ktime_get_ns();

		for (i = 0; i < CALLS; i++)
			bench_fn_000();
		best = min(best, ktime_get_ns() - begin);
		cond_resched();
	}
	return sprintf(buffer, "%llu\n", div_u64(best * 1000, CALLS));
}

static const struct kernel_param_ops call_ps_ops = { .get = call_ps };
module_param_cb(call_ps, &call_ps_ops, NULL, 0444);
MODULE_PARM_DESC(call_ps, "Picoseconds of a call, the fastest of 20 rounds");

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
