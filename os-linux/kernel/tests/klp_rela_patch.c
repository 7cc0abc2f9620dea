// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Replaces a function of klp_rela_target by one that uses a local function of that module, and one
 * of the kernel.
 */
#include <linux/livepatch.h>
#include <linux/module.h>

#define KLP_SYMBOL(object, name, position) __asm__(".klp.sym." #object "." #name "$" #position)

extern int target_secret(int number) KLP_SYMBOL(klp_rela_target, rela_secret, 0);
extern const char kernel_banner[] KLP_SYMBOL(vmlinux, linux_banner, 0);

static __attribute__((noipa)) int new_answer(void)
{
	/* 41 * 2 + 1, less the L of "Linux". */
	return target_secret(41) - kernel_banner[0];
}

static struct klp_func funcs[] = { { .old_name = "rela_answer", .new_func = new_answer }, { } };
static struct klp_object objs[] = { { .name = "klp_rela_target", .funcs = funcs }, { } };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

static int __init patch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit patch_exit(void)
{
}

module_init(patch_init);
module_exit(patch_exit);
MODULE_DESCRIPTION("Uses symbols that are not exported");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
