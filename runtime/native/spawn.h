/*
 * Starting processes: the types shared with Python.  cffi reads this file as a declaration list,
 * so it holds no preprocessor directives.
 */

enum gv_step {
    GV_STEP_NONE,
    GV_STEP_CGROUP,  /* index: position in cgroup_files, or -1 for cgroup_fd */
    GV_STEP_JOIN,    /* index: position in join_fds */
    GV_STEP_CLONE,
    GV_STEP_RELEASE,
    GV_STEP_GID,
    GV_STEP_UID,
    GV_STEP_CAPS,
    GV_STEP_AMBIENT, /* index: the capability's number */
    GV_STEP_SETSID,
    GV_STEP_CHDIR,
    GV_STEP_MOUNTS,
    GV_STEP_FD,      /* index: the child's number */
    GV_STEP_TTY,     /* index: the child's number */
    GV_STEP_PDEATHSIG,
    GV_STEP_EXEC
};

/* What to start.  All memory belongs to the caller and is only read by it again. */
struct gv_spec {
    const char *path;
    char **argv;
    char **envp;
    const char *cwd;
    int *fd_child;      /* ascending */
    int *fd_ours;
    int n_fds;
    int *keep;          /* every fd of ours that is still needed after the fork, ascending */
    int n_keep;
    int *join_fds;
    int *join_types;
    int n_join;
    char **cgroup_files;
    int n_cgroup_files;
    int cgroup_fd;      /* cgroup v2 directory, or -1 */
    unsigned long long namespaces;
    int hold;           /* wait for a byte before anything else is done */
    int sock;           /* the child's end of the socket pair */
    int wait_ms;        /* how long the child waits for a byte */
    long long uid;      /* -1: leave */
    long long gid;
    unsigned long long ambient;
    int setsid;
    int private_mounts; /* keep mounts from getting out of the new mount namespace */
    int ctty;           /* child's number, or -1 */
    int pdeathsig;
    int drop_groups;    /* start without supplementary groups */
    int fd_room;        /* numbers that the table of descriptors has room for from the start */
    int no_membarrier;  /* refuse to register for membarrier(2), which waits long */
};

/* One page shared by the caller, the intermediate process and the child until it executes. */
struct gv_slot {
    int pid;            /* the child */
    int helper;         /* the intermediate process, or 0 */
    int step;           /* how far it got; when error is set, what failed */
    int error;
    int index;
};

struct gv_slot *gv_slot_new(void);
void gv_slot_free(struct gv_slot *slot);
int gv_clone(struct gv_spec *spec, struct gv_slot *slot);
