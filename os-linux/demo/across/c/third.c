/* A third object: data of its own, found by a register or address of its own. */

static volatile long offset = 1000;

long third(long x) { return 2 * x + offset; }
