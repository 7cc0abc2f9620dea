// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/* Kernel threads that sleep until the module goes. */
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>

static unsigned int count = 2000;
module_param(count, uint, 0444);
MODULE_PARM_DESC(count, "How many threads");

static struct task_struct **threads;

static int sleeper(void *unused)
{
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

static void stop(unsigned int started)
{
	while (started--)
		kthread_stop(threads[started]);
	kvfree(threads);
}

static int __init threads_init(void)
{
	unsigned int i;

	threads = kvcalloc(count, sizeof(*threads), GFP_KERNEL);
	if (!threads)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		threads[i] = kthread_run(sleeper, NULL, "klp_sleeper/%u", i);
		if (IS_ERR(threads[i])) {
			int err = PTR_ERR(threads[i]);

			stop(i);
			return err;
		}
	}
	return 0;
}

static void __exit threads_exit(void)
{
	stop(count);
}

module_init(threads_init);
module_exit(threads_exit);
MODULE_DESCRIPTION("Sleeping kernel threads");
MODULE_LICENSE("Dual MIT/GPL");
