/* A disk that fails at its n-th write below a folder, or a process that dies there: put before the C library
 * (LD_PRELOAD) it counts what changes the disk (opening to write, writing, renaming, making folders and links, flushing).
 *
 * fault_arm(root, at, mode, error): at the at-th such call from now on, counted from 1 (0 = only count),
 *   mode 0: fail once with `error`;
 *   mode 1: from then on the disk is full: new names and bytes fail with `error`, what stands there can be overwritten;
 *   mode 2: from then on every change fails with `error` (a disk that became read-only);
 *   mode 3: SIGKILL before the call;
 *   mode 4: SIGTERM before the call, which goes on.
 * fault_count(): calls so far. What stdio buffers inside the C library (fwrite) is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_FILES 65536
enum { NEW = 1, CHANGE = 2 }; /* takes room; or changes only what is there */

static char root[PATH_MAX];
static long at, count;
static int mode, error, tripped;
static unsigned char ours[MOST_FILES]; /* 1 = opened below root to be written, 2 = to be overwritten */

void fault_arm(const char *folder, long n, int how, int number) {
    snprintf(root, sizeof root, "%s", folder);
    at = n, mode = how, error = number, count = 0, tripped = 0;
}

long fault_count(void) { return count; }

/* whether this call is to fail */
static int fails(int kind) {
    long now = __sync_add_and_fetch(&count, 1);
    if (at == 0) return 0;
    if (now == at) {
        if (mode == 3) kill(getpid(), SIGKILL);
        if (mode == 4) return kill(getpid(), SIGTERM);
        tripped = 1;
        errno = error;
        return 1;
    }
    if (tripped && now > at && (mode == 2 || (mode == 1 && kind == NEW))) {
        errno = error;
        return 1;
    }
    return 0;
}

static int below(int folder, const char *path) {
    char whole[PATH_MAX * 2], start[PATH_MAX];
    if (!root[0] || !path) return 0;
    if (path[0] == '/') return !strncmp(path, root, strlen(root));
    if (folder == AT_FDCWD) {
        if (!getcwd(start, sizeof start)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, start, sizeof start - 1);
        if (n < 0) return 0;
        start[n] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", start, path);
    return !strncmp(whole, root, strlen(root));
}

static void note(int fd, int flags) {
    if (fd >= 0 && fd < MOST_FILES) ours[fd] = (flags & (O_CREAT | O_TRUNC | O_APPEND)) ? 1 : 2;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPENS(NAME, DECL, FOLDER, ARGS)                                                                  \
    int NAME DECL {                                                                                      \
        static __typeof__(&NAME) real;                                                                   \
        if (!real) real = REAL(NAME);                                                                    \
        mode_t permissions = 0;                                                                          \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                             \
            va_list rest;                                                                                \
            va_start(rest, flags);                                                                       \
            permissions = va_arg(rest, mode_t);                                                          \
            va_end(rest);                                                                                \
        }                                                                                                \
        int mine = (flags & (O_WRONLY | O_RDWR)) && below(FOLDER, path);                                 \
        if (mine && fails((flags & O_CREAT) ? NEW : CHANGE)) return -1;                                  \
        int fd = real ARGS;                                                                              \
        if (fd >= 0 && fd < MOST_FILES) ours[fd] = 0;                                                    \
        if (mine) note(fd, flags);                                                                       \
        return fd;                                                                                       \
    }

OPENS(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, permissions))
OPENS(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, permissions))
OPENS(openat, (int folder, const char *path, int flags, ...), folder, (folder, path, flags, permissions))
OPENS(openat64, (int folder, const char *path, int flags, ...), folder, (folder, path, flags, permissions))

#define FOPENS(NAME)                                                             \
    FILE *NAME(const char *path, const char *how) {                              \
        static __typeof__(&NAME) real;                                           \
        if (!real) real = REAL(NAME);                                            \
        int mine = strpbrk(how, "wa+") && below(AT_FDCWD, path);                 \
        if (mine && fails(strpbrk(how, "wa") ? NEW : CHANGE)) return NULL;       \
        FILE *file = real(path, how);                                            \
        if (mine && file) note(fileno(file), strpbrk(how, "wa") ? O_CREAT : 0);  \
        return file;                                                             \
    }
FOPENS(fopen)
FOPENS(fopen64)

int close(int fd) {
    static int (*real)(int);
    if (!real) real = REAL(close);
    if (fd >= 0 && fd < MOST_FILES) ours[fd] = 0;
    return real(fd);
}

#define WRITES(NAME, DECL, ARGS)                                                                       \
    ssize_t NAME DECL {                                                                                \
        static __typeof__(&NAME) real;                                                                 \
        if (!real) real = REAL(NAME);                                                                  \
        if (fd >= 0 && fd < MOST_FILES && ours[fd] && fails(ours[fd] == 1 ? NEW : CHANGE)) return -1;  \
        return real ARGS;                                                                              \
    }
WRITES(write, (int fd, const void *data, size_t n), (fd, data, n))
WRITES(pwrite, (int fd, const void *data, size_t n, off_t where), (fd, data, n, where))
WRITES(pwrite64, (int fd, const void *data, size_t n, off64_t where), (fd, data, n, where))
WRITES(writev, (int fd, const struct iovec *parts, int n), (fd, parts, n))

#define FLUSHES(NAME)                                                                  \
    int NAME(int fd) {                                                                 \
        static int (*real)(int);                                                       \
        if (!real) real = REAL(NAME);                                                  \
        char link[64], path[PATH_MAX];                                                 \
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);                           \
        ssize_t n = root[0] ? readlink(link, path, sizeof path - 1) : -1;              \
        if (n > 0) {                                                                   \
            path[n] = 0;                                                               \
            if (below(AT_FDCWD, path) && fails(CHANGE)) return -1;                     \
        }                                                                              \
        return real(fd);                                                               \
    }
FLUSHES(fsync)
FLUSHES(fdatasync)

#define NAMES(NAME, DECL, FOLDER, PATH, KIND, ARGS)              \
    int NAME DECL {                                              \
        static __typeof__(&NAME) real;                           \
        if (!real) real = REAL(NAME);                            \
        if (below(FOLDER, PATH) && fails(KIND)) return -1;       \
        return real ARGS;                                        \
    }
NAMES(rename, (const char *from, const char *to), AT_FDCWD, to, CHANGE, (from, to))
NAMES(renameat, (int f, const char *from, int t, const char *to), t, to, CHANGE, (f, from, t, to))
NAMES(mkdir, (const char *path, mode_t how), AT_FDCWD, path, NEW, (path, how))
NAMES(mkdirat, (int folder, const char *path, mode_t how), folder, path, NEW, (folder, path, how))
NAMES(symlink, (const char *goal, const char *path), AT_FDCWD, path, NEW, (goal, path))
NAMES(symlinkat, (const char *goal, int folder, const char *path), folder, path, NEW, (goal, folder, path))
NAMES(link, (const char *from, const char *path), AT_FDCWD, path, NEW, (from, path))
NAMES(linkat, (int f, const char *from, int t, const char *to, int flags), t, to, NEW, (f, from, t, to, flags))
