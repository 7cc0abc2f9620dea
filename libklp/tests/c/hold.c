/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Compiled with entry pads. */
#include <stdatomic.h>
#include <unistd.h>

extern atomic_int held, leave;

void hold(void)
{
	held = 1;
	while (!leave)
		usleep(1000);
}
