// sliding_tiles: softmax(q . k[lo..hi]) v[lo..hi] for many query rows, by matrix products of tiles.
//
// in        q  [B, H, L, DH] T    ring  [B, K, slots, 2 * DH] T: row [key | value] of position p is
//           in slot p % capacity    chunk  [B, K, chunk_length, 2 * DH] T: rows of the positions from
//           chunk_starts[b] on, which are not in the ring
//           intervals  [B * L * 2, at least 8] int32: first and last visible position of each query
//           chunk_starts  [B, at least 8] int32
//           params  [8] int32: H, K, L, slots, capacity, chunk_length, splits
// out       out  DIRECT: [B, H, L, DH] T; else [B, K, splits, rows, DH] float32, to be merged
//           state  [B, K, splits, rows, 2] float32: largest score (base 2) and sum of weights
// template  T: float16 | bfloat16 | float32; DH: 128 | 256; ROW_GROUPS: 1 | 2 | 4, of eight rows;
//           KEYS: 32, or 16 where T has four bytes; DIRECT: there is one split, nothing to
//           merge; OUT: T if DIRECT, else float32
// grid      (64 * ROW_GROUPS * tiles, K * splits, B), threadgroup (64 * ROW_GROUPS, 1, 1): 8 *
//           ROW_GROUPS rows of one key head; rows = L * H / K, the query heads of a position together
// math      products of float32 fragments, float32 sums; online softmax in base 2, once a key tile
// moves     (visible keys of a tile of rows) * 2 * DH * sizeof(T) bytes a tile; scores stay on chip
// source    FlashAttention-2; tiles outside of all intervals are never read, as in llama.cpp's
//           flash attention, and masks are intervals, not matrices
//
// Two simdgroups share eight rows.  Each has half of the dimensions: it makes half of every score,
// and half of the columns of the result.
#include "fragment.h"

typedef vec<T, 4> T4;
constexpr uint THREADS = 64 * ROW_GROUPS;
constexpr uint COLUMNS = DH / 2;              // of one simdgroup
constexpr uint PITCH = DH + 16 / sizeof(T);   // of a row of the tile, against bank conflicts
constexpr uint KEY_FRAGMENTS = KEYS / 8;
constexpr uint COLUMN_FRAGMENTS = COLUMNS / 8;

const uint thread_index = thread_index_in_threadgroup;
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint H = params[0];
const uint K = params[1];
const uint L = params[2];
const uint slots = params[3];
const int capacity = params[4];
const uint chunk_length = params[5];
const uint splits = params[6];
const uint group = H / K;
const uint rows = L * group;
const uint b = threadgroup_position_in_grid.z;
const uint head = b * K + threadgroup_position_in_grid.y / splits;
const uint split = threadgroup_position_in_grid.y % splits;
const uint tile_row = threadgroup_position_in_grid.x * 8 * ROW_GROUPS;

// What any row of this tile sees, and what all of them see.
const uint lane_row = tile_row + lane;
const bool has_row = lane < 8 * ROW_GROUPS && lane_row < rows;
const uint lane_query = 2 * (b * L + (has_row ? lane_row / group : 0));
const int first = simd_min(has_row ? intervals[lane_query] : INT_MAX);
const int last = simd_max(has_row ? intervals[lane_query + 1] : -1);
const int common_first = simd_max(has_row ? intervals[lane_query] : -1);
const int common_last = simd_min(has_row ? intervals[lane_query + 1] : INT_MAX);

// The row of this lane's fragment elements.
const uint row = tile_row + simdgroup / 2 * 8 + fragment_row(lane);
const uint column = fragment_column(lane);
const uint half_start = simdgroup % 2 * COLUMNS;
const bool is_row = row < rows;
const uint safe_row = is_row ? row : 0;
const int lo = intervals[2 * (b * L + safe_row / group)];
const int hi = intervals[2 * (b * L + safe_row / group) + 1];

const size_t q_row = (size_t(head) * group + safe_row % group) * L + safe_row / group;
Fragment queries[COLUMN_FRAGMENTS];
Fragment sums[COLUMN_FRAGMENTS];
for (uint f = 0; f < COLUMN_FRAGMENTS; ++f) {
  const device T* in = q + q_row * DH + half_start + 8 * f + column;
  elements(queries[f]) = float2(float(in[0]), float(in[1])) * M_LOG2E_F;
  elements(sums[f]) = float2(0.0f);
}
float largest = -1e30f;  // not infinite: a difference of two of them must not be NaN
float total = 0.0f;

threadgroup T tile[KEYS * PITCH];
threadgroup float2 halves[2 * ROW_GROUPS][KEY_FRAGMENTS][32];
const device T* ring_rows = ring + size_t(head) * slots * 2 * DH;
const device T* chunk_rows = chunk + size_t(head) * chunk_length * 2 * DH;
const int chunk_start = chunk_starts[b];

const int num_tiles = (last - first) / int(KEYS) + 1;
const int share = (num_tiles + int(splits) - 1) / int(splits);
const int begin = first + int(split) * share * int(KEYS);
const int end = min(begin + share * int(KEYS), last + 1);
for (int base = begin; base < end; base += int(KEYS)) {
  const int base_slot = base % capacity;
  Fragment scores[KEY_FRAGMENTS];
  for (uint part = 0; part < 2; ++part) {  // keys, then values, in the same place
    threadgroup_barrier(mem_flags::mem_threadgroup);  // nobody reads the tile any more
    for (uint i = thread_index; i < KEYS * DH / 4; i += THREADS) {
      const int offset = int(i / (DH / 4));
      const uint quad = i % (DH / 4);
      const int position = base + offset;
      int slot = base_slot + offset;
      slot -= slot >= capacity ? capacity : 0;
      T4 values = T4(0);  // past the end: weights are 0 there, and 0 times anything must be 0
      if (position < end) {
        const device T* from = position >= chunk_start
            ? chunk_rows + size_t(position - chunk_start) * 2 * DH
            : ring_rows + size_t(slot) * 2 * DH;
        values = ((const device T4*)(from + part * DH))[quad];
      }
      *(threadgroup T4*)(tile + uint(offset) * PITCH + 4 * quad) = values;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (part == 0) {
      for (uint k = 0; k < KEY_FRAGMENTS; ++k) {
        elements(scores[k]) = float2(0.0f);
        const threadgroup T* keys = tile + (8 * k + column) * PITCH + half_start + fragment_row(lane);
        for (uint f = 0; f < COLUMN_FRAGMENTS; ++f) {
          Fragment transposed;
          elements(transposed) = float2(float(keys[8 * f]), float(keys[PITCH + 8 * f]));
          simdgroup_multiply_accumulate(scores[k], queries[f], transposed, scores[k]);
        }
        halves[simdgroup][k][lane] = elements(scores[k]);
      }
      continue;
    }

    // The other half of the dimensions; both simdgroups get the same sums.
    float highest = largest;
    const bool is_inside = base >= common_first && base + int(KEYS) - 1 <= common_last
        && base + int(KEYS) <= end;
    for (uint k = 0; k < KEY_FRAGMENTS; ++k) {
      float2 score = elements(scores[k]) + halves[simdgroup ^ 1][k][lane];
      if (!is_inside) {
        const int position = base + int(8 * k + column);
        score.x = position >= lo && position <= hi && position < end ? score.x : -INFINITY;
        score.y = position + 1 >= lo && position + 1 <= hi && position + 1 < end ? score.y : -INFINITY;
      }
      elements(scores[k]) = score;
      highest = max(highest, max(score.x, score.y));
    }
    highest = row_max(highest);
    const float factor = fast::exp2(largest - highest);
    largest = highest;
    float added = 0.0f;
    for (uint k = 0; k < KEY_FRAGMENTS; ++k) {
      const float2 weights = fast::exp2(elements(scores[k]) - highest);
      elements(scores[k]) = weights;
      added += weights.x + weights.y;
    }
    total = total * factor + row_sum(added);
    for (uint f = 0; f < COLUMN_FRAGMENTS; ++f) {
      elements(sums[f]) *= factor;
      const threadgroup T* values = tile + fragment_row(lane) * PITCH + half_start + 8 * f + column;
      for (uint k = 0; k < KEY_FRAGMENTS; ++k) {
        Fragment value;
        elements(value) =
            float2(float(values[8 * k * PITCH]), float(values[8 * k * PITCH + 1]));
        simdgroup_multiply_accumulate(sums[f], scores[k], value, sums[f]);
      }
    }
  }
}

if (is_row) {
  const size_t split_row = (size_t(head) * splits + split) * rows + row;
  for (uint f = 0; f < COLUMN_FRAGMENTS; ++f) {
    const uint at = half_start + 8 * f + column;
    const float2 sum = elements(sums[f]);
    if (DIRECT) {
      out[q_row * DH + at] = OUT(sum.x / total);
      out[q_row * DH + at + 1] = OUT(sum.y / total);
    } else {
      out[split_row * DH + at] = OUT(sum.x);
      out[split_row * DH + at + 1] = OUT(sum.y);
    }
  }
  if (half_start == 0 && column == 0) {
    state[2 * split_row] = largest;
    state[2 * split_row + 1] = total;
  }
}
