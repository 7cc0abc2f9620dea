/*
 * Functions to be patched, called from within the library and from outside. Whoever calls them looks
 * at data of its own when the call has come back.
 */
#include <stdarg.h>

#define ALONE __attribute__((noipa))

#if defined(__powerpc64__)
/* The compiler records entries of -mprofile-kernel nowhere. */
#define ENTRY(name)                                              \
	__asm__(".pushsection __mcount_loc, \"aw\", @progbits\n" \
		".quad " #name "\n"                              \
		".popsection")
/* Goes back to where its caller's `bl` ends, and its caller to where that was called. */
__asm__(".pushsection .text, \"ax\", @progbits\n"
	".type _mcount, @function\n"
	".globl _mcount\n"
	".hidden _mcount\n"
	"_mcount:\n"
	"mflr 12\n"
	"mtctr 12\n"
	"mtlr 0\n"
	"bctr\n"
	".size _mcount, . - _mcount\n"
	".popsection");
#else
#define ENTRY(name)
#endif

long third(long x);

static volatile long local_state = 100;
/* Of the executable. */
static long (*callback)(long);

void across_set_callback(long (*to)(long)) { callback = to; }

ALONE static long secret(long x) { return x + local_state; }

ENTRY(leaf);
ALONE static long leaf(long x) { return x + 1; }

ENTRY(many);
ALONE static long many(long a, long b, long c, long d, long e, long f,
		       long g, long h, long i, long j, long k, long l)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l +
	       local_state;
}

ENTRY(variadic);
ALONE static long variadic(int count, ...)
{
	va_list list;
	long sum = callback(count) + local_state;

	va_start(list, count);
	for (int i = 1; i <= count; i++)
		sum += i * va_arg(list, long);
	va_end(list);
	return sum;
}

ENTRY(deep);
/* (One that ended in a jump to the callback would be over by then, see docs/architecture.md.) */
ALONE static long deep(long x) { return (x ? deep(x - 1) : callback(0)) + local_state; }

/* What is found by the library's own data and by the third object. */
static long own(void) { return secret(0) + third(0); }

ALONE long across_leaf(long x)
{
	long sum = leaf(x);

	return sum + own();
}

ALONE long across_many(long x)
{
	long sum = many(x, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);

	return sum + own();
}

ALONE long across_variadic(long x)
{
	long sum = variadic(10, x, 2L, 3L, 4L, 5L, 6L, 7L, 8L, 9L, 10L);

	return sum + own();
}

ALONE long across_deep(long x)
{
	long sum = deep(x);

	return sum + own();
}

/* For whoever calls from outside. */
void *const across_functions[] = { leaf, many, variadic, deep };
