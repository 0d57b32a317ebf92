// merge_splits: attention over all keys from attention over runs of them.
//
// in        partial  [B, K, splits, rows, DH] float32: sums of weighted values
//           state  [B, K, splits, rows, 2] float32: largest score (base 2) and sum of weights
//           params  [8] int32: H, K, L, splits
// out       out  [B, H, L, DH] T
// template  T: float16 | bfloat16 | float32; DH: a multiple of 128
// grid      (DH / 4, rows, B * K), threadgroup (DH / 4, 1, 1): one row, four dimensions a thread;
//           rows = L * H / K
// math      float32, one rounding
// moves     splits * (DH + 2) * 4 + DH * sizeof(T) bytes a row: launch bound
// source    flash decoding, second pass; MLX's sdpa_vector_2pass_2
typedef vec<T, 4> T4;

const uint quad = thread_position_in_threadgroup.x;
const uint r = threadgroup_position_in_grid.y;
const uint head = threadgroup_position_in_grid.z;
const uint group = uint(params[0]) / uint(params[1]);
const uint L = params[2];
const uint splits = params[3];
const uint rows = L * group;
const device float4* sums = (const device float4*)partial;

float highest = -INFINITY;
for (uint s = 0; s < splits; ++s) {
  highest = max(highest, state[2 * ((head * splits + s) * rows + r)]);
}
float weights = 0.0f;
float4 sum = float4(0.0f);
for (uint s = 0; s < splits; ++s) {
  const size_t row = size_t(head * splits + s) * rows + r;
  const float factor = fast::exp2(state[2 * row] - highest);
  weights += factor * state[2 * row + 1];
  sum += factor * sums[row * (DH / 4) + quad];
}
const size_t out_row = (size_t(head) * group + r % group) * L + r / group;
((device T4*)out)[out_row * (DH / 4) + quad] = T4(sum / weights);
