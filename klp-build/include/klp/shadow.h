/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Shadow variables for patches in C: data that belongs to an object which has no room for it. An
 * object is known by its address, and has at most one variable of each id. Linux declares the same
 * in <linux/livepatch.h>.
 *
 * Constructors and destructors run under the lock of all variables: they must not make or free any.
 * Who frees a variable promises that nobody uses it.
 */
#ifndef KLP_SHADOW_H
#define KLP_SHADOW_H

#include <stddef.h>

/*
 * Fills the data of a new variable, which is zeroed, before anybody can find it. Not 0: there is no
 * variable.
 */
typedef int (*klp_shadow_ctor_t)(void *obj, void *shadow_data, void *ctor_data);
/* The last to see the data of a variable. */
typedef void (*klp_shadow_dtor_t)(void *obj, void *shadow_data);

/* The data of the variable, or null. Never waits; a signal handler may call it. */
void *klp_shadow_get(void *obj, unsigned long id);

/*
 * Makes a variable of `size` bytes, aligned to 16; the constructor may be null. Null if there is
 * one already, if the constructor says so, or without memory. `flags` are Linux's gfp_t; a process
 * takes no notice of them.
 */
void *klp_shadow_alloc(void *obj, unsigned long id, size_t size, unsigned int flags,
		       klp_shadow_ctor_t ctor, void *ctor_data);

/* The same, but what is there already is found. Many tasks may come at once: one makes it. */
void *klp_shadow_get_or_alloc(void *obj, unsigned long id, size_t size, unsigned int flags,
			      klp_shadow_ctor_t ctor, void *ctor_data);

/* Frees the variable, if there is one; the destructor may be null. */
void klp_shadow_free(void *obj, unsigned long id, klp_shadow_dtor_t dtor);

/* Frees the variables of this id of all objects. */
void klp_shadow_free_all(unsigned long id, klp_shadow_dtor_t dtor);

#endif
