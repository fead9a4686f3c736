// A plugin of qemu's user emulation: counts the instructions that a program executes, and prints the count when it ends.
//
// Debian ships qemu without qemu-plugin.h. This is the part of its interface, version 1, that is used here.
#include <inttypes.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>

typedef uint64_t Plugin;
struct qemu_plugin_tb;  // a block of instructions that are executed together

void qemu_plugin_register_vcpu_tb_trans_cb(Plugin, void (*)(Plugin, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb*, void (*)(unsigned cpu, void*), int flags, void*);
void qemu_plugin_register_atexit_cb(Plugin, void (*)(Plugin, void*), void*);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);

int qemu_plugin_version = 1;

static atomic_uint_fast64_t instructions;

static void executed(unsigned cpu, void* count) {
  (void)cpu;
  atomic_fetch_add_explicit(&instructions, (uintptr_t)count, memory_order_relaxed);
}

static void translated(Plugin plugin, struct qemu_plugin_tb* block) {
  (void)plugin;
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void*)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void ended(Plugin plugin, void* nothing) {
  (void)plugin, (void)nothing;
  fprintf(stderr, "\ninstructions %" PRIuFAST64 "\n", atomic_load(&instructions));
}

int qemu_plugin_install(Plugin plugin, const void* info, int count, char** words) {
  (void)info, (void)count, (void)words;
  qemu_plugin_register_vcpu_tb_trans_cb(plugin, translated);
  qemu_plugin_register_atexit_cb(plugin, ended, NULL);
  return 0;
}
