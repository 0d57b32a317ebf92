// Sum of one float a thread over the threadgroup, given to every thread.
//
// partial must have an element for each simdgroup, at most 32, and must not be in use for another
// sum that some thread may still be reading: then one barrier is enough.
METAL_FUNC float threadgroup_sum(
    float value, threadgroup float* partial, uint simdgroup, uint lane, uint num_simdgroups) {
  value = simd_sum(value);
  if (lane == 0) {
    partial[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(lane < num_simdgroups ? partial[lane] : 0.0f);
}
