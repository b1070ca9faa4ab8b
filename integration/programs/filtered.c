/* What a process can do below a system call filter that refuses unshare (and clone3 with ENOSYS).
 *
 * Each way to have unshare(CLONE_NEWUSER) made all the same prints one line: how, and the errno
 * that the call ended with (0: it was made) or the step that was refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *how, const char *what, long code) {
    printf("%s: %s %ld\n", how, what, code);
    fflush(stdout);
}

static long clone3(void) {
    struct { unsigned long long fields[11]; } args = {{CLONE_NEWUSER, 0, 0, 0, SIGCHLD}};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    return pid;
}

static void own_filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {4, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0))
        _exit(101);
}

/* Have a child make a call, and turn it into another one where it is stopped at it. */
static void traced(const char *how, long call, int options, int request, int filter) {
    struct user_regs_struct regs;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0))
            _exit(102);
        if (filter)
            own_filter();
        raise(SIGSTOP);
        _exit(syscall(call, CLONE_NEWUSER, 88) < 0 ? errno : 0);
    }
    waitpid(pid, &status, 0);
    if (options && ptrace(PTRACE_SETOPTIONS, pid, 0, options)) {
        say(how, "options refused", errno);
        goto end;
    }
    if (ptrace(request, pid, 0, 0)) {
        say(how, "request refused", errno);
        goto end;
    }
    waitpid(pid, &status, 0);
    if (WIFSTOPPED(status)) {
        if (ptrace(PTRACE_GETREGS, pid, 0, &regs) == 0 && (long)regs.orig_rax == call) {
            regs.orig_rax = SYS_unshare;
            regs.rdi = CLONE_NEWUSER;
            ptrace(PTRACE_SETREGS, pid, 0, &regs);
        }
        ptrace(PTRACE_CONT, pid, 0, 0);
        waitpid(pid, &status, 0);
    }
    if (WIFEXITED(status)) {
        say(how, "ended with", WEXITSTATUS(status));
        return;
    }
    say(how, "status", status);
end:
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

/* Whether a tracer can ask for the events when it attaches. */
static void seized(void) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESECCOMP))
        say("seize", "options refused", errno);
    else
        say("seize", "ended with", 0);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

static void *thread(void *argument) {
    return argument;
}

static void *offender(void *argument) {
    syscall(SYS_getpgid, 0);
    return argument;
}

int main(int argc, char **argv) {
    pthread_t id;
    void *result = NULL;
    int value = argc > 1 && strcmp(argv[1], "offend") == 0;
    int failed = pthread_create(&id, NULL, value ? offender : thread, &value);
    if (!failed)
        failed = pthread_join(id, &result);
    say("thread", "ended with", failed);
    if (argc > 1)
        return 0;
    say("unshare", "ended with", unshare(CLONE_NEWUSER) ? errno : 0);
    say("clone3", "ended with", clone3() < 0 ? errno : 0);
    traced("event", SYS_clone3, PTRACE_O_TRACESECCOMP, PTRACE_CONT, 0);
    seized();
    traced("event of its own filter", SYS_getppid, PTRACE_O_TRACESECCOMP, PTRACE_CONT, 1);
    traced("entry", SYS_getppid, 0, PTRACE_SYSCALL, 0);
    traced("plain", SYS_getppid, 0, PTRACE_CONT, 0);
    return 0;
}
