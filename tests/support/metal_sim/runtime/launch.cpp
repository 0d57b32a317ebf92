// A launch: every threadgroup of the grid, one after the other, with the process's faults caught.

#include <signal.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace metal_sim {

Launch launch;
Counts counts;

namespace {

constexpr size_t kSignalStackBytes = 65536;
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr int kNumSignals = 3;

void* signal_stack;
struct sigaction previous_actions[kNumSignals];

void restore_signals() {
  for (int i = 0; i < kNumSignals; i++) sigaction(kSignals[i], &previous_actions[i], nullptr);
}

// A fault inside a kernel becomes a message, and the lane goes on in `abandon`, on a fresh stack.
void on_fault(int signal, siginfo_t* info, void* context) {
  if (!launch.is_running) {
    restore_signals();  // not ours: the instruction faults again, and is the host's affair
    return;
  }
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const void* code = (const void*)registers[REG_RIP];
  const char* address = (const char*)info->si_addr;
  if (signal == SIGFPE) {
    report(Check::integer_division, code);
  } else if (is_device(address)) {
    report_device_fault(address, code);
  } else {
    report(is_in_stacks(address) ? Check::stack_overflow : Check::wild_pointer, code);
  }
  registers[REG_RIP] = (greg_t)abandon;
  registers[REG_RSP] = ((greg_t)stack_top(thread_index()) & ~15) - 8;
}

void catch_signals() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < kNumSignals; i++) sigaction(kSignals[i], &action, &previous_actions[i]);
}

u32 greatest_common_divisor(u32 a, u32 b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

void run_group(u32 index) {
  const u32x3 groups = launch.threadgroups, sent = launch.threads_dispatched;
  launch.group_index = index;
  launch.group = {index % groups.x, index / groups.x % groups.y, index / (groups.x * groups.y)};
  u32x3 rest = launch.grid - launch.group * sent;
  launch.threads = {smaller(rest.x, sent.x), smaller(rest.y, sent.y), smaller(rest.z, sent.z)};
  begin_threadgroup();
  run_threadgroup();
  end_device_threadgroup();
}

void run_groups() {
  u32 num_groups = launch.threadgroups.x * launch.threadgroups.y * launch.threadgroups.z;
  // With a seed, groups come in the order i -> step * i + start, which visits each once.
  u32 step = 1, start = 0;
  if (launch.seed != 0 && num_groups > 1) {
    start = random_below(num_groups);
    do {
      step = 1 + random_below(num_groups);
    } while (greatest_common_divisor(step, num_groups) != 1);
  }
  for (u32 i = 0; i < num_groups && !launch.has_failed; i++) {
    run_group(((u64)step * i + start) % num_groups);
  }
}

}  // namespace

}  // namespace metal_sim

using namespace metal_sim;

extern "C" {

int metal_sim_create() {
  signal_stack = malloc(kSignalStackBytes);
  return create_stacks() && create_device_memory() && create_threadgroup_memory();
}

void metal_sim_launch(Entry entry, void** buffers, const u32* grid, const u32* threads, u32 mode,
                      u64 seed) {
  memset(&counts, 0, sizeof counts);
  clear_messages();
  launch.entry = entry;
  launch.buffers = buffers;
  launch.mode = (Mode)mode;
  launch.seed = seed;
  launch.has_failed = false;
  seed_random(seed);
  launch.grid = {grid[0], grid[1], grid[2]};
  launch.threads_dispatched = {threads[0], threads[1], threads[2]};
  launch.threadgroups = (launch.grid + launch.threads_dispatched - 1) / launch.threads_dispatched;
  begin_device_launch();

  stack_t stack = {}, previous_stack;
  stack.ss_sp = signal_stack;
  stack.ss_size = kSignalStackBytes;
  sigaltstack(&stack, &previous_stack);
  catch_signals();
  launch.is_running = true;
  run_groups();
  launch.is_running = false;
  restore_signals();
  sigaltstack(&previous_stack, nullptr);
  if (!launch.has_failed) check_outputs();
}

const Counts* metal_sim_counts() { return &counts; }
u32 metal_sim_message_bytes() { return sizeof(Message); }
}
