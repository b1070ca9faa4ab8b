/*
 * containerd-shim-gvisor-v2: hands the call to the fork server, or becomes the interpreter.
 *
 * Everything that a call needs is imported once for each containerd, by the fork server
 * (shim/forkserver/); this program tells it what it was called with, in about a millisecond, and
 * ends as the server's fork ends.  Where there is no server, or it doesn't answer at once, it
 * executes the interpreter, as if there never was one.
 *
 * The build defines INSTALLED, the folder of the packages, INTERPRETER, and BUILD, a word that no
 * other version has.  SERVERS is the folder of the servers' sockets, where only root may look.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef INSTALLED
#define INSTALLED ""
#endif
#ifndef INTERPRETER
#define INTERPRETER ""
#endif
#ifndef BUILD
#define BUILD "none"
#endif
#ifndef SERVERS
#define SERVERS "/run/containerd-shim-gvisor/forkserver"
#endif

/* With GVCTL it is gvctl. */
#ifdef GVCTL
#define NAME "gvctl"
#define MODULE "shim.gvctl"
#define SERVED 0
#else
#define NAME "containerd-shim-gvisor-v2"
#define MODULE "shim.__main__"
#define SERVED 1
#endif
#define SWITCH "GVISOR_SHIM_FORK_SERVER"
#define SCRIPT "/shim/bin/" NAME
#define PATHS 4096
/* Milliseconds after which a server that hasn't answered is looked at, and after which it is given
   up even if it runs: on a busy machine what it spares is dear, too. */
#define GLANCE 10
#define PATIENCE 1000
/* The most that is sent.  A longer command line or environment is the interpreter's. */
#define MOST (1 << 20)

extern char **environ;

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void die(const char *format, ...)
{
    va_list values;

    fputs(NAME ": ", stderr);
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

/* -- where it is installed ------------------------------------------------------------------ */

struct place {
    char package[PATHS]; /* the folder that holds shim/; empty if none was found */
    char interpreter[PATHS];
};

static int is_there(const char *folder, const char *rest)
{
    char path[2 * PATHS];

    snprintf(path, sizeof(path), "%s%s", folder, rest);
    return access(path, F_OK) == 0;
}

static void put(char *to, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(char *to, const char *format, ...)
{
    va_list values;

    va_start(values, format);
    if (vsnprintf(to, PATHS, format, values) >= PATHS)
        to[0] = 0;
    va_end(values);
}

/* The first runnable of these, in `to`; a name without a slash is looked for on PATH. */
static int first_runnable(char *to, const char *const *candidates)
{
    for (; *candidates; candidates++) {
        const char *each = *candidates;
        if (!*each)
            continue;
        if (strchr(each, '/')) {
            if (access(each, X_OK) == 0) {
                put(to, "%s", each);
                return 1;
            }
            continue;
        }
        const char *path = getenv("PATH");
        while (path && *path) {
            size_t length = strcspn(path, ":");
            put(to, "%.*s/%s", (int)length, path, each);
            if (length && to[0] == '/' && access(to, X_OK) == 0)
                return 1;
            path += length + (path[length] == ':');
        }
    }
    to[0] = 0;
    return 0;
}

/* An installation that was moved, or unpacked elsewhere, lies beside the launcher; a copy of the
   launcher knows where it was installed. */
static void find(struct place *place)
{
    char self[PATHS], bin[PATHS], pattern[PATHS], python[64] = "python3", here[PATHS];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    glob_t found;

    self[length > 0 ? length : 0] = 0;
    put(bin, "%s", self);
    char *slash = strrchr(bin, '/');
    if (slash)
        *slash = 0;
    place->package[0] = 0;
    /* The usual case first, without a look into folders: the launcher is where it was put. */
    const char *lib = strstr(INSTALLED, "/lib");
    size_t prefix = lib ? (size_t)(lib - INSTALLED) : 0;
    if (prefix && !strncmp(bin, INSTALLED, prefix) && !strcmp(bin + prefix, "/bin")
        && is_there(INSTALLED, SCRIPT))
        put(place->package, "%s", INSTALLED);
    if (!place->package[0]) {
        put(pattern, "%s/../lib*/python3*/*-packages%s", bin, SCRIPT);
        if (slash && glob(pattern, 0, NULL, &found) == 0) {
            found.gl_pathv[0][strlen(found.gl_pathv[0]) - strlen(SCRIPT)] = 0;
            if (realpath(found.gl_pathv[0], here))
                put(place->package, "%s", here);
            globfree(&found);
        }
    }
    if (!place->package[0] && *INSTALLED && is_there(INSTALLED, SCRIPT))
        put(place->package, "%s", INSTALLED);
    /* .../python3.11/site-packages names the interpreter, but Debian's own folder doesn't. */
    const char *named = strstr(place->package, "/python3");
    if (named && strcspn(named + 1, "/") < sizeof(python))
        snprintf(python, sizeof(python), "%.*s", (int)strcspn(named + 1, "/"), named + 1);
    const char *tried = strcmp(place->package, INSTALLED) ? "" : INTERPRETER;
    char beside[PATHS], usual[PATHS], local[PATHS];
    put(beside, "%s/%s", bin, python);
    put(usual, "/usr/bin/%s", python);
    put(local, "/usr/local/bin/%s", python);
    const char *const candidates[] = {tried, beside, python, usual, local, NULL};
    if (!first_runnable(place->interpreter, candidates))
        die("no %s to run it with", python);
}

/* -- the call, as the server gets it -------------------------------------------------------- */

struct message {
    char *data;
    size_t size;
    int too_long;
};

static void add(struct message *message, char tag, const void *data, size_t size)
{
    uint32_t length = (uint32_t)size;

    if (size > MOST || message->size + size + 5 > MOST) {
        message->too_long = 1;
        return;
    }
    message->data[message->size] = tag;
    memcpy(message->data + message->size + 1, &length, 4);
    memcpy(message->data + message->size + 5, data, size);
    message->size += size + 5;
}

/* A file of /proc, which may be absent; its size, which is 0 then. */
static size_t read_file(const char *path, char *buffer, size_t most)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t size = 0;
    ssize_t n;

    if (fd < 0)
        return 0;
    while (size < most && (n = read(fd, buffer + size, most - size)) > 0)
        size += (size_t)n;
    close(fd);
    return size;
}

static void add_file(struct message *message, char tag, const char *path)
{
    char buffer[16384];

    add(message, tag, buffer, read_file(path, buffer, sizeof(buffer)));
}

/* The lines of /proc/self/status that tell what was handed on to us. */
static void add_status(struct message *message)
{
    static const char *const names[] = {
        "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff",
        "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
        "Speculation_Store_Bypass", "SpeculationIndirectBranch", "THP_enabled",
        "Cpus_allowed_list"};
    char buffer[16384], found[4096];
    size_t size = read_file("/proc/self/status", buffer, sizeof(buffer) - 1), used = 0;

    buffer[size] = 0;
    for (char *line = buffer, *end; (end = strchr(line, '\n')); line = end + 1) {
        size_t name = strcspn(line, ":"), length = (size_t)(end + 1 - line);
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
            if (strlen(names[i]) == name && !strncmp(line, names[i], name)
                && used + length <= sizeof(found)) {
                memcpy(found + used, line, length);
                used += length;
            }
    }
    add(message, 's', found, used);
}

/* What the kernel hands on from a process to what it starts, as shim/forkserver/likeness.py
   compares or copies it. */
static void add_properties(struct message *message, pid_t parent)
{
    static const char *const namespaces[] = {
        "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts"};
    uint64_t limits[2 * RLIM_NLIMITS];
    int64_t numbers[5];
    struct sched_param priority = {0};
    struct stat root;

    add_status(message);
    add_file(message, 'c', "/proc/self/cgroup");
    add_file(message, 'o', "/proc/self/oom_score_adj");
    add_file(message, 't', "/proc/self/attr/current");
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit = {0, 0};
        getrlimit(i, &limit);
        limits[2 * i] = limit.rlim_cur;
        limits[2 * i + 1] = limit.rlim_max;
    }
    add(message, 'l', limits, sizeof(limits));
    sched_getparam(0, &priority);
    numbers[0] = getpriority(PRIO_PROCESS, 0);
    numbers[1] = sched_getscheduler(0);
    numbers[2] = priority.sched_priority;
    numbers[3] = syscall(SYS_ioprio_get, 1, 0);
    numbers[4] = prctl(PR_GET_TIMERSLACK, 0L, 0L, 0L, 0L);
    add(message, 'n', numbers, sizeof(numbers));
    char text[1024];
    size_t size = 0;
    for (size_t i = 0; i < sizeof(namespaces) / sizeof(*namespaces); i++) {
        char path[64], target[64];
        snprintf(path, sizeof(path), "/proc/self/ns/%s", namespaces[i]);
        ssize_t length = readlink(path, target, sizeof(target) - 1);
        target[length > 0 ? length : 0] = 0;
        size += (size_t)snprintf(text + size, sizeof(text) - size, "%s ", target);
    }
    if (stat("/", &root))
        memset(&root, 0, sizeof(root));
    size += (size_t)snprintf(text + size, sizeof(text) - size, "%llu:%llu %d",
                             (unsigned long long)root.st_dev, (unsigned long long)root.st_ino,
                             personality(0xffffffff));
    add(message, 'w', text, size);
    size = (size_t)snprintf(text, sizeof(text), "%d", (int)parent);
    add(message, 'p', text, size);
}

static void write_message(struct message *message, int argc, char **argv, pid_t parent)
{
    message->data = malloc(MOST);
    message->size = 4;
    message->too_long = message->data == NULL;
    if (message->too_long)
        return;
    for (int i = 0; i < argc; i++)
        add(message, 'a', argv[i], strlen(argv[i]));
    for (char **each = environ; *each; each++)
        add(message, 'e', *each, strlen(*each));
    add_properties(message, parent);
    uint32_t size = (uint32_t)(message->size - 4);
    memcpy(message->data, &size, 4);
}

/* -- the conversation ----------------------------------------------------------------------- */

/* The server's socket: one for each containerd, by pid and start time, and installed version. */
static int name_server(char *path, size_t most, const char *package, pid_t parent)
{
    char file[64], stat[1024];
    unsigned long long began;
    uint32_t hash = 2166136261u;

    snprintf(file, sizeof(file), "/proc/%d/stat", (int)parent);
    size_t size = read_file(file, stat, sizeof(stat) - 1);
    stat[size] = 0;
    char *at = strrchr(stat, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (!at || sscanf(at, " %llu", &began) != 1)
        return 0;
    for (const char *each = package; *each; each++)
        hash = (hash ^ (unsigned char)*each) * 16777619u;
    int length = snprintf(path, most, SERVERS "/%d-%llu-" BUILD "-%08x", (int)parent, began, hash);
    return length > 0 && (size_t)length < most;
}

/* A connection to a server that is root's, and its pid; -1 if there is none.  Never waits. */
static int reach(const char *path, pid_t *server)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (strlen(path) >= sizeof(address.sun_path))
        return -1;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0
        && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid()) {
        *server = peer.pid;
        return fd;
    }
    close(fd);
    return -1;
}

/* Whether the connection can be read or written, before the server is given up. */
static int await(int fd, short events, pid_t server)
{
    struct pollfd poller = {.fd = fd, .events = events};
    char path[64], stat[256];

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)server);
    for (int waited = 0; waited < PATIENCE; waited += GLANCE) {
        int found = poll(&poller, 1, GLANCE);
        if (found > 0)
            return 1;
        if (found < 0 && errno != EINTR)
            return 0;
        stat[read_file(path, stat, sizeof(stat) - 1)] = 0;
        char *state = strrchr(stat, ')');
        if (!state || state[1] != ' ' || strchr("TtZXx", state[2]))
            return 0;
    }
    return 0;
}

static int send_all(int fd, pid_t server, const struct message *message)
{
    size_t sent = 0;

    while (sent < message->size) {
        ssize_t n = send(fd, message->data + sent, message->size - sent, MSG_NOSIGNAL);
        if (n > 0)
            sent += (size_t)n;
        else if ((errno != EAGAIN && errno != EINTR) || !await(fd, POLLOUT, server))
            return 0;
    }
    return 1;
}

/* The word to go on, and stdin, stdout, stderr and working directory.  Not before a fork of the
   server is there to take them: what lies in the socket of one that hangs would keep them open,
   and containerd waits for their end. */
static int send_go(int fd, const int *fds)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(4 * sizeof(int))];
    } control;
    char go = 'G';
    struct iovec part = {&go, 1};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space,
                            .msg_controllen = sizeof(control.space)};

    memset(&control, 0, sizeof(control));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(4 * sizeof(int));
    memcpy(CMSG_DATA(&control.header), fds, 4 * sizeof(int));
    return sendmsg(fd, &header, MSG_NOSIGNAL) == 1;
}

/* Two bytes of the server's fork, and the descriptor that may come with them. */
static int receive(int fd, unsigned char *answer, int *given)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {answer, 2};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space,
                            .msg_controllen = sizeof(control.space)};
    ssize_t n;

    do
        n = recvmsg(fd, &header, MSG_WAITALL | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n != 2)
        return 0;
    struct cmsghdr *first = CMSG_FIRSTHDR(&header);
    if (first && first->cmsg_type == SCM_RIGHTS && first->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(given, CMSG_DATA(first), sizeof(int));
    return 1;
}

/*
 * Has the server's fork do what was asked, and ends as that ends.  Returns if it is not to be:
 * before it was told to go on nothing was done, and later only where it says so itself, with what
 * it has read of stdin.
 */
static void hand_over(const char *path, int argc, char **argv, pid_t parent)
{
    struct message message;
    unsigned char answer[2];
    int fds[4], given = -1;
    pid_t server;
    int fd = reach(path, &server);

    if (fd < 0)
        return;
    /* As the interpreter has it: what it would ignore is no difference. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    for (int i = 0; i < 3; i++)
        fds[i] = i;
    fds[3] = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    write_message(&message, argc, argv, parent);
    if (fds[3] >= 0 && !message.too_long && send_all(fd, server, &message) && await(fd, POLLIN, server)
        && receive(fd, answer, &given) && answer[0] == 'R'
        && send_go(fd, fds)) {
        fcntl(fd, F_SETFL, 0);
        if (!receive(fd, answer, &given))
            die("the fork server's process ended before it was done");
        if (answer[0] == 'S')
            _exit(answer[1]);
        if (given >= 0) {
            dup2(given, 0);
            close(given);
        }
    }
    free(message.data);
    close(fds[3]);
    close(fd);
}

/* -- the interpreter ------------------------------------------------------------------------ */

/* -I and -S: without site the start takes a third less time, and no PYTHON* variable gets in. */
static void become(const struct place *place, const char *server, int argc, char **argv)
{
    static const char elsewhere[] =
        "import site\nsite.main()\nfrom " MODULE " import run\nrun()\n";
    char package[PATHS + 16], program[2 * PATHS], behind[PATHS + 16], name[PATHS];
    char **words = calloc((size_t)argc + 14, sizeof(char *));
    int n = 0;

    if (!words)
        die("out of memory");
    words[n++] = (char *)place->interpreter;
    words[n++] = "-I";
    words[n++] = "-S";
    snprintf(name, sizeof(name), "launcher=%s", argv[0]);
    words[n++] = "-X";
    words[n++] = name;
    if (*server) {
        snprintf(behind, sizeof(behind), "server=%s", server);
        words[n++] = "-X";
        words[n++] = behind;
    }
    if (place->package[0]) {
        snprintf(package, sizeof(package), "shim=%s", place->package);
        snprintf(program, sizeof(program), "%s%s", place->package, SCRIPT);
        words[n++] = "-X";
        words[n++] = package;
        words[n++] = program;
    } else {
        /* Not in the usual places: an editable install, perhaps. */
        words[n++] = "-c";
        words[n++] = (char *)elsewhere;
    }
    memcpy(words + n, argv + 1, (size_t)(argc - 1) * sizeof(char *));
    execv(place->interpreter, words);
    die("%s: %s", place->interpreter, strerror(errno));
}

static int is_off(const char *value)
{
    return value && (!strcmp(value, "off") || !strcmp(value, "0") || !strcmp(value, "false")
                     || !strcmp(value, "no"));
}

int main(int argc, char **argv)
{
    struct place place;
    char server[PATHS] = "";
    const char *action = argc > 1 ? argv[argc - 1] : "";
    int start = SERVED && !strcmp(action, "start");
    int served = start || (SERVED && !strcmp(action, "delete"));

    if (argc < 1)
        return 1;
    for (int i = 1; i < argc && SERVED && !served; i++)
        served = !strcmp(argv[i], "-info") || !strcmp(argv[i], "--info");
    /* One of the three that is closed would be the number of the next that is opened. */
    for (int null = 0; null >= 0 && null < 3;)
        if ((null = open("/dev/null", O_RDWR)) >= 3)
            close(null);
    /* The interpreter refuses to start with a directory, from which there is nothing to read. */
    struct stat input;
    if (fstat(0, &input) == 0 && S_ISDIR(input.st_mode)) {
        int null = open("/dev/null", O_RDONLY);
        if (null > 0) {
            dup2(null, 0);
            close(null);
        }
    }
    find(&place);
    pid_t parent = getppid();
    if (served && place.package[0] && !is_off(getenv(SWITCH))
        && name_server(server, sizeof(server), place.package, parent))
        hand_over(server, argc, argv, parent);
    become(&place, start ? server : "", argc, argv);
}
