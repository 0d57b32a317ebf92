#include "packed_codes.h"

// Eight bytes of a row, a lane's share of it in one step, and their group's scale and bias.
template <int BITS>
struct Chunk {
  vec<typename Packed<BITS>::Quad, 16 / BITS> packed;
  float scale;
  float bias;
};

// sums[r][m] += chunk r times the values of vector m that it meets, from x[starts[m] + k] on.
//
// The order of additions of a row and a vector is the same whatever ROWS and VECTORS are.
template <typename T, int BITS, int ROWS, int VECTORS>
METAL_FUNC void add_products(
    const device T* x,
    thread const uint (&starts)[VECTORS],
    uint k,
    thread const Chunk<BITS> (&chunks)[ROWS],
    thread float (&sums)[ROWS][VECTORS]) {
  float dots[ROWS][VECTORS];
  float x_sums[VECTORS];
  UNROLL for (uint m = 0; m < VECTORS; ++m) {
    x_sums[m] = 0.0f;
    UNROLL for (uint r = 0; r < ROWS; ++r) {
      dots[r][m] = 0.0f;
    }
  }
  UNROLL for (uint quad = 0; quad < 16 / BITS; ++quad) {
    float4 values[VECTORS];
    UNROLL for (uint m = 0; m < VECTORS; ++m) {
      values[m] = float4(*(const device vec<T, 4>*)(x + starts[m] + k + 4 * quad));
      x_sums[m] += sum_of(values[m]);
      values[m] = unshift<BITS>(values[m]);
    }
    UNROLL for (uint r = 0; r < ROWS; ++r) {
      const float4 row = codes(chunks[r].packed[quad]);
      UNROLL for (uint m = 0; m < VECTORS; ++m) {
        UNROLL for (uint e = 0; e < 4; ++e) {
          dots[r][m] = fma(row[e], values[m][e], dots[r][m]);
        }
      }
    }
  }
  UNROLL for (uint r = 0; r < ROWS; ++r) {
    UNROLL for (uint m = 0; m < VECTORS; ++m) {
      const float offset = fma(chunks[r].bias, x_sums[m], sums[r][m]);
      sums[r][m] = fma(chunks[r].scale, dots[r][m], offset);
    }
  }
}
