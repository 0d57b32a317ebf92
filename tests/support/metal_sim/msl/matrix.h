// <metal_simdgroup_matrix>: 8 x 8 matrices held by a simdgroup, two elements in each lane.
//
// Lane l holds two neighbours of one row, as MLX's own kernels take for granted of Apple's GPUs.
// Products are summed over k in order, by fused multiply-adds in float, whatever the types.
#pragma once

namespace metal_sim {

MSL_INLINE uint matrix_row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
MSL_INLINE uint matrix_column(uint lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }

MSL_COMBINE void meet(Slot*, u32) {}

template <class A, class B, class C>
struct Factors {
  metal::vec<A, 2> a;
  metal::vec<B, 2> b;
  metal::vec<C, 2> c;
};

template <class D, class A, class B, class C>
MSL_COMBINE void multiply_accumulate(Slot* slots, u32 active) {
  float a[8][8] = {}, b[8][8] = {}, c[8][8] = {};
  for (u32 lane = 0; lane < kLanes; lane++) {
    if (!is_active(active, lane)) continue;
    const Factors<A, B, C>& own = input<Factors<A, B, C>>(slots[lane]);
    // matrix_row and matrix_column, written out: those are instrumented, this is not.
    u32 row = ((lane / 4) & 4) + (lane / 2) % 4, column = ((lane / 4) & 2) * 2 + (lane % 2) * 2;
    for (u32 k = 0; k < 2; k++) {
      a[row][column + k] = (float)own.a[k];
      b[row][column + k] = (float)own.b[k];
      c[row][column + k] = (float)own.c[k];
    }
  }
  for (u32 i = 0; i < 8; i++) {
    for (u32 k = 0; k < 8; k++) {
      for (u32 j = 0; j < 8; j++) c[i][j] = __builtin_fmaf(a[i][k], b[k][j], c[i][j]);
    }
  }
  for (u32 lane = 0; lane < kLanes; lane++) {
    if (!is_active(active, lane)) continue;
    u32 row = ((lane / 4) & 4) + (lane / 2) % 4, column = ((lane / 4) & 2) * 2 + (lane % 2) * 2;
    metal::vec<D, 2>& own = output<metal::vec<D, 2>>(slots[lane]);
    own[0] = (D)c[row][column];
    own[1] = (D)c[row][column + 1];
  }
  metal_sim_count_matrix_flops(2 * 8 * 8 * 8);
}

}  // namespace metal_sim

namespace metal {

template <class T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "simdgroup_matrix is 8 x 8");
  typedef vec<T, 2> storage_type;
  storage_type elements;

  simdgroup_matrix() = default;
  MSL_INLINE explicit simdgroup_matrix(T diagonal) {
    uint lane = metal_sim_lane();
    uint row = metal_sim::matrix_row(lane), column = metal_sim::matrix_column(lane);
    elements[0] = row == column ? diagonal : T(0);
    elements[1] = row == column + 1 ? diagonal : T(0);
  }
  MSL_INLINE storage_type& thread_elements() { return elements; }
  MSL_INLINE const storage_type& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C>
MSL_INLINE simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> matrix;
  matrix.elements = value;
  return matrix;
}

template <class T, class P>
MSL_CONVERGENT void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, P source,
                                   ulong elements_per_row = 8, ulong2 origin = 0,
                                   bool transpose = false, MSL_SITE) {
  uint lane = metal_sim_lane();
  ulong row = metal_sim::matrix_row(lane), first = metal_sim::matrix_column(lane);
  metal_sim_simd(metal_sim::meet, nullptr, nullptr, 0, metal_sim::Operation::matrix, line, column);
  for (ulong k = 0; k < 2; k++) {
    ulong y = transpose ? first + k : row, x = transpose ? row : first + k;
    d.elements[k] = source[(origin.y + y) * elements_per_row + origin.x + x];
  }
}
template <class T, class P>
MSL_CONVERGENT void simdgroup_store(const simdgroup_matrix<T, 8, 8>& a, P destination,
                                    ulong elements_per_row = 8, ulong2 origin = 0,
                                    bool transpose = false, MSL_SITE) {
  uint lane = metal_sim_lane();
  ulong row = metal_sim::matrix_row(lane), first = metal_sim::matrix_column(lane);
  metal_sim_simd(metal_sim::meet, nullptr, nullptr, 0, metal_sim::Operation::matrix, line, column);
  for (ulong k = 0; k < 2; k++) {
    ulong y = transpose ? first + k : row, x = transpose ? row : first + k;
    destination[(origin.y + y) * elements_per_row + origin.x + x] = a.elements[k];
  }
}

template <class D, class A, class B, class C>
MSL_CONVERGENT void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d,
                                                  const simdgroup_matrix<A, 8, 8>& a,
                                                  const simdgroup_matrix<B, 8, 8>& b,
                                                  const simdgroup_matrix<C, 8, 8>& c, MSL_SITE) {
  metal_sim::Factors<A, B, C> factors = {a.elements, b.elements, c.elements};
  vec<D, 2> result;
  metal_sim_simd(metal_sim::multiply_accumulate<D, A, B, C>, &factors, &result, 0,
                 metal_sim::Operation::matrix, line, column);
  d.elements = result;
}
template <class D, class A, class B>
MSL_CONVERGENT void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d,
                                       const simdgroup_matrix<A, 8, 8>& a,
                                       const simdgroup_matrix<B, 8, 8>& b, MSL_SITE) {
  simdgroup_matrix<float, 8, 8> zero;
  zero.elements = 0;
  simdgroup_multiply_accumulate(d, a, b, zero, line, column);
}

}  // namespace metal
