/* Code that refers to things in every way that compilers know of. Each function changes from one
   build to the next, so each goes into the patch; what they refer to stays. */
#ifdef PATCHED
#define STEP 3
#else
#define STEP 2
#endif
#define KEPT __attribute__((noinline))

typedef long long four __attribute__((vector_size(16)));

extern int outside_number;
extern char outside_bytes[];
extern int outside(int);
extern int perhaps(int) __attribute__((weak));
int shared = 7;
static int hidden_away = 9;
unsigned char small_one = 1;
unsigned short small_two = 2;
long long large = 8;
four wide;
int big[100000];
static const int squares[] = { 0, 1, 4, 9, 16, 25, 36, 49 };
static const char *const names[] = { "zero", "one", "two", "three" };

KEPT int stays(int n) { return n ^ hidden_away; }
KEPT int own(int n) { return n * STEP + stays(n); }
KEPT static int unseen(int n) { return n - STEP * hidden_away; }
KEPT int numbers(int n) { shared += n * STEP; hidden_away ^= n; return shared + outside_number; }
KEPT int sizes(int n) { small_one += STEP; small_two += n; large += n * STEP; return small_two; }
KEPT four vectors(four by) { wide += by * STEP; return wide; }
KEPT int element(int n) { return big[n * STEP] + outside_bytes[n]; }
KEPT int calls(int n) { return own(n) + unseen(n) + outside(n) * STEP + stays(n + 1); }
KEPT int jumps(int n) { return outside(n + STEP); }
KEPT int maybe(int n) { return perhaps ? n : STEP; }
KEPT double constants(double x) { return x * 1.25 + STEP * 0.1; }
KEPT const char *texts(int n) { return n == STEP ? "equal" : names[n & 3]; }
KEPT int tables(int n) { return squares[n & 7] * STEP; }
KEPT int (*functions(int n))(int) { return n > STEP ? own : n ? stays : outside; }
KEPT int *variables(int n) { return n > STEP ? &shared : n ? &hidden_away : &outside_number; }
KEPT int chooses(int n, int m) {
	switch (n) {
	case 0: return m * STEP;
	case 1: return outside(m);
	case 2: return own(m) - 1;
	case 3: return m / 7;
	case 4: return shared - m;
	case 5: return stays(m) * STEP;
	case 6: return outside_number;
	}
	return 0;
}
