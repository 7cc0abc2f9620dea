/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Repairs CVE-2020-24370 in a running Lua 5.4.0: debug.getlocal(level, -2147483648) makes
 * luaG_findlocal negate the smallest int, and what comes out is taken for the number of a vararg.
 *
 * Everything that the new function needs is in the executable already and is called there. None of
 * it is exported: findvararg and currentpc are static, luaF_getlocalname is hidden.
 */
#define LUA_CORE
#include "lprefix.h"
#include <limits.h>
#include "lua.h"
#include "ldebug.h"
#include "lfunc.h"
#include "lobject.h"
#include "lstate.h"

#include <klp/patch.h>

KLP_PATCH("lua_cve_2020_24370");

extern const char *target_findvararg(CallInfo *ci, int n, StkId *pos) KLP_SYMBOL(vmlinux, findvararg, 0);
extern int target_currentpc(CallInfo *ci) KLP_SYMBOL(vmlinux, currentpc, 0);
extern const char *target_getlocalname(const Proto *f, int n, int pc) KLP_SYMBOL(vmlinux, luaF_getlocalname, 0);

static const char *fixed_findlocal(lua_State *L, CallInfo *ci, int n, StkId *pos)
{
	StkId base = ci->func + 1;
	const char *name = NULL;

	/* No function has as many varargs, and there is no int to count them with. */
	if (n == INT_MIN)
		return NULL;
	if (isLua(ci)) {
		if (n < 0)
			return target_findvararg(ci, -n, pos);
		name = target_getlocalname(clLvalue(s2v(ci->func))->p, n, target_currentpc(ci));
	}
	if (name == NULL) {
		StkId end = ci == L->ci ? L->top : ci->next->func;

		if (n <= 0 || n > end - base)
			return NULL;
		name = isLua(ci) ? "(temporary)" : "(C temporary)";
	}
	if (pos)
		*pos = base + (n - 1);
	return name;
}

KLP_REPLACE(lua, KLP_VMLINUX, KLP_FUNC(luaG_findlocal, fixed_findlocal));
