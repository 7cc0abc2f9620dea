/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A program that patches itself: embed PATCH-OBJECT. */
#include <klp.h>
#include <stdio.h>

const char *greeting(void);

static int check(int error)
{
	if (error)
		fprintf(stderr, "embed: %s\n", klp_last_error());
	return error;
}

int main(int argc, char **argv)
{
	klp_patch_t fix;

	if (argc != 2 || check(klp_init(NULL)))
		return 1;
	puts(greeting());
	if (check(klp_load_file(argv[1], &fix)) || check(klp_enable(fix)) || check(klp_wait(5000)))
		return 1;
	puts(greeting());
	if (check(klp_disable(fix)) || check(klp_wait(5000)) || check(klp_unload(fix)))
		return 1;
	puts(greeting());
	return 0;
}
