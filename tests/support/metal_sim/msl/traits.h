// <metal_type_traits>, <metal_limits>, and <metal_array>.
#pragma once

namespace metal {

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return v; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

#define MSL_TRANSFORM(name, builtin) \
  template <class T>                 \
  struct name {                      \
    typedef builtin(T) type;         \
  };                                 \
  template <class T>                 \
  using name##_t = builtin(T);
MSL_TRANSFORM(remove_const, __remove_const)
MSL_TRANSFORM(remove_volatile, __remove_volatile)
MSL_TRANSFORM(remove_cv, __remove_cv)
MSL_TRANSFORM(remove_pointer, __remove_pointer)
MSL_TRANSFORM(remove_reference, __remove_reference_t)
MSL_TRANSFORM(decay, __decay)
MSL_TRANSFORM(make_signed, __make_signed)
MSL_TRANSFORM(make_unsigned, __make_unsigned)
// Address spaces are gone where values are computed, so nothing is left to remove but cv.
MSL_TRANSFORM(remove_addrspace, __remove_cv)
#undef MSL_TRANSFORM

#define MSL_PREDICATE(name, condition)        \
  template <class T>                          \
  struct name : bool_constant<(condition)> {}; \
  template <class T>                          \
  constexpr bool name##_v = (condition);
MSL_PREDICATE(is_integral, __is_integral(T))
MSL_PREDICATE(is_floating_point, __is_floating_point(T))
MSL_PREDICATE(is_arithmetic, __is_integral(T) || __is_floating_point(T))
MSL_PREDICATE(is_signed, T(-1) < T(0))
MSL_PREDICATE(is_unsigned, !(T(-1) < T(0)))
MSL_PREDICATE(is_pointer, __is_pointer(T))
MSL_PREDICATE(is_enum, __is_enum(T))
MSL_PREDICATE(is_class, __is_class(T))
#undef MSL_PREDICATE

template <class A, class B>
struct is_same : bool_constant<__is_same(A, B)> {};
template <class A, class B>
constexpr bool is_same_v = __is_same(A, B);
template <class A, class B>
struct is_convertible : bool_constant<__is_convertible(A, B)> {};
template <class A, class B>
constexpr bool is_convertible_v = __is_convertible(A, B);
template <class A, class B>
struct is_base_of : bool_constant<__is_base_of(A, B)> {};

template <class T>
T&& declval() noexcept;

template <class T>
struct numeric_limits;

#define MSL_INTEGER_LIMITS(T, smallest, largest, bits)               \
  template <>                                                        \
  struct numeric_limits<T> {                                         \
    static constexpr bool is_specialized = true, is_integer = true;  \
    static constexpr bool has_infinity = false;                      \
    static constexpr bool is_signed = T(-1) < T(0);                  \
    static constexpr int digits = bits;                              \
    static constexpr T min() { return smallest; }                    \
    static constexpr T max() { return largest; }                     \
    static constexpr T lowest() { return smallest; }                 \
  };
MSL_INTEGER_LIMITS(bool, false, true, 1)
MSL_INTEGER_LIMITS(char, -128, 127, 7)
MSL_INTEGER_LIMITS(int8_t, -128, 127, 7)
MSL_INTEGER_LIMITS(uchar, 0, 255, 8)
MSL_INTEGER_LIMITS(short, -32768, 32767, 15)
MSL_INTEGER_LIMITS(ushort, 0, 65535, 16)
MSL_INTEGER_LIMITS(int, INT_MIN, INT_MAX, 31)
MSL_INTEGER_LIMITS(uint, 0, UINT_MAX, 32)
MSL_INTEGER_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L, 63)
MSL_INTEGER_LIMITS(ulong, 0, 18446744073709551615UL, 64)
#undef MSL_INTEGER_LIMITS

#define MSL_FLOAT_LIMITS(T, smallest, largest, step, bits)            \
  template <>                                                         \
  struct numeric_limits<T> {                                          \
    static constexpr bool is_specialized = true, is_integer = false;  \
    static constexpr bool has_infinity = true, is_signed = true;      \
    static constexpr int digits = bits;                               \
    static constexpr T min() { return T(smallest); }                  \
    static constexpr T max() { return T(largest); }                   \
    static constexpr T lowest() { return T(-largest); }               \
    static constexpr T epsilon() { return T(step); }                  \
    static constexpr T infinity() { return T(__builtin_inff()); }     \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }  \
    static constexpr T signaling_NaN() { return quiet_NaN(); }        \
  };
MSL_FLOAT_LIMITS(float, FLT_MIN, FLT_MAX, FLT_EPSILON, 24)
MSL_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 0.0009765625f, 11)
MSL_FLOAT_LIMITS(bfloat, 1.175494351e-38f, 3.3895313892515355e38f, 0.0078125f, 8)
#undef MSL_FLOAT_LIMITS

template <class T, size_t N>
struct array {
  T elements[N];
  MSL_INLINE T& operator[](size_t i) { return elements[i]; }
  MSL_INLINE const T& operator[](size_t i) const { return elements[i]; }
  static constexpr size_t size() { return N; }
};

}  // namespace metal
