/* Enables a patch, and shows what a thing costs before and afterwards. */
#include <klp.h>
#include <stdio.h>

int price(int n);

int main(int argc, char **argv)
{
	klp_patch_t fix;

	if (argc != 2 || klp_init(NULL))
		return 2;
	printf("%d\n", price(10));
	fflush(stdout);
	if (klp_load_file(argv[1], &fix) || klp_enable(fix) || klp_wait(5000)) {
		fprintf(stderr, "%s\n", klp_last_error());
		return 1;
	}
	printf("%d\n", price(10));
	return 0;
}
