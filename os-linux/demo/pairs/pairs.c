/*
 * Functions that only make sense together. Each says which version of itself ran, as a bit; an
 * outer function collects what it saw between its entry and its exit. With VERSION 0 they have the
 * names that patches replace, with VERSION 1 and 2 they are the replacements, called new1_NAME and
 * new2_NAME. All versions call each other by the original names.
 *
 * The three functions with `extra` in their names are there in versions 0 and 1 only: a patch with
 * version 2 that takes the place of one with version 1 brings back the originals. Those with
 * `module` are in a shared library (module.c) that comes and goes, and their replacements here. The
 * replacements of those with `loaded` are in patch objects (loaded.c).
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define SEEN (1u << VERSION)
#if VERSION == 1
#define NAME(name) new1_##name
#elif VERSION == 2
#define NAME(name) new2_##name
#else
#define NAME(name) name
#endif
/* No inlining, no knowledge of each other's insides: every call goes through the entry. */
#define FUNC __attribute__((noipa))

/* The original names, which both versions call. */
unsigned first(unsigned), second(unsigned);
unsigned outer_spin(unsigned), outer_sleep(unsigned), outer_syscall(unsigned), outer_signal(unsigned);
unsigned outer_yield(unsigned), outer_sibling(unsigned), sibling(unsigned, unsigned), outer_cold(unsigned);
unsigned extra_first(unsigned), extra_second(unsigned);

/*
 * Sleeps that long, in microseconds. Calls of it are unlikely: compilers move them to a part of
 * their own (outer_cold.cold).
 */
__attribute__((cold)) void pairs_nap(unsigned);
#if !VERSION
__attribute__((cold)) FUNC void pairs_nap(unsigned work)
{
	struct timespec pause = { .tv_nsec = work * 1000L };

	nanosleep(&pause, 0);
}
#endif

/* Suspends the coroutine that calls. */
extern void (*pairs_yield)(void);
#if !VERSION
void (*pairs_yield)(void);
#endif

/* The functions of the shared library, while it is there. */
extern unsigned (*module_first)(unsigned), (*module_second)(unsigned);

/* What the signal handler saw that ran inside outer_signal. */
extern __thread unsigned pairs_in_handler;
#if !VERSION
__thread unsigned pairs_in_handler;
#endif

FUNC unsigned NAME(first)(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

FUNC unsigned NAME(second)(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

/* Computes between the two. */
FUNC unsigned NAME(outer_spin)(unsigned work)
{
	unsigned seen = SEEN | first(work);

	for (volatile unsigned i = 0; i < work; i++)
		;
	return seen | second(work);
}

/* Sleeps between the two, `work` microseconds. */
FUNC unsigned NAME(outer_sleep)(unsigned work)
{
	struct timespec pause = { .tv_nsec = work * 1000L };
	unsigned seen = SEEN | first(1);

	nanosleep(&pause, 0);
	return seen | second(1);
}

/* Waits in system calls between the two: in poll, which a signal ends early, and in sched_yield. */
FUNC unsigned NAME(outer_syscall)(unsigned work)
{
	unsigned seen = SEEN | first(1);

	poll(0, 0, (int)(work / 1000));
	seen |= first(1);
	sched_yield();
	return seen | second(1);
}

/* Is interrupted between the two by a signal whose handler calls the pair as well. */
FUNC unsigned NAME(outer_signal)(unsigned work)
{
	unsigned seen = SEEN | first(work);

	pairs_in_handler = 0;
	raise(SIGUSR1);
	return seen | pairs_in_handler | second(work);
}

/* Is suspended between the two: another stack runs meanwhile. */
FUNC unsigned NAME(outer_yield)(unsigned work)
{
	unsigned seen = SEEN | first(work);

	pairs_yield();
	return seen | second(work);
}

/*
 * What outer_sibling ends in, by a jump: it leaves no frame, and its caller's version must be this
 * one.
 */
FUNC unsigned NAME(sibling)(unsigned work, unsigned seen)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return seen | SEEN;
}

FUNC unsigned NAME(outer_sibling)(unsigned work)
{
	unsigned seen = SEEN | first(1);

	/* What has the address of a local variable escape cannot end in a jump. */
	pairs_nap(work);
	seen |= second(1);
	return sibling(work, seen);
}

/* Sleeps between the two in the part that is split off. */
FUNC unsigned NAME(outer_cold)(unsigned work)
{
	unsigned seen = SEEN | first(1);

	if (__builtin_expect(work > 0, 0)) {
		pairs_nap(work);
		seen |= first(1);
	}
	return seen | second(1);
}

#if VERSION < 2
FUNC unsigned NAME(extra_first)(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

FUNC unsigned NAME(extra_second)(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

/* Sleeps between the two, `work` microseconds. */
FUNC unsigned NAME(outer_extra)(unsigned work)
{
	struct timespec pause = { .tv_nsec = work * 1000L };
	unsigned seen = SEEN | extra_first(1);

	nanosleep(&pause, 0);
	return seen | extra_second(1);
}
#endif

#if VERSION
FUNC unsigned NAME(module_first)(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

FUNC unsigned NAME(module_second)(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

FUNC unsigned NAME(module_outer)(unsigned work)
{
	unsigned seen = SEEN | module_first(work);

	sched_yield();
	return seen | module_second(work);
}
#else
unsigned (*module_first)(unsigned), (*module_second)(unsigned);
#endif

#if !VERSION
/* What the patch objects replace. */
FUNC unsigned loaded_first(unsigned work)
{
	for (volatile unsigned i = 0; i < work; i++)
		;
	return SEEN;
}

unsigned loaded_first(unsigned), outer_loaded(unsigned);

FUNC unsigned outer_loaded(unsigned work)
{
	unsigned seen = SEEN | loaded_first(1);

	pairs_nap(work);
	return seen | loaded_first(1);
}

static void on_signal(int signal)
{
	(void)signal;
	pairs_in_handler |= outer_spin(1);
}

/* Lets SIGUSR1 call the pair. */
int pairs_install_handler(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	return sigaction(SIGUSR1, &action, 0);
}
#endif
