// gate_up_geglu: out = gelu(x @ G^T) * (x @ U^T), G and U quantized, gelu in its tanh form.
//
// in        x  [M, K] T    gate, up  [N, K * BITS / 32] uint32
//           gate_scales, gate_biases, up_scales, up_biases  [N, K / GROUP] T
//           params  [8] int32: K, N, M
// out       out  [M, N] T
// template  T: float16 | bfloat16 | float32; BITS: 4 | 8; GROUP: 32 | 64; VECTORS: 1 | 2 | 4,
//           rows of x that a simdgroup takes
// grid      (32, 2 * tiles of 4 rows, tiles of VECTORS rows of x), threadgroup (32, 2, 1 to 4): a
//           simdgroup takes 2 rows of G and the same 2 of U
// math      float32 from load to store, one rounding; tanh precise; a row of x gives the same bits
//           whatever M and VECTORS are
// moves     2 * N * K * (BITS / 8 + 2 * sizeof(T) / GROUP) bytes: memory bound at one row of x
// source    quantized_matvec; gelu as in mlx.nn.gelu_approx
#include "packed_rows.h"

typedef vec<typename Packed<BITS>::Quad, 16 / BITS> Codes;
constexpr uint ROWS = 2;            // of each matrix
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
const device Codes* gate_packed = (const device Codes*)gate;
const device Codes* up_packed = (const device Codes*)up;

// Beyond the last row, and the last of x, they are read again and not written.
const uint starts[ROWS] = {row * K, min(row + 1, N - 1) * K};
uint x_starts[VECTORS];
float sums[2 * ROWS][VECTORS];  // gate, gate, up, up
float rest[2][VECTORS];         // gate, up
UNROLL for (uint m = 0; m < VECTORS; ++m) {
  x_starts[m] = min(vector + m, M - 1) * K;
  UNROLL for (uint r = 0; r < 2 * ROWS; ++r) {
    sums[r][m] = 0.0f;
    rest[r / 2][m] = 0.0f;
  }
}

const uint whole = K / STEP * STEP;
for (uint k = lane * VALUES; k < whole; k += STEP) {
  Chunk<BITS> chunks[2 * ROWS];
  UNROLL for (uint r = 0; r < ROWS; ++r) {
    const uint i = starts[r] + k;
    const uint group = i / GROUP;
    chunks[r] = {gate_packed[i / VALUES], float(gate_scales[group]), float(gate_biases[group])};
    chunks[ROWS + r] = {up_packed[i / VALUES], float(up_scales[group]), float(up_biases[group])};
  }
  add_products<T, BITS, 2 * ROWS, VECTORS>(x, x_starts, k, chunks, sums);
}
// The rest of two rows at once, one by each half of the simdgroup.
const uint half_of = lane / 16;
for (uint k = whole + lane % 16 * VALUES; k < K; k += STEP / 2) {
  const uint i = (half_of ? starts[1] : starts[0]) + k;
  const uint group = i / GROUP;
  const Chunk<BITS> chunks[2] = {
      {gate_packed[i / VALUES], float(gate_scales[group]), float(gate_biases[group])},
      {up_packed[i / VALUES], float(up_scales[group]), float(up_biases[group])}};
  add_products<T, BITS, 2, VECTORS>(x, x_starts, k, chunks, rest);
}

UNROLL for (uint r = 0; r < ROWS; ++r) {
  UNROLL for (uint m = 0; m < VECTORS; ++m) {
    const bool is_mine = half_of == r;
    const float g = simd_sum(sums[r][m] + (is_mine ? rest[0][m] : 0.0f));
    const float u = simd_sum(sums[ROWS + r][m] + (is_mine ? rest[1][m] : 0.0f));
    // The square root of 2 / pi, and the coefficient of the cube.
    const float inner = 0.7978845608f * fma(0.044715f * g * g, g, g);
    if (lane == m && row + r < N && vector + m < M) {
      out[size_t(vector + m) * N + row + r] = T(0.5f * g * (1.0f + precise::tanh(inner)) * u);
    }
  }
}
