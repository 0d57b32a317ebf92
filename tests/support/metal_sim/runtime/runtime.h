// What the parts of the runtime share: the launch under way, its lanes, and how a check speaks.
//
// One launch runs at a time, on one thread of the host; every thread of a threadgroup is a fiber.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../msl/abi.h"

namespace metal_sim {

constexpr u32 kMaxThreads = 1024;
constexpr u32 kMaxSimdgroups = kMaxThreads / kLanes;
constexpr u32 kMaxBuffers = 32;

enum class Mode : u32 { run, check, count };

// The kinds of memory that a barrier may order, by their bits in Metal's mem_flags.
enum Memory : u32 { device_memory, threadgroup_memory, kMemories };
inline bool is_ordered(u32 flags, u32 memory) { return flags >> memory & 1; }

struct Waiting {
  Slot slot;
  Combine combine;
  Operation operation;
  u32 line, column, flags;
};

// Sets of lanes are bit masks.
struct Simdgroup {
  u32 members;
  u32 live;        // have not returned from the kernel
  u32 runnable;
  u32 at_simd;     // wait for their simdgroup
  u32 at_barrier;  // wait for their threadgroup
  u32 barriers[kMemories];  // simdgroup barriers so far, of each memory that they order
  Waiting waiting[kLanes];
  void* stack_pointer[kLanes];
};

struct Launch {
  Entry entry;
  void** buffers;
  Mode mode;
  u64 seed;  // 0: everything in its natural order
  u32x3 grid, threads_dispatched, threadgroups;

  // The threadgroup that runs.
  u32x3 group, threads;
  u32 group_index;
  u32 simdgroups;
  // Goes up with every threadgroup and every barrier: equal numbers mean that nothing is between.
  u32 epoch[kMemories];
  u32 first_epoch[kMemories];
  Simdgroup simdgroup[kMaxSimdgroups];

  // The lane that runs.
  u32 current_simdgroup, current_lane;
  void* host_stack_pointer;
  bool is_running;  // inside a kernel, where a fault is the kernel's
  bool has_failed;
};
extern Launch launch;

inline u32 thread_index() { return launch.current_simdgroup * kLanes + launch.current_lane; }

// Counts of a launch.  Python knows the order of the fields.
struct Counts {
  u64 threadgroup_bytes_read, threadgroup_bytes_written;
  u64 barriers, simdgroup_barriers, simd_operations, shuffles, matrix_operations, matrix_flops;
  u64 atomics, threadgroups;
};
extern Counts counts;

// --- messages.cpp

// What a check may find.  Python knows the order, and writes the sentences.
enum class Check : u32 {
  device_bounds,
  threadgroup_bounds,
  array_bounds,
  device_race,
  threadgroup_race,
  simdgroup_race,
  uninitialised_threadgroup_read,
  uninitialised_device_read,
  unwritten_output,
  write_to_input,
  misaligned,
  divergence,
  barrier_divergence,
  inactive_source,
  threadgroup_memory_size,
  stack_overflow,
  integer_division,
  shift,
  wild_pointer,
};

enum class Access : u32 { read, write, atomic };

// Lanes of a simdgroup that wait at one place, or have returned (operation kReturned).
struct Gathering {
  u32 simdgroup, lanes, operation, line;
};
constexpr u32 kReturned = 255;

struct Message {
  Check check;
  Access access, other_access;
  u32 line;         // where there is no instruction to look up
  u64 code_offset;  // of the instruction, from the kernel library's start; 0 if there is none
  u64 variable_bytes;
  int64_t offset_bytes;
  int32_t buffer;
  u32 access_bytes;
  u32 group[3], thread;
  u32 other_group, other_thread;
  u32 num_gatherings;
  Gathering gatherings[8];
  char name[64];
};

// Keeps a message with the place filled in.  None if this check has spoken of this code before, or
// if there are too many.
Message* report(Check check, const void* code, u32 line = 0);
void add_gathering(Message* message, Gathering gathering);
void set_name(Message* message, const char* name);
void clear_messages();

// --- fibers.cpp

bool create_stacks();
bool is_in_stacks(const void* address);
char* stack_top(u32 thread);
void seed_random(u64 seed);
u32 random_below(u32 bound);
void run_threadgroup();
[[noreturn]] void abandon();  // ends the launch from inside a lane

// --- device_memory.cpp, threadgroup_memory.cpp

struct Span {
  char* address;
  u32 bytes;
  Access kind;
  const void* code;
  bool is_written;  // of an atomic: whether it also writes, or reads
  bool is_read;
};

bool create_device_memory();
bool is_device(const void* address);
void access_device(const Span& span);
void begin_device_launch();
void end_device_threadgroup();
void check_outputs();
void report_device_fault(const char* address, const void* code);

bool create_threadgroup_memory();
bool is_threadgroup(const void* address);
void access_threadgroup(const Span& span);
void begin_threadgroup();

}  // namespace metal_sim
