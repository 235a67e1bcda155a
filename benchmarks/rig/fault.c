/* LD_PRELOAD: after fault_arm, the AT-th call that touches the disk below FAULT_UNDER fails with an errno, or kills the process where that is 0;
   with ALL, so do the later ones. Calls counted: open, write, fsync, ftruncate, rename (all kinds), link, unlink, mkdir, rmdir, chmod. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long count, armed_at;
static int armed_error, armed_all;

void fault_arm(long at, int error, int all) { armed_at = at; armed_error = error; armed_all = all; count = 0; }
long fault_count(void) { return count; }

static int under(const char *path) { const char *root = getenv("FAULT_UNDER"); return root && path && strstr(path, root); }
static int under_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return under(path);
}
static int fails(void) {
    long n = __sync_add_and_fetch(&count, 1);
    if (!armed_at || (n != armed_at && !(armed_all && n > armed_at))) return 0;
    if (!armed_error) kill(getpid(), SIGKILL);
    errno = armed_error;
    return 1;
}
#define CALL(result, name, declared, passed, touched) \
    result name declared { static result (*real) declared; if (!real) real = dlsym(RTLD_NEXT, #name); return (touched) && fails() ? -1 : real passed; }
CALL(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), under_fd(fd))
CALL(int, fsync, (int fd), (fd), under_fd(fd))
CALL(int, ftruncate, (int fd, off_t size), (fd, size), under_fd(fd))
CALL(int, ftruncate64, (int fd, off_t size), (fd, size), under_fd(fd))
CALL(int, fchmod, (int fd, mode_t mode), (fd, mode), under_fd(fd))
CALL(int, chmod, (const char *path, mode_t mode), (path, mode), under(path))
CALL(int, rename, (const char *a, const char *b), (a, b), under(a) || under(b))
CALL(int, renameat, (int x, const char *a, int y, const char *b), (x, a, y, b), under(a) || under(b))
CALL(int, renameat2, (int x, const char *a, int y, const char *b, unsigned flags), (x, a, y, b, flags), under(a) || under(b))
CALL(int, link, (const char *a, const char *b), (a, b), under(b))
CALL(int, linkat, (int x, const char *a, int y, const char *b, int flags), (x, a, y, b, flags), under(b))
CALL(int, unlink, (const char *path), (path), under(path))
CALL(int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags), under(path) || under_fd(fd))
CALL(int, rmdir, (const char *path), (path), under(path))
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), under(path))
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        static int (*real)(const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
        return under(path) && fails() ? -1 : real(path, flags, mode); }
OPEN(open)
OPEN(open64)
