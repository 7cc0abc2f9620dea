// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Shadow variables in use: one thread makes some that stay and, by the thousand, some that it frees
 * again; others, and a timer, look up those that stay while their table grows. `wrong` counts
 * answers that were not what they should be.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>

#define READERS 2
/* The id of the variables that stay, and how many there are in the end. */
#define ID 1000
#define STAY 20000
#define STAY_EACH_ROUND 200
/* Those that go have the next ids. */
#define GO_IDS 8
#define GO 2000

static unsigned long looked_up, wrong;
module_param(looked_up, ulong, 0444);
module_param(wrong, ulong, 0444);
MODULE_PARM_DESC(looked_up, "How often a variable that stays was looked up");
MODULE_PARM_DESC(wrong, "How many answers were not what they should be");

struct thing { char bytes[64]; };

static struct thing *stay, *go;
/* So many of the things in `stay` have their variables. */
static unsigned int made;
static struct task_struct *readers[READERS], *writer;
static struct hrtimer timer;
static unsigned int destroyed;

static void check(bool right)
{
	if (!right)
		WRITE_ONCE(wrong, wrong + 1);
}

/* Variables of all the sizes that are stored differently, each with its number at the begin. */
static size_t size_of(unsigned int number)
{
	static const size_t sizes[] = { 4, 8, 12, 16, 24, 32, 40, 100 };

	return sizes[number % ARRAY_SIZE(sizes)];
}

static int construct(void *obj, void *data, void *number)
{
	*(u32 *)data = *(u32 *)number;
	return 0;
}

static void destroy(void *obj, void *data)
{
	check(*(u32 *)data == (struct thing *)obj - go);
	destroyed++;
}

static void make(struct thing *things, unsigned int number, unsigned int of)
{
	/* Some by callers who may sleep, more by others. */
	gfp_t gfp = number % 4 ? GFP_ATOMIC : GFP_KERNEL;
	u32 *data = klp_shadow_alloc(&things[number], of, size_of(number), gfp, construct, &number);

	check(data && *data == number && klp_shadow_get(&things[number], of) == data);
}

static void look_up(unsigned int number)
{
	u32 *data = klp_shadow_get(&stay[number], ID);

	check(data && *data == number);
	/* Those may be there or not, and must not be looked at. */
	klp_shadow_get(&go[number % GO], ID + 1 + number % GO_IDS);
	WRITE_ONCE(looked_up, looked_up + 1);
}

/* In an interrupt. */
static enum hrtimer_restart ring(struct hrtimer *timer)
{
	static unsigned int number;
	unsigned int count = smp_load_acquire(&made);

	if (count)
		look_up(number++ % count);
	hrtimer_forward_now(timer, ns_to_ktime(500000));
	return HRTIMER_RESTART;
}

static int read(void *step)
{
	unsigned int number = 0;

	while (!kthread_should_stop()) {
		unsigned int count = smp_load_acquire(&made), i;

		for (i = 0; count && i < 100; i++) {
			number = (number + (long)step) % count;
			look_up(number);
		}
		usleep_range(1000, 2000);
	}
	return 0;
}

static int write(void *unused)
{
	unsigned int round, i;

	for (round = 0; !kthread_should_stop(); round++) {
		unsigned int of = ID + 1 + round % GO_IDS;

		for (i = 0; i < STAY_EACH_ROUND && made < STAY; i++) {
			make(stay, made, ID);
			smp_store_release(&made, made + 1);
		}
		for (i = 0; i < GO; i++)
			make(go, i, of);
		cond_resched();
		destroyed = 0;
		for (i = 0; i < GO; i += 2)
			klp_shadow_free(&go[i], of, destroy);
		check(destroyed == GO / 2);
		klp_shadow_free_all(of, destroy);
		check(destroyed == GO);
		for (i = 0; i < GO; i++)
			check(!klp_shadow_get(&go[i], of));
		msleep(20);
	}
	return 0;
}

static void stop(void)
{
	unsigned int i;

	if (!IS_ERR_OR_NULL(writer))
		kthread_stop(writer);
	for (i = 0; i < READERS; i++)
		if (!IS_ERR_OR_NULL(readers[i]))
			kthread_stop(readers[i]);
	hrtimer_cancel(&timer);
	klp_shadow_free_all(ID, NULL);
	kvfree(stay);
	kvfree(go);
}

static int __init shadow_init(void)
{
	unsigned int i;
	int err = -ENOMEM;

	hrtimer_init(&timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	timer.function = ring;
	stay = kvcalloc(STAY, sizeof(*stay), GFP_KERNEL);
	go = kvcalloc(GO, sizeof(*go), GFP_KERNEL);
	if (!stay || !go)
		goto failed;
	for (i = 0; i < READERS; i++) {
		readers[i] = kthread_run(read, (void *)(i ? 48271L : 1L), "klp_shadow/%u", i);
		err = PTR_ERR_OR_ZERO(readers[i]);
		if (err)
			goto failed;
	}
	writer = kthread_run(write, NULL, "klp_shadow");
	err = PTR_ERR_OR_ZERO(writer);
	if (err)
		goto failed;
	hrtimer_start(&timer, ns_to_ktime(500000), HRTIMER_MODE_REL);
	return 0;
failed:
	stop();
	return err;
}

static void __exit shadow_exit(void)
{
	stop();
}

module_init(shadow_init);
module_exit(shadow_exit);
MODULE_DESCRIPTION("Shadow variables in use");
MODULE_LICENSE("Dual MIT/GPL");
