// The algorithms as one table of functions per instruction set, chosen at run time.
#pragma once

#include <string>
#include <vector>

#include "matrix.h"

namespace gptoss {

// Keys or values of one KV head, [positions][dim]: BF16, or unsigned bytes with a BF16 scale and bias for each
// position, value = byte * scale + bias.
struct HeadVectors {
  const void* codes;
  const uint16_t* scales;  // [positions], or null for BF16
  const uint16_t* biases;

  bool is_quantized() const { return scales; }
  HeadVectors from(int position, int dim) const {
    const auto* bytes = static_cast<const uint8_t*>(codes) + size_t(position) * dim * (is_quantized() ? 1 : 2);
    return {bytes, is_quantized() ? scales + position : nullptr, is_quantized() ? biases + position : nullptr};
  }
};

// A softmax-weighted sum of values, not yet divided by the sum of weights: of one query head, over some positions.
struct Attended {
  float max;     // the largest score
  float weight;  // sum of exp(score - max)
  float* value;  // [dim]: sum of exp(score - max) * value
};

struct Kernels {
  const char* name;

  // product.inl.h. `multiply` gives out[t * (last - first) + r - first].
  void (*quantize)(const float* x, int columns, Format format, int group, Activations out);
  void (*multiply)(const Matrix& m, int first, int last, const Activations* x, int tokens, float* out);

  // vector_math.inl.h
  void (*rms_norm)(const float* x, const uint16_t* weight, int size, float eps, float* out);
  void (*swiglu)(float* gate, const float* up, int size, float limit);
  void (*store_as_bf16)(const float* x, int size, uint16_t* out);
  void (*attend)(const float* q, int tokens, int heads, int dim, HeadVectors keys, HeadVectors values, int count,
                 Attended* state);

  // peak.inl.h: work that is nothing but reading, or nothing but products. `read` gives the XOR of `count` 64-byte
  // lines. The others give the sum of products that are 1, and so how many they made: in proportion to `passes`, which
  // are at most 10^6.
  uint64_t (*read)(const void* lines, size_t count);
  double (*sum_byte_products)(int passes);
  double (*sum_float_products)(int passes);
};

// The names of what this machine can run, best first; the last is always "portable".
std::vector<std::string> available_kernels();

// What is in use: the best, unless `use_kernels` chose another one. Throws std::invalid_argument for a name that is not
// available.
const Kernels& kernels();
void use_kernels(const std::string& name);

}  // namespace gptoss
