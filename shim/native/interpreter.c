/*
 * The bundle's bin/python3.X: the interpreter, by the dynamic loader and the C library that the
 * bundle brings along.
 *
 * A program names its loader by an absolute path, and a bundle may lie anywhere.  So the
 * interpreter's own file (PROGRAM) is told to its loader (LOADER), both by their paths relative to
 * this program, which is linked statically.  The interpreter takes this program for itself: what
 * it starts as sys.executable comes by here again.
 */

#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the loader is told before the interpreter's own arguments. */
#define BEFORE 5

int main(int argc, char **argv)
{
    char self[PATH_MAX], loader[2 * PATH_MAX], program[2 * PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char **words = calloc((size_t)argc + BEFORE + 1, sizeof(*words));
    int i;

    if (length <= 0 || length >= (ssize_t)sizeof(self) - 1 || !words) {
        fputs("python3: can't find out where it is: is /proc mounted?\n", stderr);
        return 127;
    }
    self[length] = 0;
    int folder = (int)(strrchr(self, '/') - self);
    snprintf(loader, sizeof(loader), "%.*s/%s", folder, self, LOADER);
    snprintf(program, sizeof(program), "%.*s/%s", folder, self, PROGRAM);
    words[0] = loader;
    /* The node's cache of libraries knows those of another C library. */
    words[1] = "--inhibit-cache";
    words[2] = "--argv0";
    words[3] = self;
    words[4] = program;
    for (i = 1; i < argc; i++)
        words[BEFORE + i - 1] = argv[i];
    execv(loader, words);
    perror(loader);
    return 127;
}
