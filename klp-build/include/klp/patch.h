/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * For authors of patches in C: says which functions of a running system a patch replaces, and which symbols of it the patch
 * uses. Compile with -fPIC -ffunction-sections, then run klp-convert on the object file.
 *
 *     #include <klp/patch.h>
 *
 *     KLP_PATCH("fix-answer");
 *
 *     // A function of the running system, local ones too: object, name, position (0: there is only one of that name).
 *     extern int target_question(void) KLP_SYMBOL(vmlinux, question, 0);
 *
 *     static int fixed_answer(void) { return target_question() ? 42 : 0; }
 *
 *     KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(answer, fixed_answer));
 *
 * The object `vmlinux` is the base image: the kernel, or the executable of a process. A shared object is named by its file name
 * up to `.so`, with `_` for `.` and `-`.
 *
 * A patch may have functions called around the patching of an object, for what the new functions need or leave behind:
 *
 *     static int prepare(struct klp_object *object) { return have_room() ? 0 : -ENOMEM; }
 *     static void clean_up(struct klp_object *object) { give_room_back(); }
 *
 *     KLP_REPLACE_WITH(base, KLP_VMLINUX, KLP_CALLBACKS(.pre_patch = prepare, .post_unpatch = clean_up),
 *                      KLP_FUNC(answer, fixed_answer));
 */
#ifndef KLP_PATCH_H
#define KLP_PATCH_H

/* What a patch object says of one function, one object: Linux's layouts, so that one file serves every host. */
struct klp_func_ext {
	const char *old_name;
	void *new_func;
	unsigned long sympos;
};

/* What a callback is told; for the time of the call. Linux's begins like this, and its patches must not look further either. */
struct klp_object {
	const char *name; /* KLP_VMLINUX for the base image */
};

/*
 * What is called for one object, by the thread that brings the patch forward (`klp enable`, `klp disable`, a poll), where it may
 * sleep. Each may be left out. They must not call the engine, which waits for them.
 */
struct klp_callbacks {
	/* Before it is patched. Not 0: it is not; a negative errno says why. */
	int (*pre_patch)(struct klp_object *object);
	/* When every task runs the new functions. */
	void (*post_patch)(struct klp_object *object);
	/* Before it is unpatched, when every task runs the new functions still. Not if the patching was given up halfway. */
	void (*pre_unpatch)(struct klp_object *object);
	/* When no task runs the new functions any more; if pre_patch said 0. */
	void (*post_unpatch)(struct klp_object *object);
	_Bool post_unpatch_enabled; /* the engine's */
};

struct klp_object_ext {
	const char *name;
	struct klp_func_ext *funcs;
	struct klp_callbacks callbacks;
	unsigned int nr_funcs;
};

#define KLP_JOIN_(a, b) a##b
#define KLP_JOIN(a, b) KLP_JOIN_(a, b)

/* The objects of a patch are worked off as they stand in its source; GCC would turn them round. */
#ifdef __has_attribute
#if __has_attribute(no_reorder)
#define KLP_IN_ORDER_ __attribute__((no_reorder))
#endif
#endif
#ifndef KLP_IN_ORDER_
#define KLP_IN_ORDER_
#endif

#define KLP_MODINFO_(id, text) \
	static const char id[] __attribute__((used, aligned(1), section(".modinfo"))) = text

/* The patch's name. Once in a patch. */
#define KLP_PATCH(name) \
	KLP_MODINFO_(klp_modinfo_name, "name=" name); \
	KLP_MODINFO_(klp_modinfo_livepatch, "livepatch=Y")

/*
 * Behind a declaration: what is declared is a symbol of the running system. klp-convert turns the `$` into the comma of
 * .klp.sym.OBJECT.NAME,POSITION, which assemblers do not take in a name.
 */
#define KLP_SYMBOL(object, name, position) __asm__(".klp.sym." #object "." #name "$" #position)

/* The base image, as the object of KLP_REPLACE. */
#define KLP_VMLINUX ((const char *)0)

/* `replacement` replaces `old`, the only function of that name; or the one at `position`, counted from 1. */
#define KLP_FUNC(old, replacement) KLP_FUNC_AT(old, 0, replacement)
#define KLP_FUNC_AT(old, position, replacement) { #old, (void *)(replacement), (position) }

/* Callbacks, each by its name: KLP_CALLBACKS(.pre_patch = f, .post_unpatch = g). */
#define KLP_CALLBACKS(...) { __VA_ARGS__ }

/* The functions replaced in one object; `id` is any C name, different for each. */
#define KLP_REPLACE(id, object, ...) KLP_REPLACE_WITH(id, object, KLP_CALLBACKS(), __VA_ARGS__)

/* KLP_REPLACE with callbacks. Functions may be left out here: then there is nothing but the callbacks. */
#define KLP_REPLACE_WITH(id, object, with, ...) \
	static struct klp_func_ext KLP_JOIN(klp_funcs_, id)[] \
		__attribute__((used, aligned(8), section(".init.klp_funcs"))) = { __VA_ARGS__ }; \
	static KLP_IN_ORDER_ struct klp_object_ext KLP_JOIN(klp_object_, id) \
		__attribute__((used, aligned(8), section(".init.klp_objects"))) = { \
			.name = (object), \
			.funcs = KLP_JOIN(klp_funcs_, id), \
			.callbacks = with, \
			.nr_funcs = sizeof(KLP_JOIN(klp_funcs_, id)) / sizeof(struct klp_func_ext), \
		}

#endif
