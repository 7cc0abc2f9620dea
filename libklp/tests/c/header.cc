// SPDX-License-Identifier: MIT OR Apache-2.0
// The header is one for C++, too.
#include <klp.h>

static int each(const klp_patch_status *, void *) { return 0; }

int main()
{
	klp_options options = {};
	options.size = sizeof(options);
	return klp_init(&options) || klp_status(each, nullptr);
}
