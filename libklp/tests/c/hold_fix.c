/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <klp/patch.h>

KLP_PATCH("hold_fix");

static void fixed_hold(void)
{
}

KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(hold, fixed_hold));
