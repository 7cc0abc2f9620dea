/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Contexts: stacks that can be suspended, as coroutines are, made known to the livepatch engine of
 * the process.
 *
 * Whoever switches between stacks says so, before and after:
 *
 *	klp_context_leave(mine);
 *	swapcontext(&my_registers, &other_registers);
 *	klp_context_enter(mine);
 *
 * and klp_context_enter(fresh) is the first thing that is done on a new stack. All this in C++,
 * too. Nothing of it is for signal handlers. docs/coroutines.md says more.
 */
#ifndef KLP_CONTEXT_H
#define KLP_CONTEXT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A stack that can be suspended. */
struct klp_context;

/*
 * Registers a context that nothing runs on yet, or one that has not been suspended yet. Its name
 * (15 bytes of it) is what the engine calls it when it holds a transition back; NULL: "context" and
 * a number. NULL if there is no memory: leave and enter take it, and the engine refuses to patch
 * from then on.
 */
struct klp_context *klp_context_new(const char *name);

/* The context of the stack that the calling thread began on. It goes with the thread. */
struct klp_context *klp_context_of_thread(void);

/*
 * Forgets a context, before the memory of its stack goes. Nobody goes on there any more; or the
 * calling thread does, and the stack is an ordinary one from here on.
 */
void klp_context_free(struct klp_context *context);

/* The thread has come to the context; what it ran on before it has left. */
void klp_context_enter(struct klp_context *context);

/*
 * Used by klp_context_leave. x86-64: rip, rsp, rbp, rbx, r12, r13, r14, r15. AArch64: pc, sp, x29, x30,
 * x19 to x28, d8 to d15. ppc64le: the next instruction, r1, lr, r30, r31, r14 to r29, f14 to f31, v20 to
 * v31.
 */
void klp_context_leave_from(struct klp_context *context, const uint64_t *registers);

/*
 * The thread is about to go away from the context. The function that calls this stays where it is
 * until the context is entered again: it calls the switch itself, and does not return before.
 */
static inline __attribute__((always_inline)) void klp_context_leave(struct klp_context *context)
{
#if defined(__x86_64__)
	uint64_t registers[8];

	__asm__ volatile("leaq	1f(%%rip), %%rax\n\t"
			 "movq	%%rax, (%0)\n\t"
			 "movq	%%rsp, 8(%0)\n\t"
			 "movq	%%rbp, 16(%0)\n\t"
			 "movq	%%rbx, 24(%0)\n\t"
			 "movq	%%r12, 32(%0)\n\t"
			 "movq	%%r13, 40(%0)\n\t"
			 "movq	%%r14, 48(%0)\n\t"
			 "movq	%%r15, 56(%0)\n"
			 "1:"
			 : : "r"(registers) : "rax", "memory");
#elif defined(__aarch64__)
	uint64_t registers[22];

	__asm__ volatile("adr	x9, 1f\n\t"
			 "mov	x10, sp\n\t"
			 "stp	x9, x10, [%0]\n\t"
			 "stp	x29, x30, [%0, #16]\n\t"
			 "stp	x19, x20, [%0, #32]\n\t"
			 "stp	x21, x22, [%0, #48]\n\t"
			 "stp	x23, x24, [%0, #64]\n\t"
			 "stp	x25, x26, [%0, #80]\n\t"
			 "stp	x27, x28, [%0, #96]\n\t"
			 "stp	d8, d9, [%0, #112]\n\t"
			 "stp	d10, d11, [%0, #128]\n\t"
			 "stp	d12, d13, [%0, #144]\n\t"
			 "stp	d14, d15, [%0, #160]\n"
			 "1:"
			 : : "r"(registers) : "x9", "x10", "memory");
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
	uint64_t registers[63];
	uint64_t here, link;

	__asm__ volatile("mflr	%1\n\t"
			 "std	%1, 16(%2)\n\t"
			 "bcl	20, 31, 1f\n"
			 "1:\n\t"
			 "mflr	%0\n\t"
			 "mtlr	%1\n\t"
			 "addi	%0, %0, 2f - 1b\n\t"
			 "std	%0, 0(%2)\n\t"
			 "std	1, 8(%2)\n\t"
			 "std	30, 24(%2)\n\t"
			 "std	31, 32(%2)\n\t"
			 ".set	klp_register, 14\n\t"
			 ".rept	16\n\t"
			 "std	klp_register, 40 + 8 * (klp_register - 14)(%2)\n\t"
			 ".set	klp_register, klp_register + 1\n\t"
			 ".endr\n\t"
			 ".set	klp_register, 14\n\t"
			 ".rept	18\n\t"
			 "stfd	klp_register, 168 + 8 * (klp_register - 14)(%2)\n\t"
			 ".set	klp_register, klp_register + 1\n\t"
			 ".endr\n\t"
			 /* Registers 52 to 63 of VSX, which may be stored anywhere. */
			 "li	%0, 312\n\t"
			 ".set	klp_register, 52\n\t"
			 ".rept	12\n\t"
			 "stxvd2x	klp_register, %2, %0\n\t"
			 "addi	%0, %0, 16\n\t"
			 ".set	klp_register, klp_register + 1\n\t"
			 ".endr\n"
			 "2:"
			 : "=&b"(here), "=&r"(link) : "b"(registers) : "memory");
#else
#error "klp does not know this processor"
#endif
	klp_context_leave_from(context, registers);
}

#ifdef __cplusplus
}
#endif

#endif
