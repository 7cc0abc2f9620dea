/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "meter.h"

/* Old code, through which exceptions of new code go: it cleans up. */
struct Busy {
	static int count;
	Busy() { __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED); }
	~Busy() { __atomic_fetch_sub(&count, 1, __ATOMIC_RELAXED); }
};
int Busy::count;

int check(Check &check, const std::string &text)
{
	Busy busy;
	for (unsigned char byte : text)
		check.byte(byte);
	return check.result();
}
extern "C" int meter_busy() { return __atomic_load_n(&Busy::count, __ATOMIC_RELAXED); }
