#include <metal_simdgroup>
#include <metal_simdgroup_matrix>

// An 8 x 8 matrix that a simdgroup holds: a lane has elements (row, column) and (row, column + 1).
// The map is Apple's, as MLX's steel kernels rely on it.
typedef simdgroup_matrix<float, 8, 8> Fragment;

METAL_FUNC uint fragment_row(uint lane) {
  return ((lane / 4) & 4) + (lane / 2) % 4;
}

METAL_FUNC uint fragment_column(uint lane) {
  return ((lane / 4) & 2) * 2 + (lane % 2) * 2;
}

METAL_FUNC thread float2& elements(thread Fragment& fragment) {
  return reinterpret_cast<thread float2&>(fragment.thread_elements());
}

// Largest and sum of a row over the four lanes that hold it.
METAL_FUNC float row_max(float value) {
  value = max(value, simd_shuffle_xor(value, 1));
  return max(value, simd_shuffle_xor(value, 8));
}

METAL_FUNC float row_sum(float value) {
  value += simd_shuffle_xor(value, 1);
  return value + simd_shuffle_xor(value, 8);
}
