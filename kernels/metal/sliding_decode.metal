// sliding_decode: softmax(q . k[lo..hi]) v[lo..hi] for few query rows, keys and values in a ring.
//
// in        q  [B, H, L, DH] T    ring  [B, K, slots, 2 * DH] T: row [key | value] of position p is
//           in slot p % capacity
//           intervals  [B * L * 2, at least 8] int32: first and last visible position of each query
//           params  [8] int32: H, K, L, slots, capacity, splits
// out       out  DIRECT: [B, H, L, DH] T; else [B, K, splits, ROWS, DH] float32, to be merged
//           state  [B, K, splits, ROWS, 2] float32: largest score (base 2) and sum of weights
// template  T: float16 | bfloat16 | float32; DH: 128 | 256; ROWS = L * H / K: 1 to 4;
//           DIRECT: there is one split and nothing to merge; OUT: T if DIRECT, else float32
// grid      (128, splits, B * K), threadgroup (128, 1, 1): a run of keys of one key head
// math      float32 from load to store; online softmax in base 2, once per four keys
// moves     keys * 2 * DH * sizeof(T) bytes a key head, each read once for all its query heads
// source    flash decoding: splits over keys as in MLX's sdpa_vector.metal, rows as in GQA
typedef vec<T, 4> T4;
constexpr uint SIMDGROUPS = 4;
constexpr uint STEP = 4;            // keys of a simdgroup at a time, for as many loads in flight
constexpr uint QUADS = DH / 128;    // a lane has QUADS runs of four dimensions

const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint split = threadgroup_position_in_grid.y;
const uint head = threadgroup_position_in_grid.z;  // of keys, in the whole batch
const uint H = params[0];
const uint K = params[1];
const uint L = params[2];
const uint slots = params[3];
const int capacity = params[4];
const int splits = params[5];
const uint group = H / K;
const uint b = head / K;

float4 queries[ROWS][QUADS];
float4 sums[ROWS][QUADS];
int lo[ROWS];
int hi[ROWS];
float largest[ROWS];
float total[ROWS];
int first = INT_MAX;
int last = -1;
for (uint r = 0; r < ROWS; ++r) {
  const uint l = r / group;
  const device T4* in = (const device T4*)(q + ((size_t(head) * group + r % group) * L + l) * DH);
  for (uint j = 0; j < QUADS; ++j) {
    queries[r][j] = float4(in[32 * j + lane]) * M_LOG2E_F;
    sums[r][j] = float4(0.0f);
  }
  lo[r] = intervals[2 * (b * L + l)];
  hi[r] = intervals[2 * (b * L + l) + 1];
  largest[r] = -1e30f;  // not infinite: a difference of two of them must not be NaN
  total[r] = 0.0f;
  first = min(first, lo[r]);
  last = max(last, hi[r]);
}

// This threadgroup's run of the visible positions, its simdgroups in turn.
const int share = (last - first + splits) / splits;
const int begin = first + int(split) * share;
const int end = min(begin + share, last + 1);
const device T* rows = ring + size_t(head) * slots * 2 * DH;
int slot = (begin + int(simdgroup * STEP)) % capacity;
for (int p = begin + int(simdgroup * STEP); p < end; p += int(SIMDGROUPS * STEP)) {
  float scores[ROWS][STEP];
  float4 values[STEP][QUADS];
  for (uint j = 0; j < STEP; ++j) {
    // Past the end the last key is read again, and not counted.  A run is never longer than the
    // ring, so it begins anew once at most.
    int at = slot + min(int(j), end - 1 - p);
    at -= at >= capacity ? capacity : 0;
    const device T4* row = (const device T4*)(rows + size_t(at) * 2 * DH);
    float dots[ROWS];
    for (uint r = 0; r < ROWS; ++r) {
      dots[r] = 0.0f;
    }
    for (uint i = 0; i < QUADS; ++i) {
      const float4 key = float4(row[32 * i + lane]);
      values[j][i] = float4(row[DH / 4 + 32 * i + lane]);
      for (uint r = 0; r < ROWS; ++r) {
        dots[r] += dot(queries[r][i], key);
      }
    }
    const int position = p + int(j);
    for (uint r = 0; r < ROWS; ++r) {
      const float score = simd_sum(dots[r]);
      const bool is_visible = position < end && position >= lo[r] && position <= hi[r];
      scores[r][j] = is_visible ? score : -INFINITY;
    }
  }
  for (uint r = 0; r < ROWS; ++r) {
    float highest = largest[r];
    for (uint j = 0; j < STEP; ++j) {
      highest = max(highest, scores[r][j]);
    }
    const float factor = fast::exp2(largest[r] - highest);
    largest[r] = highest;
    total[r] *= factor;
    for (uint i = 0; i < QUADS; ++i) {
      sums[r][i] *= factor;
    }
    for (uint j = 0; j < STEP; ++j) {
      const float weight = fast::exp2(scores[r][j] - highest);
      total[r] += weight;
      for (uint i = 0; i < QUADS; ++i) {
        sums[r][i] += weight * values[j][i];
      }
    }
  }
  slot += int(SIMDGROUPS * STEP);
}

threadgroup float2 states[SIMDGROUPS][ROWS];
threadgroup float4 partial[SIMDGROUPS][ROWS][DH / 4];
for (uint r = 0; r < ROWS; ++r) {
  if (lane == 0) {
    states[simdgroup][r] = float2(largest[r], total[r]);
  }
  for (uint i = 0; i < QUADS; ++i) {
    partial[simdgroup][r][32 * i + lane] = sums[r][i];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

for (uint i = thread_index_in_threadgroup; i < ROWS * DH / 4; i += SIMDGROUPS * 32) {
  const uint r = i / (DH / 4);
  const uint quad = i % (DH / 4);
  float highest = states[0][r].x;
  for (uint s = 1; s < SIMDGROUPS; ++s) {
    highest = max(highest, states[s][r].x);
  }
  float weights = 0.0f;
  float4 sum = float4(0.0f);
  for (uint s = 0; s < SIMDGROUPS; ++s) {
    const float factor = fast::exp2(states[s][r].x - highest);
    weights += factor * states[s][r].y;
    sum += factor * partial[s][r][quad];
  }
  const size_t split_row = (size_t(head) * splits + split) * ROWS + r;
  if (DIRECT) {
    const size_t row = (size_t(head) * group + r % group) * L + r / group;
    ((device vec<OUT, 4>*)out)[row * (DH / 4) + quad] = vec<OUT, 4>(sum / weights);
  } else {
    ((device vec<OUT, 4>*)out)[split_row * (DH / 4) + quad] = vec<OUT, 4>(sum);
  }
  if (quad == 0) {
    state[2 * split_row] = highest;
    state[2 * split_row + 1] = weights;
  }
}
