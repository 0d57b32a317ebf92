// A part of a cache row, of which each lane of a simdgroup has pairs of values: in int8 codes with one
// scale, or in T.  Codes are made of the values as T holds them.

// Returns the scale of a part, as T holds it: the largest magnitude over 127, or 1 if that is 0.
template <typename T, uint PAIRS>
METAL_FUNC float scale_of(thread const float2* pairs) {
  float largest = 0.0f;
  for (uint j = 0; j < PAIRS; ++j) {
    const float2 magnitudes = abs(float2(vec<T, 2>(pairs[j])));
    largest = max(largest, max(magnitudes.x, magnitudes.y));
  }
  const T scale = T(simd_max(largest) / 127.0f);
  return scale > T(0.0f) ? float(scale) : 1.0f;
}

// Returns a pair as it is kept; a scale that was rounded down may leave a value beyond the last code.
template <typename R, typename T, bool HAS_SCALES>
METAL_FUNC vec<R, 2> pack(float2 pair, float scale) {
  if (HAS_SCALES) {
    const float2 codes = rint(float2(vec<T, 2>(pair)) / scale);
    return vec<R, 2>(clamp(codes, float2(-127.0f), float2(127.0f)));
  }
  return vec<R, 2>(pair);
}
