/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A program that takes signed patches only: keys, a patch that is not signed, one that is. */
#include <errno.h>
#include <klp.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct klp_options options = { sizeof(options), 0, 0, NULL, NULL, 0, NULL };
	klp_patch_t fix = 0;

	if (argc != 4)
		return 1;
	options.keys = "/nowhere";
	if (klp_init(&options) != -ENOENT || !strstr(klp_last_error(), "klp_options.keys: /nowhere"))
		return 2;
	options.keys = argv[1];
	if (klp_init(&options))
		return 3;
	if (klp_load_file(argv[2], &fix) != -ENODATA || fix)
		return 4;
	printf("%s\n", klp_last_error());
	if (klp_load_file(argv[3], &fix))
		return 5;
	return 0;
}
