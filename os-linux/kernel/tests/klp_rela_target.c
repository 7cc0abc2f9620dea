// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * A module with a function that is patched, and one that nobody outside can name. Reading `answer`
 * calls the first.
 */
#include <linux/module.h>

static __attribute__((noipa)) int rela_secret(int number)
{
	return number * 2 + 1;
}

static __attribute__((noipa)) int rela_answer(void)
{
	return rela_secret(1);
}

static int answer_get(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%d\n", rela_answer());
}

static const struct kernel_param_ops answer_ops = { .get = answer_get };
module_param_cb(answer, &answer_ops, NULL, 0444);
MODULE_DESCRIPTION("Has an answer");
MODULE_LICENSE("Dual MIT/GPL");
