// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Replaces the first `count` functions of klp_bench_target. `enable_us` tells how long
 * klp_enable_patch() took.
 */
#include <linux/ktime.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include "klp_bench.h"

static unsigned int count = 1000;
module_param(count, uint, 0444);
MODULE_PARM_DESC(count, "How many functions are replaced, 1 to 1000");

static unsigned long enable_us;
module_param(enable_us, ulong, 0444);
MODULE_PARM_DESC(enable_us, "Microseconds that klp_enable_patch() took");

#define REPLACEMENT(n) static noinline __used void new_fn_##n(void) { asm volatile("" ::: "memory"); }
EACH(REPLACEMENT)

#define FUNC(n) { .old_name = "bench_fn_" #n, .new_func = new_fn_##n },
static struct klp_func funcs[] = { EACH(FUNC) { } };

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
