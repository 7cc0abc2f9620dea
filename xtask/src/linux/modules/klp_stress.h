/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0 */
/*
 * The two patches of the stress: VERSION tells them apart, REPLACE makes one that takes the place
 * of all others.
 */
#include <linux/delay.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/sched.h>

static noinline asmlinkage long new_getpid(void)
{
	return task_tgid_vnr(current);
}

static noinline int new_second(void)
{
	asm volatile("" ::: "memory");
	return VERSION;
}

static noinline int new_first(int sleeps, int (*second)(void))
{
	if (sleeps)
		msleep(1);
	else
		cond_resched();
	return second() == VERSION ? VERSION : -1;
}

static noinline int new_one(void)
{
	return VERSION;
}

static struct klp_func vmlinux_funcs[] = {
	{ .old_name = "__x64_sys_getpid", .new_func = new_getpid },
	{ },
};

static struct klp_func target_funcs[] = {
	{ .old_name = "stress_first", .new_func = new_first },
	{ .old_name = "stress_second", .new_func = new_second },
	{ },
};

static struct klp_func visitor_funcs[] = {
	{ .old_name = "visitor_one", .new_func = new_one },
	{ .old_name = "visitor_two", .new_func = new_one },
	{ },
};

static struct klp_object objs[] = {
	{ .funcs = vmlinux_funcs },
	{ .name = "klp_stress_target", .funcs = target_funcs },
	{ .name = "klp_stress_visitor", .funcs = visitor_funcs },
	{ },
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
	.replace = REPLACE,
};

static int __init patch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit patch_exit(void)
{
}

module_init(patch_init);
module_exit(patch_exit);
MODULE_DESCRIPTION("A patch of the stress");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
