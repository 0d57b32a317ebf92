// residual_norms: h = (x + rms_norm(y) * post_weight) * scalar and rms_norm(h) * next_weight.
//
// in        x, y  [rows, DIMS] T    post_weight, next_weight  [DIMS] T    scalar  [1] T
//           params  [8] int32: eps (the bits of a float)
// out       h, next  [rows, DIMS] T
// template  T: float16 | bfloat16 | float32; DIMS: a multiple of 32; THREADS: a multiple of 32;
//           HAS_SCALAR: without it scalar may be any array and is not read
// grid      (THREADS, rows, 1), threadgroup (THREADS, 1, 1): one row a threadgroup
// math      float32 from load to store, one rounding an output; rsqrt precise
// moves     4 * rows * DIMS * sizeof(T) bytes, and the weights: launch bound at one row
// source    Gemma 4's decoder layer; the reduction is that of MLX's rms_norm.metal
#include "threadgroup_sum.h"

typedef vec<T, 4> T4;
constexpr uint QUADS = DIMS / 4;
constexpr uint STEPS = (QUADS + THREADS - 1) / THREADS;
constexpr uint SIMDGROUPS = THREADS / 32;

const uint index = thread_index_in_threadgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint lane = thread_index_in_simdgroup;
const size_t start = size_t(threadgroup_position_in_grid.y) * DIMS;
const float eps = as_type<float>(params[0]);

const device T4* x_row = (const device T4*)(x + start);
const device T4* y_row = (const device T4*)(y + start);
const device T4* post = (const device T4*)post_weight;
const device T4* after = (const device T4*)next_weight;
device T4* h_row = (device T4*)(h + start);
device T4* next_row = (device T4*)(next + start);

// One array a sum: the second starts while slow simdgroups may still read the first.
threadgroup float partial[2][SIMDGROUPS];
float4 values[STEPS];

float squares = 0.0f;
for (uint step = 0; step < STEPS; ++step) {
  const uint i = step * THREADS + index;
  values[step] = i < QUADS ? float4(y_row[i]) : float4(0.0f);
  squares += dot(values[step], values[step]);
}
squares = threadgroup_sum(squares, partial[0], simdgroup, lane, SIMDGROUPS);
float inverse = precise::rsqrt(squares / float(DIMS) + eps);

squares = 0.0f;
for (uint step = 0; step < STEPS; ++step) {
  const uint i = step * THREADS + index;
  if (i < QUADS) {
    float4 value = float4(x_row[i]) + values[step] * inverse * float4(post[i]);
    if (HAS_SCALAR) {
      value *= float(scalar[0]);
    }
    h_row[i] = T4(value);
    values[step] = value;
    squares += dot(value, value);
  }
}
squares = threadgroup_sum(squares, partial[1], simdgroup, lane, SIMDGROUPS);
inverse = precise::rsqrt(squares / float(DIMS) + eps);

for (uint step = 0; step < STEPS; ++step) {
  const uint i = step * THREADS + index;
  if (i < QUADS) {
    next_row[i] = T4(values[step] * inverse * float4(after[i]));
  }
}
