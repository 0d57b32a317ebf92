// Fibers: the threads of a threadgroup, how they take turns, and where they must meet.
//
// A lane runs until it comes to an operation of its simdgroup, to a barrier, or to its end; then
// the host picks the next one.  With a seed, it picks lanes and simdgroups at random, so that a
// kernel that works by luck of the order does not.

#include <sys/mman.h>

#include "runtime.h"

namespace metal_sim {

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // a thread's private memory
constexpr size_t kPageBytes = 4096;

char* stacks;
u64 random_state;

// Saves the callee-saved registers and the stack pointer, and goes on with another stack.
asm(R"(
  .text
  .globl metal_sim_switch
  .type metal_sim_switch, @function
metal_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size metal_sim_switch, . - metal_sim_switch
)");
extern "C" void metal_sim_switch(void** save_stack_pointer, void* stack_pointer);

u32 bit(u32 lane) { return 1u << lane; }
u32 all_lanes(u32 lanes) { return lanes == kLanes ? ~0u : bit(lanes) - 1; }
Simdgroup& current_simdgroup() { return launch.simdgroup[launch.current_simdgroup]; }

void yield_to_host() {
  Simdgroup& group = current_simdgroup();
  metal_sim_switch(&group.stack_pointer[launch.current_lane], launch.host_stack_pointer);
}

ThreadPlace place_of(u32 thread) {
  ThreadPlace place = {};
  const u32x3 size = launch.threads, sent = launch.threads_dispatched;
  place.position_in_threadgroup = {thread % size.x, thread / size.x % size.y,
                                   thread / (size.x * size.y)};
  place.threadgroup_in_grid = launch.group;
  place.position_in_grid = launch.group * sent + place.position_in_threadgroup;
  place.threads_per_threadgroup = size;
  place.threads_dispatched = sent;
  place.threads_per_grid = launch.grid;
  place.threadgroups_per_grid = launch.threadgroups;
  place.index_in_threadgroup = thread;
  place.lane = thread % kLanes;
  place.simdgroup = thread / kLanes;
  place.simdgroups = launch.simdgroups;
  place.simdgroups_dispatched = (sent.x * sent.y * sent.z + kLanes - 1) / kLanes;
  return place;
}

// The first code of every fiber.
void run_lane() {
  ThreadPlace place = place_of(thread_index());
  launch.entry(launch.buffers, &place);
  Simdgroup& group = current_simdgroup();
  group.live &= ~bit(launch.current_lane);
  yield_to_host();
  __builtin_trap();  // a lane that has returned is never picked again
}

void prepare_stack(Simdgroup& group, u32 simdgroup, u32 lane) {
  // The stacks of neighbours start in different cache sets.
  u32 thread = simdgroup * kLanes + lane;
  void** top = (void**)(stack_top(thread) - 64 * (thread % 32));
  *--top = nullptr;           // the return address that run_lane would have, for alignment
  *--top = (void*)run_lane;   // where metal_sim_switch returns to
  for (int i = 0; i < 6; i++) *--top = nullptr;  // the registers that it pops
  group.stack_pointer[lane] = top;
}

void resume(u32 simdgroup, u32 lane) {
  Simdgroup& group = launch.simdgroup[simdgroup];
  launch.current_simdgroup = simdgroup;
  launch.current_lane = lane;
  group.runnable &= ~bit(lane);
  metal_sim_switch(&launch.host_stack_pointer, group.stack_pointer[lane]);
}

u32 pick_lane(u32 lanes) {
  if (launch.seed != 0) {
    for (u32 skip = random_below(__builtin_popcount(lanes)); skip > 0; skip--) lanes &= lanes - 1;
  }
  return __builtin_ctz(lanes);
}

bool wait_at_one_place(const Waiting& a, const Waiting& b) {
  return a.line == b.line && a.column == b.column && a.operation == b.operation &&
         a.combine == b.combine;
}

// Adds to a message who waits where, and who has returned.
void add_gatherings(Message* message, u32 index) {
  const Simdgroup& group = launch.simdgroup[index];
  u32 rest = group.at_simd | group.at_barrier;
  while (rest != 0) {
    u32 first = __builtin_ctz(rest), same = 0;
    for (u32 lanes = rest; lanes != 0; lanes &= lanes - 1) {
      u32 lane = __builtin_ctz(lanes);
      if (wait_at_one_place(group.waiting[lane], group.waiting[first])) same |= bit(lane);
    }
    const Waiting& waiting = group.waiting[first];
    add_gathering(message, {index, same, (u32)waiting.operation, waiting.line});
    rest &= ~same;
  }
  if (u32 returned = group.members & ~group.live) {
    add_gathering(message, {index, returned, kReturned, 0});
  }
}

// Ends the launch from the host's side, with a message about one simdgroup or, for `all`, each.
void report_divergence(Check check, u32 index, bool all) {
  const Simdgroup& group = launch.simdgroup[index];
  u32 lane = __builtin_ctz(group.at_simd | group.at_barrier);
  launch.current_simdgroup = index;
  launch.current_lane = lane;
  if (Message* message = report(check, nullptr, group.waiting[lane].line)) {
    for (u32 i = all ? 0 : index; i < (all ? launch.simdgroups : index + 1); i++) {
      add_gatherings(message, i);
    }
  }
  launch.has_failed = true;
}

void complete_simd_operation(Simdgroup& group) {
  const Waiting& waiting = group.waiting[__builtin_ctz(group.at_simd)];
  switch (waiting.operation) {
    case Operation::simdgroup_barrier:
      counts.simdgroup_barriers++;
      for (u32 memory = 0; memory < kMemories; memory++) {
        group.barriers[memory] += is_ordered(waiting.flags, memory);
      }
      break;
    case Operation::matrix:
      counts.matrix_operations++;
      break;
    case Operation::shuffle:
      counts.shuffles++;
      [[fallthrough]];
    default:
      counts.simd_operations++;
  }
  if (waiting.combine != nullptr) {
    Slot slots[kLanes];
    for (u32 lane = 0; lane < kLanes; lane++) slots[lane] = group.waiting[lane].slot;
    launch.current_lane = __builtin_ctz(group.at_simd);
    waiting.combine(slots, group.at_simd);
  }
  group.runnable |= group.at_simd;
  group.at_simd = 0;
}

// Runs one simdgroup until all its lanes wait or have returned, and completes what they wait for if
// that is the simdgroup's own affair.  False if nothing but a threadgroup barrier can help.
bool step(u32 index) {
  Simdgroup& group = launch.simdgroup[index];
  if (group.runnable == 0 && group.at_simd == 0) return false;
  while (group.runnable != 0) {
    resume(index, pick_lane(group.runnable));
    if (launch.has_failed) return false;
  }
  if (group.at_simd == 0) return true;
  u32 first = __builtin_ctz(group.at_simd);
  bool is_together = group.at_barrier == 0;
  for (u32 lanes = group.at_simd; lanes != 0; lanes &= lanes - 1) {
    is_together &= wait_at_one_place(group.waiting[__builtin_ctz(lanes)], group.waiting[first]);
  }
  // Lanes that have returned take no part in a reduction or a shuffle, which Metal allows; but a
  // barrier and a matrix need every lane that there is.
  Operation operation = group.waiting[first].operation;
  if (operation == Operation::simdgroup_barrier || operation == Operation::matrix) {
    is_together &= group.live == group.members;
  }
  if (!is_together) {
    report_divergence(Check::divergence, index, false);
    return false;
  }
  launch.current_simdgroup = index;
  complete_simd_operation(group);
  return true;
}

// All simdgroups wait at a barrier or have returned.  False if the threadgroup is at its end.
bool pass_barrier() {
  const Waiting* first = nullptr;
  u32 first_index = 0;
  bool is_together = true, is_ordered_by_all[kMemories] = {true, true};
  for (u32 i = 0; i < launch.simdgroups; i++) {
    const Simdgroup& group = launch.simdgroup[i];
    is_together &= group.at_barrier == group.members;
    for (u32 lanes = group.at_barrier; lanes != 0; lanes &= lanes - 1) {
      const Waiting& waiting = group.waiting[__builtin_ctz(lanes)];
      if (first == nullptr) {
        first = &waiting;
        first_index = i;
      }
      is_together &= wait_at_one_place(waiting, *first);
      for (u32 memory = 0; memory < kMemories; memory++) {
        is_ordered_by_all[memory] &= is_ordered(waiting.flags, memory);
      }
    }
  }
  if (first == nullptr) return false;
  if (!is_together) {
    report_divergence(Check::barrier_divergence, first_index, true);
    return false;
  }
  counts.barriers++;
  for (u32 memory = 0; memory < kMemories; memory++) {
    launch.epoch[memory] += is_ordered_by_all[memory];
  }
  for (u32 i = 0; i < launch.simdgroups; i++) {
    Simdgroup& group = launch.simdgroup[i];
    group.runnable |= group.at_barrier;
    group.at_barrier = 0;
  }
  return true;
}

// Runs every simdgroup as far as it gets without the others.
void run_to_barrier() {
  if (launch.seed == 0) {
    for (u32 i = 0; i < launch.simdgroups && !launch.has_failed; i++) {
      while (step(i)) {
      }
    }
    return;
  }
  u32 candidates = all_lanes(launch.simdgroups);
  while (candidates != 0 && !launch.has_failed) {
    u32 index = pick_lane(candidates);
    if (!step(index)) candidates &= ~bit(index);
  }
}

void wait(Waiting waiting, u32 Simdgroup::* set) {
  Simdgroup& group = current_simdgroup();
  group.waiting[launch.current_lane] = waiting;
  group.*set |= bit(launch.current_lane);
  yield_to_host();
}

}  // namespace

bool create_stacks() {
  void* memory = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  stacks = (char*)memory;
  for (u32 i = 0; i < kMaxThreads; i++) {
    if (mprotect(stacks + i * kStackBytes, kPageBytes, PROT_NONE) != 0) return false;
  }
  return true;
}

bool is_in_stacks(const void* address) {
  return (u64)address - (u64)stacks < kStackBytes * kMaxThreads;
}

char* stack_top(u32 thread) { return stacks + (thread + 1) * kStackBytes - 64; }

void seed_random(u64 seed) { random_state = seed * 0x9e3779b97f4a7c15u + 1; }

u32 random_below(u32 bound) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (random_state >> 33) % bound;
}

void run_threadgroup() {
  u32 threads = launch.threads.x * launch.threads.y * launch.threads.z;
  launch.simdgroups = (threads + kLanes - 1) / kLanes;
  for (u32 memory = 0; memory < kMemories; memory++) {
    launch.first_epoch[memory] = ++launch.epoch[memory];
  }
  for (u32 i = 0; i < launch.simdgroups; i++) {
    Simdgroup& group = launch.simdgroup[i];
    u32 lanes = threads - i * kLanes < kLanes ? threads - i * kLanes : kLanes;
    group.members = group.live = group.runnable = all_lanes(lanes);
    group.at_simd = group.at_barrier = 0;
    for (u32 lane = 0; lane < lanes; lane++) prepare_stack(group, i, lane);
  }
  counts.threadgroups++;
  do {
    run_to_barrier();
  } while (!launch.has_failed && pass_barrier());
}

void abandon() {
  launch.has_failed = true;
  void* discarded;
  metal_sim_switch(&discarded, launch.host_stack_pointer);
  __builtin_unreachable();
}

}  // namespace metal_sim

using namespace metal_sim;

extern "C" {

void metal_sim_simd(Combine combine, const void* in, void* out, u64 argument, Operation operation,
                    u32 line, u32 column) {
  wait({{in, out, argument}, combine, operation, line, column, 0}, &Simdgroup::at_simd);
}

void metal_sim_simdgroup_barrier(u32 flags, u32 line, u32 column) {
  wait({{}, nullptr, Operation::simdgroup_barrier, line, column, flags}, &Simdgroup::at_simd);
}

void metal_sim_threadgroup_barrier(u32 flags, u32 line, u32 column) {
  wait({{}, nullptr, Operation::threadgroup_barrier, line, column, flags}, &Simdgroup::at_barrier);
}

u32 metal_sim_lane() { return launch.current_lane; }

void metal_sim_count_matrix_flops(u64 flops) { counts.matrix_flops += flops; }

void metal_sim_inactive_source(u32 lane, u32 source_lane) {
  const Waiting& waiting = launch.simdgroup[launch.current_simdgroup].waiting[lane];
  launch.current_lane = lane;
  if (Message* message = report(Check::inactive_source, nullptr, waiting.line)) {
    message->other_thread = launch.current_simdgroup * kLanes + source_lane;
  }
}
}
