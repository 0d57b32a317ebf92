// qkv_norm_rope: rms_norm(x) * weight and rotation of every head; queries and cache rows of them.
//
// in        q, k, v  [B, L, row] T: projections, each in an array of its own or all in one
//           q_weight  [DH] T    k_weight  [DH] T, or [ROTATED] T with SHARED
//           periods  [ROTATED / 2] float32: 1 / radians a position    offsets  [>= 8] int32, a row
//           of the batch each    params  [16] int32: H, K, L, q_row, k_start, k_row, v_start, v_row
//           (elements), eps (the bits of a float)
// out       queries  [B, H, L, DH] T
//           rows     [B, K, L, 2 * DH] T: [key | value]; with SHARED [B, K, L, DH + ROTATED] T:
//                    [rotated key | plain n | rotated n], n = rms_norm(k), and v is not read
// template  T: float16 | bfloat16 | float32; DH: a multiple of 64, ROTATED: a multiple of 128;
//           SHARED: key and value come from k, and k_weight has no plain part
// grid      (32, heads, B * L), threadgroup (32, SIMDGROUPS, 1): one head of one position a
//           simdgroup; heads = H + 2K, with SHARED H + K, rounded up to whole threadgroups
// math      float32 from load to store, one rounding; rsqrt, sin and cos precise, since angles
//           reach 262143 radians; the angle is rounded as in MLX's rope
// moves     2 * B * L * (H + 2K) * DH * sizeof(T) bytes: launch bound at one position
// source    Gemma 4's attention; rope after MLX's rope.metal
typedef vec<T, 2> T2;
// A lane has elements 64j + 2 * lane and the one after it, so both of a rotated pair.
constexpr uint PAIRS = DH / 64;
constexpr uint HALF = ROTATED / 128;
constexpr uint ROW = SHARED ? DH + ROTATED : 2 * DH;

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
device T* out = queries + ((size_t(b) * H + head) * L + l) * DH;
if (!is_query) {
  head -= is_value ? H + K : H;
  in = is_value ? v + params[6] + size_t(position) * params[7]
                : k + params[4] + size_t(position) * params[5];
  weight = k_weight;
  out = rows + ((size_t(b) * K + head) * L + l) * ROW + (is_value ? DH : 0);
}
const device T2* in2 = (const device T2*)(in + head * DH);
const device T2* weight2 = (const device T2*)weight;
device T2* out2 = (device T2*)out;

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
    out2[32 * j + lane] = T2(values[j]);
  }
  return;
}
if (SHARED && !is_query) {
  // The value: the plain part, which is also the key's, and n as it is before the rotation.
  for (uint j = 2 * HALF; j < PAIRS; ++j) {
    out2[32 * j + lane] = T2(values[j]);
  }
  for (uint j = 0; j < 2 * HALF; ++j) {
    out2[32 * (PAIRS + j) + lane] = T2(values[j]);
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
  out2[i] = T2(first * c - second * s);
  out2[partner] = T2(first * s + second * c);
}
