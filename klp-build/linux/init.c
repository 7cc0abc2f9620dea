// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * What makes a kernel module of a patch that klp-build has made: tells the kernel's livepatch engine
 * which functions it replaces. Linked with the patch's object file by Kbuild.
 */
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/slab.h>

/* What is in .init.klp_funcs and .init.klp_objects (linux/livepatch_external.h of newer kernels). */
struct built_func {
	const char *old_name;
	void *new_func;
	unsigned long sympos;
};

struct built_object {
	const char *name;
	const struct built_func *funcs;
	struct klp_callbacks callbacks;
	unsigned int nr_funcs;
};

extern const struct built_object klp_built_objects[], klp_built_objects_end[];

static struct klp_patch patch = { .mod = THIS_MODULE };

static void free_objects(void)
{
	struct klp_object *object;

	for (object = patch.objs; object && (object->funcs || object->name); object++)
		kfree(object->funcs);
	kfree(patch.objs);
}

static int __init read_objects(void)
{
	size_t count = klp_built_objects_end - klp_built_objects;
	size_t i, j;

	patch.objs = kcalloc(count + 1, sizeof(*patch.objs), GFP_KERNEL);
	if (!patch.objs)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		const struct built_object *built = &klp_built_objects[i];
		struct klp_object *object = &patch.objs[i];
		struct klp_func *funcs;

		funcs = kcalloc(built->nr_funcs + 1, sizeof(*funcs), GFP_KERNEL);
		if (!funcs)
			return -ENOMEM;
		for (j = 0; j < built->nr_funcs; j++) {
			funcs[j].old_name = built->funcs[j].old_name;
			funcs[j].new_func = built->funcs[j].new_func;
			funcs[j].old_sympos = built->funcs[j].sympos;
		}
		object->name = built->name;
		object->funcs = funcs;
		object->callbacks = built->callbacks;
	}
	return 0;
}

static int __init patch_init(void)
{
	int error = read_objects();

	if (!error)
		error = klp_enable_patch(&patch);
	if (error)
		free_objects();
	return error;
}

static void __exit patch_exit(void)
{
	free_objects();
}

module_init(patch_init);
module_exit(patch_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
