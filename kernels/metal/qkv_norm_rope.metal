// qkv_norm_rope: rms_norm(x) * weight and rotation of every head; queries and cache rows of them.
//
// in        q, k, v  [B, L, row] T: projections, each in an array of its own or all in one
//           q_weight  [DH] T    k_weight  [DH] T, or [ROTATED] T with SHARED
//           periods  [ROTATED / 2] float32: 1 / radians a position    offsets  [>= 8] int32, a row
//           of the batch each    params  [16] int32: H, K, L, q_row, k_start, k_row, v_start, v_row
//           (elements), eps (the bits of a float)
// out       queries  [B, H, L, DH] T
//           rows     [B, K, L, 2 * DH] T: [key | value]; with SHARED [B, K, L, DH + ROTATED] R:
//                    [rotated key | plain n | rotated n], n = rms_norm(k), and v is not read;
//                    without HAS_KEYS [B, K, L, DH] R: [plain n | rotated n]
//           scales   HAS_SCALES: [B, K, L, 2 or 1] T, of the rotated key if it is kept, and of n;
//                    else there is no such output
// template  T: float16 | bfloat16 | float32; R: T, or int8 with HAS_SCALES; DH: a multiple of 64,
//           ROTATED: a multiple of 128; SHARED: key and value come from k, and k_weight has no plain
//           part; HAS_KEYS, HAS_SCALES: see rows and scales, of SHARED alone
// grid      (32, heads, B * L), threadgroup (32, SIMDGROUPS, 1): one head of one position a
//           simdgroup; heads = H + 2K, with SHARED H + K, rounded up to whole threadgroups
// math      float32 from load to store, one rounding; rsqrt, sin and cos precise, since angles
//           reach 262143 radians; the angle is rounded as in MLX's rope.  Codes are those of the
//           values that a launch in T stores, bit for bit what RowFormat.pack makes of its rows: so
//           they are the definition's, too, but for ties and where that rounds the key twice
// moves     2 * B * L * (H + 2K) * DH * sizeof(T) bytes: launch bound at one position
// source    Gemma 4's attention; rope after MLX's rope.metal
#include "pack_row.h"

typedef vec<T, 2> T2;
typedef vec<R, 2> R2;
// A lane has elements 64j + 2 * lane and the one after it, so both of a rotated pair.
constexpr uint PAIRS = DH / 64;
constexpr uint HALF = ROTATED / 128;
constexpr uint VALUE = !SHARED ? PAIRS : HAS_KEYS ? 2 * HALF : 0;  // where it begins, like PAIRS
constexpr uint ROW_PAIRS = 32 * (VALUE + PAIRS);
constexpr uint NUM_SCALES = HAS_KEYS ? 2 : 1;

const uint lane = thread_index_in_simdgroup;
const uint position = thread_position_in_grid.z;
uint head = thread_position_in_grid.y;
const uint H = params[0];
const uint K = params[1];
const uint L = params[2];
if (head >= H + (SHARED ? K : 2 * K)) {
  return;  // whole simdgroups, and nothing below waits for a threadgroup
}
const uint b = position / L;
const uint l = position % L;

const bool is_query = head < H;
const bool is_value = !is_query && head >= H + K;
const device T* in = q + size_t(position) * params[3];
const device T* weight = q_weight;
size_t row = 0;  // of the cache
if (!is_query) {
  head -= is_value ? H + K : H;
  in = is_value ? v + params[6] + size_t(position) * params[7]
                : k + params[4] + size_t(position) * params[5];
  weight = k_weight;
  row = (size_t(b) * K + head) * L + l;
}
const device T2* in2 = (const device T2*)(in + head * DH);
const device T2* weight2 = (const device T2*)weight;
device R2* row2 = (device R2*)rows + row * ROW_PAIRS;
device T2* out2 = is_query ? (device T2*)queries + ((size_t(b) * H + head) * L + l) * 32 * PAIRS
                           : (device T2*)row2;  // R is T but for shared rows in codes

float2 values[PAIRS];
float squares = 0.0f;
for (uint j = 0; j < PAIRS; ++j) {
  values[j] = float2(in2[32 * j + lane]);
  squares += dot(values[j], values[j]);
}
const float inverse = precise::rsqrt(simd_sum(squares) / float(DH) + as_type<float>(params[8]));
for (uint j = 0; j < PAIRS; ++j) {
  values[j] *= inverse;
}

if (is_value) {
  for (uint j = 0; j < PAIRS; ++j) {
    out2[32 * (VALUE + j) + lane] = T2(values[j]);
  }
  return;
}
if (SHARED && !is_query) {
  // The value: the plain part, which is also the key's, and n as it is before the rotation.
  float scale = 1.0f;
  if (HAS_SCALES) {
    scale = scale_of<T, PAIRS>(values);
    if (lane == 0) {
      scales[row * NUM_SCALES + NUM_SCALES - 1] = T(scale);
    }
  }
  for (uint j = 0; j < PAIRS; ++j) {
    const uint place = VALUE + (j < 2 * HALF ? PAIRS : 0) + j - 2 * HALF;
    row2[32 * place + lane] = pack<R, T, HAS_SCALES>(values[j], scale);
  }
  if (!HAS_KEYS) {
    return;
  }
} else {
  for (uint j = 2 * HALF; j < PAIRS; ++j) {
    out2[32 * j + lane] = T2(values[j] * float2(weight2[32 * j + lane]));
  }
}
const float at = float(offsets[b] + int(l));
const device float2* periods2 = (const device float2*)periods;
for (uint j = 0; j < HALF; ++j) {
  const uint i = 32 * j + lane;
  const uint partner = i + 32 * HALF;
  const float2 angle = at * (1.0f / periods2[i]);
  const float2 c = float2(precise::cos(angle.x), precise::cos(angle.y));
  const float2 s = float2(precise::sin(angle.x), precise::sin(angle.y));
  const float2 first = values[j] * float2(weight2[i]);
  const float2 second = values[j + HALF] * float2(weight2[partner]);
  values[j] = first * c - second * s;
  values[j + HALF] = first * s + second * c;
}
if (HAS_SCALES && !is_query) {
  const float scale = scale_of<T, 2 * HALF>(values);
  if (lane == 0) {
    scales[row * NUM_SCALES] = T(scale);
  }
  for (uint j = 0; j < 2 * HALF; ++j) {
    row2[32 * j + lane] = pack<R, T, HAS_SCALES>(values[j], scale);
  }
} else {
  for (uint j = 0; j < 2 * HALF; ++j) {
    out2[32 * j + lane] = T2(values[j]);
  }
}
