// shared_decode: softmax(q . k[lo..hi]) v[lo..hi] over rows that hold key and value at once.
//
// in        q  [B, H, L, DH] T, rotated dimensions first
//           rows  [B, K, slots, ROW_VALUES] R: row of position p is slot p.  HAS_KEYS: DH + ROTATED
//           values, the key is row[:DH], the value is row[ROTATED:]; else DH, the value is the row,
//           and the key's rotated part is that of the value, times k_weight, rotated
//           scales  HAS_SCALES: [B, K, slots, 2 or 1] T, of the stored rotated key, and of the value;
//           else not read
//           k_weight  [ROTATED] T    periods  [ROTATED / 2] float32: 1 / radians a position
//           intervals  [B * L * 2, at least 8] int32: first and last visible position of each query
//           params  [8] int32: H, K, L, slots, splits
// out       out  DIRECT: [B, H, L, DH] T; else [B, K, splits, rows, DH] float32, to be merged
//           state  [B, K, splits, rows, 2] float32: largest score (base 2) and sum of weights
// template  T: float16 | bfloat16 | float32; R: T, or int8 with HAS_SCALES; DH - ROTATED and ROTATED:
//           multiples of 128; HAS_KEYS, HAS_SCALES: see rows and scales; DIRECT: there is one split
//           and nothing to merge; OUT: T if DIRECT, else float32
// grid      (256 * tiles, K * splits, B), threadgroup (256, 1, 1): 16 query rows of one key head, a
//           run of its keys; rows = L * H / K, the query heads of a position together
// math      products of float32 fragments, float32 sums; online softmax in base 2, once in 16 keys;
//           sin and cos precise, since angles reach 262143 radians, rounded as in MLX's rope
// moves     keys * ROW_VALUES * sizeof(R) bytes a tile of rows, and the scales: each value is read
//           once, as key and as value
// source    flash decoding; that one row serves both follows from Gemma 4's global layers, where key
//           and value are one normalised vector; rope after MLX's rope.metal
//
// Eight simdgroups share the dimensions: each has an eighth of the rotated key, of the plain part
// (key and value), and of the rotated value.  It makes its share of every score; these are summed
// through threadgroup memory; it ends with its columns of the result.  Fragments come straight from
// device memory: a lane reads runs of a row, so dimensions stand in fragments in another order than
// in memory, the same in queries, keys, and results.  Of the rotated ones a lane has both of a pair.
#include "fragment.h"

typedef vec<R, 2> R2;
typedef vec<R, 4> R4;
constexpr uint SIMDGROUPS = 8;
constexpr uint ROWS = 16;
constexpr uint KEYS = 16;
constexpr uint VALUE = HAS_KEYS ? ROTATED : 0;  // where the value begins in a row
constexpr uint ROW_VALUES = VALUE + DH;
constexpr uint NUM_SCALES = HAS_KEYS ? 2 : 1;
constexpr uint PLAIN_QUADS = (DH - ROTATED) / (4 * 4 * SIMDGROUPS);  // of a lane, in one row
constexpr uint PLAIN = 2 * PLAIN_QUADS;       // fragments
constexpr uint TURNED = ROTATED / (8 * SIMDGROUPS);  // fragments of the rotated key, and of the value
constexpr uint PAIRS = TURNED / 2;            // the first of rotated pairs; then the second ones
constexpr uint COLUMNS = PLAIN + TURNED;
constexpr uint PITCH = ROWS + 1;              // of scores in threadgroup memory: against bank conflicts

const uint thread_index = thread_index_in_threadgroup;
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint H = params[0];
const uint K = params[1];
const uint L = params[2];
const uint slots = params[3];
const uint splits = params[4];
const uint group = H / K;
const uint num_rows = L * group;
const uint b = threadgroup_position_in_grid.z;
const uint head = b * K + threadgroup_position_in_grid.y / splits;
const uint split = threadgroup_position_in_grid.y % splits;
const uint tile_row = threadgroup_position_in_grid.x * ROWS;
const uint fragment_y = fragment_row(lane);
const uint fragment_x = fragment_column(lane);

// What any row of this tile sees.
const uint lane_row = tile_row + lane;
const bool has_row = lane < ROWS && lane_row < num_rows;
const uint lane_query = 2 * (b * L + (has_row ? lane_row / group : 0));
const int first = simd_min(has_row ? intervals[lane_query] : INT_MAX);
const int last = simd_max(has_row ? intervals[lane_query + 1] : -1);
const int share = (last - first + int(splits)) / int(splits);
const int begin = first + int(split) * share;
const int end = min(begin + share, last + 1);

// Where fragment f, dimension d of this simdgroup stands in a query or key, and in a value.
const uint plain_start = simdgroup * 8 * PLAIN;
const uint turned_start = simdgroup * 8 * PAIRS;

Fragment queries[COLUMNS][2];  // [dimension, row]
Fragment sums[2][COLUMNS];     // [row, dimension]
for (uint f = 0; f < COLUMNS; ++f) {
  const bool is_plain = f < PLAIN;
  const uint run = fragment_y / 2 * 2 * (is_plain ? PLAIN : PAIRS);
  const uint pair_start = turned_start + 2 * ((f - PLAIN) % PAIRS) + (f - PLAIN) / PAIRS * ROTATED / 2;
  const uint at = (is_plain ? ROTATED + plain_start + 2 * f : pair_start) + run + fragment_y % 2;
  for (uint r = 0; r < 2; ++r) {
    float2 pair;
    for (uint e = 0; e < 2; ++e) {
      const uint row = tile_row + 8 * r + fragment_x + e;
      const size_t from = (size_t(head) * group + row % group) * L + row / group;
      pair[e] = row < num_rows ? float(q[from * DH + at]) * M_LOG2E_F : 0.0f;
    }
    elements(queries[f][r]) = pair;
    elements(sums[r][f]) = float2(0.0f);
  }
}

// Of this lane's pairs: radians a position, and k_weight of both.
const uint turned_run = turned_start + fragment_x / 2 * 2 * PAIRS;
float2 frequencies[PAIRS];
float2 pair_weights[2][PAIRS];
if (!HAS_KEYS) {
  for (uint i = 0; i < PAIRS; ++i) {
    const uint at = turned_run + 2 * i;
    frequencies[i] = 1.0f / float2(periods[at], periods[at + 1]);
    for (uint half_of = 0; half_of < 2; ++half_of) {
      const device T* from = k_weight + half_of * ROTATED / 2 + at;
      pair_weights[half_of][i] = float2(float(from[0]), float(from[1]));
    }
  }
}

threadgroup float partial[SIMDGROUPS][KEYS * PITCH];
threadgroup float weights[ROWS * PITCH];
threadgroup float factors[ROWS];

// This thread's score in a tile, and the state of its row, which its 16 threads keep alike.
const uint score_row = thread_index / KEYS;
const uint score_key = thread_index % KEYS;
const bool is_row = tile_row + score_row < num_rows;
const uint query = 2 * (b * L + (is_row ? (tile_row + score_row) / group : 0));
const int lo = is_row ? intervals[query] : INT_MAX;
const int hi = is_row ? intervals[query + 1] : -1;
float largest = -1e30f;  // not infinite: a difference of two of them must not be NaN
float total = 0.0f;

const device R* head_rows = rows + size_t(head) * slots * ROW_VALUES;
const device T* head_scales = scales + (HAS_SCALES ? size_t(head) * slots * NUM_SCALES : 0);
for (int base = begin; base < end; base += int(KEYS)) {
  // [key, dimension]: plain, rotated key, rotated value.
  Fragment plain[2][PLAIN];
  Fragment key_turned[2][TURNED];
  Fragment value_turned[2][TURNED];
  for (uint k = 0; k < 2; ++k) {
    // Past the end the last key is read again; its weight there is 0.
    const int position = min(base + int(8 * k + fragment_y), end - 1);
    const device R* row = head_rows + size_t(position) * ROW_VALUES;
    float key_scale = 1.0f;
    float value_scale = 1.0f;
    if (HAS_SCALES) {
      key_scale = float(head_scales[size_t(position) * NUM_SCALES]);
      value_scale = float(head_scales[size_t(position) * NUM_SCALES + NUM_SCALES - 1]);
    }
    const uint run = fragment_x / 2;
    const device R4* from = (const device R4*)(row + VALUE + plain_start + run * 2 * PLAIN);
    for (uint i = 0; i < PLAIN_QUADS; ++i) {
      const float4 quad = float4(from[i]) * value_scale;
      elements(plain[k][2 * i]) = quad.xy;
      elements(plain[k][2 * i + 1]) = quad.zw;
    }
    for (uint i = 0; i < TURNED; ++i) {
      const uint at = turned_run + 2 * (i % PAIRS) + i / PAIRS * ROTATED / 2;
      const device R* value_from = row + VALUE + DH - ROTATED + at;
      elements(value_turned[k][i]) = float2(*(const device R2*)value_from) * value_scale;
      if (HAS_KEYS) {
        elements(key_turned[k][i]) = float2(*(const device R2*)(row + at)) * key_scale;
      }
    }
    if (!HAS_KEYS) {
      for (uint i = 0; i < PAIRS; ++i) {
        const float2 angle = float(position) * frequencies[i];
        const float2 c = float2(precise::cos(angle.x), precise::cos(angle.y));
        const float2 s = float2(precise::sin(angle.x), precise::sin(angle.y));
        const float2 first_of = elements(value_turned[k][i]) * pair_weights[0][i];
        const float2 second_of = elements(value_turned[k][PAIRS + i]) * pair_weights[1][i];
        elements(key_turned[k][i]) = first_of * c - second_of * s;
        elements(key_turned[k][PAIRS + i]) = first_of * s + second_of * c;
      }
    }
    for (uint r = 0; r < 2; ++r) {
      Fragment score;
      elements(score) = float2(0.0f);
      for (uint f = 0; f < PLAIN; ++f) {
        simdgroup_multiply_accumulate(score, plain[k][f], queries[f][r], score);
      }
      for (uint f = 0; f < TURNED; ++f) {
        simdgroup_multiply_accumulate(score, key_turned[k][f], queries[PLAIN + f][r], score);
      }
      threadgroup float* to = partial[simdgroup] + (8 * k + fragment_y) * PITCH + 8 * r + fragment_x;
      to[0] = elements(score).x;
      to[1] = elements(score).y;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  float score = 0.0f;
  for (uint s = 0; s < SIMDGROUPS; ++s) {
    score += partial[s][score_key * PITCH + score_row];
  }
  const int position = base + int(score_key);
  score = position >= lo && position <= hi && position < end ? score : -INFINITY;
  float highest = max(largest, score);
  for (ushort lanes = 1; lanes < KEYS; lanes *= 2) {
    highest = max(highest, simd_shuffle_xor(highest, lanes));
  }
  const float factor = fast::exp2(largest - highest);
  const float weight = fast::exp2(score - highest);
  float added = weight;
  for (ushort lanes = 1; lanes < KEYS; lanes *= 2) {
    added += simd_shuffle_xor(added, lanes);
  }
  largest = highest;
  total = total * factor + added;
  weights[score_row * PITCH + score_key] = weight;
  if (score_key == 0) {
    factors[score_row] = factor;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint r = 0; r < 2; ++r) {
    const float scale = factors[8 * r + fragment_y];
    Fragment weight_of[2];  // [row, key]
    for (uint k = 0; k < 2; ++k) {
      const threadgroup float* from = weights + (8 * r + fragment_y) * PITCH + 8 * k + fragment_x;
      elements(weight_of[k]) = float2(from[0], from[1]);
    }
    for (uint f = 0; f < COLUMNS; ++f) {
      elements(sums[r][f]) *= scale;
      for (uint k = 0; k < 2; ++k) {
        if (f < PLAIN) {
          simdgroup_multiply_accumulate(sums[r][f], weight_of[k], plain[k][f], sums[r][f]);
        } else {
          simdgroup_multiply_accumulate(
              sums[r][f], weight_of[k], value_turned[k][f - PLAIN], sums[r][f]);
        }
      }
    }
  }
}

threadgroup_barrier(mem_flags::mem_threadgroup);
if (score_key == 0) {
  factors[score_row] = total;
  if (is_row) {
    const size_t split_row = (size_t(head) * splits + split) * num_rows + tile_row + score_row;
    state[2 * split_row] = largest;
    state[2 * split_row + 1] = total;
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint r = 0; r < 2; ++r) {
  const uint row = tile_row + 8 * r + fragment_y;
  if (row >= num_rows) {
    continue;
  }
  const size_t query_row = (size_t(head) * group + row % group) * L + row / group;
  const size_t split_row = (size_t(head) * splits + split) * num_rows + row;
  const size_t to = (DIRECT ? query_row : split_row) * DH;
  const float divisor = DIRECT ? factors[8 * r + fragment_y] : 1.0f;
  for (uint f = 0; f < COLUMNS; ++f) {
    const bool is_plain = f < PLAIN;
    const uint pair_at = turned_run + 2 * ((f - PLAIN) % PAIRS) + (f - PLAIN) / PAIRS * ROTATED / 2;
    const uint plain_at = plain_start + 2 * f + fragment_x / 2 * 2 * PLAIN;
    const uint at = is_plain ? plain_at : DH - ROTATED + pair_at;
    out[to + at] = OUT(elements(sums[r][f]).x / divisor);
    out[to + at + 1] = OUT(elements(sums[r][f]).y / divisor);
  }
}
