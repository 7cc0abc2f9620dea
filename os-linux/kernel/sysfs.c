// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * /sys/kernel/livepatch: directories and attributes, in the kobjects that struct klp_patch and its
 * parts bring along. What the attributes show and do is the engine's.
 */

#include <linux/completion.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>
#include "shims.h"

static struct kobject *klp_root;

static struct klp_patch *patch_of(struct kobject *kobj)
{
	return container_of(kobj, struct klp_patch, kobj);
}

static ssize_t show(char *page, int value)
{
	return value < 0 ? value : sysfs_emit(page, "%d\n", value);
}

static ssize_t enabled_show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	return show(page, klp_engine_is_enabled(patch_of(kobj)));
}

static ssize_t enabled_store(struct kobject *kobj, struct kobj_attribute *attr, const char *text, size_t count)
{
	bool on;
	int ret = kstrtobool(text, &on);

	if (!ret)
		ret = klp_engine_set_enabled(patch_of(kobj), on);
	return ret ? ret : count;
}

static ssize_t transition_show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	return show(page, klp_engine_in_transition(patch_of(kobj)));
}

static ssize_t replace_show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	return show(page, patch_of(kobj)->replace);
}

static ssize_t stack_order_show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	return show(page, klp_engine_stack_order(patch_of(kobj)));
}

static ssize_t blockers_show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	return klp_engine_blockers(patch_of(kobj), page, PAGE_SIZE);
}

static ssize_t store_one(struct klp_patch *patch, const char *text, size_t count, int (*act)(struct klp_patch *))
{
	bool on;
	int ret = kstrtobool(text, &on);

	if (!ret && on)
		ret = act(patch);
	return ret ? ret : count;
}

static ssize_t force_store(struct kobject *kobj, struct kobj_attribute *attr, const char *text, size_t count)
{
	return store_one(patch_of(kobj), text, count, klp_engine_force);
}

static ssize_t signal_store(struct kobject *kobj, struct kobj_attribute *attr, const char *text, size_t count)
{
	return store_one(patch_of(kobj), text, count, klp_engine_signal);
}

static struct kobj_attribute enabled_attr = __ATTR_RW(enabled);
static struct kobj_attribute transition_attr = __ATTR_RO(transition);
static struct kobj_attribute replace_attr = __ATTR_RO(replace);
static struct kobj_attribute stack_order_attr = __ATTR_RO(stack_order);
/* Other tasks' stacks: for root alone, as in /proc. */
static struct kobj_attribute blockers_attr = __ATTR_RO_MODE(blockers, 0400);
static struct kobj_attribute force_attr = __ATTR_WO(force);
static struct kobj_attribute signal_attr = __ATTR_WO(signal);

static struct attribute *klp_patch_attrs[] = {
	&enabled_attr.attr, &transition_attr.attr, &replace_attr.attr, &stack_order_attr.attr,
	&blockers_attr.attr, &force_attr.attr, &signal_attr.attr, NULL,
};
ATTRIBUTE_GROUPS(klp_patch);

static ssize_t patched_show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	struct klp_object *object = container_of(kobj, struct klp_object, kobj);

	return show(page, klp_engine_object_patched(patch_of(kobj->parent), object));
}

static struct kobj_attribute patched_attr = __ATTR_RO(patched);
static struct attribute *klp_object_attrs[] = { &patched_attr.attr, NULL };
ATTRIBUTE_GROUPS(klp_object);

static void patch_release(struct kobject *kobj)
{
	complete(&patch_of(kobj)->finish);
}

/*
 * Objects and functions lie in the patch's module, which stays until its own kobject is released:
 * their parent's parent.
 */
static void part_release(struct kobject *kobj)
{
}

static const struct kobj_type patch_type = {
	.release = patch_release, .sysfs_ops = &kobj_sysfs_ops, .default_groups = klp_patch_groups,
};
static const struct kobj_type object_type = {
	.release = part_release, .sysfs_ops = &kobj_sysfs_ops, .default_groups = klp_object_groups,
};
static const struct kobj_type func_type = {
	.release = part_release, .sysfs_ops = &kobj_sysfs_ops,
};

static void free_work(struct work_struct *work)
{
	struct klp_patch *patch = container_of(work, struct klp_patch, free_work);
	struct module *module = patch->forced ? NULL : patch->mod;

	klp_host_sysfs_remove(patch);
	module_put(module);
}

static int add_object(struct klp_patch *patch, struct klp_object *object)
{
	struct klp_func *func;
	int ret = kobject_add(&object->kobj, &patch->kobj, "%s", object->name ? object->name : "vmlinux");

	klp_for_each_func_static(object, func) {
		if (!ret)
			ret = kobject_add(&func->kobj, &object->kobj, "%s,%lu", func->old_name,
					  func->old_sympos ? func->old_sympos : 1);
	}
	return ret;
}

/* Whether it succeeds or not, klp_host_sysfs_remove() has to follow. */
int klp_host_sysfs_add(struct klp_patch *patch)
{
	struct klp_object *object;
	struct klp_func *func;
	int ret;

	init_completion(&patch->finish);
	INIT_WORK(&patch->free_work, free_work);
	patch->forced = false;
	kobject_init(&patch->kobj, &patch_type);
	klp_for_each_object_static(patch, object) {
		kobject_init(&object->kobj, &object_type);
		klp_for_each_func_static(object, func)
			kobject_init(&func->kobj, &func_type);
	}

	ret = kobject_add(&patch->kobj, klp_root, "%s", patch->mod->name);
	klp_for_each_object_static(patch, object) {
		if (!ret)
			ret = add_object(patch, object);
	}
	return ret;
}

/* Waits for those who have attributes open: no lock of ours may be held. */
void klp_host_sysfs_remove(struct klp_patch *patch)
{
	struct klp_object *object;
	struct klp_func *func;

	klp_for_each_object_static(patch, object) {
		klp_for_each_func_static(object, func)
			kobject_put(&func->kobj);
		kobject_put(&object->kobj);
	}
	kobject_put(&patch->kobj);
	wait_for_completion(&patch->finish);
}

/*
 * Gives a patch back to its module, once its attributes are closed: one of them may be what its end
 * came from.
 */
void klp_host_free_later(struct klp_patch *patch)
{
	schedule_work(&patch->free_work);
}

static void poll_work(struct work_struct *work)
{
	klp_engine_poll();
}

static DECLARE_DELAYED_WORK(klp_poll_work, poll_work);

void klp_host_poll_later(unsigned int ms)
{
	schedule_delayed_work(&klp_poll_work, ms < 1000 ? msecs_to_jiffies(ms) : round_jiffies_relative(HZ));
}

static int __init klp_init(void)
{
	klp_root = kobject_create_and_add("livepatch", kernel_kobj);
	return klp_root ? klp_engine_init() : -ENOMEM;
}
module_init(klp_init);
