// The part of Android's C library (bionic) that is more than another name for a function of glibc. shim.py makes a forwarding symbol for
// every function that a library asks for: to qn_NAME if it stands here, else to glibc's NAME. Not complete: what the runtimes ask for.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

// stdin, stdout and stderr: once three objects of an array, now variables. What is written to the array's objects goes to glibc's streams.
#define SF_BYTES 152
char qn_sF[3 * SF_BYTES] __attribute__((aligned(16)));
FILE *qn_stderr, *qn_stdin, *qn_stdout;
__asm__(".symver qn_sF, __sF@LIBC\n.symver qn_stderr, stderr@LIBC\n.symver qn_stdin, stdin@LIBC\n.symver qn_stdout, stdout@LIBC");

__attribute__((constructor)) static void open_streams(void) {
  qn_stderr = stderr;
  qn_stdin = stdin;
  qn_stdout = stdout;
}

static FILE *stream(FILE *file) {
  const char *at = (const char *)file;
  if (at < qn_sF || at >= qn_sF + sizeof qn_sF) return file;
  FILE *streams[] = {stdin, stdout, stderr};
  return streams[(at - qn_sF) / SF_BYTES];
}

int qn_vfprintf(FILE *file, const char *format, va_list values) { return vfprintf(stream(file), format, values); }
int qn_fprintf(FILE *file, const char *format, ...) {
  va_list values;
  va_start(values, format);
  const int written = qn_vfprintf(file, format, values);
  va_end(values);
  return written;
}
int qn_fputs(const char *text, FILE *file) { return fputs(text, stream(file)); }
int qn_fputc(int c, FILE *file) { return fputc(c, stream(file)); }
int qn_fflush(FILE *file) { return fflush(stream(file)); }
size_t qn_fwrite(const void *data, size_t size, size_t count, FILE *file) { return fwrite(data, size, count, stream(file)); }

// Functions that bionic's headers put in place of others to check lengths: the checks are left out.
int qn___FD_ISSET_chk(int fd, const fd_set *set, size_t size) { return FD_ISSET(fd, set); }
void qn___FD_SET_chk(int fd, fd_set *set, size_t size) { FD_SET(fd, set); }
void qn___FD_CLR_chk(int fd, fd_set *set, size_t size) { FD_CLR(fd, set); }
ssize_t qn___write_chk(int fd, const void *data, size_t count, size_t size) { return write(fd, data, count); }
char *qn___strchr_chk(const char *text, int c, size_t size) { return strchr(text, c); }
char *qn___strrchr_chk(const char *text, int c, size_t size) { return strrchr(text, c); }
size_t qn___strlen_chk(const char *text, size_t size) { return strlen(text); }
char *qn___strncpy_chk2(char *to, const char *from, size_t count, size_t to_size, size_t from_size) { return strncpy(to, from, count); }
char *qn___strcpy_chk(char *to, const char *from, size_t size) { return strcpy(to, from); }
size_t qn_strlcpy(char *to, const char *from, size_t size) {
  const size_t length = strlen(from);
  if (size > 0) {
    const size_t copied = length < size ? length : size - 1;
    memcpy(to, from, copied);
    to[copied] = 0;
  }
  return length;
}

// What Android alone has.
void qn___assert2(const char *file, int line, const char *function, const char *text) {
  fprintf(stderr, "%s:%d: %s: assertion \"%s\" failed\n", file, line, function, text);
  abort();
}
int qn___system_property_get(const char *name, char *value) {
  strcpy(value, strcmp(name, "ro.build.version.sdk") == 0 ? "34" : "");
  return (int)strlen(value);
}
void qn_android_set_abort_message(const char *message) { fprintf(stderr, "%s\n", message); }
int qn_pthread_gettid_np(pthread_t thread) { return gettid(); } // of the calling thread, the only one that is asked for
int qn_pthread_setname_np(pthread_t thread, const char *name) { return 0; }

// Types of another size: a set of signals has 64 bits, a mutex 40 bytes, and attributes of threads are smaller than glibc's on ARM, so that
// the caller's object holds a pointer to them.
int qn_sigfillset(unsigned long *set) {
  *set = ~0UL;
  return 0;
}
int qn_sigemptyset(unsigned long *set) {
  *set = 0;
  return 0;
}
int qn_pthread_sigmask(int how, const unsigned long *set, unsigned long *old) {
  sigset_t wanted, had;
  sigemptyset(&wanted);
  sigemptyset(&had);
  if (set) memcpy(&wanted, set, sizeof *set);
  const int error = pthread_sigmask(how, set ? &wanted : NULL, &had);
  if (old) memcpy(old, &had, sizeof *old);
  return error;
}
int qn_pthread_mutex_init(void *mutex, const pthread_mutexattr_t *attributes) {
  pthread_mutex_t made;
  const int error = pthread_mutex_init(&made, attributes);
  memcpy(mutex, &made, 40);
  return error;
}
int qn_pthread_attr_init(pthread_attr_t **attributes) {
  *attributes = calloc(1, sizeof **attributes);
  return pthread_attr_init(*attributes);
}
int qn_pthread_attr_destroy(pthread_attr_t **attributes) {
  const int error = pthread_attr_destroy(*attributes);
  free(*attributes);
  return error;
}
int qn_pthread_attr_setstacksize(pthread_attr_t **attributes, size_t size) { return pthread_attr_setstacksize(*attributes, size); }
int qn_pthread_attr_setdetachstate(pthread_attr_t **attributes, int state) { return pthread_attr_setdetachstate(*attributes, state); }
int qn_pthread_create(pthread_t *thread, pthread_attr_t **attributes, void *(*run)(void *), void *argument) {
  return pthread_create(thread, attributes ? *attributes : NULL, run, argument);
}

// Constants of another value.
long qn_sysconf(int name) {
  switch (name) {
    case 0x27:
    case 0x28: return sysconf(_SC_PAGESIZE);
    case 0x60: return sysconf(_SC_NPROCESSORS_CONF);
    case 0x61: return sysconf(_SC_NPROCESSORS_ONLN);
    case 0x62: return sysconf(_SC_PHYS_PAGES);
    case 0x63: return sysconf(_SC_AVPHYS_PAGES);
    default: fprintf(stderr, "shim: sysconf(%#x) is not known\n", name); return -1;
  }
}
