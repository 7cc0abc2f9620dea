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
 */
#ifndef KLP_PATCH_H
#define KLP_PATCH_H

/* What a patch object says of one function, one object: Linux's layouts, so that one file serves every host. */
struct klp_func_ext {
	const char *old_name;
	void *new_func;
	unsigned long sympos;
};

struct klp_callbacks {
	int (*pre_patch)(void *object);
	void (*post_patch)(void *object);
	void (*pre_unpatch)(void *object);
	void (*post_unpatch)(void *object);
	_Bool post_unpatch_enabled;
};

struct klp_object_ext {
	const char *name;
	struct klp_func_ext *funcs;
	struct klp_callbacks callbacks;
	unsigned int nr_funcs;
};

#define KLP_JOIN_(a, b) a##b
#define KLP_JOIN(a, b) KLP_JOIN_(a, b)
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

/* The functions replaced in one object; `id` is any C name, different for each. */
#define KLP_REPLACE(id, object, ...) \
	static struct klp_func_ext KLP_JOIN(klp_funcs_, id)[] \
		__attribute__((used, aligned(8), section(".init.klp_funcs"))) = { __VA_ARGS__ }; \
	static struct klp_object_ext KLP_JOIN(klp_object_, id) \
		__attribute__((used, aligned(8), section(".init.klp_objects"))) = { \
			.name = (object), \
			.funcs = KLP_JOIN(klp_funcs_, id), \
			.nr_funcs = sizeof(KLP_JOIN(klp_funcs_, id)) / sizeof(struct klp_func_ext), \
		}

#endif
