/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0 */
/*
 * Where patched functions call at their entries (x86-64): finds the site in the table of sites.rs and goes where the table says.
 *
 *   stack on entry:   0(%rsp)  the address behind the call, inside the old function: what the table is keyed by
 *                     8(%rsp)  where the old function's caller goes on
 *
 * The way out is a return to the target, so that the processor's stack of return addresses stays balanced. %r10 and %r11 are
 * free at the entry of a function; everything else is preserved.
 *
 * A task that is in here counts as one with an unreliable stack: it may have decided already where it goes, and must not
 * be switched before it is there.
 */

#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>
#include <asm/unwind_hints.h>

/* struct Table of sites.rs: the mask, then entries of 32 bytes. */
#define TABLE_MASK	0
#define ENTRY_KEY	32
#define ENTRY_TARGET	40
#define ENTRY_SIZE	32

	.text
	.code64
SYM_CODE_START(klp_entry_stub)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	CALL_DEPTH_ACCOUNT

	movq	klp_sites(%rip), %r10
	movq	(%rsp), %r11
	pushq	%rax
	leaq	(%r11, %r11), %rax
.Lprobe:
	andq	TABLE_MASK(%r10), %rax
	cmpq	%r11, ENTRY_KEY(%r10, %rax)
	jne	.Lother
	movq	ENTRY_TARGET(%r10, %rax), %rax
	testq	%rax, %rax
	jz	.Lask
	movq	%rax, 8(%rsp)
.Lgo:
	popq	%rax
	RET

.Lother:
	/* An empty entry: the site is not known any more, so on with the old function. */
	cmpq	$0, ENTRY_KEY(%r10, %rax)
	je	.Lgo
	addq	$ENTRY_SIZE, %rax
	jmp	.Lprobe

	/* The calling task's state decides. */
.Lask:
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
SYM_CODE_END(klp_entry_stub)
_ASM_NOKPROBE(klp_entry_stub)
