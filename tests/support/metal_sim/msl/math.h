// <metal_math>: floating point.  Every function computes in float and rounds once to its own type.
//
// `fast` and `precise` are one here, and both are the C library's: how far Apple's differ from it
// is not known to a simulator.  Vectors of a function are the function of every component.
#pragma once

// The C library by its symbols, without its headers: the global namespace holds no exp or abs, so
// that `using namespace metal` resolves as it does for Apple's compiler.
namespace metal_sim {
#define MSL_LIBRARY_1(name) \
  extern "C" float libm_##name(float) __asm__(#name "f") __attribute__((const, nothrow));
#define MSL_LIBRARY_2(name) \
  extern "C" float libm_##name(float, float) __asm__(#name "f") __attribute__((const, nothrow));
MSL_LIBRARY_1(exp)
MSL_LIBRARY_1(exp2)
MSL_LIBRARY_1(exp10)
MSL_LIBRARY_1(log)
MSL_LIBRARY_1(log2)
MSL_LIBRARY_1(log10)
MSL_LIBRARY_1(sin)
MSL_LIBRARY_1(cos)
MSL_LIBRARY_1(tan)
MSL_LIBRARY_1(asin)
MSL_LIBRARY_1(acos)
MSL_LIBRARY_1(atan)
MSL_LIBRARY_1(sinh)
MSL_LIBRARY_1(cosh)
MSL_LIBRARY_1(tanh)
MSL_LIBRARY_1(asinh)
MSL_LIBRARY_1(acosh)
MSL_LIBRARY_1(atanh)
MSL_LIBRARY_2(pow)
MSL_LIBRARY_2(atan2)
MSL_LIBRARY_2(fmod)
MSL_LIBRARY_2(nextafter)
#undef MSL_LIBRARY_1
#undef MSL_LIBRARY_2
}  // namespace metal_sim

// A function of x (and y, and z) in float, for every floating-point type and its vectors.
#define MSL_FLOAT_1(name, expression)                                                        \
  MSL_INLINE float name(float x) { return expression; }                                      \
  MSL_INLINE half name(half a) { return (half)name((float)a); }                              \
  MSL_INLINE bfloat name(bfloat a) { return (bfloat)name((float)a); }                        \
  template <class T, int N>                                                                  \
  MSL_INLINE vec<T, N> name(vec<T, N> a) {                                                   \
    vec<T, N> r;                                                                             \
    for (int i = 0; i < N; i++) r[i] = name(T(a[i]));                                        \
    return r;                                                                                \
  }
#define MSL_FLOAT_2(name, expression)                                                        \
  MSL_INLINE float name(float x, float y) { return expression; }                             \
  MSL_INLINE half name(half a, half b) { return (half)name((float)a, (float)b); }            \
  MSL_INLINE bfloat name(bfloat a, bfloat b) { return (bfloat)name((float)a, (float)b); }    \
  template <class T, int N>                                                                  \
  MSL_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b) {                                      \
    vec<T, N> r;                                                                             \
    for (int i = 0; i < N; i++) r[i] = name(T(a[i]), T(b[i]));                               \
    return r;                                                                                \
  }
#define MSL_FLOAT_3(name, expression)                                                        \
  MSL_INLINE float name(float x, float y, float z) { return expression; }                    \
  MSL_INLINE half name(half a, half b, half c) {                                             \
    return (half)name((float)a, (float)b, (float)c);                                         \
  }                                                                                          \
  MSL_INLINE bfloat name(bfloat a, bfloat b, bfloat c) {                                     \
    return (bfloat)name((float)a, (float)b, (float)c);                                       \
  }                                                                                          \
  template <class T, int N>                                                                  \
  MSL_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b, vec<T, N> c) {                         \
    vec<T, N> r;                                                                             \
    for (int i = 0; i < N; i++) r[i] = name(T(a[i]), T(b[i]), T(c[i]));                      \
    return r;                                                                                \
  }

namespace metal {
namespace precise {

MSL_FLOAT_1(exp, metal_sim::libm_exp(x))
MSL_FLOAT_1(exp2, metal_sim::libm_exp2(x))
MSL_FLOAT_1(exp10, metal_sim::libm_exp10(x))
MSL_FLOAT_1(log, metal_sim::libm_log(x))
MSL_FLOAT_1(log2, metal_sim::libm_log2(x))
MSL_FLOAT_1(log10, metal_sim::libm_log10(x))
MSL_FLOAT_1(sin, metal_sim::libm_sin(x))
MSL_FLOAT_1(cos, metal_sim::libm_cos(x))
MSL_FLOAT_1(tan, metal_sim::libm_tan(x))
MSL_FLOAT_1(sinpi, metal_sim::libm_sin(x * M_PI_F))
MSL_FLOAT_1(cospi, metal_sim::libm_cos(x * M_PI_F))
MSL_FLOAT_1(tanpi, metal_sim::libm_tan(x * M_PI_F))
MSL_FLOAT_1(asin, metal_sim::libm_asin(x))
MSL_FLOAT_1(acos, metal_sim::libm_acos(x))
MSL_FLOAT_1(atan, metal_sim::libm_atan(x))
MSL_FLOAT_1(sinh, metal_sim::libm_sinh(x))
MSL_FLOAT_1(cosh, metal_sim::libm_cosh(x))
MSL_FLOAT_1(tanh, metal_sim::libm_tanh(x))
MSL_FLOAT_1(asinh, metal_sim::libm_asinh(x))
MSL_FLOAT_1(acosh, metal_sim::libm_acosh(x))
MSL_FLOAT_1(atanh, metal_sim::libm_atanh(x))
MSL_FLOAT_1(sqrt, __builtin_sqrtf(x))
MSL_FLOAT_1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_FLOAT_1(floor, __builtin_floorf(x))
MSL_FLOAT_1(ceil, __builtin_ceilf(x))
MSL_FLOAT_1(trunc, __builtin_truncf(x))
MSL_FLOAT_1(rint, __builtin_rintf(x))
MSL_FLOAT_1(round, __builtin_roundf(x))
MSL_FLOAT_1(fabs, __builtin_fabsf(x))
MSL_FLOAT_1(fract, x - __builtin_floorf(x))
MSL_FLOAT_1(saturate, x != x ? 0.0f : x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x)
MSL_FLOAT_1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x != x ? 0.0f : x)
MSL_FLOAT_2(pow, metal_sim::libm_pow(x, y))
MSL_FLOAT_2(powr, metal_sim::libm_pow(x, y))
MSL_FLOAT_2(atan2, metal_sim::libm_atan2(x, y))
MSL_FLOAT_2(fmod, metal_sim::libm_fmod(x, y))
MSL_FLOAT_2(divide, x / y)
MSL_FLOAT_2(fmax, x < y || x != x ? y : x)
MSL_FLOAT_2(fmin, y < x || x != x ? y : x)
MSL_FLOAT_2(fdim, x > y ? x - y : 0.0f)
MSL_FLOAT_2(copysign, __builtin_copysignf(x, y))
MSL_FLOAT_2(step, y < x ? 0.0f : 1.0f)
MSL_FLOAT_3(fma, __builtin_fmaf(x, y, z))
MSL_FLOAT_3(mix, x + (y - x) * z)
MSL_FLOAT_3(fmax3, fmax(x, fmax(y, z)))
MSL_FLOAT_3(fmin3, fmin(x, fmin(y, z)))
MSL_FLOAT_3(fmedian3, fmax(fmin(x, y), fmin(fmax(x, y), z)))

}  // namespace precise

using namespace precise;

MSL_FLOAT_2(nextafter, metal_sim::libm_nextafter(x, y))

MSL_INLINE float smoothstep(float low, float high, float x) {
  float t = saturate((x - low) / (high - low));
  return t * t * (3.0f - 2.0f * t);
}
MSL_INLINE float frexp(float x, int& exponent) { return __builtin_frexpf(x, &exponent); }
MSL_INLINE float modf(float x, float& whole) { return __builtin_modff(x, &whole); }
MSL_INLINE int ilogb(float x) { return __builtin_ilogbf(x); }
MSL_INLINE float sincos(float x, float& cosine) {
  cosine = cos(x);
  return sin(x);
}

#define MSL_FLOAT_RELATIONS(T)                                                               \
  MSL_INLINE T abs(T x) { return fabs(x); }                                                  \
  MSL_INLINE T min(T x, T y) { return fmin(x, y); }                                          \
  MSL_INLINE T max(T x, T y) { return fmax(x, y); }                                          \
  MSL_INLINE T min3(T x, T y, T z) { return fmin(x, fmin(y, z)); }                           \
  MSL_INLINE T max3(T x, T y, T z) { return fmax(x, fmax(y, z)); }                           \
  MSL_INLINE T median3(T x, T y, T z) { return fmedian3(x, y, z); }                          \
  MSL_INLINE T clamp(T x, T low, T high) { return fmin(fmax(x, low), high); }                \
  MSL_INLINE T select(T no, T yes, bool c) { return c ? yes : no; }                          \
  MSL_INLINE T ldexp(T x, int exponent) { return (T)__builtin_ldexpf((float)x, exponent); }  \
  MSL_INLINE bool isnan(T x) { return x != x; }                                              \
  MSL_INLINE bool isinf(T x) { return __builtin_fabsf((float)x) == INFINITY; }               \
  MSL_INLINE bool isfinite(T x) { return __builtin_fabsf((float)x) < INFINITY; }             \
  MSL_INLINE bool isnormal(T x) {                                                            \
    return isfinite(x) && __builtin_fabsf((float)x) >= (float)numeric_limits<T>::min();      \
  }                                                                                          \
  MSL_INLINE bool signbit(T x) { return __builtin_signbit((float)x); }
MSL_FLOAT_RELATIONS(float)
MSL_FLOAT_RELATIONS(half)
MSL_FLOAT_RELATIONS(bfloat)
#undef MSL_FLOAT_RELATIONS

namespace precise {
using metal::abs;
using metal::clamp;
using metal::isfinite;
using metal::isinf;
using metal::isnan;
using metal::ldexp;
using metal::max;
using metal::min;
}  // namespace precise
namespace fast {
using namespace precise;
}

}  // namespace metal

#undef MSL_FLOAT_1
#undef MSL_FLOAT_2
#undef MSL_FLOAT_3
