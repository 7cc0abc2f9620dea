/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The patch: compiled with -fPIC -ffunction-sections, then made a patch object by klp-convert. */
#include <klp/patch.h>

KLP_PATCH("greeter_fix");

static const char *fixed_greeting(void)
{
	return "hello";
}

KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(greeting, fixed_greeting));
