// <metal_simdgroup>, <metal_quadgroup>, and barriers.
//
// Every lane brings its input and a place for its output to metal_sim_simd; when all active lanes
// of the simdgroup have come, the combine function is run once and fills every output.  Lanes that
// wait at different calls have diverged: a call is known by its line and column, which the default
// arguments take from the caller.
#pragma once

#define MSL_SITE uint line = __builtin_LINE(), uint column = __builtin_COLUMN()
#define MSL_CONVERGENT MSL_INLINE __attribute__((convergent))
#define MSL_COMBINE MSL_UNCHECKED inline

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
};
MSL_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(uint(a) | uint(b));
}

MSL_CONVERGENT void threadgroup_barrier(mem_flags flags, MSL_SITE) {
  metal_sim_threadgroup_barrier(uint(flags), line, column);
}
MSL_CONVERGENT void simdgroup_barrier(mem_flags flags, MSL_SITE) {
  metal_sim_simdgroup_barrier(uint(flags), line, column);
}

}  // namespace metal

namespace metal_sim {

MSL_COMBINE bool is_active(u32 active, u32 lane) { return active >> lane & 1; }
template <class T>
MSL_COMBINE const T& input(const Slot& slot) {
  return *(const T*)slot.in;
}
template <class T>
MSL_COMBINE T& output(const Slot& slot) {
  return *(T*)slot.out;
}

// Sum, minimum, and the like: a butterfly over distances 1, 2, 4, 8, 16, in which every lane gets
// the result.  The order is what is said of Apple's GPUs; it matters to the rounding of sums.
template <class T, class F>
MSL_COMBINE void reduce(Slot* slots, u32 active, F combine) {
  T value[kLanes], next[kLanes];
  bool held[kLanes], next_held[kLanes];
  for (u32 i = 0; i < kLanes; i++) {
    held[i] = is_active(active, i);
    if (held[i]) value[i] = input<T>(slots[i]);
  }
  for (u32 distance = 1; distance < kLanes; distance *= 2) {
    for (u32 i = 0; i < kLanes; i++) {
      u32 other = i ^ distance;
      next_held[i] = held[i] || held[other];
      if (held[i] && held[other]) {
        // The lower lane's value stands first, so that both compute the very same.
        next[i] = i < other ? combine(value[i], value[other]) : combine(value[other], value[i]);
      } else if (next_held[i]) {
        next[i] = held[i] ? value[i] : value[other];
      }
    }
    for (u32 i = 0; i < kLanes; i++) {
      held[i] = next_held[i];
      if (held[i]) value[i] = next[i];
    }
  }
  for (u32 i = 0; i < kLanes; i++) {
    if (is_active(active, i)) output<T>(slots[i]) = value[i];
  }
}

template <class T, class F>
MSL_COMBINE void reduce_quads(Slot* slots, u32 active, F combine) {
  for (u32 quad = 0; quad < kLanes; quad += 4) {
    T value;
    bool held = false;
    for (u32 i = quad; i < quad + 4; i++) {
      if (!is_active(active, i)) continue;
      value = held ? combine(value, input<T>(slots[i])) : input<T>(slots[i]);
      held = true;
    }
    for (u32 i = quad; i < quad + 4; i++) {
      if (is_active(active, i)) output<T>(slots[i]) = value;
    }
  }
}

// What a lane fetches from another: `source` may be outside the simdgroup, then the lane keeps its
// own value, as the specification has it.  An inactive source is an undefined value.
template <class T>
MSL_COMBINE void shuffle(Slot* slots, u32 active) {
  T value[kLanes];
  for (u32 i = 0; i < kLanes; i++) {
    if (is_active(active, i)) value[i] = input<T>(slots[i]);
  }
  for (u32 i = 0; i < kLanes; i++) {
    if (!is_active(active, i)) continue;
    u64 source = slots[i].argument;
    bool is_inside = source < kLanes;
    if (is_inside && !is_active(active, source)) metal_sim_inactive_source(i, source);
    output<T>(slots[i]) = value[is_inside && is_active(active, source) ? source : i];
  }
}

template <class T>
struct Filled {
  T data, filling;
};
constexpr u64 kFilling = 256;  // beside the source lane: take its filling, not its data

template <class T>
MSL_COMBINE void shuffle_and_fill(Slot* slots, u32 active) {
  Filled<T> value[kLanes];
  for (u32 i = 0; i < kLanes; i++) {
    if (is_active(active, i)) value[i] = input<Filled<T>>(slots[i]);
  }
  for (u32 i = 0; i < kLanes; i++) {
    if (!is_active(active, i)) continue;
    u32 source = slots[i].argument % kLanes;
    if (!is_active(active, source)) {
      metal_sim_inactive_source(i, source);
      source = i;
    }
    output<T>(slots[i]) =
        slots[i].argument & kFilling ? value[source].filling : value[source].data;
  }
}

template <class T>
MSL_COMBINE void broadcast_first(Slot* slots, u32 active) {
  T first = input<T>(slots[__builtin_ctz(active)]);
  for (u32 i = 0; i < kLanes; i++) {
    if (is_active(active, i)) output<T>(slots[i]) = first;
  }
}

// argument: 1 if the result includes the lane's own value.
template <class T, class F>
MSL_COMBINE void prefix(Slot* slots, u32 active, T identity, F combine) {
  T before = identity;
  for (u32 i = 0; i < kLanes; i++) {
    if (!is_active(active, i)) continue;
    T with = combine(before, input<T>(slots[i]));
    output<T>(slots[i]) = slots[i].argument ? with : before;
    before = with;
  }
}

struct Votes {
  u64 in_favour;
  u32 active;
};
MSL_COMBINE void ballot(Slot* slots, u32 active) {
  Votes votes = {0, active};
  for (u32 i = 0; i < kLanes; i++) {
    if (is_active(active, i) && input<bool>(slots[i])) votes.in_favour |= 1ul << i;
  }
  for (u32 i = 0; i < kLanes; i++) {
    if (is_active(active, i)) output<Votes>(slots[i]) = votes;
  }
}

}  // namespace metal_sim

namespace metal {

#define MSL_REDUCTION(name, expression)                                                      \
  template <class T>                                                                         \
  MSL_CONVERGENT T simd_##name(T x, MSL_SITE) {                                              \
    T result;                                                                                \
    metal_sim_simd(                                                                          \
        [](metal_sim::Slot * slots, uint active) MSL_UNCHECKED {                             \
          metal_sim::reduce<T>(slots, active, [](T a, T b) MSL_UNCHECKED->T {                \
            return expression;                                                               \
          });                                                                                \
        },                                                                                   \
        &x, &result, 0, metal_sim::Operation::reduction, line, column);                      \
    return result;                                                                           \
  }                                                                                          \
  template <class T>                                                                         \
  MSL_CONVERGENT T quad_##name(T x, MSL_SITE) {                                              \
    T result;                                                                                \
    metal_sim_simd(                                                                          \
        [](metal_sim::Slot * slots, uint active) MSL_UNCHECKED {                             \
          metal_sim::reduce_quads<T>(slots, active, [](T a, T b) MSL_UNCHECKED->T {          \
            return expression;                                                               \
          });                                                                                \
        },                                                                                   \
        &x, &result, 0, metal_sim::Operation::quad, line, column);                           \
    return result;                                                                           \
  }
MSL_REDUCTION(sum, a + b)
MSL_REDUCTION(product, a* b)
MSL_REDUCTION(min, min(a, b))
MSL_REDUCTION(max, max(a, b))
MSL_REDUCTION(and, a& b)
MSL_REDUCTION(or, a | b)
MSL_REDUCTION(xor, a ^ b)
#undef MSL_REDUCTION

#define MSL_SHUFFLE(name, parameter, source, operation)                                      \
  template <class T>                                                                         \
  MSL_CONVERGENT T name(T x, ushort parameter, MSL_SITE) {                                   \
    T result;                                                                                \
    uint me = metal_sim_lane();                                                              \
    metal_sim_simd(metal_sim::shuffle<T>, &x, &result, source,                               \
                   metal_sim::Operation::operation, line, column);                           \
    return result;                                                                           \
  }
// me - delta wraps round to a lane outside the simdgroup, which is what is meant.
MSL_SHUFFLE(simd_shuffle, lane, (void(me), lane), shuffle)
MSL_SHUFFLE(simd_broadcast, lane, (void(me), lane), shuffle)
MSL_SHUFFLE(simd_shuffle_xor, mask, me ^ mask, shuffle)
MSL_SHUFFLE(simd_shuffle_down, delta, me + delta, shuffle)
MSL_SHUFFLE(simd_shuffle_up, delta, me - delta, shuffle)
MSL_SHUFFLE(simd_shuffle_rotate_down, delta, (me + delta) % 32, shuffle)
MSL_SHUFFLE(simd_shuffle_rotate_up, delta, (me - delta) % 32, shuffle)
MSL_SHUFFLE(quad_shuffle, lane, (me & ~3u) | (lane & 3), quad)
MSL_SHUFFLE(quad_broadcast, lane, (me & ~3u) | (lane & 3), quad)
MSL_SHUFFLE(quad_shuffle_xor, mask, me ^ (mask & 3), quad)
MSL_SHUFFLE(quad_shuffle_down, delta, (me & 3) + delta < 4 ? me + delta : me, quad)
MSL_SHUFFLE(quad_shuffle_up, delta, (me & 3) >= delta ? me - delta : me, quad)
#undef MSL_SHUFFLE

template <class T>
MSL_CONVERGENT T simd_shuffle_and_fill_down(T x, T filling, ushort delta, ushort modulo = 32,
                                            MSL_SITE) {
  metal_sim::Filled<T> brought = {x, filling};
  T result;
  uint me = metal_sim_lane(), first = me & ~uint(modulo - 1), from = me - first + delta;
  ulong source = from < modulo ? first + from : metal_sim::kFilling | (first + from - modulo);
  metal_sim_simd(metal_sim::shuffle_and_fill<T>, &brought, &result, source,
                 metal_sim::Operation::shuffle, line, column);
  return result;
}
template <class T>
MSL_CONVERGENT T simd_shuffle_and_fill_up(T x, T filling, ushort delta, ushort modulo = 32,
                                          MSL_SITE) {
  metal_sim::Filled<T> brought = {x, filling};
  T result;
  uint me = metal_sim_lane(), first = me & ~uint(modulo - 1), from = me - first;
  ulong source = from >= delta ? me - delta : metal_sim::kFilling | (me + modulo - delta);
  metal_sim_simd(metal_sim::shuffle_and_fill<T>, &brought, &result, source,
                 metal_sim::Operation::shuffle, line, column);
  return result;
}
template <class T>
MSL_CONVERGENT T simd_broadcast_first(T x, MSL_SITE) {
  T result;
  metal_sim_simd(metal_sim::broadcast_first<T>, &x, &result, 0, metal_sim::Operation::shuffle,
                 line, column);
  return result;
}

#define MSL_PREFIX(name, identity, expression, includes_own)                                 \
  template <class T>                                                                         \
  MSL_CONVERGENT T name(T x, MSL_SITE) {                                                     \
    T result;                                                                                \
    metal_sim_simd(                                                                          \
        [](metal_sim::Slot * slots, uint active) MSL_UNCHECKED {                             \
          metal_sim::prefix<T>(slots, active, T(identity),                                   \
                               [](T a, T b) MSL_UNCHECKED->T { return expression; });        \
        },                                                                                   \
        &x, &result, includes_own, metal_sim::Operation::prefix, line, column);              \
    return result;                                                                           \
  }
MSL_PREFIX(simd_prefix_inclusive_sum, 0, a + b, 1)
MSL_PREFIX(simd_prefix_exclusive_sum, 0, a + b, 0)
MSL_PREFIX(simd_prefix_inclusive_product, 1, a* b, 1)
MSL_PREFIX(simd_prefix_exclusive_product, 1, a* b, 0)
#undef MSL_PREFIX

struct simd_vote {
  typedef ulong vote_t;
  metal_sim::Votes votes;
  MSL_INLINE bool all() const { return votes.in_favour == votes.active; }
  MSL_INLINE bool any() const { return votes.in_favour != 0; }
  MSL_INLINE explicit operator vote_t() const { return votes.in_favour; }
};

MSL_CONVERGENT simd_vote simd_ballot(bool x, MSL_SITE) {
  simd_vote vote;
  metal_sim_simd(metal_sim::ballot, &x, &vote.votes, 0, metal_sim::Operation::vote, line, column);
  return vote;
}
MSL_CONVERGENT bool simd_all(bool x, MSL_SITE) { return simd_ballot(x, line, column).all(); }
MSL_CONVERGENT bool simd_any(bool x, MSL_SITE) { return simd_ballot(x, line, column).any(); }
// Who is active is a vote as well: lanes that run later have not returned yet.
MSL_CONVERGENT simd_vote simd_active_threads_mask(MSL_SITE) {
  return simd_ballot(true, line, column);
}
MSL_CONVERGENT bool simd_is_first(MSL_SITE) {
  return metal_sim_lane() == (uint)__builtin_ctz(simd_ballot(true, line, column).votes.active);
}
MSL_INLINE uint get_simdgroup_size() { return metal_sim::kLanes; }

}  // namespace metal
