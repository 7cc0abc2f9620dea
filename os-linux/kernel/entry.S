/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0 */
/*
 * Where patched functions call at their entries (x86-64): finds the site in the tables of sites.rs
 * and goes where they say.
 *
 *   stack on entry:   0(%rsp)  the address behind the call, inside the old function: what the
 *                              tables are keyed by
 *                     8(%rsp)  where the old function's caller goes on
 *
 * The way out is a return to the target, so that the processor's stack of return addresses stays
 * balanced. %r10 and %r11 are free at the entry of a function; everything else is preserved.
 *
 * A task that is in here counts as one with an unreliable stack: it may have decided already where
 * it goes, and must not be switched before it is there.
 */

#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>
#include <asm/unwind_hints.h>

/* struct Entry of sites.rs */
#define ENTRY_KEY	0
#define ENTRY_TARGET	8
#define ENTRY_SIZE	32
/* NEAR of sites.rs, less one, in the units of keys */
#define NEAR_MASK	(1023 << 4)
/* struct Header of sites.rs: the mask, then entries. */
#define FAR_MASK	0
#define FAR_KEY		(ENTRY_SIZE + ENTRY_KEY)
#define FAR_TARGET	(ENTRY_SIZE + ENTRY_TARGET)

	.text
	.code64
SYM_CODE_START(klp_entry_stub)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	CALL_DEPTH_ACCOUNT

	movq	(%rsp), %r11
	movl	%r11d, %r10d
	andl	$NEAR_MASK, %r10d
	/* 16 bytes of keys for 32 of entries */
	cmpq	%r11, klp_sites_near+ENTRY_KEY(, %r10, 2)
	jne	.Lfar
	movq	klp_sites_near+ENTRY_TARGET(, %r10, 2), %r10
	movq	%r10, (%rsp)
	RET

.Lfar:
	movq	klp_sites_far(%rip), %r10
	pushq	%rax
	leaq	(%r11, %r11), %rax
.Lprobe:
	andq	FAR_MASK(%r10), %rax
	cmpq	%r11, FAR_KEY(%r10, %rax)
	jne	.Lother
	movq	FAR_TARGET(%r10, %rax), %r10
	movq	%r10, 8(%rsp)
.Lgo:
	popq	%rax
	RET

.Lother:
	/* An empty entry: the site is not known any more, so on with the old function. */
	cmpq	$0, FAR_KEY(%r10, %rax)
	je	.Lgo
	addq	$ENTRY_SIZE, %rax
	jmp	.Lprobe
SYM_CODE_END(klp_entry_stub)
_ASM_NOKPROBE(klp_entry_stub)

/* The target of sites where the calling task's state decides: from above, with the key in %r11. */
SYM_CODE_START(klp_entry_ask)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR

	pushq	%r11
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	movq	%r11, %rdi
	call	klp_host_select
	movq	%rax, 56(%rsp)
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	RET
SYM_CODE_END(klp_entry_ask)
_ASM_NOKPROBE(klp_entry_ask)
