/* A patch that is written by hand. */
#include <klp/patch.h>

KLP_PATCH("by_hand");
KLP_STATE(1, 2);

extern int total KLP_SYMBOL(vmlinux, total, 0);
extern int twin(int) KLP_SYMBOL(libshop, twin, 2);
extern int rate(int) KLP_SYMBOL(libshop, rate, 0);
extern int shown(const char *);

static int called;
static const char *const names[] = { "zero", "one" };

static int fixed(int n)
{
	total += n;
	return shown(names[n & 1]);
}

static int fixed_twin(int n)
{
	called++;
	return twin(n) + rate(n) + shown("twin");
}

static int before(struct klp_object *object)
{
	return klp_get_state(object, 1) == 0;
}

static void after(struct klp_object *object)
{
	shown(object->name);
}

KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(victim, fixed));
KLP_REPLACE_WITH(shop, "libshop", KLP_CALLBACKS(.pre_patch = before, .post_unpatch = after),
		 KLP_FUNC_AT(twin, 2, fixed_twin));
