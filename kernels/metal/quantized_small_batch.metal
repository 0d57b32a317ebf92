// quantized_small_batch: out = x @ W^T, W[n, k] = scale * code + bias, for up to 16 rows of x.
//
// in        x  [M, K] T    weight  [N, K * BITS / 32] uint32    scales, biases  [N, K / GROUP] T
//           params  [8] int32: K, N, M
// out       out  [M, N] T
// template  T: float16 | bfloat16 | float32; BITS: 4 | 8; GROUP: 32 | 64; COLUMNS: 1 up to 8 rows
//           of x, 2 up to 16
// grid      (128 * tiles of 16 rows of W, 1, 1), threadgroup (128, 1, 1): its four simdgroups take
//           every fourth group of the same rows, and so read runs of them together
// math      products of codes and values in float32 fragments, float32 sums a group, then scale and
//           bias; one rounding
// moves     N * K * (BITS / 8 + 2 * sizeof(T) / GROUP) bytes whatever M is; bound by memory to
//           about 8 rows of x at 4 bits, by arithmetic beyond
// source    the layout of simdgroup matrices is that of MLX's steel kernels
//
// Fragments come straight from device memory.  A lane holds elements (row, 2c) and (row, 2c + 1)
// of weights, and (2c + e, column) and the next column's of values.  Columns of the one and rows of
// the other may stand for any k, if for the same: lane c has the c-th quarter of a group, fragment
// 4p + f component f of its quads 2p and 2p + 1.
#include "fragment.h"
#include "packed_codes.h"

typedef vec<T, 4> T4;
constexpr uint SIMDGROUPS = 4;
constexpr uint ROWS = 16;
constexpr uint RUN = GROUP / 4;  // values of a group that a lane has of a row
typedef vec<typename Packed<BITS>::Quad, RUN / 4> Codes;

const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint K = params[0];
const uint N = params[1];
const uint M = params[2];
const uint groups = K / GROUP;
const uint row = ROWS * threadgroup_position_in_grid.x;
const uint fragment_y = fragment_row(lane);
const uint fragment_x = fragment_column(lane);

// Beyond the last row, and the last of x, they are read again and not written.
const uint rows[2] = {min(row + fragment_y, N - 1), min(row + 8 + fragment_y, N - 1)};
uint x_starts[COLUMNS][2];
Fragment sums[2][COLUMNS];
UNROLL for (uint c = 0; c < COLUMNS; ++c) {
  UNROLL for (uint e = 0; e < 2; ++e) {
    const uint vector = min(8 * c + fragment_x + e, M - 1);
    x_starts[c][e] = vector * K + RUN * (fragment_y / 2) + 4 * (fragment_y % 2);
    elements(sums[e][c]) = float2(0.0f);
  }
}

for (uint g = simdgroup; g < groups; g += SIMDGROUPS) {
  Codes packed[2];
  Fragment dots[2][COLUMNS];
  float2 x_sums[COLUMNS];
  UNROLL for (uint r = 0; r < 2; ++r) {
    packed[r] = ((const device Codes*)weight)[(rows[r] * groups + g) * 4 + fragment_x / 2];
    UNROLL for (uint c = 0; c < COLUMNS; ++c) {
      elements(dots[r][c]) = float2(0.0f);
      x_sums[c] = float2(0.0f);
    }
  }
  UNROLL for (uint p = 0; p < RUN / 8; ++p) {
    float4 values[COLUMNS][2];
    UNROLL for (uint c = 0; c < COLUMNS; ++c) {
      UNROLL for (uint e = 0; e < 2; ++e) {
        const float4 quad = float4(*(const device T4*)(x + x_starts[c][e] + g * GROUP + 8 * p));
        x_sums[c][e] += sum_of(quad);
        values[c][e] = unshift<BITS>(quad);
      }
    }
    float4 weights[2][2];
    UNROLL for (uint r = 0; r < 2; ++r) {
      weights[r][0] = codes(packed[r][2 * p]);
      weights[r][1] = codes(packed[r][2 * p + 1]);
    }
    UNROLL for (uint f = 0; f < 4; ++f) {
      Fragment right[COLUMNS];
      UNROLL for (uint c = 0; c < COLUMNS; ++c) {
        elements(right[c]) = float2(values[c][0][f], values[c][1][f]);
      }
      UNROLL for (uint r = 0; r < 2; ++r) {
        Fragment left;
        elements(left) = float2(weights[r][0][f], weights[r][1][f]);
        UNROLL for (uint c = 0; c < COLUMNS; ++c) {
          simdgroup_multiply_accumulate(dots[r][c], left, right[c], dots[r][c]);
        }
      }
    }
  }
  // A lane's columns of values are its columns of the product.
  UNROLL for (uint c = 0; c < COLUMNS; ++c) {
    x_sums[c] += simd_shuffle_xor(x_sums[c], 2);
    x_sums[c] += simd_shuffle_xor(x_sums[c], 4);
    x_sums[c] += simd_shuffle_xor(x_sums[c], 16);
  }
  UNROLL for (uint r = 0; r < 2; ++r) {
    const float scale = float(scales[rows[r] * groups + g]);
    const float bias = float(biases[rows[r] * groups + g]);
    UNROLL for (uint c = 0; c < COLUMNS; ++c) {
      const float2 offset = fma(float2(bias), x_sums[c], elements(sums[r][c]));
      elements(sums[r][c]) = fma(float2(scale), elements(dots[r][c]), offset);
    }
  }
}

threadgroup float partial[SIMDGROUPS][8 * COLUMNS * ROWS];
UNROLL for (uint r = 0; r < 2; ++r) {
  UNROLL for (uint c = 0; c < COLUMNS; ++c) {
    UNROLL for (uint e = 0; e < 2; ++e) {
      const uint at = (8 * c + fragment_x + e) * ROWS + 8 * r + fragment_y;
      partial[simdgroup][at] = elements(sums[r][c])[e];
    }
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = thread_index_in_threadgroup; i < M * ROWS; i += 32 * SIMDGROUPS) {
  const uint at = row + i % ROWS;
  if (at < N) {
    float total = partial[0][i];
    for (uint s = 1; s < SIMDGROUPS; ++s) {
      total += partial[s][i];
    }
    out[size_t(i / ROWS) * N + at] = T(total);
  }
}
