/*
 * System calls that Python's standard library doesn't offer.  -1 and errno on failure.
 * The numbers are given where older headers lack them; since Linux 5.1 they are the same on all
 * architectures but alpha.
 */

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_register 427
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

int gv_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
    return prctl(option, a, b, c, d);
}

long long gv_fs_type(const char *path)
{
    struct statfs buffer;

    if (statfs(path, &buffer))
        return -1;
    return (long long)(uint32_t)buffer.f_type;
}

static int gv_pivot_root(const char *new_root, const char *put_old)
{
    return (int)syscall(SYS_pivot_root, new_root, put_old);
}

int gv_fsopen(const char *type, unsigned int flags)
{
    return (int)syscall(SYS_fsopen, type, flags);
}

int gv_fsconfig(int fd, unsigned int cmd, const char *key, const char *value, int aux)
{
    return (int)syscall(SYS_fsconfig, fd, cmd, key, value, aux);
}

int gv_fsmount(int fd, unsigned int flags, unsigned int attributes)
{
    return (int)syscall(SYS_fsmount, fd, flags, attributes);
}

int gv_open_tree(int dir, const char *path, unsigned int flags)
{
    return (int)syscall(SYS_open_tree, dir, path, flags);
}

int gv_move_mount(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags)
{
    return (int)syscall(SYS_move_mount, from_dir, from, to_dir, to, flags);
}

int gv_mount_setattr(int dir, const char *path, unsigned int flags, unsigned long long set,
                     unsigned long long clear, unsigned long long propagation, int userns)
{
    uint64_t attributes[4] = {set, clear, propagation, userns < 0 ? 0 : (uint64_t)userns};

    return (int)syscall(SYS_mount_setattr, dir, path, flags, attributes, sizeof(attributes));
}

int gv_openat_beneath(int dir, const char *path, int flags, unsigned long long resolve)
{
    uint64_t how[3] = {(uint64_t)(unsigned int)flags, 0, resolve};

    return (int)syscall(SYS_openat2, dir, path, how, sizeof(how));
}

int gv_watch_openings(const char *path)
{
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    int saved;

    if (fd >= 0 && inotify_add_watch(fd, path, IN_OPEN) < 0) {
        saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* An io_uring that is never to be enabled; close-on-exec. */
int gv_disabled_ring(void)
{
    uint32_t params[30] = {0, 0, 1 << 6}; /* struct io_uring_params: IORING_SETUP_R_DISABLED */

    return (int)syscall(SYS_io_uring_setup, 1, params);
}

int gv_pin_files(int ring, const int *fds, unsigned int count)
{
    return (int)syscall(SYS_io_uring_register, ring, 2, fds, count); /* IORING_REGISTER_FILES */
}

int gv_ioprio_get(void)
{
    return (int)syscall(SYS_ioprio_get, 1, 0); /* IOPRIO_WHO_PROCESS, this one */
}

int gv_ioprio_set(int priority)
{
    return (int)syscall(SYS_ioprio_set, 1, 0, priority);
}

/*
 * Has /proc show these as our arguments and environment, each a row of strings with their NULs.
 *
 * The kernel shows whatever memory it is told of.  All other addresses have to be given anew; they
 * are those of /proc/self/stat, in its order from start_code on.
 */
int gv_show_arguments(const char *data, unsigned long arguments, unsigned long environment,
                      const unsigned long long *now)
{
    struct prctl_mm_map map;
    char *shown = mmap(NULL, arguments + environment + 1, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int saved;

    if (shown == MAP_FAILED)
        return -1;
    memcpy(shown, data, arguments + environment);
    memset(&map, 0, sizeof(map));
    map.start_code = now[0];
    map.end_code = now[1];
    map.start_stack = now[2];
    map.start_data = now[3];
    map.end_data = now[4];
    map.start_brk = now[5];
    map.brk = (unsigned long long)(uintptr_t)sbrk(0);
    map.arg_start = (unsigned long long)(uintptr_t)shown;
    map.arg_end = map.env_start = map.arg_start + arguments;
    map.env_end = map.env_start + environment;
    map.exe_fd = (uint32_t)-1;
    if (prctl(PR_SET_MM, (long)PR_SET_MM_MAP, &map, sizeof(map), 0L) == 0)
        return 0;
    saved = errno;
    munmap(shown, arguments + environment + 1);
    errno = saved;
    return -1;
}

/*
 * An sk_lookup program (Linux 5.9).  The numbers are those of linux/bpf.h, whose older versions
 * lack some of them.
 */
struct gv_instruction {
    uint8_t code;
    uint8_t registers; /* the source's number in the upper half */
    int16_t offset;
    int32_t value;
};

#define GV_BPF_SIZE 128

static int gv_bpf(int command, const void *attributes, size_t size)
{
    uint64_t whole[GV_BPF_SIZE / 8] = {0};

    memcpy(whole, attributes, size);
    return (int)syscall(SYS_bpf, command, whole, sizeof(whole));
}

static int gv_load_lookup(int map)
{
    const int32_t one = (int32_t)htonl(1);
    const struct gv_instruction program[] = {
        {0xbf, 0x16, 0, 0},      /* r6 = the context, a struct bpf_sk_lookup */
        {0x61, 0x60, 12, 0},     /* its protocol */
        {0x55, 0x00, 28, 6},     /* is not TCP: pass */
        {0x61, 0x60, 8, 0},      /* its family */
        {0x15, 0x00, 10, 2},     /* is IPv4 */
        {0x55, 0x00, 25, 10},    /* is not IPv6: pass */
        {0x61, 0x60, 44, 0},     /* is it to ::1? */
        {0x55, 0x00, 23, 0},
        {0x61, 0x60, 48, 0},
        {0x55, 0x00, 21, 0},
        {0x61, 0x60, 52, 0},
        {0x55, 0x00, 19, 0},
        {0x61, 0x60, 56, 0},
        {0x55, 0x00, 17, one},
        {0x05, 0x00, 2, 0},
        {0x71, 0x60, 40, 0},     /* is it to 127.0.0.0/8? */
        {0x55, 0x00, 14, 127},
        {0x62, 0x0a, -4, 0},     /* the map's only key */
        {0xbf, 0xa2, 0, 0},
        {0x07, 0x02, 0, -4},
        {0x18, 0x11, 0, map},
        {0x00, 0x00, 0, 0},
        {0x85, 0x00, 0, 1},      /* bpf_map_lookup_elem */
        {0x15, 0x00, 7, 0},      /* the listener is closed: pass */
        {0xbf, 0x07, 0, 0},
        {0xbf, 0x61, 0, 0},
        {0xbf, 0x72, 0, 0},
        {0xb7, 0x03, 0, 0},
        {0x85, 0x00, 0, 124},    /* bpf_sk_assign */
        {0xbf, 0x71, 0, 0},
        {0x85, 0x00, 0, 86},     /* bpf_sk_release */
        {0xb7, 0x00, 0, 1},      /* pass: on to what was assigned, or is found as ever */
        {0x95, 0x00, 0, 0},
    };
    const struct {
        uint32_t type, count;
        uint64_t instructions, license;
        uint32_t log[4], version, flags;
        char name[16];
        uint32_t device, attach_type;
    } load = {
        .type = 30, /* BPF_PROG_TYPE_SK_LOOKUP */
        .count = sizeof(program) / sizeof(program[0]),
        .instructions = (uint64_t)(uintptr_t)program,
        .license = (uint64_t)(uintptr_t) "Dual MIT/GPL",
        .name = "gvisor_loopback",
        .attach_type = 36, /* BPF_SK_LOOKUP */
    };

    return gv_bpf(5, &load, sizeof(load));
}

int gv_lead_loopback(int netns, int listener)
{
    const uint32_t kind[4] = {15, sizeof(uint32_t), sizeof(uint64_t), 1}; /* a sockmap of one */
    const uint32_t key = 0;
    const uint64_t value = (uint64_t)listener;
    int map, program = -1, link = -1, saved;

    map = gv_bpf(0, kind, sizeof(kind));
    if (map < 0)
        return -1;
    {
        const struct {
            uint64_t map, key, value, flags;
        } update = {(uint64_t)map, (uint64_t)(uintptr_t)&key, (uint64_t)(uintptr_t)&value, 0};

        if (!gv_bpf(2, &update, sizeof(update)))
            program = gv_load_lookup(map);
    }
    if (program >= 0) {
        const uint32_t attach[4] = {(uint32_t)program, (uint32_t)netns, 36, 0};

        link = gv_bpf(28, attach, sizeof(attach));
    }
    saved = errno;
    close(map);
    if (program >= 0)
        close(program);
    errno = saved;
    return link;
}

/*
 * A program that runs inside of a sandbox: it connects to a port on the loopback there, says so by
 * a line feed, and copies stdin to the connection and the connection to stdout.  Two processes,
 * one for each way.  Its code is taken from this library as it is, so nothing in it may refer to
 * anything outside: no library, no constants, no stack protector.
 */

#if defined(__x86_64__)
#define GV_MACHINE 62
#define GV_ENTRY "mov %rsp, %rdi\n and $-16, %rsp\n call gv_forward_main\n hlt\n"
#elif defined(__aarch64__)
#define GV_MACHINE 183
#define GV_ENTRY "mov x0, sp\n bl gv_forward_main\n brk #1\n"
#else
#define GV_MACHINE 0
#endif

#if GV_MACHINE
#define GV_INSIDE __attribute__((section("gv_forward"), used, no_stack_protector, \
                                 optimize("no-stack-protector", "no-tree-loop-distribute-patterns", \
                                          "no-jump-tables")))

__asm__(".pushsection gv_forward, \"ax\", %progbits\n"
        ".globl gv_forward_start\n .hidden gv_forward_start\n"
        "gv_forward_start:\n" GV_ENTRY ".popsection\n");

extern const unsigned char gv_forward_start[];
extern const unsigned char __start_gv_forward[] __attribute__((visibility("hidden")));
extern const unsigned char __stop_gv_forward[] __attribute__((visibility("hidden")));

static inline __attribute__((always_inline)) long gv_inside(long number, long a, long b, long c,
                                                            long d, long e)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;

    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory");
    return x0;
#endif
}

static inline __attribute__((always_inline)) int gv_copy_all(int from, int to, char *buffer,
                                                             long size)
{
    long count, done, put;

    while ((count = gv_inside(SYS_read, from, (long)buffer, size, 0, 0)) > 0) {
        for (done = 0; done < count; done += put) {
            put = gv_inside(SYS_write, to, (long)buffer + done, count - done, 0, 0);
            if (put <= 0)
                return -1;
        }
    }
    return 0;
}

GV_INSIDE static void gv_forward_main(const long *stack)
{
    const unsigned char *word = stack[0] > 1 ? (const unsigned char *)stack[2] : 0;
    uint32_t address[7];
    char buffer[16384];
    long port = 0, child;
    int fd;

    if (!word) {
        /* Without a port it only waits, as a pod's first process, to which others' orphans come:
           the kernel reaps them where SIGCHLD is ignored. */
        volatile uint64_t action[4]; /* SIG_IGN; volatile, lest it is copied from a constant */

        action[0] = 1;
        action[1] = action[2] = action[3] = 0;
        gv_inside(SYS_rt_sigaction, 17, (long)action, 0, 8, 0);
        for (;;)
            gv_inside(SYS_ppoll, 0, 0, 0, 0, 0);
    }
    for (; word && *word >= '0' && *word <= '9'; word++)
        port = port * 10 + *word - '0';
    port = ((port & 0xff) << 8) | ((port >> 8) & 0xff);
    /* A struct sockaddr_in; the family's bytes are in the machine's order, which is little. */
    address[0] = 2 | (uint32_t)port << 16;
    address[1] = 0x0100007f;
    address[2] = address[3] = address[4] = address[5] = address[6] = 0;
    fd = (int)gv_inside(SYS_socket, 2, 1, 0, 0, 0);
    if (fd < 0 || gv_inside(SYS_connect, fd, (long)address, 16, 0, 0)) {
        /* A struct sockaddr_in6. */
        address[0] = 10 | (uint32_t)port << 16;
        address[1] = 0;
        address[5] = 0x01000000;
        fd = (int)gv_inside(SYS_socket, 10, 1, 0, 0, 0);
        if (fd < 0 || gv_inside(SYS_connect, fd, (long)address, 28, 0, 0))
            gv_inside(SYS_exit_group, 1, 0, 0, 0, 0);
    }
    buffer[0] = '\n';
    gv_inside(SYS_write, 1, (long)buffer, 1, 0, 0);
    child = gv_inside(SYS_clone, 17, 0, 0, 0, 0); /* SIGCHLD: a fork */
    if (child < 0)
        gv_inside(SYS_exit_group, 2, 0, 0, 0, 0);
    if (!child) {
        gv_inside(SYS_prctl, 1, 9, 0, 0, 0); /* PR_SET_PDEATHSIG: SIGKILL */
        gv_inside(SYS_close, 1, 0, 0, 0, 0);
        gv_copy_all(0, fd, buffer, sizeof(buffer));
        gv_inside(SYS_shutdown, fd, 1, 0, 0, 0);
        gv_inside(SYS_exit_group, 0, 0, 0, 0, 0);
    }
    gv_inside(SYS_close, 0, 0, 0, 0, 0);
    gv_copy_all(fd, 1, buffer, sizeof(buffer));
    gv_inside(SYS_kill, child, 9, 0, 0, 0);
    gv_inside(SYS_wait4, child, 0, 0, 0, 0);
    gv_inside(SYS_exit_group, 0, 0, 0, 0, 0);
}

/*
 * Another one, which makes system calls inside of a sandbox for who holds the other ends of its
 * stdin and stdout.  It says where its buffer is; then each call is eight numbers: the system
 * call's, five arguments, how many bytes follow for the buffer, and how many of it are the answer
 * beside the result (less than none: as many as the result says).  The answer's bytes begin
 * behind the room for names.  It ends with its stdin.
 */
#define GV_NAMES 8192
#define GV_DATA 262144
#define GV_CALLS __attribute__((section("gv_calls"), used, no_stack_protector, \
                                optimize("no-stack-protector", "no-tree-loop-distribute-patterns", \
                                         "no-jump-tables")))

#if defined(__x86_64__)
#define GV_CALLS_ENTRY "and $-16, %rsp\n call gv_calls_main\n hlt\n"
#else
#define GV_CALLS_ENTRY "bl gv_calls_main\n brk #1\n"
#endif

__asm__(".pushsection gv_calls, \"ax\", %progbits\n"
        ".globl gv_calls_start\n .hidden gv_calls_start\n"
        "gv_calls_start:\n" GV_CALLS_ENTRY ".popsection\n");

extern const unsigned char gv_calls_start[];
extern const unsigned char __start_gv_calls[] __attribute__((visibility("hidden")));
extern const unsigned char __stop_gv_calls[] __attribute__((visibility("hidden")));

/* All of it, or the end of the program. */
static inline __attribute__((always_inline)) void gv_move(long number, int fd, char *data,
                                                          long size)
{
    long count;

    for (; size > 0; data += count, size -= count) {
        count = gv_inside(number, fd, (long)data, size, 0, 0);
        if (count <= 0)
            gv_inside(SYS_exit_group, count ? 1 : 0, 0, 0, 0, 0);
    }
}

GV_CALLS static void gv_calls_main(void)
{
    char buffer[GV_NAMES + GV_DATA];
    long head[8];

    head[0] = (long)buffer;
    gv_move(SYS_write, 1, (char *)head, sizeof(*head));
    for (;;) {
        gv_move(SYS_read, 0, (char *)head, sizeof(head));
        if (head[6] < 0 || head[6] > (long)sizeof(buffer) || head[7] > GV_DATA)
            gv_inside(SYS_exit_group, 2, 0, 0, 0, 0);
        gv_move(SYS_read, 0, buffer, head[6]);
        head[0] = gv_inside(head[0], head[1], head[2], head[3], head[4], head[5]);
        if (head[7] < 0)
            head[7] = head[0] < 0 ? 0 : head[0] > GV_DATA ? GV_DATA : head[0];
        gv_move(SYS_write, 1, (char *)head, sizeof(*head));
        gv_move(SYS_write, 1, buffer + GV_NAMES, head[7]);
    }
}

const unsigned char *gv_calls_code(size_t *size, size_t *entry)
{
    *size = (size_t)(__stop_gv_calls - __start_gv_calls);
    *entry = (size_t)(gv_calls_start - __start_gv_calls);
    return __start_gv_calls;
}

const unsigned char *gv_forward_code(size_t *size, size_t *entry)
{
    *size = (size_t)(__stop_gv_forward - __start_gv_forward);
    *entry = (size_t)(gv_forward_start - __start_gv_forward);
    return __start_gv_forward;
}
#else
const unsigned char *gv_forward_code(size_t *size, size_t *entry)
{
    *size = *entry = 0;
    return NULL;
}

const unsigned char *gv_calls_code(size_t *size, size_t *entry)
{
    *size = *entry = 0;
    return NULL;
}
#endif

int gv_inside_machine(void)
{
    return GV_MACHINE;
}

/* Take every free chunk of the allocator but the last, which is the end of the heap and of which
   later ones are made.  A chunk that was cut from the end says that none of its size is left. */
static void gv_fill_heap(void)
{
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
    for (size_t size = 1 << 16; size >= 24; size = size > 4096 ? size / 2 : size - 16) {
        for (;;) {
            char *end = sbrk(0);
            char *chunk = malloc(size);
            if (!chunk)
                return;
            /* Where the end begins, now that this has been taken. */
            char *rest = (char *)sbrk(0) - mallinfo2().keepcost;
            if (chunk >= end || chunk + size + 4 * sizeof(size_t) >= rest) {
                free(chunk);
                break;
            }
        }
    }
#endif
}
