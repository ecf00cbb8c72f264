/* Preloaded into a server under test: writes down what it does to its database's files, and fails calls on demand.
 *
 * HEARTH_DISK_DIR  only files of this folder named hearth.db*, without the shared memory (-shm), are looked at
 * HEARTH_DISK_LOG  every write, truncation, sync and removal goes there, in the order in which they took place
 * HEARTH_DISK_CTL  four numbers that the test changes while the server runs: struct control
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, READ = 8, TRUNCATE = 16 };

struct control {
    volatile int32_t ops;   /* which calls fail */
    volatile int32_t error; /* errno */
    volatile int32_t skip;  /* so many go well before */
    volatile int32_t times; /* so many fail, then */
    volatile int32_t hits;  /* so many have failed */
};

/* One line of the log, followed by n_bytes of data. */
struct entry {
    uint8_t op; /* 'w' write, 't' truncate to offset, 's' sync, 'u' unlink */
    uint8_t file; /* 0: hearth.db, 1: hearth.db-wal, 2: another */
    uint16_t zero;
    uint32_t n_bytes;
    uint64_t offset;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static struct control *control;
static int log_fd = -1;
static char folder[PATH_MAX];
/* 1 + the file's number, for each descriptor that is one of ours. */
static unsigned char files[65536];

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("HEARTH_DISK_DIR"), *log = getenv("HEARTH_DISK_LOG"), *ctl = getenv("HEARTH_DISK_CTL");
    if (!dir || !realpath(dir, folder)) return;
    if (log) log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (ctl) {
        int fd = REAL(open)(ctl, O_RDWR | O_CLOEXEC);
        void *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED) control = at;
    }
    /* Children are nobody's business. */
    unsetenv("LD_PRELOAD");
}

/* 1 + its number; 0: not ours. */
static unsigned char number(const char *path) {
    size_t n = strlen(folder);
    if (!n || strncmp(path, folder, n) || strncmp(path + n, "/hearth.db", 10)) return 0;
    const char *rest = path + n + 10;
    if (!*rest) return 1;
    if (!strcmp(rest, "-wal")) return 2;
    return strcmp(rest, "-shm") ? 3 : 0;
}

static unsigned char of(int fd) { return fd >= 0 && fd < (int)sizeof files ? files[fd] : 0; }

static int fails(int op) {
    if (!control || !(control->ops & op)) return 0;
    if (__atomic_fetch_sub(&control->skip, 1, __ATOMIC_SEQ_CST) > 0) return 0;
    control->skip = 0;
    if (__atomic_fetch_sub(&control->times, 1, __ATOMIC_SEQ_CST) <= 0) {
        control->times = 0;
        return 0;
    }
    __atomic_fetch_add(&control->hits, 1, __ATOMIC_SEQ_CST);
    errno = control->error;
    return 1;
}

static void put(char op, unsigned char file, uint64_t offset, const void *data, size_t n) {
    if (log_fd < 0) return;
    size_t size = sizeof(struct entry) + n;
    char *line = malloc(size);
    struct entry entry = { .op = op, .file = file - 1, .n_bytes = n, .offset = offset };
    memcpy(line, &entry, sizeof entry);
    if (n) memcpy(line + sizeof entry, data, n);
    ssize_t done = REAL(write)(log_fd, line, size);
    (void)done;
    free(line);
}

static int opened(int fd, const char *path, int flags) {
    if (fd >= 0 && fd < (int)sizeof files) {
        files[fd] = number(path);
        if (files[fd] && (flags & O_TRUNC)) put('t', files[fd], 0, NULL, 0);
    }
    return fd;
}

#define OPENS(name)                                                      \
    int name(const char *path, int flags, ...) {                         \
        va_list more;                                                    \
        va_start(more, flags);                                           \
        mode_t mode = va_arg(more, mode_t);                              \
        va_end(more);                                                    \
        if (number(path) && fails(OPEN)) return -1;                      \
        return opened(REAL(name)(path, flags, mode), path, flags);       \
    }
OPENS(open)
OPENS(open64)

int close(int fd) {
    if (fd >= 0 && fd < (int)sizeof files) files[fd] = 0;
    return REAL(close)(fd);
}

#define PWRITES(name, offset_t)                                                  \
    ssize_t name(int fd, const void *data, size_t n, offset_t offset) {          \
        unsigned char file = of(fd);                                             \
        if (!file) return REAL(name)(fd, data, n, offset);                       \
        if (fails(WRITE)) return -1;                                             \
        pthread_mutex_lock(&turn);                                               \
        ssize_t done = REAL(name)(fd, data, n, offset);                          \
        if (done > 0) put('w', file, offset, data, done);                        \
        pthread_mutex_unlock(&turn);                                             \
        return done;                                                             \
    }
PWRITES(pwrite, off_t)
PWRITES(pwrite64, off64_t)

#define PREADS(name, offset_t)                                                   \
    ssize_t name(int fd, void *data, size_t n, offset_t offset) {                \
        if (of(fd) && fails(READ)) return -1;                                    \
        return REAL(name)(fd, data, n, offset);                                  \
    }
PREADS(pread, off_t)
PREADS(pread64, off64_t)

#define TRUNCATES(name, offset_t)                                                \
    int name(int fd, offset_t size) {                                            \
        unsigned char file = of(fd);                                             \
        if (!file) return REAL(name)(fd, size);                                  \
        if (fails(TRUNCATE)) return -1;                                          \
        pthread_mutex_lock(&turn);                                               \
        int done = REAL(name)(fd, size);                                         \
        if (!done) put('t', file, size, NULL, 0);                                \
        pthread_mutex_unlock(&turn);                                             \
        return done;                                                             \
    }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define SYNCS(name)                                                              \
    int name(int fd) {                                                           \
        unsigned char file = of(fd);                                             \
        if (!file) return REAL(name)(fd);                                        \
        if (fails(SYNC)) return -1;                                              \
        /* The disk is not asked: what it would keep is worked out from the log. */ \
        if (log_fd < 0) return REAL(name)(fd);                                   \
        pthread_mutex_lock(&turn);                                               \
        put('s', file, 0, NULL, 0);                                              \
        pthread_mutex_unlock(&turn);                                             \
        return 0;                                                                \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int unlink(const char *path) {
    unsigned char file = number(path);
    pthread_mutex_lock(&turn);
    int done = REAL(unlink)(path);
    if (!done && file) put('u', file, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    return done;
}
