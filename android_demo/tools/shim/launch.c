// Runs a Java class: launch LIBJVM [-OPTION...] CLASS [ARGUMENT...]
//
// The `java` command has libjvm and its libstdc++ in the global scope, where the Android libraries, which carry a C++ library of their own,
// would find them and throw exceptions that nobody catches. Here they are in a scope of their own.
#include <dlfcn.h>
#include <jni.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_OPTIONS 64

// Code compiled for Android reads its stack guard at 40 bytes from the thread pointer. On ARM that lies in the thread's variables, those of
// the program first: this one keeps the place free, so that the guard stays what it is while a function runs.
__thread char guard[240] __attribute__((aligned(16)));

static int fail(const char *what) {
  fprintf(stderr, "launch: %s\n", what);
  return 1;
}

int main(int count, char **words) {
  if (count < 3) return fail("LIBJVM [-OPTION...] CLASS [ARGUMENT...]");
  __asm__ volatile("" ::"r"(guard)); // or the compiler would leave it out
  void *library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return fail(dlerror());
  jint (*create)(JavaVM **, void **, void *) = (jint(*)(JavaVM **, void **, void *))dlsym(library, "JNI_CreateJavaVM");

  JavaVMOption options[MAX_OPTIONS];
  int at = 2, given = 0;
  for (; at < count && words[at][0] == '-' && given < MAX_OPTIONS; ++at) options[given++].optionString = words[at];
  if (at == count) return fail("no class was given");
  JavaVMInitArgs arguments = {JNI_VERSION_1_8, given, options, JNI_FALSE};
  JavaVM *vm;
  JNIEnv *java;
  if (create == NULL || create(&vm, (void **)&java, &arguments) != JNI_OK) return fail("no Java VM could be made");

  for (char *c = words[at]; *c; ++c) {
    if (*c == '.') *c = '/';
  }
  jclass class = (*java)->FindClass(java, words[at++]);
  jclass string = class ? (*java)->FindClass(java, "java/lang/String") : NULL;
  jobjectArray rest = string ? (*java)->NewObjectArray(java, count - at, string, NULL) : NULL;
  for (int i = 0; rest && at + i < count; ++i) (*java)->SetObjectArrayElement(java, rest, i, (*java)->NewStringUTF(java, words[at + i]));
  jmethodID method = rest ? (*java)->GetStaticMethodID(java, class, "main", "([Ljava/lang/String;)V") : NULL;
  if (method) (*java)->CallStaticVoidMethod(java, class, method, rest);
  const int failed = (*java)->ExceptionCheck(java);
  if (failed) (*java)->ExceptionDescribe(java);
  fflush(NULL);
  _Exit(failed); // not exit(): destructors of the Android libraries would run against a VM that is gone
}
