// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Kernel macros and inline functions, as functions that Rust can call. No decision is made here.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/ftrace.h>
#include <linux/llist.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/stacktrace.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include "shims.h"

/* ---- log ---- */

/* Here, so that dynamic debug finds the debug lines in a file of kernel/livepatch/. */
void klp_host_log(int level, const void *args)
{
	switch (level) {
	case 0:
		pr_debug("%pA\n", args);
		break;
	case 1:
		pr_notice("%pA\n", args);
		break;
	case 2:
		pr_warn("%pA\n", args);
		break;
	default:
		pr_err("%pA\n", args);
	}
}

/*
 * Dynamic debug knows these lines by the name of the function that they come from: scripts turn
 * them off by it.
 */
void klp_try_switch_task(const void *args)
{
	pr_debug("%pA\n", args);
}

/* Addresses of objects are hashed as all pointers in the log. `err` is 0 for a duplicate. */
void klp_host_shadow_refused(void *obj, unsigned long id, int err)
{
	if (err)
		pr_err("Failed to construct shadow variable <%p, %lx> (%d)\n", obj, id, err);
	else
		WARN(1, "Duplicate shadow variable <%p, %lx>\n", obj, id);
}

/* ---- locks ---- */

static DEFINE_MUTEX(klp_patches_mutex);
static DEFINE_MUTEX(klp_engine_mutex);
static DEFINE_MUTEX(klp_sites_mutex);

static struct mutex *const klp_mutexes[KLP_MUTEX_COUNT] = {
	[KLP_MUTEX_PATCHES] = &klp_patches_mutex,
	[KLP_MUTEX_ENGINE] = &klp_engine_mutex,
	[KLP_MUTEX_SITES] = &klp_sites_mutex,
};

/*
 * Who holds each. Nobody but the holder itself writes the holder, so each task knows whether that
 * is the task.
 */
static struct task_struct *klp_holders[KLP_MUTEX_COUNT];

void klp_host_mutex_lock(unsigned int which)
{
	mutex_lock(klp_mutexes[which]);
	WRITE_ONCE(klp_holders[which], current);
}

bool klp_host_mutex_trylock(unsigned int which)
{
	if (!mutex_trylock(klp_mutexes[which]))
		return false;
	WRITE_ONCE(klp_holders[which], current);
	return true;
}

void klp_host_mutex_unlock(unsigned int which)
{
	WRITE_ONCE(klp_holders[which], NULL);
	mutex_unlock(klp_mutexes[which]);
}

bool klp_host_mutex_is_mine(unsigned int which)
{
	return READ_ONCE(klp_holders[which]) == current;
}

static DEFINE_SPINLOCK(klp_shadow_spinlock);
/* Written and read by the holder of the lock. */
static unsigned long klp_shadow_irq_flags;

void klp_host_shadow_lock(void)
{
	unsigned long flags;

	spin_lock_irqsave(&klp_shadow_spinlock, flags);
	klp_shadow_irq_flags = flags;
}

bool klp_host_shadow_trylock(void)
{
	unsigned long flags;

	if (!spin_trylock_irqsave(&klp_shadow_spinlock, flags))
		return false;
	klp_shadow_irq_flags = flags;
	return true;
}

void klp_host_shadow_unlock(void)
{
	unsigned long flags = klp_shadow_irq_flags;

	spin_unlock_irqrestore(&klp_shadow_spinlock, flags);
}

static void klp_tidy_shadows(struct work_struct *work)
{
	klp_engine_tidy_shadows();
}

static DECLARE_DELAYED_WORK(klp_shadow_work, klp_tidy_shadows);

/*
 * Not for each variable at once: there may be no memory, or more tables to come that are grown out
 * of.
 */
void klp_host_tidy_shadows_later(void)
{
	schedule_delayed_work(&klp_shadow_work, HZ / 10);
}

/* ---- memory ---- */

/*
 * The most that is allocated for somebody who may not sleep. Above that order the page allocator
 * makes no effort; and whoever asks for so much fills it, too, with interrupts off. What grows (the
 * tables of shadow variables) is grown by a later caller.
 */
#define KLP_ATOMIC_MAX (PAGE_SIZE << PAGE_ALLOC_COSTLY_ORDER)

/* The size is a multiple of the alignment that is needed, so slab memory has that alignment. */
void *klp_host_alloc(size_t size, bool zero)
{
	bool atomic = irqs_disabled() || in_atomic();
	gfp_t gfp = atomic ? GFP_ATOMIC : GFP_KERNEL;

	if (atomic && size > KLP_ATOMIC_MAX)
		return NULL;
	return kvmalloc(size, gfp | __GFP_NOWARN | (zero ? __GFP_ZERO : 0));
}

void klp_host_free(void *memory)
{
	if (!is_vmalloc_addr(memory))
		kfree(memory);
	else if (irqs_disabled() || in_atomic())
		vfree_atomic(memory);
	else
		vfree(memory);
}

unsigned long klp_host_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void klp_host_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

bool klp_host_may_sleep(gfp_t gfp)
{
	return gfpflags_allow_blocking(gfp);
}

/* ---- tasks ---- */

void klp_host_each_task(void (*visit)(struct task_struct *task, void *arg), void *arg)
{
	struct task_struct *g, *task;

	read_lock(&tasklist_lock);
	for_each_process_thread(g, task)
		visit(task, arg);
	read_unlock(&tasklist_lock);
}

void klp_host_each_idle(void (*visit)(struct task_struct *task, bool online, void *arg), void *arg)
{
	int cpu;

	cpus_read_lock();
	for_each_possible_cpu(cpu)
		visit(idle_task(cpu), cpu_online(cpu), arg);
	cpus_read_unlock();
}

/* Idle tasks have no number of their own: theirs is that of their CPU, above all process ids. */
#define KLP_IDLE (1ULL << 32)

u64 klp_host_task_id(struct task_struct *task)
{
	return is_idle_task(task) ? KLP_IDLE | task_cpu(task) : task_pid_nr(task);
}

struct task_struct *klp_host_find_task(u64 id)
{
	struct task_struct *task;

	if (id & KLP_IDLE)
		return get_task_struct(idle_task((int)id));
	rcu_read_lock();
	task = find_task_by_pid_ns((pid_t)id, &init_pid_ns);
	if (task)
		get_task_struct(task);
	rcu_read_unlock();
	return task;
}

void klp_host_put_task(struct task_struct *task)
{
	put_task_struct(task);
}

struct task_struct *notrace klp_host_current(void)
{
	return current;
}

bool klp_host_task_pending(struct task_struct *task)
{
	return klp_patch_pending(task);
}

void klp_host_set_pending(struct task_struct *task, bool pending)
{
	if (pending)
		set_tsk_thread_flag(task, TIF_PATCH_PENDING);
	else
		clear_tsk_thread_flag(task, TIF_PATCH_PENDING);
}

bool klp_host_take_pending(struct task_struct *task)
{
	return test_and_clear_tsk_thread_flag(task, TIF_PATCH_PENDING);
}

int klp_host_call_stopped(struct task_struct *task, int (*call)(struct task_struct *task, void *arg), void *arg)
{
	int ret;

	if (task != current)
		return task_call_func(task, call, arg);
	preempt_disable();
	ret = call(task, arg);
	preempt_enable();
	return ret;
}

bool klp_host_task_runs(struct task_struct *task)
{
	return task_curr(task) && task != current;
}

void klp_host_kick(struct task_struct *task)
{
	if (is_idle_task(task))
		wake_up_if_idle(task_cpu(task));
	else if (task->flags & PF_KTHREAD)
		wake_up_state(task, TASK_INTERRUPTIBLE);
	else
		set_notify_signal(task);
}

void klp_host_kick_idle(struct task_struct *task)
{
	if (is_idle_task(task))
		wake_up_if_idle(task_cpu(task));
}

void notrace klp_host_preempt_disable(void)
{
	preempt_disable_notrace();
}

void notrace klp_host_preempt_enable(void)
{
	preempt_enable_notrace();
}

#if defined(CONFIG_PREEMPT_DYNAMIC) && defined(CONFIG_HAVE_PREEMPT_DYNAMIC_CALL)

void klp_host_watch_resched(bool on)
{
	if (on)
		sched_dynamic_klp_enable();
	else
		sched_dynamic_klp_disable();
}

#else

DEFINE_STATIC_KEY_FALSE(klp_sched_try_switch_key);
EXPORT_SYMBOL(klp_sched_try_switch_key);

void klp_host_watch_resched(bool on)
{
	if (on)
		static_branch_enable(&klp_sched_try_switch_key);
	else
		static_branch_disable(&klp_sched_try_switch_key);
}

#endif

/* ---- stacks ---- */

/* As many frames as klp_core visits; a deeper stack is not reliable. */
#define KLP_FRAMES 100
static DEFINE_PER_CPU(unsigned long[KLP_FRAMES], klp_frames);

bool klp_host_reliable_stacks(void)
{
	return klp_have_reliable_stack();
}

/* The frames stay until the caller lets itself be preempted. */
int klp_host_walk(struct task_struct *task, const unsigned long **frames)
{
#ifdef CONFIG_STACKTRACE
	unsigned long *entries = this_cpu_ptr(klp_frames);

	lockdep_assert_preemption_disabled();
	*frames = entries;
	return stack_trace_save_tsk_reliable(task, entries, KLP_FRAMES);
#else
	return -ENOSYS;
#endif
}

/* ---- entry sites ---- */

/*
 * For both ways from a site to the engine: entry.S, and the one below. Nobody is in here any more
 * when klp_host_synchronize() returns.
 */
unsigned long notrace klp_host_select(unsigned long behind)
{
	unsigned long target;

	preempt_disable_notrace();
	target = klp_engine_select(behind);
	preempt_enable_notrace();
	return target;
}

/* For sites that others trace, too. */
static void notrace klp_shared_site(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
				    struct ftrace_regs *fregs)
{
	ftrace_regs_set_instruction_pointer(fregs, klp_host_select(ip + MCOUNT_INSN_SIZE));
}

/* One for all sites. A site that nobody else traces calls the stub itself. */
static struct ftrace_ops klp_ops = {
	.func = klp_shared_site,
	.trampoline = (unsigned long)klp_entry_stub,
	.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT,
};

/* How many sites `klp_ops` has. Under the mutex of the sites. */
static unsigned int klp_routed;

/*
 * Adds sites, or removes some that are there: all or none. An ops without sites would mean all
 * functions there are, so it is registered only while it has some.
 */
int klp_host_route(unsigned long *sites, unsigned int count, bool remove)
{
	int ret;

	if (remove && klp_routed == count) {
		ret = unregister_ftrace_function(&klp_ops);
		if (ret)
			return ret;
		ret = ftrace_set_filter_ips(&klp_ops, sites, count, 1, 0);
		if (ret) {
			WARN_ON(register_ftrace_function(&klp_ops));
			return ret;
		}
		klp_routed = 0;
		return 0;
	}
	ret = ftrace_set_filter_ips(&klp_ops, sites, count, remove, 0);
	if (ret)
		return ret;
	if (!remove && !klp_routed) {
		ret = register_ftrace_function(&klp_ops);
		if (ret) {
			ftrace_set_filter_ips(&klp_ops, sites, count, 1, 0);
			return ret;
		}
	}
	if (remove)
		klp_routed -= count;
	else
		klp_routed += count;
	return 0;
}

static void klp_nothing(struct work_struct *work)
{
}

/* Handlers run where RCU is not watching, too: so each CPU has to schedule once. */
void klp_host_synchronize(void)
{
	schedule_on_each_cpu(klp_nothing);
}

/*
 * The same for tasks that were preempted, too: every one has waited for something, or was in user
 * space.
 */
void klp_host_synchronize_tasks(void)
{
	klp_host_synchronize();
	synchronize_rcu_tasks();
}

/* Tables that were grown out of, linked by their second words. */
static LLIST_HEAD(klp_retired);

static void klp_free_retired(struct work_struct *work)
{
	struct llist_node *node = llist_del_all(&klp_retired), *next;

	/*
	 * For those who read with preemption off or where RCU is not watching, and for those who were
	 * preempted in the stub.
	 */
	klp_host_synchronize_tasks();
	for (; node; node = next) {
		next = node->next;
		kvfree((u64 *)node - 1);
	}
}

static DECLARE_WORK(klp_retire_work, klp_free_retired);

/* Frees a table of sites when nobody can be reading it any more. */
void klp_host_retire(void *table)
{
	llist_add((struct llist_node *)((u64 *)table + 1), &klp_retired);
	schedule_work(&klp_retire_work);
}

/* ---- modules ---- */

/*
 * The module of that name if the loader has shown it to us: klp_module_coming() was,
 * klp_module_going() was not called.
 */
struct module *klp_host_live_module(const char *name)
{
	struct module *mod;

	rcu_read_lock_sched();
	mod = find_module(name);
	if (mod && !mod->klp_alive)
		mod = NULL;
	rcu_read_unlock_sched();
	return mod;
}

struct module *klp_host_module(const char *name)
{
	struct module *mod;

	rcu_read_lock_sched();
	mod = find_module(name);
	rcu_read_unlock_sched();
	return mod;
}

/* ---- what modules use; defined in Rust ---- */

EXPORT_SYMBOL_GPL(klp_enable_patch);
EXPORT_SYMBOL_GPL(klp_get_state);
EXPORT_SYMBOL_GPL(klp_get_prev_state);
EXPORT_SYMBOL_GPL(klp_shadow_get);
EXPORT_SYMBOL_GPL(klp_shadow_alloc);
EXPORT_SYMBOL_GPL(klp_shadow_get_or_alloc);
EXPORT_SYMBOL_GPL(klp_shadow_free);
EXPORT_SYMBOL_GPL(klp_shadow_free_all);
EXPORT_SYMBOL(__klp_sched_try_switch);
