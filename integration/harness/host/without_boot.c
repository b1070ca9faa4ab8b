/* Stands before a runsc and refuses one command, as a release does whose sentry is a program of
   its own.  Compiled with RUNSC, the path of the real one, COMMAND, and VERSION if another is to
   be told.  With RELEASE it wants that in its environment, as such a sentry does. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
#ifdef VERSION
        if (!strcmp(argv[i], "--version")) {
            puts("runsc version " VERSION "\nspec: 1.0");
            return 0;
        }
#endif
#ifdef COMMAND
        if (!strcmp(argv[i], COMMAND)) {
            fprintf(stderr, "Subcommand %s not understood\n", COMMAND);
            return 0;
        }
#endif
#ifdef RELEASE
        if (!strcmp(argv[i], "boot") && strcmp(argv[i - 1], "help")) {
            const char *release = getenv("GVISOR_ENFORCE_RELEASE");
            if (!release || strcmp(release, RELEASE)) {
                fprintf(stderr, "expected release is %s\n", release ? release : "unset");
                return 2;
            }
        }
#endif
    }
    execv(RUNSC, argv);
    perror(RUNSC);
    return 126;
}
