/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Replaces lua_version by a function that uses whatever a patch may use: own variables of every
 * kind, strings, a jump table, pointers to functions, the C library, a local function of the
 * target. It answers 21.5 when all of it works.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <klp/patch.h>

KLP_PATCH("version");

extern int target_currentpc(void *ci) KLP_SYMBOL(vmlinux, currentpc, 0);
extern int nowhere(void) __attribute__((weak));

static int calls = 3;
static char zeros[64];
int exported = 40;
static const char *const names[] = { "zero", "one", "two", "three", "four", "five" };
int (*const pointer)(void *) = target_currentpc;

__attribute__((noinline)) static int pick(int n)
{
	switch (n) {
	case 0: return 11;
	case 1: return 7;
	case 2: return 93;
	case 3: return 4;
	case 4: return 15;
	case 5: return puts("never");
	case 6: return 60;
	default: return -1;
	}
}

double version(void *lua)
{
	char text[64];

	(void)lua;
	calls++;
	exported += 2;
	if (!pointer || (void *)pointer == (void *)pick || nowhere)
		return -1;
	if (strcmp(names[calls], "four") != 0)
		return -2;
	snprintf(text, sizeof(text), "%d.%s", pick(calls) + exported + zeros[5] - 36, "5");
	return strtod(text, NULL);
}

KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(lua_version, version));
