/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What is patched in these examples. Compiled with entry pads, and for callers that rely on nothing
 * but the ABI: -fpatchable-function-entry=16 -fno-ipa-ra -fno-function-sections.
 */
const char *greeting(void)
{
	return "helo";
}
