/*
 * Starting processes: everything that happens between fork and exec.
 *
 * The caller has many threads, so that until it executes a forked process makes system calls and
 * touches its own copy of memory, and nothing else: no allocation, no locks, no Python.  The
 * C library's set*id() functions are avoided too: they would signal the threads of the parent that
 * the copy of the thread list still names.
 *
 * The forked process never shares memory with the caller (no vfork).  A shared address space would
 * let an OOM kill in the pod's cgroup, and a write to the child's oom_score_adj, hit the caller
 * as well: the kernel applies both to every process that uses the same mm.
 *
 * Where cgroups or namespaces are to be joined first, an intermediate process joins them and clones
 * the child as the caller's own child (CLONE_PARENT).  This second clone shares the intermediate's
 * memory, which spares a copy of the page tables (0.7 ms); the intermediate does nothing but exit.
 *
 * Exit signals: both processes are made with exit signal 0, which CLONE_PARENT hands on and execve
 * turns into SIGCHLD.  So until it has executed, the child is invisible to a plain waitpid(-1).
 */

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

#define GV_STACK (16 * 1024)
#define GV_NSIG 64

/* struct clone_args as of Linux 5.7; the C library's headers may lack the last field. */
struct gv_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    uint64_t set_tid, set_tid_size, cgroup;
};

struct gv_task {
    struct gv_spec *spec;
    struct gv_slot *slot;
};

struct gv_slot *gv_slot_new(void)
{
    void *page = mmap(NULL, sizeof(struct gv_slot), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED ? NULL : page;
}

void gv_slot_free(struct gv_slot *slot)
{
    munmap(slot, sizeof(*slot));
}

static void gv_exit(int status) __attribute__((noreturn));
static void gv_exit(int status)
{
    for (;;)
        syscall(SYS_exit_group, status);
}

static void gv_fail(struct gv_slot *slot, int step, int index) __attribute__((noreturn));
static void gv_fail(struct gv_slot *slot, int step, int index)
{
    slot->step = step;
    slot->index = index;
    slot->error = errno ? errno : EIO;
    gv_exit(127);
}

/* Closes what the process doesn't need, so that a sibling's socket pair sees its end closed. */
static void gv_close_others(const struct gv_spec *spec)
{
    unsigned int from = 0;
    for (int i = 0; i < spec->n_keep; i++) {
        unsigned int fd = (unsigned int)spec->keep[i];
        if (fd > from)
            syscall(SYS_close_range, from, fd - 1, 0);
        from = fd + 1;
    }
    syscall(SYS_close_range, from, ~0U, 0);
}

/* Waits for the caller's byte; a caller that is gone ends the process. */
static void gv_await(const struct gv_spec *spec, struct gv_slot *slot, int sock, int step)
{
    struct pollfd poller = {.fd = sock, .events = POLLIN, .revents = 0};
    char byte;
    ssize_t n;

    slot->step = step;
    if (poll(&poller, 1, spec->wait_ms) != 1) {
        errno = ETIMEDOUT;
        gv_fail(slot, step, 0);
    }
    do
        n = read(sock, &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n != 1)
        gv_exit(126);
}

static void gv_credentials(const struct gv_spec *spec, struct gv_slot *slot)
{
    if (spec->ambient && prctl(PR_SET_KEEPCAPS, 1L, 0L, 0L, 0L))
        gv_fail(slot, GV_STEP_CAPS, 0);
    if (spec->gid >= 0 && syscall(SYS_setresgid, spec->gid, spec->gid, spec->gid))
        gv_fail(slot, GV_STEP_GID, 0);
    if (spec->uid >= 0 && syscall(SYS_setresuid, spec->uid, spec->uid, spec->uid))
        gv_fail(slot, GV_STEP_UID, 0);
    if (!spec->ambient)
        return;

    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2];
    if (syscall(SYS_capget, &head, caps))
        gv_fail(slot, GV_STEP_CAPS, 0);
    for (int i = 0; i < 2; i++) {
        uint32_t bits = (uint32_t)(spec->ambient >> (32 * i));
        caps[i].permitted |= bits;
        caps[i].inheritable |= bits;
    }
    if (syscall(SYS_capset, &head, caps))
        gv_fail(slot, GV_STEP_CAPS, 0);
    for (int cap = 0; cap < 64; cap++)
        if (spec->ambient >> cap & 1
            && prctl(PR_CAP_AMBIENT, (long)PR_CAP_AMBIENT_RAISE, (long)cap, 0L, 0L))
            gv_fail(slot, GV_STEP_AMBIENT, cap);
}

/* Marks all fds from `first` on as to be closed by execve. */
static void gv_cloexec_from(unsigned int first)
{
    struct rlimit limit;
    unsigned int last = 1U << 20;

    if (syscall(SYS_close_range, first, ~0U, CLOSE_RANGE_CLOEXEC) == 0)
        return;
    /* Before Linux 5.11. */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < last)
        last = (unsigned int)limit.rlim_cur;
    for (unsigned int fd = first; fd < last; fd++)
        fcntl((int)fd, F_SETFD, FD_CLOEXEC);
}

/* Puts the fds at the child's numbers, in any overlap; returns where the socket lies now. */
static int gv_place_fds(const struct gv_spec *spec, struct gv_slot *slot)
{
    int highest = spec->n_fds ? spec->fd_child[spec->n_fds - 1] : -1;
    int sock = spec->sock;

    /* First all sources go above all targets, then each is copied to its place. */
    if (sock <= highest) {
        sock = fcntl(sock, F_DUPFD_CLOEXEC, highest + 1);
        if (sock < 0)
            gv_fail(slot, GV_STEP_FD, -1);
    }
    for (int i = 0; i < spec->n_fds; i++) {
        if (spec->fd_ours[i] > highest)
            continue;
        spec->fd_ours[i] = fcntl(spec->fd_ours[i], F_DUPFD_CLOEXEC, highest + 1);
        if (spec->fd_ours[i] < 0)
            gv_fail(slot, GV_STEP_FD, spec->fd_child[i]);
    }
    int next = 0;
    for (int i = 0; i < spec->n_fds; i++) {
        for (; next < spec->fd_child[i]; next++)
            close(next);
        if (dup3(spec->fd_ours[i], spec->fd_child[i], 0) < 0)
            gv_fail(slot, GV_STEP_FD, spec->fd_child[i]);
        next = spec->fd_child[i] + 1;
    }
    gv_cloexec_from((unsigned int)(highest + 1));
    return sock;
}

/*
 * Gives the table of descriptors the size that it is going to need.
 *
 * A table that grows (at 64, 128, 256) while its process has several threads waits for an RCU grace
 * period each time, 10 to 20 ms; here there is one thread.  execve keeps the size.  Best effort: a
 * limit may forbid the number, and then no table grows to it either.
 */
static void gv_grow_table(int room)
{
    int fd = room > 0 ? fcntl(0, F_DUPFD_CLOEXEC, room - 1) : -1;

    if (fd >= 0)
        close(fd);
}

/* Dispositions are reset, not only handlers: Python ignores SIGPIPE and SIGXFSZ, and execve
   would hand that on. */
static void gv_reset_handlers(void)
{
    char action[64];

    memset(action, 0, sizeof(action)); /* SIG_DFL, no flags, in the kernel's layout */
    for (long signo = 1; signo <= GV_NSIG; signo++)
        syscall(SYS_rt_sigaction, signo, action, NULL, (size_t)(GV_NSIG / 8));
}

/* Little-endian machines all, so that an argument's lower half comes first. */
#if defined(__x86_64__)
#define GV_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define GV_ARCH AUDIT_ARCH_AARCH64
#endif

/*
 * Has the process, and what it executes, refused to register for private expedited membarriers.
 *
 * runsc before 2025 registers whenever it starts, whatever it is to do, and then waits for an RCU
 * grace period: 10 to 20 ms in each of the three processes that a gofer or a sentry starts as.
 * Who is refused goes without a barrier that only some platforms use.  Where the filter can't be
 * had, they start later.
 */
static void gv_refuse_membarrier(void)
{
#ifdef GV_ARCH
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GV_ARCH, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

    /* It confines nothing, so it is no reason for the kernel to slow speculation down. */
    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
#endif
}

static int gv_child(void *argument)
{
    const struct gv_spec *spec = ((struct gv_task *)argument)->spec;
    struct gv_slot *slot = ((struct gv_task *)argument)->slot;
    uint64_t mask = 0;
    int sock;

    if (spec->hold)
        gv_await(spec, slot, spec->sock, GV_STEP_RELEASE);
    if (spec->private_mounts && mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
        gv_fail(slot, GV_STEP_MOUNTS, 0);
    gv_credentials(spec, slot);
    if (spec->setsid && setsid() < 0)
        gv_fail(slot, GV_STEP_SETSID, 0);
    if (spec->cwd && chdir(spec->cwd))
        gv_fail(slot, GV_STEP_CHDIR, 0);
    sock = gv_place_fds(spec, slot);
    gv_grow_table(spec->fd_room);
    if (spec->ctty >= 0 && ioctl(spec->ctty, TIOCSCTTY, 0))
        gv_fail(slot, GV_STEP_TTY, spec->ctty);
    gv_reset_handlers();
    if (spec->pdeathsig) {
        /* A change of credentials clears it, so it comes late.  The caller's answer proves that
           it was still alive after the setting; getppid() would be 0 in a new PID namespace. */
        if (prctl(PR_SET_PDEATHSIG, (long)spec->pdeathsig, 0L, 0L, 0L)
            || write(sock, "p", 1) != 1)
            gv_fail(slot, GV_STEP_PDEATHSIG, 0);
        gv_await(spec, slot, sock, GV_STEP_PDEATHSIG);
    }
    if (spec->no_membarrier)
        gv_refuse_membarrier();
    slot->step = GV_STEP_EXEC;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
    execve(spec->path, spec->argv, spec->envp);
    gv_fail(slot, GV_STEP_EXEC, 0);
}

/* Like fork, with clone flags; `tid` gets the pid before the child runs. */
static long gv_fork(uint64_t flags, int cgroup_fd, int *tid)
{
    if (cgroup_fd >= 0) {
        struct gv_clone_args args;
        memset(&args, 0, sizeof(args));
        args.flags = flags | CLONE_PARENT_SETTID | CLONE_INTO_CGROUP;
        args.parent_tid = (uint64_t)(uintptr_t)tid;
        args.cgroup = (uint64_t)cgroup_fd;
        return syscall(SYS_clone3, &args, sizeof(args));
    }
#if defined(__s390__) || defined(__CRIS__)
    return syscall(SYS_clone, NULL, (unsigned long)(flags | CLONE_PARENT_SETTID), tid, NULL, 0L);
#else
    return syscall(SYS_clone, (unsigned long)(flags | CLONE_PARENT_SETTID), NULL, tid, NULL, 0L);
#endif
}

/* "0" means the writing process. */
static int gv_write_zero(int fd)
{
    ssize_t n;

    if (fd < 0)
        return -1;
    n = write(fd, "0", 1);
    close(fd);
    return n == 1 ? 0 : -1;
}

/* No clone3 (also under an old seccomp filter), or one that knows no cgroups. */
static int gv_unsupported(int error)
{
    return error == ENOSYS || error == EINVAL || error == E2BIG;
}

/* Which step of a clone into a cgroup gave the error. */
static int gv_clone_step(int error)
{
    switch (error) {
    case EACCES:
    case EBADF:
    case EBUSY:
    case ENODEV:
    case EOPNOTSUPP:
        return GV_STEP_CGROUP;
    default:
        return GV_STEP_CLONE;
    }
}

static int gv_intermediate(void *argument)
{
    struct gv_task *task = argument;
    struct gv_spec *spec = task->spec;
    struct gv_slot *slot = task->slot;
    uint64_t flags = spec->namespaces | CLONE_PARENT;
    _Alignas(16) char stack[GV_STACK];
    long pid = -1;

    for (int i = 0; i < spec->n_cgroup_files; i++) {
        slot->step = GV_STEP_CGROUP;
        if (gv_write_zero(open(spec->cgroup_files[i], O_WRONLY | O_CLOEXEC)))
            gv_fail(slot, GV_STEP_CGROUP, i);
    }
    /* Here, as who is in a user namespace of its own may not.  Without privilege they stay. */
    slot->step = GV_STEP_GID;
    if (spec->drop_groups && syscall(SYS_setgroups, 0, NULL) && errno != EPERM)
        gv_fail(slot, GV_STEP_GID, -1);
    for (int i = 0; i < spec->n_join; i++) {
        slot->step = GV_STEP_JOIN;
        /* This memory is a copy of the caller's, and who has power over the user namespace could
           read it until the child executes. */
        if (spec->join_types[i] == CLONE_NEWUSER)
            prctl(PR_SET_DUMPABLE, 0L, 0L, 0L, 0L);
        if (setns(spec->join_fds[i], spec->join_types[i]))
            gv_fail(slot, GV_STEP_JOIN, i);
    }
    slot->step = GV_STEP_CLONE;
    if (spec->cgroup_fd >= 0) {
        pid = gv_fork(flags, spec->cgroup_fd, &slot->pid);
        if (pid == 0)
            gv_exit(gv_child(task));
        if (pid < 0) {
            if (!gv_unsupported(errno))
                gv_fail(slot, gv_clone_step(errno), -1);
            if (gv_write_zero(openat(spec->cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC)))
                gv_fail(slot, GV_STEP_CGROUP, -1);
        }
    }
    if (pid < 0)
        pid = clone(gv_child, stack + GV_STACK, (int)(flags | CLONE_VM | CLONE_PARENT_SETTID),
                    task, &slot->pid);
    if (pid < 0)
        gv_fail(slot, GV_STEP_CLONE, 0);
    gv_exit(0); /* returning would give up the stack that the child runs on */
}

/* Where a forked process begins. */
static void gv_born(struct gv_task *task, int (*work)(void *)) __attribute__((noreturn));
static void gv_born(struct gv_task *task, int (*work)(void *))
{
    gv_close_others(task->spec);
    gv_exit(work(task));
}

/*
 * Forks the child, or the intermediate process that will make it.  0 or an errno value.
 * Sets slot->pid or slot->helper before the process runs.
 */
int gv_clone(struct gv_spec *spec, struct gv_slot *slot)
{
    struct gv_task task = {spec, slot};
    uint64_t all = ~(uint64_t)0, saved = 0;
    int between = spec->n_cgroup_files || spec->n_join
                  || (spec->drop_groups && syscall(SYS_getgroups, 0, NULL) > 0);
    long pid = -1;
    int error = 0;

    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &saved, sizeof(all));
    slot->step = GV_STEP_CLONE;
    if (!between) {
        pid = gv_fork(spec->namespaces, spec->cgroup_fd, &slot->pid);
        if (pid == 0)
            gv_born(&task, gv_child);
        if (pid < 0) {
            error = errno;
            between = spec->cgroup_fd >= 0 && gv_unsupported(error);
            if (spec->cgroup_fd >= 0) {
                slot->step = gv_clone_step(error);
                slot->index = -1;
            }
        }
    }
    if (between) {
        error = 0;
        pid = gv_fork(0, -1, &slot->helper);
        if (pid == 0)
            gv_born(&task, gv_intermediate);
        if (pid < 0)
            error = errno;
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &saved, NULL, sizeof(saved));
    return error;
}
