// Keys and values as a KV cache stores them: in BF16, or in 8 bits. Knows how a vector is quantized; which vectors
// there are and who attends to them is layers.cc's affair.
#pragma once

#include "kernels.h"

namespace gptoss {

// Keys or values [kv_heads, capacity, head_dim], BF16 or quantized, as in HeadVectors.
struct StoredVectors {
  void* codes;
  uint16_t* scales = nullptr;  // [kv_heads, capacity], or null for BF16
  uint16_t* biases = nullptr;
};

// Vector `index` of [kv_heads * capacity] becomes x [dim].
void store_vector(const float* x, int dim, size_t index, const StoredVectors& to);

// The vectors from `index` on, to attend to.
HeadVectors from_vector(const StoredVectors& all, size_t index, int dim);

}  // namespace gptoss
