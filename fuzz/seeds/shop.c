/* A program's object file; with -DFIXED, the repaired one. Needs no headers: it is compiled for
 * architectures whose libraries may not be there. */
#define KEPT __attribute__((noinline))
#ifdef FIXED
#define OR_FIXED(original, fixed) fixed
#else
#define OR_FIXED(original, fixed) original
#endif

extern int puts(const char *);
extern void abort(void);
extern int rate(int);

int total = 5;
static int calls;
static const int steps[] = { 10, 20, 30 };
static const char *const names[] = { "zero", "one", "two" };

KEPT static int untouched(int n)
{
	static int count;
	count += n;
	return count;
}

KEPT int price(int n)
{
	static int count;
	count++;
	calls++;
	total += n;
	return untouched(n) + steps[n & 1] + OR_FIXED(1, 2);
}

#ifdef FIXED
static int discount;
KEPT static int fresh(int n)
{
	return discount += n;
}
#endif

KEPT int label(int n)
{
	return puts(OR_FIXED(names[n], n < 3 ? names[n] : "many"));
}

KEPT int rare(int n)
{
	if (__builtin_expect(n > 2, 0)) {
		puts("too many");
		abort();
	}
	return OR_FIXED(n, fresh(n)) + 1;
}

KEPT int choose(int n, int x)
{
	switch (n) {
	case 0: return rate(x);
	case 1: return x + 7;
	case 2: return puts("99");
	case 3: return x * OR_FIXED(2, 3);
	case 4: return price(x);
	case 5: return label(2);
	}
	return 0;
}

int (*chosen(int n))(int)
{
	return n ? price : rare;
}

int both(int n)
{
	return price(n) + rare(n) + choose(n, n);
}
