/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A daemon of the old kind: it forks, its parent ends, and it closes what it does not know. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *greeting(void);

int main(int argc, char **argv)
{
	sigset_t set;
	int signal, fd;
	FILE *file;

	if (argc != 2)
		return 1;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (fork())
		return 0;
	setsid();
	/* Long enough to be taken for one that stays. */
	usleep(100000);
	for (fd = 3; fd < 1024; fd++)
		close(fd);
	do {
		file = fopen(argv[1], "a");
		fprintf(file, "%d %s\n", getpid(), greeting());
		fclose(file);
		sigwait(&set, &signal);
	} while (signal == SIGHUP);
	return 0;
}
