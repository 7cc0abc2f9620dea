/*
 * A patch object, in two versions, that takes the place of the other and is unloaded when that has
 * taken its own. What it sleeps in is code of the patch that is none of its new functions: the end
 * of one, reached by a jump.
 */
#include <klp/patch.h>

#define SEEN (1u << VERSION)
#if VERSION == 1
KLP_PATCH("pairs-loaded-1");
#else
KLP_PATCH("pairs-loaded-2");
#endif
KLP_REPLACE_SET(7);

extern unsigned loaded_first(unsigned);
extern void pairs_nap(unsigned);

/* The jump leaves no frame: while it sleeps, this is all of the patch on the stack. */
__attribute__((noipa)) static unsigned rest(unsigned work, unsigned seen)
{
	pairs_nap(work);
	return seen | loaded_first(1);
}

static unsigned new_loaded_first(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

static unsigned new_outer_loaded(unsigned work)
{
	return rest(work, SEEN | loaded_first(1));
}

KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(outer_loaded, new_outer_loaded), KLP_FUNC(loaded_first, new_loaded_first));
