/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A program that knows nothing of klp: it greets everybody in its input. */
#include <stdio.h>
#include <string.h>

const char *greeting(void);

int main(void)
{
	char name[64];

	while (fgets(name, sizeof(name), stdin)) {
		name[strcspn(name, "\n")] = 0;
		printf("%s %s\n", greeting(), name);
		fflush(stdout);
	}
	return 42;
}
