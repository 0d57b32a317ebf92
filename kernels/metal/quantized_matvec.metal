// quantized_matvec: out = x @ W^T, W[n, k] = scale * code + bias, for few rows of x.
//
// in        x  [M, K] T    weight  [N, K * BITS / 32] uint32    scales, biases  [N, K / GROUP] T
//           params  [8] int32: K, N, M
// out       out  [M, N] T
// template  T: float16 | bfloat16 | float32; BITS: 4 | 8; GROUP: 32 | 64; VECTORS: 1 | 2 | 4,
//           rows of x that a simdgroup takes, so that it unpacks a code once for all of them.  K
//           and N are no template parameters: nothing but the number of steps depends on them
// grid      (32, 2 * tiles of 8 rows of W, tiles of VECTORS rows of x), threadgroup (32, 2, 1 to
//           4): a simdgroup takes 4 rows of W; simdgroups of a threadgroup that differ in z read
//           the same ones, from the cache but for the first
// math      float32, one rounding; codes are exact; a row of x gives the same bits whatever M and
//           VECTORS are
// moves     N * K * (BITS / 8 + 2 * sizeof(T) / GROUP) bytes for up to 16 rows of x: memory bound
//           at one
// source    MLX's quantized.h, affine_qmv_fast; the rest of a row is done otherwise
//
// A step is 8 bytes a lane: 512 codes of a row at 4 bits, 256 at 8.  What is left of a row, 256
// codes of 3840 at 4 bits, is done for two rows at once, one by each half of the simdgroup, so that
// no lane is idle.
#include "packed_rows.h"

typedef vec<typename Packed<BITS>::Quad, 16 / BITS> Codes;
constexpr uint ROWS = 4;
constexpr uint VALUES = 64 / BITS;  // of a lane in a step
constexpr uint STEP = 32 * VALUES;

const uint lane = thread_index_in_simdgroup;
const uint K = params[0];
const uint N = params[1];
const uint M = params[2];
const uint row = ROWS * thread_position_in_grid.y;
const uint vector = VECTORS * thread_position_in_grid.z;
if (row >= N || vector >= M) {
  return;  // whole simdgroups, and nothing below waits for a threadgroup
}
const device Codes* packed = (const device Codes*)weight;

// Beyond the last row, and the last of x, they are read again and not written.
uint starts[ROWS];
uint x_starts[VECTORS];
float sums[ROWS][VECTORS];
float rest[ROWS / 2][VECTORS];
UNROLL for (uint m = 0; m < VECTORS; ++m) {
  x_starts[m] = min(vector + m, M - 1) * K;
  UNROLL for (uint r = 0; r < ROWS; ++r) {
    starts[r] = min(row + r, N - 1) * K;
    sums[r][m] = 0.0f;
    rest[r / 2][m] = 0.0f;
  }
}

const uint whole = K / STEP * STEP;
for (uint k = lane * VALUES; k < whole; k += STEP) {
  Chunk<BITS> chunks[ROWS];
  UNROLL for (uint r = 0; r < ROWS; ++r) {
    const uint i = starts[r] + k;
    chunks[r] = {packed[i / VALUES], float(scales[i / GROUP]), float(biases[i / GROUP])};
  }
  add_products<T, BITS, ROWS, VECTORS>(x, x_starts, k, chunks, sums);
}
const uint half_of = lane / 16;
for (uint k = whole + lane % 16 * VALUES; k < K; k += STEP / 2) {
  Chunk<BITS> chunks[ROWS / 2];
  UNROLL for (uint r = 0; r < ROWS / 2; ++r) {
    const uint i = (half_of ? starts[2 * r + 1] : starts[2 * r]) + k;
    chunks[r] = {packed[i / VALUES], float(scales[i / GROUP]), float(biases[i / GROUP])};
  }
  add_products<T, BITS, ROWS / 2, VECTORS>(x, x_starts, k, chunks, rest);
}

UNROLL for (uint r = 0; r < ROWS; ++r) {
  UNROLL for (uint m = 0; m < VECTORS; ++m) {
    const float total = simd_sum(sums[r][m] + (half_of == r % 2 ? rest[r / 2][m] : 0.0f));
    if (lane == m && row + r < N && vector + m < M) {
      out[size_t(vector + m) * N + row + r] = T(total);
    }
  }
}
