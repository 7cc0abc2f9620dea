/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * For authors of patches in C: says which functions of a running system a patch replaces, and which
 * symbols of it the patch uses. Compile with -fPIC -ffunction-sections, then run klp-convert on the
 * object file.
 *
 *     #include <klp/patch.h>
 *
 *     KLP_PATCH("fix-answer");
 *
 *     // A function of the running system, local ones too: object, name, position (0: there is
 *     // only one of that name).
 *     extern int target_question(void) KLP_SYMBOL(vmlinux, question, 0);
 *
 *     static int fixed_answer(void) { return target_question() ? 42 : 0; }
 *
 *     KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(answer, fixed_answer));
 *
 * The object `vmlinux` is the base image: the kernel, or the executable of a process. A shared
 * object is named by its file name up to `.so`, with `_` for `.` and `-`.
 *
 * A patch may have functions called around the patching of an object, for what the new functions
 * need or leave behind:
 *
 *     static int prepare(struct klp_object *object) { return have_room() ? 0 : -ENOMEM; }
 *     static void clean_up(struct klp_object *object) { give_room_back(); }
 *
 *     KLP_REPLACE_WITH(base, KLP_VMLINUX,
 *                      KLP_CALLBACKS(.pre_patch = prepare, .post_unpatch = clean_up),
 *                      KLP_FUNC(answer, fixed_answer));
 *
 * It may take the place of the patches before it, and tell patches after it what its callbacks did
 * to the system:
 *
 *     KLP_REPLACES_ALL;
 *     KLP_STATE(1, 2);
 *
 * These two, and what callbacks learn of states, are for klp only: Linux's own engine does not read
 * them from a patch object.
 */
#ifndef KLP_PATCH_H
#define KLP_PATCH_H

#ifdef __cplusplus
#define KLP_BOOL_ bool
#else
#define KLP_BOOL_ _Bool
#endif

/*
 * What a patch object says of one function, one object: Linux's layouts, so that one file serves
 * every host.
 */
struct klp_func_ext {
	const char *old_name;
	void *new_func;
	unsigned long sympos;
};

/*
 * A change of the system that a patch makes with its callbacks; see KLP_STATE. It stays where it is
 * until the patch is removed.
 */
struct klp_state {
	const unsigned long id;
	const unsigned int version;
	void *data; /* the callbacks'; null at first */
};

/*
 * What a callback is told; for the time of the call. Linux's begins with the name, too, and goes on
 * in its own way.
 */
struct klp_object {
	const char *name; /* KLP_VMLINUX for the base image */
	/* The engine's: call the functions below. */
	struct klp_state *(*get_state)(struct klp_object *object, unsigned long id);
	struct klp_state *(*get_prev_state)(struct klp_object *object, unsigned long id);
};

/* State `id` of the patch whose callback was given `object`; null if it has none. */
static inline struct klp_state *klp_get_state(struct klp_object *object, unsigned long id)
{
	return object->get_state(object, id);
}

/*
 * State `id` of the newest patch that was enabled before this one and has it, which may be about to
 * be replaced by it; null if there is none. Its data is there for the patch to take over.
 */
static inline struct klp_state *klp_get_prev_state(struct klp_object *object, unsigned long id)
{
	return object->get_prev_state(object, id);
}

/*
 * What is called for one object, by the thread that brings the patch forward (`klp enable`,
 * `klp disable`, a poll), where it may sleep. Each may be left out. The engine refuses to be called
 * by them.
 */
struct klp_callbacks {
	/* Before it is patched. Not 0: it is not; a negative errno says why. */
	int (*pre_patch)(struct klp_object *object);
	/* When every task runs the new functions. */
	void (*post_patch)(struct klp_object *object);
	/*
	 * Before it is unpatched, when every task runs the new functions still. Not if the patching was
	 * given up halfway.
	 */
	void (*pre_unpatch)(struct klp_object *object);
	/* When no task runs the new functions any more; if pre_patch said 0. */
	void (*post_unpatch)(struct klp_object *object);
	KLP_BOOL_ post_unpatch_enabled; /* the engine's */
};

struct klp_object_ext {
	const char *name;
	struct klp_func_ext *funcs;
	struct klp_callbacks callbacks;
	unsigned int nr_funcs;
};

#define KLP_JOIN_(a, b) a##b
#define KLP_JOIN(a, b) KLP_JOIN_(a, b)

#define KLP_TEXT_(x) #x
#define KLP_TEXT(x) KLP_TEXT_(x)

/* What a patch says stays as it stands in its source; GCC would turn it round. */
#ifdef __has_attribute
#if __has_attribute(no_reorder)
#define KLP_IN_ORDER_ __attribute__((no_reorder))
#endif
#endif
#ifndef KLP_IN_ORDER_
#define KLP_IN_ORDER_
#endif

#define KLP_MODINFO_(id, text) \
	static KLP_IN_ORDER_ const char id[] __attribute__((used, aligned(1), section(".modinfo"))) = text

/* The patch's name. Once in a patch. */
#define KLP_PATCH(name) \
	KLP_MODINFO_(klp_modinfo_name, "name=" name); \
	KLP_MODINFO_(klp_modinfo_livepatch, "livepatch=Y")

/*
 * For people: what the patch is known by elsewhere, what it does, who made it. At most 512 bytes
 * each, without control characters. As often as there are such.
 */
#define KLP_LABEL(text) \
	KLP_MODINFO_(KLP_JOIN(klp_modinfo_label_, __COUNTER__), "klp_label=" text)
#define KLP_DESCRIPTION(text) \
	KLP_MODINFO_(KLP_JOIN(klp_modinfo_description_, __COUNTER__), "description=" text)
#define KLP_AUTHOR(text) \
	KLP_MODINFO_(KLP_JOIN(klp_modinfo_author_, __COUNTER__), "author=" text)

/* The patch takes the place of all enabled ones when it is enabled. */
#define KLP_REPLACES_ALL KLP_MODINFO_(klp_modinfo_replace, "klp_replace=all")

/*
 * The patch belongs to replace set `number`, below 2^32, and takes the place of the enabled ones of
 * that set. Patches of different sets must not share functions or states.
 */
#define KLP_REPLACE_SET(number) KLP_MODINFO_(klp_modinfo_replace, "klp_replace=set:" KLP_TEXT(number))

/*
 * The patch changes state `id` of the system, as `version` (below 2^32) does it. Both are plain
 * numbers, or macros that are: no suffix, no enumerator. As often as there are states. A patch that
 * knows a state only in a lower version than an enabled one, or that would replace a patch without
 * knowing all of its states, is refused.
 */
#define KLP_STATE(id, version) \
	KLP_MODINFO_(KLP_JOIN(klp_modinfo_state_, __COUNTER__), "klp_state=" KLP_TEXT(id) ":" KLP_TEXT(version))

/*
 * Behind a declaration: what is declared is a symbol of the running system. klp-convert turns the
 * `$` into the comma of .klp.sym.OBJECT.NAME,POSITION, which assemblers do not take in a name. In
 * quotes they take the `+` of KLP_SYMBOL(libstdc++, name, 0).
 */
#define KLP_SYMBOL(object, name, position) \
	__asm__("\".klp.sym." #object "." #name "$" #position "\"")

/* The base image, as the object of KLP_REPLACE. */
#define KLP_VMLINUX ((const char *)0)

/*
 * `replacement` replaces `old`, the only function of that name; or the one at `position`, counted
 * from 1.
 */
#define KLP_FUNC(old, replacement) KLP_FUNC_AT(old, 0, replacement)
#define KLP_FUNC_AT(old, position, replacement) { #old, (void *)(replacement), (position) }

/* Callbacks, each by its name: KLP_CALLBACKS(.pre_patch = f, .post_unpatch = g). */
#define KLP_CALLBACKS(...) { __VA_ARGS__ }

/* The functions replaced in one object; `id` is any C name, different for each. */
#define KLP_REPLACE(id, object, ...) KLP_REPLACE_WITH(id, object, KLP_CALLBACKS(), __VA_ARGS__)

/*
 * KLP_REPLACE with callbacks. Functions may be left out here: then there is nothing but the
 * callbacks.
 */
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
