// Loaded before libc (LD_PRELOAD): counts what a process changes in the folders of a case, and at the n-th change does
// what it is armed with: kills the process, sends it a signal, or lets the call fail. So "at any point" can be asked
// for point by point, and asked for again.
//
// The counters lie in memory that forked processes share. Calls that libc makes inside itself (stdio) are not seen, nor
// are writes through mapped memory: times drawn at random are tried beside these points.

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
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WATCH = 0, KILL_BEFORE = 1, KILL_TORN = 2, KILL_AFTER = 3, SIGNAL = 4, FAIL_ONCE = 5, FAIL_ON = 6 };

#define MOST_ROOTS 8

typedef struct {
  int armed;
  int action;
  int value;  // a signal, or an errno
  long at;
  long count;
  int log;  // a file descriptor, or -1; changes elsewhere, connections and programs stand in it too
  char store[PATH_MAX];
  char temporary[PATH_MAX];  // changes below it are neither counted nor outside
  int roots;
  char root[MOST_ROOTS][PATH_MAX];
} State;

static State* state;

#define REAL(name) ((__typeof__(&name))real_##name())
#define FIND(name)                                      \
  static void* real_##name(void) {                      \
    static void* found;                                 \
    if (found == NULL) found = dlsym(RTLD_NEXT, #name); \
    return found;                                       \
  }

static ssize_t raw_write(int fd, const void* data, size_t size) { return syscall(SYS_write, fd, data, size); }

__attribute__((constructor)) static void begin(void) {
  state = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (state == MAP_FAILED) abort();
  state->log = -1;
}

// Called by the process that is to be examined.
void fault_arm(const char* roots, long at, int action, int value, const char* log, const char* store,
               const char* temporary) {
  state->at = at;
  state->action = action;
  state->value = value;
  state->count = 0;
  state->roots = 0;
  while (*roots != 0 && state->roots < MOST_ROOTS) {
    size_t length = strcspn(roots, "\n");
    memcpy(state->root[state->roots], roots, length);
    state->root[state->roots++][length] = 0;
    roots += length + (roots[length] == '\n');
  }
  state->log = *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  snprintf(state->store, sizeof state->store, "%s", store);
  snprintf(state->temporary, sizeof state->temporary, "%s", temporary);
  __atomic_store_n(&state->armed, 1, __ATOMIC_SEQ_CST);
}

void fault_disarm(void) { state->armed = 0; }
long fault_count(void) { return state->count; }

static int is_below(const char* path) {
  for (int i = 0; i < state->roots; i++) {
    size_t length = strlen(state->root[i]);
    if (strncmp(path, state->root[i], length) == 0 && (path[length] == '/' || path[length] == 0)) return 1;
  }
  return 0;
}

static int is_of_nobody(const char* path) {
  size_t length = strlen(state->temporary);
  if (length > 0 && strncmp(path, state->temporary, length) == 0) return 1;
  return strncmp(path, "/dev/", 5) == 0 || strncmp(path, "/proc/", 6) == 0 || path[0] != '/';
}

static void path_of_descriptor(int fd, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
}

static void absolute(int folder, const char* name, char* path) {
  if (name == NULL) {
    path[0] = 0;
  } else if (name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name);
  } else {
    char base[PATH_MAX];
    if (folder == AT_FDCWD) {
      if (getcwd(base, sizeof base) == NULL) base[0] = 0;
    } else {
      path_of_descriptor(folder, base);
    }
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
  }
}

static void note(long number, const char* what, const char* path, const char* other) {
  if (state->log < 0) return;
  char line[2 * PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\n", number, what, path, other);
  if (length > 0) raw_write(state->log, line, (size_t)length);
}

static void die(void) {
  kill(-getpgrp(), SIGKILL);
  for (;;) pause();
}

// What is to happen at this change: 0 nothing, KILL_TORN or KILL_AFTER for the caller to do, -1 fail with errno.
static int reached(const char* what, const char* path, const char* other, int needs_space) {
  if (state == NULL || !state->armed) return 0;
  if (!is_below(path) && !is_below(other)) {
    if (!is_of_nobody(path)) {
      note(-1, what, path, other);
    }
    return 0;
  }

  long number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
  note(number, what, path, other);

  // On a full disk all goes that needs no more space.
  int full = state->value == ENOSPC || state->value == EDQUOT;
  if (state->action == FAIL_ON && number >= state->at && (needs_space || !full)) {
    if (number == state->at && full) return KILL_TORN;  // the last bytes that fit
    errno = state->value;
    return -1;
  }
  if (number != state->at) return 0;

  switch (state->action) {
    case KILL_BEFORE:
      die();
      return 0;
    case SIGNAL:
      kill(getpgrp(), state->value);
      return 0;
    case FAIL_ONCE:
      errno = state->value;
      return -1;
    default:
      return state->action;
  }
}

static void after(int what) {
  if (what == KILL_TORN || what == KILL_AFTER) {
    if (state->action != FAIL_ON) die();
  }
}

static int on_descriptor(int fd, const char* what, int needs_space) {
  if (state == NULL || !state->armed) return 0;
  char path[PATH_MAX];
  path_of_descriptor(fd, path);
  if (!is_below(path)) return 0;  // opened before, or asked about when it was opened
  return reached(what, path, "", needs_space);
}

static size_t torn(int what, size_t size) { return what == KILL_TORN ? size / 2 : size; }

FIND(write)
ssize_t write(int fd, const void* data, size_t size) {
  int what = on_descriptor(fd, "write", 1);
  if (what < 0) return -1;
  ssize_t written = REAL(write)(fd, data, torn(what, size));
  after(what);
  return written;
}

FIND(pwrite64)
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  int what = on_descriptor(fd, "write", 1);
  if (what < 0) return -1;
  ssize_t written = REAL(pwrite64)(fd, data, torn(what, size), offset);
  after(what);
  return written;
}

FIND(writev)
ssize_t writev(int fd, const struct iovec* parts, int count) {
  int what = on_descriptor(fd, "write", 1);
  if (what < 0) return -1;
  ssize_t written = REAL(writev)(fd, parts, what == KILL_TORN && count > 1 ? count / 2 : count);
  after(what);
  return written;
}

FIND(copy_file_range)
ssize_t copy_file_range(int in, off64_t* from, int out, off64_t* to, size_t size, unsigned flags) {
  int what = on_descriptor(out, "write", 1);
  if (what < 0) return -1;
  ssize_t written = REAL(copy_file_range)(in, from, out, to, torn(what, size), flags);
  after(what);
  return written;
}

FIND(sendfile64)
ssize_t sendfile64(int out, int in, off64_t* offset, size_t size) {
  int what = on_descriptor(out, "write", 1);
  if (what < 0) return -1;
  ssize_t written = REAL(sendfile64)(out, in, offset, torn(what, size));
  after(what);
  return written;
}

FIND(ftruncate64)
int ftruncate64(int fd, off64_t size) {
  int what = on_descriptor(fd, "truncate", 0);
  if (what < 0) return -1;
  int result = REAL(ftruncate64)(fd, size);
  after(what);
  return result;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }
ssize_t sendfile(int out, int in, off_t* offset, size_t size) { return sendfile64(out, in, offset, size); }

FIND(posix_fallocate64)
int posix_fallocate64(int fd, off64_t offset, off64_t size) {
  int what = on_descriptor(fd, "allocate", 1);
  if (what < 0) return errno;
  if (what == KILL_TORN && state->action == FAIL_ON) return state->value;
  int result = REAL(posix_fallocate64)(fd, offset, size);
  after(what);
  return result;
}

int posix_fallocate(int fd, off_t offset, off_t size) { return posix_fallocate64(fd, offset, size); }

FIND(fsync)
int fsync(int fd) {
  int what = on_descriptor(fd, "fsync", 0);
  if (what < 0) return -1;
  int result = REAL(fsync)(fd);
  after(what);
  return result;
}

FIND(fdatasync)
int fdatasync(int fd) {
  int what = on_descriptor(fd, "fsync", 0);
  if (what < 0) return -1;
  int result = REAL(fdatasync)(fd);
  after(what);
  return result;
}

static int opening(int folder, const char* name, int flags) {
  if (state == NULL || !state->armed || !(flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))) return 0;
  char path[PATH_MAX];
  absolute(folder, name, path);
  return reached("open", path, "", 0);
}

#define MODE                           \
  mode_t mode = 0;                     \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest;                      \
    va_start(rest, flags);             \
    mode = va_arg(rest, mode_t);       \
    va_end(rest);                      \
  }

FIND(open64)
int open64(const char* name, int flags, ...) {
  MODE int what = opening(AT_FDCWD, name, flags);
  if (what < 0) return -1;
  int fd = REAL(open64)(name, flags, mode);
  after(what);
  return fd;
}
int open(const char* name, int flags, ...) { MODE return open64(name, flags, mode); }

FIND(openat64)
int openat64(int folder, const char* name, int flags, ...) {
  MODE int what = opening(folder, name, flags);
  if (what < 0) return -1;
  int fd = REAL(openat64)(folder, name, flags, mode);
  after(what);
  return fd;
}
int openat(int folder, const char* name, int flags, ...) { MODE return openat64(folder, name, flags, mode); }

FIND(fopen64)
FILE* fopen64(const char* name, const char* how) {
  int what = opening(AT_FDCWD, name, strpbrk(how, "wa+") ? O_WRONLY : 0);
  if (what < 0) return NULL;
  FILE* file = REAL(fopen64)(name, how);
  after(what);
  return file;
}
FILE* fopen(const char* name, const char* how) { return fopen64(name, how); }

// A file that takes its place under its name: kept once more in the store, so that later what lies under that name can
// be told from a part of it.
static void keep(long number, int folder, const char* name) {
  if (state == NULL || !state->armed || state->store[0] == 0) return;
  char to[PATH_MAX + 32];
  snprintf(to, sizeof to, "%s/%ld", state->store, number);
  syscall(SYS_linkat, folder, name, AT_FDCWD, to, 0);
}

static int moving(const char* what, int from, const char* old, int to, const char* name) {
  if (state == NULL || !state->armed) return 0;
  char path[PATH_MAX], other[PATH_MAX];
  absolute(from, old, path);
  absolute(to, name, other);
  int found = reached(what, path, other, 0);
  if (found >= 0 && (is_below(path) || is_below(other))) keep(state->count, from, old);
  return found;
}

FIND(rename)
int rename(const char* old, const char* name) {
  int what = moving("rename", AT_FDCWD, old, AT_FDCWD, name);
  if (what < 0) return -1;
  int result = REAL(rename)(old, name);
  after(what);
  return result;
}

FIND(renameat)
int renameat(int from, const char* old, int to, const char* name) {
  int what = moving("rename", from, old, to, name);
  if (what < 0) return -1;
  int result = REAL(renameat)(from, old, to, name);
  after(what);
  return result;
}

FIND(renameat2)
int renameat2(int from, const char* old, int to, const char* name, unsigned flags) {
  int what = moving("rename", from, old, to, name);
  if (what < 0) return -1;
  int result = REAL(renameat2)(from, old, to, name, flags);
  after(what);
  return result;
}

FIND(linkat)
int linkat(int from, const char* old, int to, const char* name, int flags) {
  int what = moving("link", from, old, to, name);
  if (what < 0) return -1;
  int result = REAL(linkat)(from, old, to, name, flags);
  after(what);
  return result;
}
int link(const char* old, const char* name) { return linkat(AT_FDCWD, old, AT_FDCWD, name, 0); }

static int naming(const char* what, int folder, const char* name, int needs_space) {
  if (state == NULL || !state->armed) return 0;
  char path[PATH_MAX];
  absolute(folder, name, path);
  return reached(what, path, "", needs_space);
}

FIND(symlinkat)
int symlinkat(const char* to, int folder, const char* name) {
  int what = naming("symlink", folder, name, 1);
  if (what < 0) return -1;
  int result = REAL(symlinkat)(to, folder, name);
  after(what);
  return result;
}
int symlink(const char* to, const char* name) { return symlinkat(to, AT_FDCWD, name); }

FIND(unlinkat)
int unlinkat(int folder, const char* name, int flags) {
  int what = naming("unlink", folder, name, 0);
  if (what < 0) return -1;
  int result = REAL(unlinkat)(folder, name, flags);
  after(what);
  return result;
}
int unlink(const char* name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char* name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

FIND(mkdirat)
int mkdirat(int folder, const char* name, mode_t mode) {
  int what = naming("mkdir", folder, name, 1);
  if (what < 0) return -1;
  int result = REAL(mkdirat)(folder, name, mode);
  after(what);
  return result;
}
int mkdir(const char* name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

FIND(chmod)
int chmod(const char* name, mode_t mode) {
  int what = naming("chmod", AT_FDCWD, name, 0);
  if (what < 0) return -1;
  int result = REAL(chmod)(name, mode);
  after(what);
  return result;
}

// What no file may lead to: a connection, or another program.
static void outside(const char* what, const char* which) {
  if (state == NULL || !state->armed) return;
  note(-1, what, which, "");
}

FIND(connect)
int connect(int fd, const struct sockaddr* to, socklen_t length) {
  if (to != NULL && to->sa_family != AF_UNIX) outside("connect", "");
  return REAL(connect)(fd, to, length);
}

FIND(execve)
int execve(const char* program, char* const arguments[], char* const environment[]) {
  outside("exec", program);
  return REAL(execve)(program, arguments, environment);
}
