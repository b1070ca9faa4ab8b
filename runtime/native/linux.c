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
