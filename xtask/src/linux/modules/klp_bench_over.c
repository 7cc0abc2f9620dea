// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * The same patch once more, to go over the first one: neither implementation has to change code for
 * it.
 */
#include "klp_bench_patch.c"
