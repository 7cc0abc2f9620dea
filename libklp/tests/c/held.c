/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A thread inside of the function that changes: who it is, the log, the way back, force. */
#include <errno.h>
#include <klp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void hold(void);

atomic_int held, leave;
static atomic_int lines;

static void log_line(const char *line, void *data)
{
	if (line[0] && !strcmp(data, "mine"))
		lines++;
}

static void *stay(void *unused)
{
	(void)unused;
	hold();
	return NULL;
}

static int show(const struct klp_blocker *blocker, void *data)
{
	char *said = data;

	snprintf(said, 256, "%s, depth %d", blocker->why, blocker->depth > 1);
	return strcmp(blocker->name, "holder") ? 0 : 7;
}

static int enabled(const struct klp_patch_status *status, void *data)
{
	(void)data;
	return status->enabled + 10 * status->transition + 100 * status->forced;
}

int main(int argc, char **argv)
{
	struct klp_options options = { sizeof(options), 0, 0, log_line, "mine", 0, NULL };
	klp_patch_t fix;
	pthread_t thread;
	char said[256] = "";

	if (argc != 2 || klp_init(&options) || klp_load_file(argv[1], &fix))
		return 1;
	pthread_create(&thread, NULL, stay, NULL);
	pthread_setname_np(thread, "holder");
	while (!held)
		usleep(1000);
	if (klp_enable(fix) || klp_wait(50) != -ETIMEDOUT || klp_poll() != 1)
		return 2;
	if (klp_status(enabled, NULL) != 1 + 10 * KLP_PATCHING)
		return 3;
	if (klp_blockers(fix, show, said) != 7 || !strstr(said, "is in function 'hold' of 'vmlinux'"))
		return 4;
	if (klp_kick(fix) || klp_reverse(fix) || klp_wait(60000) || klp_status(enabled, NULL) != 0)
		return 5;
	if (klp_enable(fix) || klp_force(fix) || klp_wait(60000))
		return 6;
	if (klp_status(enabled, NULL) != 1 || !lines) {
		printf("%d, %d lines\n", klp_status(enabled, NULL), lines);
		return 7;
	}
	leave = 1;
	pthread_join(thread, NULL);
	puts(said);
	return 0;
}
