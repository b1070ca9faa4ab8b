/*
 * System calls that Python's standard library doesn't offer.  -1 and errno on failure.
 * The numbers are given where older headers lack them; since Linux 5.1 they are the same on all
 * architectures but alpha.
 */

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
