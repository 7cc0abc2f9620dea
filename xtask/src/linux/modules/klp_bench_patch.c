// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Replaces the first `count` functions of klp_bench_target, and with `waits` the one more, by one that waits: who is in it holds up the
 * patch's end. `enable_us` tells how long klp_enable_patch() took.
 */
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include "klp_bench.h"

static unsigned int count = 1000;
module_param(count, uint, 0444);
MODULE_PARM_DESC(count, "How many functions are replaced, 1 to 1000");

static bool waits;
module_param(waits, bool, 0644);
MODULE_PARM_DESC(waits, "Whether calls of bench_wait() wait until this is N");

static unsigned int waiters;
module_param(waiters, uint, 0444);
MODULE_PARM_DESC(waiters, "How many tasks came to wait");

static unsigned long enable_us;
module_param(enable_us, ulong, 0444);
MODULE_PARM_DESC(enable_us, "Microseconds that klp_enable_patch() took");

#define REPLACEMENT(n) static noinline __used void new_fn_##n(void) { asm volatile("" ::: "memory"); }
EACH(REPLACEMENT)

static noinline void new_wait(void)
{
	WRITE_ONCE(waiters, waiters + 1);
	while (READ_ONCE(waits))
		msleep(10);
}

#define FUNC(n) { .old_name = "bench_fn_" #n, .new_func = new_fn_##n },
static struct klp_func funcs[] = { EACH(FUNC) { }, { } };
static const struct klp_func wait_func = { .old_name = "bench_wait", .new_func = new_wait };

static struct klp_object objs[] = {
	{ .name = "klp_bench_target", .funcs = funcs },
	{ },
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
};

static int __init patch_init(void)
{
	ktime_t begin = ktime_get();
	int err;

	if (count < 1 || count > 1000)
		return -EINVAL;
	if (waits)
		funcs[count++] = wait_func;
	funcs[count] = (struct klp_func) { };
	err = klp_enable_patch(&patch);
	enable_us = ktime_us_delta(ktime_get(), begin);
	return err;
}

static void __exit patch_exit(void)
{
}

module_init(patch_init);
module_exit(patch_exit);
MODULE_DESCRIPTION("Replaces up to a thousand functions");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
