/* A greeter with a spelling mistake. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>

/* Local, and found by a patch all the same. */
static __attribute__((noipa)) int greeting(char *out, unsigned long len, unsigned guest)
{
	return snprintf(out, len, "Helo, guest %u", guest);
}

/* Greets a guest, who takes `milliseconds` to go away. Returns the length of what was said. */
int greeter_serve(char *out, unsigned long len, unsigned guest, unsigned milliseconds)
{
	struct timespec rest = { .tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L };
	int said = greeting(out, len, guest);

	while (nanosleep(&rest, &rest))
		;
	return said;
}
