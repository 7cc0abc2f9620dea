/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * For authors of programs that can be patched: marks functions that must not be.
 *
 *     #include <klp/notrace.h>
 *
 *     static void on_small_stack(void) { ... }
 *     KLP_NOTRACE(on_small_stack);
 *
 * A patch for a function that is marked is refused. Mark what cannot bear a redirected call: code
 * that runs without the thread-local storage of a libc thread, or with little stack. The mark is
 * the function's address in the section __klp_notrace.
 */
#ifndef KLP_NOTRACE_H
#define KLP_NOTRACE_H

/* Nothing refers to the section: it must be kept from linkers that collect garbage. */
#ifdef __has_attribute
#if __has_attribute(retain)
#define KLP_NOTRACE_KEEP_ used, retain
#endif
#endif
#ifndef KLP_NOTRACE_KEEP_
#define KLP_NOTRACE_KEEP_ used
#endif

/* Stands beside functions, once for each function that is to be marked. */
#define KLP_NOTRACE(function) \
	static void *klp_notrace_##function __attribute__((KLP_NOTRACE_KEEP_, section("__klp_notrace"))) = \
		(void *)(function)

#endif
