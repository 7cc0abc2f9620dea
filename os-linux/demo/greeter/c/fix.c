/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Corrects the greeting, and has each guest told that it was corrected: two functions that belong
 * together.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>

#include <klp/patch.h>

KLP_PATCH("greeter_fix");

/*
 * The function of the running program. While the patch is enabled, calls of it come to
 * fixed_greeting.
 */
extern int target_greeting(char *out, unsigned long len, unsigned guest) KLP_SYMBOL(vmlinux, greeting, 0);

static int fixed_greeting(char *out, unsigned long len, unsigned guest)
{
	return snprintf(out, len, "Hello, guest %u", guest);
}

static int fixed_serve(char *out, unsigned long len, unsigned guest, unsigned milliseconds)
{
	struct timespec rest = { .tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L };
	int said = target_greeting(out, len, guest);

	if (said >= 0 && (unsigned long)said < len)
		said += snprintf(out + said, len - (unsigned long)said, " (corrected)");
	while (nanosleep(&rest, &rest))
		;
	return said;
}

KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(greeting, fixed_greeting), KLP_FUNC(greeter_serve, fixed_serve));
