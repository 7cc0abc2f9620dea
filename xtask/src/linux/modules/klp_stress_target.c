// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Kernel threads that are inside of patched functions nearly all the time: two compute, two sleep
 * there. Every call passes a pair of functions, first and second, that a patch replaces together.
 * `mixes` counts calls that met one of them old and the other one new although the thread was not
 * to be switched in between.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>

#define THREADS 4

static struct task_struct *threads[THREADS];
static unsigned long calls, mixes;
module_param(calls, ulong, 0444);
module_param(mixes, ulong, 0444);
MODULE_PARM_DESC(calls, "How many calls returned");
MODULE_PARM_DESC(mixes, "How many of them saw a mix of old and new");

/* Both say which version they are: 0 is the original. */
static noinline __used int stress_second(void)
{
	asm volatile("" ::: "memory");
	return 0;
}

static noinline __used int stress_first(int sleeps, int (*second)(void))
{
	if (sleeps)
		msleep(1);
	else
		cond_resched();
	/* This frame is the original's: while it is there, no thread may reach a new `stress_second`. */
	return second() == 0 ? 0 : -1;
}

static int worker(void *sleeps)
{
	while (!kthread_should_stop()) {
		if (stress_first(sleeps != NULL, stress_second) < 0)
			WRITE_ONCE(mixes, mixes + 1);
		WRITE_ONCE(calls, calls + 1);
		cond_resched();
	}
	return 0;
}

static int __init target_init(void)
{
	int i;

	for (i = 0; i < THREADS; i++) {
		threads[i] = kthread_run(worker, (void *)(long)(i % 2), "klp_stress/%d", i);
		if (IS_ERR(threads[i])) {
			int err = PTR_ERR(threads[i]);

			while (i--)
				kthread_stop(threads[i]);
			return err;
		}
	}
	return 0;
}

static void __exit target_exit(void)
{
	int i;

	for (i = 0; i < THREADS; i++)
		kthread_stop(threads[i]);
}

module_init(target_init);
module_exit(target_exit);
MODULE_DESCRIPTION("Threads that live inside of patched functions");
MODULE_LICENSE("Dual MIT/GPL");
