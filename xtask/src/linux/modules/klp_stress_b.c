// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
#define VERSION 2
#define REPLACE true
#include "klp_stress.h"
