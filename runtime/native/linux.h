/* Bindings without policy; read by cffi as a declaration list. */

int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
int gv_pivot_root(const char *, const char *);
int setns(int, int);
int unshare(int);
int personality(unsigned long);
int mallopt(int, int);

int gv_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
long long gv_fs_type(const char *path);
int gv_fsopen(const char *type, unsigned int flags);
int gv_fsconfig(int fd, unsigned int cmd, const char *key, const char *value, int aux);
int gv_fsmount(int fd, unsigned int flags, unsigned int attributes);
int gv_open_tree(int dir, const char *path, unsigned int flags);
int gv_move_mount(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags);
int gv_mount_setattr(int dir, const char *path, unsigned int flags, unsigned long long set,
                     unsigned long long clear, unsigned long long propagation, int userns);
int gv_watch_openings(const char *path);
int gv_openat_beneath(int dir, const char *path, int flags, unsigned long long resolve);
int gv_ioprio_get(void);
int gv_ioprio_set(int priority);
int gv_show_arguments(const char *data, unsigned long arguments, unsigned long environment,
                      const unsigned long long *now);
int malloc_trim(size_t);
void gv_fill_heap(void);
int gv_disabled_ring(void);
int gv_pin_files(int ring, const int *fds, unsigned int count);
int gv_lead_loopback(int netns, int listener);
const unsigned char *gv_forward_code(size_t *size, size_t *entry);
const unsigned char *gv_calls_code(size_t *size, size_t *entry);
int gv_inside_machine(void);
