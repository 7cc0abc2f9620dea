// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
#define VERSION 1
#define REPLACE false
#include "klp_stress.h"
