// A Unix socket's either end: `socket listen PATH` answers one connection with "hello", `socket
// connect PATH` prints what it is told.  And a lock: `socket lock PATH` holds one of an open file
// until it can read a byte.  Ends with 1 and the reason if a call fails.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    char text[64];
    if (argc != 3 || strlen(argv[2]) >= sizeof name.sun_path) return 2;
    strcpy(name.sun_path, argv[2]);
    if (strcmp(argv[1], "lock") == 0) {
        int file = open(argv[2], O_RDWR | O_CREAT, 0666);
        if (file < 0) return fail("open");
        if (flock(file, LOCK_EX | LOCK_NB)) return fail("flock");
        return read(0, text, 1) < 0 ? fail("read") : 0;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return fail("socket");
    if (strcmp(argv[1], "listen") == 0) {
        if (bind(fd, (struct sockaddr *)&name, sizeof name)) return fail("bind");
        if (listen(fd, 1)) return fail("listen");
        int peer = accept(fd, NULL, NULL);
        if (peer < 0) return fail("accept");
        return write(peer, "hello\n", 6) == 6 ? 0 : fail("write");
    }
    if (connect(fd, (struct sockaddr *)&name, sizeof name)) return fail("connect");
    ssize_t got = read(fd, text, sizeof text);
    if (got < 0) return fail("read");
    return write(1, text, got) == got ? 0 : fail("write");
}
