// Codes of a quantized matrix, four at a time, in the order in which mx.quantize packs them.

// Of loops over arrays that must stay in registers.
#define UNROLL _Pragma("clang loop unroll(full)")

template <int BITS>
struct Packed {
  typedef ushort Quad;
};

template <>
struct Packed<8> {
  typedef uint Quad;
};

// At 4 bits codes stay where they are in their word, the second as 16 times its value, and so on:
// one mask and one conversion each, no shift.
METAL_FUNC float4 codes(ushort four) {
  return float4(ushort4(four) & ushort4(0x000f, 0x00f0, 0x0f00, 0xf000));
}

METAL_FUNC float4 codes(uint four) {
  return float4(as_type<uchar4>(four));
}

// What values are multiplied with instead: powers of two, which round nothing.
template <int BITS>
METAL_FUNC float4 unshift(float4 values) {
  return BITS == 8 ? values : values * float4(1.0f, 1.0f / 16, 1.0f / 256, 1.0f / 4096);
}

METAL_FUNC float sum_of(float4 values) {
  return (values.x + values.y) + (values.z + values.w);
}
