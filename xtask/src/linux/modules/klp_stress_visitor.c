// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * A patched module that comes and goes. It refuses to load if its init does not see one version of
 * two functions.
 */
#include <linux/module.h>

static noinline __used int visitor_one(void)
{
	asm volatile("" ::: "memory");
	return 0;
}

static noinline __used int visitor_two(void)
{
	asm volatile("" ::: "memory");
	return 0;
}

static int __init visitor_init(void)
{
	/* Nothing between the two calls can switch this task: it runs, and the kernel does not preempt. */
	return visitor_one() == visitor_two() ? 0 : -EIO;
}

static void __exit visitor_exit(void)
{
}

module_init(visitor_init);
module_exit(visitor_exit);
MODULE_DESCRIPTION("A patched module that comes and goes");
MODULE_LICENSE("Dual MIT/GPL");
