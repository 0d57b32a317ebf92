// What a compiled kernel and the runtime agree on.  Both sides include this file; it includes
// nothing, because kernels are compiled without the C and C++ standard libraries.
#pragma once

namespace metal_sim {

typedef unsigned int u32;
typedef unsigned long u64;
typedef u32 u32x3 __attribute__((ext_vector_type(3)));

constexpr u32 kLanes = 32;

// What a lane brings to an operation of its whole simdgroup.
struct Slot {
  const void* in;
  void* out;
  u64 argument;
};

// Computes the outputs of every lane in `active` from the inputs of all of them.
typedef void (*Combine)(Slot* slots, u32 active);

enum class Operation : u32 {
  reduction,
  shuffle,
  prefix,
  vote,
  quad,
  matrix,
  simdgroup_barrier,
  threadgroup_barrier,
};

// What a thread is told about its place in the grid.
struct ThreadPlace {
  u32x3 position_in_grid;
  u32x3 position_in_threadgroup;
  u32x3 threadgroup_in_grid;
  u32x3 threads_per_threadgroup;  // fewer than dispatched in a threadgroup cut by the grid's end
  u32x3 threads_dispatched;
  u32x3 threads_per_grid;
  u32x3 threadgroups_per_grid;
  u32 index_in_threadgroup;
  u32 lane;
  u32 simdgroup;
  u32 simdgroups;
  u32 simdgroups_dispatched;
};

typedef void (*Entry)(void** buffers, const ThreadPlace* place);

enum AtomicAccess : u32 { atomic_read = 1, atomic_write = 2 };

}  // namespace metal_sim

extern "C" {
// `convergent` keeps the optimizer from duplicating a call or moving it into a branch.
__attribute__((convergent)) void metal_sim_simd(
    metal_sim::Combine combine, const void* in, void* out, metal_sim::u64 argument,
    metal_sim::Operation operation, metal_sim::u32 line, metal_sim::u32 column);
__attribute__((convergent)) void metal_sim_threadgroup_barrier(
    metal_sim::u32 flags, metal_sim::u32 line, metal_sim::u32 column);
__attribute__((convergent)) void metal_sim_simdgroup_barrier(
    metal_sim::u32 flags, metal_sim::u32 line, metal_sim::u32 column);

void* metal_sim_threadgroup_variable(metal_sim::u32 id, metal_sim::u64 bytes, const char* name);
void metal_sim_atomic(const volatile void* address, metal_sim::u32 bytes, metal_sim::u32 access,
                      const void* code);
void metal_sim_inactive_source(metal_sim::u32 lane, metal_sim::u32 source_lane);
void metal_sim_count_matrix_flops(metal_sim::u64 flops);
metal_sim::u32 metal_sim_lane();
}
