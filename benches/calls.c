/* What `redirect` calls. Every function does the same, so that only the way to it differs. */
#define FUNC __attribute__((noipa))
#define PAD __attribute__((patchable_function_entry(16, 0)))

FUNC int call_plain(int x) { return x + 1; }
FUNC PAD int call_pad(int x) { return x + 1; }
FUNC PAD int call_settled(int x) { return x + 1; }
FUNC PAD int call_transition(int x) { return x + 1; }
FUNC PAD int call_handler(int x) { return x + 1; }
FUNC int call_retour(int x) { return x + 1; }
FUNC int new_call(int x) { return x + 1; }

/* One loop for all, so that no layout favours one of them. */
FUNC int call_loop(int (*call)(int), unsigned times)
{
	int x = 0;

	while (times--)
		x = call(x);
	return x;
}

/* A function to sleep in, which holds a transition open. */
FUNC PAD int hold(int fd)
{
	char byte;
	extern long read(int, void *, unsigned long);

	return (int)read(fd, &byte, 1);
}

FUNC int new_hold(int fd) { return -fd; }
