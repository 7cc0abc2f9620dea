// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Attaches a shadow variable to each of `count` objects, looks all of them up in an order that
 * jumps about in memory, does that again and reads their data, some times by turns, and frees them;
 * times are per variable.
 */
#include <linux/ktime.h>
#include <linux/livepatch.h>
#include <linux/limits.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>

#define ID 77
/* From one object to the next; a prime, so that all of them have their turn. */
#define STEP 48271
/* Lookups are timed as often; the best time counts, when nothing else runs beside the guest. */
#define TRIES 5

static unsigned int count = 100000;
module_param(count, uint, 0444);
MODULE_PARM_DESC(count, "How many variables");

static bool atomic;
module_param(atomic, bool, 0444);
MODULE_PARM_DESC(atomic, "Whether they are made by GFP_ATOMIC");

static unsigned long alloc_ps, get_ps = ULONG_MAX, read_ps = ULONG_MAX, free_ps;
module_param(alloc_ps, ulong, 0444);
module_param(get_ps, ulong, 0444);
module_param(read_ps, ulong, 0444);
module_param(free_ps, ulong, 0444);
MODULE_PARM_DESC(alloc_ps, "Picoseconds of klp_shadow_alloc() per variable");
MODULE_PARM_DESC(get_ps, "Picoseconds of klp_shadow_get() per variable");
MODULE_PARM_DESC(read_ps, "Picoseconds of klp_shadow_get() and a look at the data per variable");
MODULE_PARM_DESC(free_ps, "Picoseconds of klp_shadow_free_all() per variable");

/* Objects lie in memory as a slab of them would. */
struct thing { char bytes[64]; };

static unsigned long per_variable(u64 begin)
{
	return div_u64((ktime_get_ns() - begin) * 1000, count);
}

static unsigned int after(unsigned int at)
{
	at += STEP % count;
	return at < count ? at : at - count;
}

static int __init shadow_init(void)
{
	struct thing *things = kvcalloc(count, sizeof(*things), GFP_KERNEL);
	unsigned int try, i, at = 0, wrong = 0;
	u64 begin;

	if (!things)
		return -ENOMEM;
	begin = ktime_get_ns();
	for (i = 0; i < count; i++) {
		u32 *value = klp_shadow_alloc(&things[i], ID, sizeof(*value), atomic ? GFP_ATOMIC : GFP_KERNEL, NULL, NULL);

		if (value)
			*value = i;
		if (i % 1024 == 0)
			cond_resched();
	}
	alloc_ps = per_variable(begin);

	for (try = 0; try < TRIES; try++) {
		begin = ktime_get_ns();
		for (i = 0; i < count; i++) {
			wrong += !klp_shadow_get(&things[at], ID);
			at = after(at);
			if (i % 1024 == 0)
				cond_resched();
		}
		get_ps = min(get_ps, per_variable(begin));

		begin = ktime_get_ns();
		for (i = 0; i < count; i++) {
			u32 *value = klp_shadow_get(&things[at], ID);

			wrong += !value || *value != at;
			at = after(at);
			if (i % 1024 == 0)
				cond_resched();
		}
		read_ps = min(read_ps, per_variable(begin));
	}

	begin = ktime_get_ns();
	klp_shadow_free_all(ID, NULL);
	free_ps = per_variable(begin);

	for (i = 0; i < count; i += 1000)
		wrong += klp_shadow_get(&things[i], ID) != NULL;
	kvfree(things);
	if (wrong) {
		pr_err("%u shadow variables were not what they should be\n", wrong);
		return -EIO;
	}
	return 0;
}

static void __exit shadow_exit(void)
{
}

module_init(shadow_init);
module_exit(shadow_exit);
MODULE_DESCRIPTION("Times shadow variables");
MODULE_LICENSE("Dual MIT/GPL");
