// Scalar and vector types of the Metal Shading Language, their constants, and how vectors are made.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef ulong uintptr_t;
typedef long intptr_t;
typedef _Float16 half;
typedef __bf16 bfloat;

#define METAL_FUNC inline __attribute__((always_inline))
// A function of the library: inlined, so that a message names the kernel's line.
#define MSL_INLINE inline __attribute__((always_inline))
// Code of the simulator that runs on a lane's behalf: its own accesses are not the kernel's.
#define MSL_UNCHECKED \
  __attribute__((disable_sanitizer_instrumentation, no_sanitize("undefined")))

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define HUGE_VALF (__builtin_inff())
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define MAXFLOAT FLT_MAX
#define HALF_MAX ((half)65504.0f)
#define HALF_MIN ((half)6.103515625e-05f)
#define CHAR_BIT 8
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f

namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}  // namespace metal

#define MSL_VECTORS(T)            \
  typedef metal::vec<T, 2> T##2; \
  typedef metal::vec<T, 3> T##3; \
  typedef metal::vec<T, 4> T##4;
MSL_VECTORS(bool)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(float)
#undef MSL_VECTORS

namespace metal_sim {

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

// `components` of a scalar is 1, and its element is itself.
template <class T>
struct Vector {
  static constexpr bool is_vector = false;
  static constexpr int components = 1;
  typedef T element;
};
template <class T, int N>
struct Vector<metal::vec<T, N>> {
  static constexpr bool is_vector = true;
  static constexpr int components = N;
  typedef T element;
};

// static_cast, with the one explicit conversion that Metal has and clang lacks.
template <class T, class U>
MSL_INLINE constexpr T cast(U x) {
  if constexpr ((same<T, half> && same<U, bfloat>) || (same<T, bfloat> && same<U, half>)) {
    return static_cast<T>(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}

template <class T, class V, class A>
MSL_INLINE constexpr void append(V& vector, int& filled, A a) {
  if constexpr (Vector<A>::is_vector) {
    for (int i = 0; i < Vector<A>::components; i++) vector[filled++] = cast<T>(a[i]);
  } else {
    vector[filled++] = cast<T>(a);
  }
}

// A vector without the alignment and the padding of one.
template <class T, int N>
struct Packed {
  T elements[N];
  Packed() = default;
  MSL_INLINE Packed(metal::vec<T, N> v) {
    for (int i = 0; i < N; i++) elements[i] = v[i];
  }
  MSL_INLINE operator metal::vec<T, N>() const {
    metal::vec<T, N> v;
    for (int i = 0; i < N; i++) v[i] = elements[i];
    return v;
  }
  MSL_INLINE T& operator[](int i) { return elements[i]; }
  MSL_INLINE T operator[](int i) const { return elements[i]; }
};

template <class A>
MSL_INLINE constexpr A unpacked(A a) {
  return a;
}
template <class T, int N>
MSL_INLINE metal::vec<T, N> unpacked(Packed<T, N> a) {
  return a;
}

template <class V, class... A>
MSL_INLINE constexpr V construct_from(A... a) {
  typedef typename Vector<V>::element T;
  if constexpr (!Vector<V>::is_vector) {
    if constexpr (sizeof...(A) == 1) {
      return cast<V>(a...);
    } else {
      return V(a...);
    }
  } else if constexpr (sizeof...(A) == 0) {
    return V(T(0));
  } else if constexpr (sizeof...(A) == 1 && !(Vector<A>::is_vector && ...)) {
    return V((cast<T>(a), ...));
  } else {
    static_assert((Vector<A>::components + ...) == Vector<V>::components,
                  "a vector is made of exactly as many components as it has");
    V vector = V(T(0));
    int filled = 0;
    (append<T>(vector, filled, a), ...);
    return vector;
  }
}

// What `float4(a, b)` means in Metal: clang has no such constructors for its vectors, so the
// rewriter writes construct<float4>(a, b).
template <class V, class... A>
MSL_INLINE constexpr V construct(A... a) {
  return construct_from<V>(unpacked(a)...);
}

}  // namespace metal_sim

#define MSL_PACKED(T)                              \
  typedef metal_sim::Packed<T, 2> packed_##T##2; \
  typedef metal_sim::Packed<T, 3> packed_##T##3; \
  typedef metal_sim::Packed<T, 4> packed_##T##4;
MSL_PACKED(char)
MSL_PACKED(uchar)
MSL_PACKED(short)
MSL_PACKED(ushort)
MSL_PACKED(int)
MSL_PACKED(uint)
MSL_PACKED(half)
MSL_PACKED(bfloat)
MSL_PACKED(float)
#undef MSL_PACKED

template <class T, class U>
MSL_INLINE constexpr T as_type(U x) {
  static_assert(sizeof(T) == sizeof(U), "as_type: both types have one size");
  return __builtin_bit_cast(T, x);
}

constexpr half operator""h(long double x) { return (half)x; }
constexpr bfloat operator""bf(long double x) { return (bfloat)(float)x; }
