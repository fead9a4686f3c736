// liblog.so: what Android would write to its log goes to standard error.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int __android_log_vprint(int priority, const char *tag, const char *format, va_list values) {
  fprintf(stderr, "[log %d %s] ", priority, tag);
  vfprintf(stderr, format, values);
  return fputc('\n', stderr);
}
int __android_log_print(int priority, const char *tag, const char *format, ...) {
  va_list values;
  va_start(values, format);
  const int written = __android_log_vprint(priority, tag, format, values);
  va_end(values);
  return written;
}
int __android_log_write(int priority, const char *tag, const char *text) { return __android_log_print(priority, tag, "%s", text); }
void __android_log_assert(const char *condition, const char *tag, const char *format, ...) {
  __android_log_write(7, tag, format ? format : condition);
  abort();
}
