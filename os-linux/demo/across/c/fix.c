#include <klp/patch.h>
#include <stdarg.h>

KLP_PATCH("across_fix");

extern volatile long local_state KLP_SYMBOL(libacross, local_state, 0);
extern long (*callback)(long) KLP_SYMBOL(libacross, callback, 0);
extern long secret(long) KLP_SYMBOL(libacross, secret, 0);
extern long deep(long) KLP_SYMBOL(libacross, deep, 0);
long third(long x);

static long (*volatile through_pointer)(long) = third;
static volatile long own_state = 10000;

/* Not to be inlined: a call within the patch. */
__attribute__((noipa)) static long own(long x) { return x + own_state; }

static long new_leaf(long x) { return own(x) + third(x) + secret(x) + local_state; }

static long new_many(long a, long b, long c, long d, long e, long f,
		     long g, long h, long i, long j, long k, long l)
{
	long sum = third(a) + secret(l) + callback(b);

	return sum - (a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l) +
	       own(local_state);
}

static long new_variadic(int count, ...)
{
	va_list list;
	long sum = own(local_state) + through_pointer(1) + callback(count);

	va_start(list, count);
	for (int i = 1; i <= count; i++)
		sum -= third(i * va_arg(list, long));
	va_end(list);
	return sum;
}

/* Through the entry of the old function each time. */
static long new_deep(long x) { return x ? deep(x - 1) + own(0) + third(0) : secret(0) + callback(0); }

KLP_REPLACE(across, "libacross", KLP_FUNC(leaf, new_leaf), KLP_FUNC(many, new_many),
	    KLP_FUNC(variadic, new_variadic), KLP_FUNC(deep, new_deep));
