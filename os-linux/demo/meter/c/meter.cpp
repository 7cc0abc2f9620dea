/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "meter.h"

/* The sum of a text, or a negative number if it is damaged. */
extern "C" int meter_short(const char *text)
{
	try {
		Sum<unsigned char> sum;
		return check(sum, text);
	} catch (const Damaged &damaged) {
		return -1;
	}
}

extern "C" int meter_long(const char *text)
{
	try {
		Sum<unsigned short> sum;
		return check(sum, text);
	} catch (const Damaged &damaged) {
		return -1;
	}
}
