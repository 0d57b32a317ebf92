// <metal_relational> and <metal_geometric>: what vectors have beside their components' functions.
#pragma once

namespace metal {

// Functions of two vectors, or of a vector and a scalar, from the one of two scalars.
#define MSL_OF_VECTORS(name)                                                       \
  template <class T, int N>                                                        \
  MSL_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b) {                            \
    vec<T, N> r;                                                                   \
    for (int i = 0; i < N; i++) r[i] = name(T(a[i]), T(b[i]));                     \
    return r;                                                                      \
  }                                                                                \
  template <class T, int N>                                                        \
  MSL_INLINE vec<T, N> name(vec<T, N> a, T b) {                                    \
    vec<T, N> r;                                                                   \
    for (int i = 0; i < N; i++) r[i] = name(T(a[i]), b);                           \
    return r;                                                                      \
  }
MSL_OF_VECTORS(min)
MSL_OF_VECTORS(max)
#undef MSL_OF_VECTORS

#define MSL_OF_VECTOR(R, name)                             \
  template <class T, int N>                                \
  MSL_INLINE vec<R, N> name(vec<T, N> a) {                 \
    vec<R, N> r;                                           \
    for (int i = 0; i < N; i++) r[i] = name(T(a[i]));      \
    return r;                                              \
  }
MSL_OF_VECTOR(T, abs)
MSL_OF_VECTOR(T, popcount)
MSL_OF_VECTOR(T, clz)
MSL_OF_VECTOR(T, ctz)
MSL_OF_VECTOR(bool, isnan)
MSL_OF_VECTOR(bool, isinf)
MSL_OF_VECTOR(bool, isfinite)
#undef MSL_OF_VECTOR

template <class T, int N>
MSL_INLINE vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) {
  return min(max(x, low), high);
}
template <class T, int N>
MSL_INLINE vec<T, N> clamp(vec<T, N> x, T low, T high) {
  return min(max(x, low), high);
}
template <class T, int N>
MSL_INLINE vec<T, N> mix(vec<T, N> a, vec<T, N> b, T t) {
  return mix(a, b, vec<T, N>(t));
}
template <class T, class C, int N>
MSL_INLINE vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<C, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = c[i] ? yes[i] : no[i];
  return r;
}

MSL_INLINE bool any(bool x) { return x; }
MSL_INLINE bool all(bool x) { return x; }
template <class T, int N>
MSL_INLINE bool any(vec<T, N> a) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || a[i];
  return r;
}
template <class T, int N>
MSL_INLINE bool all(vec<T, N> a) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && a[i];
  return r;
}

template <class T, int N>
MSL_INLINE T dot(vec<T, N> a, vec<T, N> b) {
  T r = a[0] * b[0];
  for (int i = 1; i < N; i++) r += a[i] * b[i];
  return r;
}
template <class T, int N>
MSL_INLINE T length_squared(vec<T, N> a) {
  return dot(a, a);
}
template <class T, int N>
MSL_INLINE T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}
template <class T, int N>
MSL_INLINE T distance(vec<T, N> a, vec<T, N> b) {
  return length(a - b);
}
template <class T, int N>
MSL_INLINE vec<T, N> normalize(vec<T, N> a) {
  return a * rsqrt(dot(a, a));
}
template <class T>
MSL_INLINE vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return a.yzx * b.zxy - a.zxy * b.yzx;
}

MSL_INLINE float4 unpack_unorm4x8_to_float(uint x) {
  return float4{float(x & 255), float((x >> 8) & 255), float((x >> 16) & 255), float(x >> 24)} /
         255.0f;
}

}  // namespace metal
