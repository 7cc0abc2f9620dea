// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * A module whose sums are wrong: klp-build makes a patch of it and fix.diff. Reading `bill` says how
 * often that was done, what was bought, and what it costs with a tax of a fifth.
 */
#include <linux/module.h>
#include <linux/slab.h>

static const char *const goods[] = { "tea", "cofee" };
static unsigned int bought = 1;
static unsigned int price = 100;

static noinline unsigned int tax(unsigned int price)
{
	return price / 10;
}

static noinline unsigned int count(void)
{
	static unsigned int times;

	return ++times;
}

static noinline int write_bill(char *buffer)
{
	char *copy;
	int length;

	if (WARN_ON_ONCE(bought >= ARRAY_SIZE(goods)))
		return -EINVAL;
	copy = kasprintf(GFP_KERNEL, "%u: %s %u", count(), goods[bought], price + tax(price));
	if (!copy)
		return -ENOMEM;
	length = sysfs_emit(buffer, "%s\n", copy);
	kfree(copy);
	return length;
}

static int bill_get(char *buffer, const struct kernel_param *param)
{
	return write_bill(buffer);
}

static const struct kernel_param_ops bill_ops = { .get = bill_get };
module_param_cb(bill, &bill_ops, NULL, 0444);
module_param(bought, uint, 0644);
module_param(price, uint, 0644);
MODULE_DESCRIPTION("Writes a bill");
MODULE_LICENSE("Dual MIT/GPL");
