// <metal_atomic>.  Lanes are never interrupted between two calls of the runtime, so a plain access
// is atomic; the runtime is told of it, for bounds, races, and counts.
#pragma once

namespace metal {

enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst,
};
enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device,
};
MSL_INLINE void atomic_thread_fence(mem_flags, memory_order = memory_order_relaxed,
                                    thread_scope = thread_scope_device) {}

template <class T>
struct atomic {
  T value;
};

#define MSL_NOTE(p, access) \
  metal_sim_atomic((const volatile void*)(p), sizeof(T), metal_sim::access,   \
                   __builtin_return_address(0))
// Not inlined: in a kernel, the plain access would be checked as one.
#define MSL_ATOMIC MSL_UNCHECKED inline __attribute__((noinline))

// One set for each address space that atomics may live in; where address spaces are not told apart,
// one set in all.
#define MSL_ATOMIC_FETCH(SPACE, name, expression)                                            \
  template <class T, class U>                                                                \
  MSL_ATOMIC T atomic_fetch_##name##_explicit(volatile SPACE atomic<T>* p, U x,              \
                                              memory_order) {                                \
    MSL_NOTE(p, atomic_read | metal_sim::atomic_write);             \
    T a = p->value, b = T(x);                                                                \
    p->value = expression;                                                                   \
    return a;                                                                                \
  }
#define MSL_ATOMICS(SPACE)                                                                   \
  template <class T>                                                                         \
  MSL_ATOMIC T atomic_load_explicit(const volatile SPACE atomic<T>* p, memory_order) {       \
    MSL_NOTE(p, atomic_read);                                                                \
    return p->value;                                                                         \
  }                                                                                          \
  template <class T, class U>                                                                \
  MSL_ATOMIC void atomic_store_explicit(volatile SPACE atomic<T>* p, U x, memory_order) {    \
    MSL_NOTE(p, atomic_write);                                                               \
    p->value = T(x);                                                                         \
  }                                                                                          \
  template <class T, class U, class V>                                                       \
  MSL_ATOMIC bool atomic_compare_exchange_weak_explicit(                                     \
      volatile SPACE atomic<T>* p, U* expected, V desired, memory_order, memory_order) {     \
    MSL_NOTE(p, atomic_read | metal_sim::atomic_write);             \
    T found = p->value;                                                                      \
    if (__builtin_memcmp(&found, expected, sizeof(T)) == 0) {                                \
      p->value = T(desired);                                                                 \
      return true;                                                                           \
    }                                                                                        \
    *expected = found;                                                                       \
    return false;                                                                            \
  }                                                                                          \
  MSL_ATOMIC_FETCH(SPACE, add, a + b)                                                        \
  MSL_ATOMIC_FETCH(SPACE, sub, a - b)                                                        \
  MSL_ATOMIC_FETCH(SPACE, min, b < a ? b : a)                                                \
  MSL_ATOMIC_FETCH(SPACE, max, a < b ? b : a)                                                \
  MSL_ATOMIC_FETCH(SPACE, and, a& b)                                                         \
  MSL_ATOMIC_FETCH(SPACE, or, a | b)                                                         \
  MSL_ATOMIC_FETCH(SPACE, xor, a ^ b)                                                        \
  template <class T, class U>                                                                \
  MSL_ATOMIC T atomic_exchange_explicit(volatile SPACE atomic<T>* p, U x, memory_order) {    \
    MSL_NOTE(p, atomic_read | metal_sim::atomic_write);             \
    T before = p->value;                                                                     \
    p->value = T(x);                                                                         \
    return before;                                                                           \
  }
#ifdef MSL_STRICT
MSL_ATOMICS(MSL_DEVICE)
MSL_ATOMICS(MSL_THREADGROUP)
#else
MSL_ATOMICS()
#endif
#undef MSL_ATOMICS
#undef MSL_ATOMIC_FETCH
#undef MSL_ATOMIC
#undef MSL_NOTE

typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

}  // namespace metal

using metal::atomic_bool;
using metal::atomic_float;
using metal::atomic_int;
using metal::atomic_uint;
using metal::atomic_ulong;
