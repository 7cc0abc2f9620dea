/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Everything that callers can do wrong: each gets its number and words, and nothing changes. */
#include <errno.h>
#include <klp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IS(call, errno_, word) \
	is((call), errno_, word, #call)

static void is(long got, long wanted, const char *word, const char *call)
{
	const char *said = klp_last_error();

	if (got == wanted && (!word || strstr(said, word)))
		return;
	printf("%s: %ld, not %ld: %s\n", call, got, wanted, said);
	exit(1);
}

static int count(const struct klp_patch_status *status, void *data)
{
	(void)status;
	++*(int *)data;
	return 0;
}

static int stop(const struct klp_patch_status *status, void *data)
{
	(void)data;
	return status->name[0];
}

static int objects(const char *object, int patched, void *data)
{
	(void)patched;
	strcpy(data, object);
	return 0;
}

static int blockers(const struct klp_blocker *blocker, void *data)
{
	(void)blocker;
	(void)data;
	return 0;
}

static void *other_thread(void *unused)
{
	(void)unused;
	return (void *)(long)klp_last_error()[0];
}

int main(int argc, char **argv)
{
	klp_patch_t fix = 99, all[2];
	klp_library_t library = 99;
	struct klp_ways ways;
	struct klp_options options = { sizeof(options), 0, 0, NULL, NULL, 0, NULL };
	char name[64], *object;
	int patches = 0;
	pthread_t thread;
	void *said;
	FILE *file;
	long size;

	if (argc != 2 || klp_last_error()[0])
		return 1;

	/* Too early. */
	IS(klp_load_file(argv[1], &fix), -ENXIO, "klp_init");
	IS(klp_load("x", 1, "x", &fix), -ENXIO, "klp_init");
	IS(klp_find("x", &fix), -ENXIO, "klp_init");
	IS(klp_enable(1), -ENXIO, "klp_init");
	IS(klp_disable(1), -ENXIO, "klp_init");
	IS(klp_enable_all(&fix, 1), -ENXIO, "klp_init");
	IS(klp_disable_all(&fix, 1), -ENXIO, "klp_init");
	IS(klp_unload(1), -ENXIO, "klp_init");
	IS(klp_reverse(1), -ENXIO, "klp_init");
	IS(klp_kick(1), -ENXIO, "klp_init");
	IS(klp_force(1), -ENXIO, "klp_init");
	IS(klp_poll(), -ENXIO, "klp_init");
	IS(klp_wait(1), -ENXIO, "klp_init");
	IS(klp_adopt(), -ENXIO, "klp_init");
	IS(klp_serve(NULL, NULL, 0), -ENXIO, "klp_init");
	IS(klp_check(1, NULL, NULL), -ENXIO, "klp_init");
	IS(klp_status(count, &patches), -ENXIO, "klp_init");
	IS(klp_objects(1, objects, name), -ENXIO, "klp_init");
	IS(klp_blockers(1, blockers, NULL), -ENXIO, "klp_init");
	IS(klp_ways(&ways), -ENXIO, "klp_init");
	IS(klp_open_library("x", &library), -ENXIO, "klp_init");
	IS(klp_close_library(1), -ENXIO, "klp_init");
	IS(klp_symbol(1, "x") != NULL, 0, "klp_init");

	/* Options. */
	options.size = 4;
	IS(klp_init(&options), -E2BIG, "klp_options.size");
	options.size = sizeof(options);
	options.stop_signal = 9;
	IS(klp_init(&options), -EINVAL, "9 is no real-time signal");
	options.stop_signal = 0;
	options.contexts = 7;
	IS(klp_init(&options), -EINVAL, "klp_options.contexts");
	options.contexts = KLP_CONTEXTS_REFUSE;
	IS(klp_init(&options), 0, NULL);
	IS(klp_init(NULL), -EEXIST, "already");

	/* Nothing, no such thing, no text. */
	IS(klp_load_file(NULL, &fix), -EINVAL, "NULL");
	IS(klp_load_file(argv[1], NULL), -EINVAL, "NULL");
	IS(klp_load_file("/nowhere/fix.ko", &fix), -ENOENT, "/nowhere/fix.ko");
	IS(klp_load_file("/nowhere/\xff", &fix), -EINVAL, "\\xff");
	IS(klp_load(NULL, 1, "x", &fix), -EINVAL, "NULL");
	IS(klp_load("x", 1, NULL, &fix), -EINVAL, "NULL");
	IS(klp_load("x", (size_t)-1, "x", &fix), -EINVAL, "more than memory has");
	IS(klp_load("x", 1, "garbage", &fix) < 0, 1, "garbage");
	IS(klp_find(NULL, &fix), -EINVAL, "NULL");
	IS(klp_find("nobody", &fix), -ENOENT, "nobody");
	IS(klp_find("\xfe", &fix), -EINVAL, "\\xfe");
	IS(klp_enable(0), -EINVAL, "no patch number 0");
	IS(klp_enable(77), -EINVAL, "77");
	IS(klp_disable(77), -EINVAL, "77");
	IS(klp_unload(77), -EINVAL, "77");
	IS(klp_reverse(77), -EINVAL, "77");
	IS(klp_kick(77), -EINVAL, "77");
	IS(klp_force(77), -EINVAL, "77");
	IS(klp_check(77, NULL, NULL), -EINVAL, "77");
	IS(klp_objects(77, objects, name), -EINVAL, "77");
	IS(klp_blockers(77, blockers, NULL), -EINVAL, "77");
	IS(klp_enable_all(NULL, 1), -EINVAL, "no patch");
	IS(klp_enable_all(&fix, 0), -EINVAL, "no patch");
	IS(klp_enable_all(&fix, (size_t)-1), -EINVAL, "more than memory has");
	IS(klp_disable_all(NULL, 0), -EINVAL, "no patch");
	IS(klp_status(NULL, NULL), -EINVAL, "NULL");
	IS(klp_objects(1, NULL, NULL), -EINVAL, "NULL");
	IS(klp_blockers(1, NULL, NULL), -EINVAL, "NULL");
	IS(klp_ways(NULL), -EINVAL, "NULL");
	IS(klp_wait(-2), -EINVAL, "-2");
	IS(klp_open_library(NULL, &library), -EINVAL, "NULL");
	IS(klp_open_library("/nowhere/lib.so", NULL), -EINVAL, "NULL");
	IS(klp_open_library("/nowhere/lib.so", &library), -ELIBACC, "/nowhere/lib.so");
	IS(klp_close_library(77), -EINVAL, "77");
	IS(klp_symbol(77, "x") != NULL, 0, "77");
	IS(klp_symbol(77, NULL) != NULL, 0, "NULL");
	IS(klp_serve(NULL, name, sizeof(name)), -ERANGE, "108");
	IS(klp_serve("/nowhere/socket", NULL, 0), -ENOENT, NULL);
	if (fix != 99 || library != 99)
		return 2;
	IS(klp_status(count, &patches), 0, NULL);
	IS(patches, 0, NULL);

	/* Words are the thread's own. */
	pthread_create(&thread, NULL, other_thread, NULL);
	pthread_join(thread, &said);
	IS((long)said, 0, "nowhere");

	/* All the rest does what it says. */
	file = fopen(argv[1], "rb");
	fseek(file, 0, SEEK_END);
	size = ftell(file);
	rewind(file);
	object = malloc(size);
	if (fread(object, 1, size, file) != (size_t)size)
		return 3;
	fclose(file);
	IS(klp_load(object, size, "other", &fix), 0, NULL);
	free(object);
	IS(klp_load_file(argv[1], &all[0]), -EINVAL, "a patch of that name is there already");
	IS(klp_find("greeter_fix", &all[0]), 0, NULL);
	IS(all[0] == fix, 1, NULL);
	IS(klp_check(fix, NULL, NULL), 0, NULL);
	IS(klp_status(count, &patches), 0, NULL);
	IS(patches, 1, NULL);
	IS(klp_status(stop, NULL), 'g', NULL);
	IS(klp_objects(fix, objects, name), 0, NULL);
	IS(strcmp(name, "vmlinux"), 0, NULL);
	all[1] = fix;
	IS(klp_enable_all(all, 2), -EINVAL, "twice");
	all[1] = 77;
	IS(klp_enable_all(all, 2), -EINVAL, "77");
	IS(klp_enable_all(all, 1), 0, NULL);
	IS(klp_wait(-1), 0, NULL);
	IS(klp_poll(), 0, NULL);
	IS(klp_unload(fix) < 0, 1, NULL);
	IS(klp_ways(&ways), 0, NULL);
	IS(klp_adopt(), 0, NULL);
	IS(klp_disable_all(all, 1), 0, NULL);
	IS(klp_wait(60000), 0, NULL);
	IS(klp_unload(fix), 0, NULL);
	IS(klp_enable(fix), -EINVAL, "no patch number");
	IS(klp_open_library("libm.so.6", &library), 0, NULL);
	IS(klp_symbol(library, "cos") != NULL, 1, NULL);
	IS(klp_symbol(library, "nothing") != NULL, 0, "nothing");
	IS(klp_close_library(library), 0, NULL);
	IS(klp_close_library(library), -EINVAL, "no library");
	IS(klp_shadow_alloc(&library, 1, 8, 0, NULL, NULL) != NULL, 1, NULL);
	IS(klp_shadow_get(&library, 1) != NULL, 1, NULL);
	klp_shadow_free(&library, 1, NULL);
	IS(klp_shadow_get(&library, 1) != NULL, 0, NULL);
	klp_context_free(klp_context_new("mine"));
	puts("all is as it should be");
	return 0;
}
