/* The rest of the program. */
int outside_number = 5;
char outside_bytes[100];
int outside(int n) { return n + 1; }
