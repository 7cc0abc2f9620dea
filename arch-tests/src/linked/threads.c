/* Code that refers to thread-local variables, by the way that the compiler is told to go. */
#ifdef PATCHED
#define STEP 3
#else
#define STEP 2
#endif
#define KEPT __attribute__((noinline))

static __thread long first;
__thread int count = 5;
static __thread long long sum;
__thread char bytes[0x9000];
__thread short last;

KEPT long counts(int n) { first += STEP; return count += n * STEP; }
KEPT long long sums(int n) { return sum += n * STEP; }
KEPT char *element(int n) { return &bytes[n * STEP]; }
KEPT short ends(int n) { return last += n * STEP; }
