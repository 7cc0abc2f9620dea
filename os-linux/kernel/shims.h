/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0 */
/*
 * What C and Rust call of each other. `klp_host_*` is written in C: kernel macros and inline
 * functions, as functions. `klp_engine_*` is written in Rust.
 */
#ifndef KLP_SHIMS_H
#define KLP_SHIMS_H

#include <linux/livepatch.h>
#include <linux/sched.h>

/* log.rs: levels are those of klp_core's `event::Level`; `args` is a core::fmt::Arguments. */
void klp_host_log(int level, const void *args);
void klp_try_switch_task(const void *args);
void klp_host_shadow_refused(void *obj, unsigned long id, int err);

/* lock.rs */
enum klp_host_mutex { KLP_MUTEX_PATCHES, KLP_MUTEX_ENGINE, KLP_MUTEX_SITES, KLP_MUTEX_COUNT };
void klp_host_mutex_lock(unsigned int which);
bool klp_host_mutex_trylock(unsigned int which);
void klp_host_mutex_unlock(unsigned int which);
bool klp_host_mutex_is_mine(unsigned int which);
void klp_host_shadow_lock(void);
bool klp_host_shadow_trylock(void);
void klp_host_shadow_unlock(void);

/* shadow.rs */
void klp_host_tidy_shadows_later(void);
void klp_engine_tidy_shadows(void);

/* memory.rs */
void *klp_host_alloc(size_t size, bool zero);
void klp_host_free(void *memory);
unsigned long klp_host_irq_save(void);
void klp_host_irq_restore(unsigned long flags);
bool klp_host_may_sleep(gfp_t gfp);

/* tasks.rs */
void klp_host_each_task(void (*visit)(struct task_struct *task, void *arg), void *arg);
void klp_host_each_idle(void (*visit)(struct task_struct *task, bool online, void *arg), void *arg);
struct task_struct *klp_host_find_task(u64 id);
void klp_host_put_task(struct task_struct *task);
struct task_struct *klp_host_current(void);
u64 klp_host_task_id(struct task_struct *task);
bool klp_host_task_pending(struct task_struct *task);
void klp_host_set_pending(struct task_struct *task, bool pending);
bool klp_host_take_pending(struct task_struct *task);
int klp_host_call_stopped(struct task_struct *task, int (*call)(struct task_struct *task, void *arg), void *arg);
bool klp_host_task_runs(struct task_struct *task);
void klp_host_kick(struct task_struct *task);
void klp_host_kick_idle(struct task_struct *task);
void klp_host_preempt_disable(void);
void klp_host_preempt_enable(void);
void klp_host_watch_resched(bool on);

/* unwinder.rs */
bool klp_host_reliable_stacks(void);
int klp_host_walk(struct task_struct *task, const unsigned long **frames);

/* sites.rs, tracer.rs and entry.S */
void klp_host_retire(void *table);
int klp_host_route(unsigned long *sites, unsigned int count, bool remove);
void klp_host_synchronize(void);
void klp_host_synchronize_tasks(void);
unsigned long klp_engine_select(unsigned long behind);
unsigned long klp_host_select(unsigned long behind);
void klp_entry_stub(void);

/* patches.rs and sysfs.c */
int klp_host_sysfs_add(struct klp_patch *patch);
void klp_host_sysfs_remove(struct klp_patch *patch);
void klp_host_free_later(struct klp_patch *patch);
void klp_host_poll_later(unsigned int ms);
void klp_engine_poll(void);
int klp_engine_init(void);
int klp_engine_set_enabled(struct klp_patch *patch, bool on);
int klp_engine_force(struct klp_patch *patch);
int klp_engine_signal(struct klp_patch *patch);
int klp_engine_is_enabled(struct klp_patch *patch);
int klp_engine_in_transition(struct klp_patch *patch);
int klp_engine_stack_order(struct klp_patch *patch);
int klp_engine_object_patched(struct klp_patch *patch, struct klp_object *object);
ssize_t klp_engine_blockers(struct klp_patch *patch, char *page, size_t size);

/* symbols.rs */
struct module *klp_host_live_module(const char *name);
struct module *klp_host_module(const char *name);

#endif
