#include "kv_vectors.h"

#include <algorithm>
#include <limits>

#include "simd_portable.h"

namespace gptoss {

namespace {

// The bits of `value` as a BF16, rounded away from zero or towards it.
uint16_t bf16_beyond(float value, bool away) {
  const uint32_t bits = bits_of_float(value);
  return uint16_t((bits + (away ? 0xffff : 0)) >> 16);
}

// The bits of a BF16 that is at most, or at least, `value`.
uint16_t bf16_below(float value) { return bf16_beyond(value, value < 0); }
uint16_t bf16_above(float value) { return bf16_beyond(value, value > 0); }

// x [dim] in 8 bits: the range from the smallest to the largest value, in 255 steps. Scale and bias are rounded so that
// it is covered. What is not finite becomes NaN.
void quantize_vector(const float* x, int dim, uint8_t* codes, uint16_t& scale, uint16_t& bias) {
  const auto [smallest, largest] = std::minmax_element(x, x + dim);
  float nothing = 0;
  for (int i = 0; i < dim; i++) nothing += x[i] * 0;
  if (nothing != 0) {
    std::fill_n(codes, dim, uint8_t(0));
    scale = bias = bf16_of_float(std::numeric_limits<float>::quiet_NaN());
    return;
  }
  bias = bf16_below(*smallest);
  const float start = float_of_bf16(bias);
  scale = bf16_above((*largest - start) / 255);
  const float step = float_of_bf16(scale), inverse = step > 0 ? 1 / step : 0;
  for (int i = 0; i < dim; i++) codes[i] = uint8_t(int(std::min((x[i] - start) * inverse, 255.0f) + 0.5f));
}

}  // namespace

void store_vector(const float* x, int dim, size_t index, const StoredVectors& to) {
  if (to.scales) {
    return quantize_vector(x, dim, static_cast<uint8_t*>(to.codes) + index * dim, to.scales[index], to.biases[index]);
  }
  kernels().store_as_bf16(x, dim, static_cast<uint16_t*>(to.codes) + index * dim);
}

HeadVectors from_vector(const StoredVectors& all, size_t index, int dim) {
  if (all.scales) return {static_cast<const uint8_t*>(all.codes) + index * dim, all.scales + index, all.biases + index};
  return {static_cast<const uint16_t*>(all.codes) + index * dim, nullptr, nullptr};
}

}  // namespace gptoss
