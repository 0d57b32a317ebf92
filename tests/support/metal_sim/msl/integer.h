// <metal_integer>.
#pragma once

namespace metal {

#define MSL_INTEGER(T)                                                                       \
  MSL_INLINE T min(T x, T y) { return y < x ? y : x; }                                       \
  MSL_INLINE T max(T x, T y) { return x < y ? y : x; }                                       \
  MSL_INLINE T min3(T x, T y, T z) { return min(x, min(y, z)); }                             \
  MSL_INLINE T max3(T x, T y, T z) { return max(x, max(y, z)); }                             \
  MSL_INLINE T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }          \
  MSL_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }                  \
  MSL_INLINE T select(T no, T yes, bool c) { return c ? yes : no; }                          \
  MSL_INLINE __make_unsigned(T) absdiff(T x, T y) {                                          \
    typedef __make_unsigned(T) U;                                                            \
    return x < y ? U(U(y) - U(x)) : U(U(x) - U(y));                                          \
  }                                                                                          \
  MSL_INLINE T rotate(T x, T n) {                                                            \
    typedef __make_unsigned(T) U;                                                            \
    constexpr uint bits = sizeof(T) * 8;                                                     \
    uint left = uint(n) & (bits - 1);                                                        \
    return left ? T((U(x) << left) | (U(x) >> (bits - left))) : x;                           \
  }                                                                                          \
  MSL_INLINE T popcount(T x) { return T(__builtin_popcountl((__make_unsigned(T))x)); }       \
  MSL_INLINE T clz(T x) {                                                                    \
    constexpr uint bits = sizeof(T) * 8;                                                     \
    return x ? T(__builtin_clzl((__make_unsigned(T))x) - (64 - bits)) : T(bits);             \
  }                                                                                          \
  MSL_INLINE T ctz(T x) {                                                                    \
    return x ? T(__builtin_ctzl((__make_unsigned(T))x)) : T(sizeof(T) * 8);                  \
  }                                                                                          \
  MSL_INLINE T hadd(T x, T y) { return (x & y) + ((x ^ y) >> 1); }                           \
  MSL_INLINE T reverse_bits(T x) {                                                           \
    return T(__builtin_bitreverse64((__make_unsigned(T))x) >> (64 - sizeof(T) * 8));         \
  }
MSL_INTEGER(char)
MSL_INTEGER(int8_t)
MSL_INTEGER(uchar)
MSL_INTEGER(short)
MSL_INTEGER(ushort)
MSL_INTEGER(int)
MSL_INTEGER(uint)
MSL_INTEGER(long)
MSL_INTEGER(ulong)
#undef MSL_INTEGER

#define MSL_ABS(T) \
  MSL_INLINE __make_unsigned(T) abs(T x) { return x < 0 ? -(__make_unsigned(T))x : x; }
MSL_ABS(char)
MSL_ABS(int8_t)
MSL_ABS(short)
MSL_ABS(int)
MSL_ABS(long)
MSL_INLINE uchar abs(uchar x) { return x; }
MSL_INLINE ushort abs(ushort x) { return x; }
MSL_INLINE uint abs(uint x) { return x; }
MSL_INLINE ulong abs(ulong x) { return x; }
#undef MSL_ABS

MSL_INLINE bool min(bool x, bool y) { return x && y; }
MSL_INLINE bool max(bool x, bool y) { return x || y; }

MSL_INLINE int mulhi(int x, int y) { return int((long(x) * long(y)) >> 32); }
MSL_INLINE uint mulhi(uint x, uint y) { return uint((ulong(x) * ulong(y)) >> 32); }
MSL_INLINE long mulhi(long x, long y) { return long(((__int128)x * y) >> 64); }
MSL_INLINE ulong mulhi(ulong x, ulong y) { return ulong(((unsigned __int128)x * y) >> 64); }
MSL_INLINE int mul24(int x, int y) { return x * y; }
MSL_INLINE uint mul24(uint x, uint y) { return x * y; }
MSL_INLINE int mad24(int x, int y, int z) { return x * y + z; }
MSL_INLINE uint mad24(uint x, uint y, uint z) { return x * y + z; }

MSL_INLINE uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x >> offset) & (bits >= 32 ? ~0u : (1u << bits) - 1);
}
MSL_INLINE int extract_bits(int x, uint offset, uint bits) {
  return bits == 0 ? 0 : int(uint(x) << (32 - bits - offset)) >> (32 - bits);
}
MSL_INLINE uint insert_bits(uint base, uint insert, uint offset, uint bits) {
  uint mask = (bits >= 32 ? ~0u : (1u << bits) - 1) << offset;
  return (base & ~mask) | ((insert << offset) & mask);
}

}  // namespace metal
