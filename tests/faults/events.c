/* Watches what a process does to the files below one directory, and lets a fault happen at event number `at`.

   Built and preloaded by events.py. It does nothing until faults_arm is called. An event is an open that creates or
   truncates, a write, a change of length, a flush, a rename, a removal, a new link or a new directory. Rust's
   safetensors renames by a system call of its own, which is not seen; the log holds inode numbers, so that events.py
   finds it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, SIGNAL, FULL, LOG, SHORT };
enum { OPEN = 1, WRITE, LENGTH, FLUSH, RENAME, REMOVE, MKDIR, LINK, EXCHANGE };
#define MOST_FILES 4096

static char root[PATH_MAX];
static int armed, mode, number, log_file = -1;
static long at, count;
static char *opened[MOST_FILES];

static long out(int fd, const void *data, size_t n) { return syscall(SYS_write, fd, data, n); }

int faults_arm(const char *directory, int mode_, long at_, int number_, int log_) {
    strncpy(root, directory, PATH_MAX - 1);
    mode = mode_; at = at_; number = number_; log_file = log_; count = 0; armed = 1;
    return 0;
}

long faults_count(void) { return count; }

static int below(int dir, const char *path, char *full) {
    char base[PATH_MAX] = "", link[64];
    if (path[0] == '/') { snprintf(full, PATH_MAX, "%s", path); }
    else {
        if (dir == AT_FDCWD) { if (!getcwd(base, PATH_MAX)) return 0; }
        else {
            snprintf(link, 64, "/proc/self/fd/%d", dir);
            ssize_t n = readlink(link, base, PATH_MAX - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
        if (snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return strncmp(full, root, strlen(root)) == 0;
}

static uint64_t inode_of(const char *path) {
    struct stat s;
    return lstat(path, &s) ? 0 : (uint64_t)s.st_ino;
}

static void record(int op, const char *a, const char *b, uint64_t inode, int64_t offset, const void *data, uint64_t n) {
    if (log_file < 0) return;
    struct { uint32_t op, a, b, pad; uint64_t inode; int64_t offset; uint64_t n, held; } head = {
        op, strlen(a), strlen(b), 0, inode, offset, n, data && mode == LOG ? n : 0};
    out(log_file, &head, sizeof head);
    out(log_file, a, head.a);
    out(log_file, b, head.b);
    for (uint64_t done = 0; done < head.held;) {
        long more = out(log_file, (const char *)data + done, head.held - done);
        if (more <= 0) break;
        done += more;
    }
}

/* 0: go on. -1: errno is set, and the call fails. 1: half of a write is to be done. */
static int event(int op, int takes_space) {
    long n = ++count;
    if (mode == FULL && n >= at && takes_space) {
        if (n == at && op == WRITE) return 1;
        errno = number;
        return -1;
    }
    if (n != at) return 0;
    if (mode == KILL) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }
    if (mode == TEAR || mode == SHORT && op == WRITE) return 1;
    if (mode == SIGNAL) kill(getpid(), number);
    return 0;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

static int opening(const char *name, int dir, const char *path, int flags, mode_t access_, int plain) {
    static int (*real)(int, const char *, int, ...);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "openat64");
    (void)name; (void)plain;
    char full[PATH_MAX];
    if (!armed || !below(dir, path, full)) return real(dir, path, flags, access_);
    uint64_t before = inode_of(full);
    int changes = (flags & O_CREAT && !before) || (flags & O_TRUNC && before);
    if (changes && event(OPEN, 1) < 0) return -1;
    int fd = real(dir, path, flags, access_);
    if (fd >= 0 && fd < MOST_FILES) {
        free(opened[fd]);
        opened[fd] = strdup(full);
        struct stat s;
        if (changes && !fstat(fd, &s)) record(OPEN, full, "", s.st_ino, before != 0, NULL, 0);
    }
    return fd;
}

#define OPENS(name, has_dir) \
    va_list rest; va_start(rest, flags); \
    mode_t m = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest); \
    return opening(name, has_dir, path, flags, m, 0);
int open(const char *path, int flags, ...) { OPENS("open", AT_FDCWD) }
int open64(const char *path, int flags, ...) { OPENS("open64", AT_FDCWD) }
int openat(int dir, const char *path, int flags, ...) { OPENS("openat", dir) }
int openat64(int dir, const char *path, int flags, ...) { OPENS("openat64", dir) }

int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < MOST_FILES && opened[fd]) { free(opened[fd]); opened[fd] = NULL; }
    return real(fd);
}

static int watched(int fd) { return armed && fd >= 0 && fd < MOST_FILES && opened[fd]; }

static ssize_t writing(int fd, const void *data, size_t n, off_t place) {
    struct stat s;
    fstat(fd, &s);
    int half = event(WRITE, 1);
    if (half < 0) return -1;
    if (half && n > 1) n /= 2;
    off_t offset = place >= 0 ? place : fcntl(fd, F_GETFL) & O_APPEND ? s.st_size : lseek(fd, 0, SEEK_CUR);
    ssize_t done = place >= 0 ? syscall(SYS_pwrite64, fd, data, n, place) : out(fd, data, n);
    if (mode == TEAR && half) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }
    if (done > 0) record(WRITE, opened[fd], "", s.st_ino, offset, data, done);
    return done;
}

ssize_t write(int fd, const void *data, size_t n) {
    return watched(fd) ? writing(fd, data, n, -1) : out(fd, data, n);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t place) {
    return watched(fd) ? writing(fd, data, n, place) : syscall(SYS_pwrite64, fd, data, n, place);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t place) { return pwrite64(fd, data, n, place); }

ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (!watched(fd)) return syscall(SYS_writev, fd, parts, n);
    ssize_t all = 0;
    for (int i = 0; i < n; i++) {
        ssize_t done = parts[i].iov_len ? writing(fd, parts[i].iov_base, parts[i].iov_len, -1) : 0;
        if (done < 0) return all ? all : -1;
        all += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return all;
}

/* Copies by these calls are done by read and write instead, where their bytes can be seen. */
ssize_t sendfile64(int to, int from, off_t *offset, size_t n) {
    if (!watched(to)) return syscall(SYS_sendfile, to, from, offset, n);
    errno = EINVAL;
    return -1;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t n) { return sendfile64(to, from, offset, n); }
ssize_t copy_file_range(int from, off_t *a, int to, off_t *b, size_t n, unsigned flags) {
    if (!watched(to)) return syscall(SYS_copy_file_range, from, a, to, b, n, flags);
    errno = EXDEV;
    return -1;
}

int ftruncate64(int fd, off_t length) {
    if (watched(fd)) {
        struct stat s;
        if (event(LENGTH, 0) < 0) return -1;
        if (!fstat(fd, &s)) record(LENGTH, opened[fd], "", s.st_ino, length, NULL, 0);
    }
    return syscall(SYS_ftruncate, fd, length);
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int flushing(int fd, long call) {
    if (watched(fd)) {
        struct stat s;
        if (event(FLUSH, 0) < 0) return -1;
        if (!fstat(fd, &s)) record(FLUSH, opened[fd], "", s.st_ino, S_ISDIR(s.st_mode), NULL, 0);
    }
    return syscall(call, fd);
}
int fsync(int fd) { return flushing(fd, SYS_fsync); }
int fdatasync(int fd) { return flushing(fd, SYS_fdatasync); }

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    char full[PATH_MAX], other[PATH_MAX];
    if (armed && (below(a, from, full) | below(b, to, other))) {
        uint64_t inode = inode_of(full);
        if (event(RENAME, 0) < 0) return -1;
        int rc = syscall(SYS_renameat2, a, from, b, to, flags);
        if (!rc) record(flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, full, other, inode, 0, NULL, 0);
        return rc;
    }
    return syscall(SYS_renameat2, a, from, b, to, flags);
}
int renameat(int a, const char *from, int b, const char *to) { return renameat2(a, from, b, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int a, const char *from, int b, const char *to, int flags) {
    char full[PATH_MAX], other[PATH_MAX];
    int seen = armed && (below(a, from, full) | below(b, to, other));
    if (seen && event(LINK, 1) < 0) return -1;
    int rc = syscall(SYS_linkat, a, from, b, to, flags);
    if (seen && !rc) record(LINK, full, other, inode_of(other), 0, NULL, 0);
    return rc;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
    char full[PATH_MAX];
    int seen = armed && below(dir, path, full);
    uint64_t inode = seen ? inode_of(full) : 0;
    if (seen && inode && event(REMOVE, 0) < 0) return -1;
    int rc = syscall(SYS_unlinkat, dir, path, flags);
    if (seen && !rc) record(REMOVE, full, "", inode, 0, NULL, 0);
    return rc;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dir, const char *path, mode_t access_) {
    char full[PATH_MAX];
    int seen = armed && below(dir, path, full) && !inode_of(full);
    if (seen && event(MKDIR, 1) < 0) return -1;
    int rc = syscall(SYS_mkdirat, dir, path, access_);
    if (seen && !rc) record(MKDIR, full, "", inode_of(full), 0, NULL, 0);
    return rc;
}
int mkdir(const char *path, mode_t access_) { return mkdirat(AT_FDCWD, path, access_); }
