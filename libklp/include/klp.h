/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Livepatching for programs in C and C++: functions of this process are replaced while its threads
 * run, so that no thread ever sees half a patch. docs/embedding.md shows it at work.
 *
 *	klp_patch_t fix;
 *
 *	if (klp_init(NULL) || klp_load_file("fix.ko", &fix) || klp_enable(fix))
 *		fprintf(stderr, "%s\n", klp_last_error());
 *	else if (klp_wait(5000) == -ETIMEDOUT)
 *		...	the transition goes on: klp_poll, klp_blockers, klp_reverse
 *
 * Functions return 0, or a negative number of errno.h; then nothing has changed, and
 * klp_last_error() tells more. They may be called by every thread, but not by signal handlers, and
 * not by what the engine calls (callbacks of patches, klp_options.event).
 */
#ifndef KLP_H
#define KLP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Coroutines are made known, and variables attached to objects, by the functions in these. */
#include <klp/context.h>
#include <klp/shadow.h>

/*
 * The last error of the calling thread, in words, with names in it; "" if there was none. It stays
 * until the thread calls a function of this header that fails.
 */
const char *klp_last_error(void);

/*
 * The engine of the process.
 */

/* What becomes of coroutines that are not registered (docs/coroutines.md). */
enum {
	/* Where it is noticed that there are some, nothing is patched. */
	KLP_CONTEXTS_REFUSE = 0,
	/* There are none: all are registered, says whoever sets this. */
	KLP_CONTEXTS_REGISTERED = 1,
};

/* How the process wants its engine. What is 0 has its default. */
struct klp_options {
	size_t size;	 /* sizeof(struct klp_options) */
	int stop_signal; /* the real-time signal that stops threads; SIGRTMAX - 2 */
	int contexts;	 /* KLP_CONTEXTS_... */
	/* Takes the engine's log, a line at a time. Any thread may call it; it must not fork. */
	void (*event)(const char *line, void *data);
	void *data;
	int keep_removed; /* not 0: the memory of patches that are unloaded stays for ever */
	/*
	 * A folder with keys, NAME.pub (klp-build keygen). If there is one, no patch is loaded but
	 * those that were signed with one of them: -ENODATA, -ENOKEY, -EKEYREJECTED, -EBADMSG.
	 */
	const char *keys;
};

/*
 * Makes this process one that can be patched; nothing is patched yet. NULL: all defaults. -EEXIST
 * if it was done before. Every other function returns -ENXIO before that.
 */
int klp_init(const struct klp_options *options);

/*
 * Serves the engine on a Unix socket, from threads of its own, so that the command `klp` can be
 * used on this process; they also bring transitions on. NULL: at the default place, where `klp`
 * finds it. `where`, if not NULL, gets the socket's path; it has room for `size` bytes, at least
 * 108.
 */
int klp_serve(const char *path, char *where, size_t size);

/*
 * Patches.
 */

/* A patch that is loaded. 0 is none. */
typedef uint64_t klp_patch_t;

/*
 * Loads a patch object, which klp-convert has made; nothing is patched yet. It is code that this
 * process is going to run: a program must not load what it was given by somebody whom it would not
 * let run code.
 */
int klp_load_file(const char *path, klp_patch_t *patch);

/* The same, from memory. `name` is the patch's name if the object does not give one. */
int klp_load(const void *object, size_t size, const char *name, klp_patch_t *patch);

/*
 * Forgets a disabled patch. Its memory is freed as soon as no stack points into it; klp_free_removed
 * tries that again, as do klp_unload, klp_load and klp_wait.
 */
int klp_unload(klp_patch_t patch);

/* Says how many patches that were unloaded keep their memory, after it was tried to free it. */
int klp_free_removed(void);

/* The loaded patch called so. -ENOENT if there is none. */
int klp_find(const char *name, klp_patch_t *patch);

/*
 * Says all that speaks against enabling a patch: `each`, if not NULL, is called for everything that
 * is to be said. 0 if it can be enabled, 1 if it would be refused.
 */
enum klp_note {
	KLP_FINDING = 1,  /* it would be refused for this */
	KLP_WAITING = 2,  /* an object that is not loaded: it is checked when it comes */
	KLP_REPLACES = 3, /* an enabled patch that would be replaced */
};
int klp_check(klp_patch_t patch, void (*each)(enum klp_note note, const char *text, void *data),
	      void *data);

/* Start to enable, or disable, a patch, or `count` of them as one. Threads move one by one. */
int klp_enable(klp_patch_t patch);
int klp_enable_all(const klp_patch_t *patches, size_t count);
int klp_disable(klp_patch_t patch);
int klp_disable_all(const klp_patch_t *patches, size_t count);

/*
 * The transition, which enabling and disabling begin. There is one at a time. It is brought on by
 * klp_poll, klp_wait, or the threads of klp_serve.
 */

/* Brings it on; how many tasks it waits for. 0: none is under way. */
long klp_poll(void);

/* Polls until none is under way; -ETIMEDOUT if that takes longer. -1: without end. */
int klp_wait(long milliseconds);

/* Turns it round: a patch that was being enabled goes away again, and the other way about. */
int klp_reverse(klp_patch_t patch);

/* Makes the tasks that it waits for leave interruptible sleeps. */
int klp_kick(klp_patch_t patch);

/*
 * Ends it now, whatever threads are in the middle of: they may run any mixture of old and new
 * functions. Whether the patch bears that only its author knows.
 */
int klp_force(klp_patch_t patch);

/*
 * What is so. The functions below call `each` for each thing there is, until it returns something
 * else than 0, which they return then; it must not call the engine's functions. What it is given
 * is there for the time of the call.
 */

enum { KLP_PATCHING = 1, KLP_UNPATCHING = 2 };

struct klp_patch_status {
	klp_patch_t patch;
	const char *name;
	int enabled;	    /* it is, or will be when its transition ends */
	int transition;	    /* where it leads: KLP_PATCHING, KLP_UNPATCHING; 0: it is in none */
	size_t pending;	    /* tasks that its transition waits for */
	int forced;	    /* a forced transition pinned it */
	int replace;	    /* it takes the place of others */
	size_t stack_order; /* its place among the patches in force, from 1; 0: it is not in force */
};

/* Every patch: those in force first, in the order of enabling. */
int klp_status(int (*each)(const struct klp_patch_status *status, void *data), void *data);

/* The objects of a patch, and whether calls of their functions are redirected now. */
int klp_objects(klp_patch_t patch, int (*each)(const char *object, int patched, void *data),
		void *data);

/* A task that holds a transition back. */
struct klp_blocker {
	uint64_t task;		  /* the thread's id; or a context's */
	const char *name;	  /* its name */
	const char *why;	  /* who it is and why, in words */
	const char *const *stack; /* innermost function first */
	size_t depth;		  /* how many they are */
};
int klp_blockers(klp_patch_t patch, int (*each)(const struct klp_blocker *blocker, void *data),
		 void *data);

/* How many threads were switched, and by which way. */
struct klp_ways {
	uint64_t in_system_call; /* while blocked in a system call */
	uint64_t running;	 /* while running */
	uint64_t entering;	 /* by themselves, in a call of an affected function */
	uint64_t suspended;	 /* contexts, while they were suspended */
	uint64_t joined;	 /* threads that made themselves known */
};
int klp_ways(struct klp_ways *ways);

/*
 * Shared libraries.
 */

/* A library that was opened by the engine. 0 is none. */
typedef uint64_t klp_library_t;

/*
 * As dlopen, but enabled patches are applied before the caller gets hold of it. Its constructors do
 * no harm, and none of its functions is on any stack when they return.
 */
int klp_open_library(const char *path, klp_library_t *library);

/* As dlsym; NULL if there is no such symbol. */
void *klp_symbol(klp_library_t library, const char *name);

/* As dlclose: no thread is inside of it, nor uses anything of it. */
int klp_close_library(klp_library_t library);

/*
 * Applies the patches in force to libraries that came by a plain dlopen. klp_enable does so for
 * those that its patch names, and the threads of klp_serve for those that come later.
 */
int klp_adopt(void);

#ifdef __cplusplus
}
#endif

#endif
