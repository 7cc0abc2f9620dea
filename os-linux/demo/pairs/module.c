/* The shared library of the soak: the same kind of functions as in pairs.c. */
#include <sched.h>

#define FUNC __attribute__((noipa))

FUNC unsigned module_first(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return 1;
}

FUNC unsigned module_second(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return 1;
}

FUNC unsigned module_outer(unsigned work)
{
	unsigned seen = 1 | module_first(work);

	sched_yield();
	return seen | module_second(work);
}
