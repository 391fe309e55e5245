// The table of kernels.h for one instruction set V: included by kernels_*.cc.
#pragma once

#include "peak.inl.h"
#include "product.inl.h"
#include "vector_math.inl.h"

namespace gptoss {

template <class V, Format format>
void multiply_as(const Matrix& m, int first, int last, const Activations* x, int tokens, float* out) {
  if (tokens <= few_tokens) return multiply_few<V, format>(m, first, last, x, tokens, out);
  multiply_many<V, format>(m, first, last, x, tokens, out);
}

template <class V>
void multiply(const Matrix& m, int first, int last, const Activations* x, int tokens, float* out) {
  switch (m.format) {
    case Format::mxfp4: return multiply_as<V, Format::mxfp4>(m, first, last, x, tokens, out);
    case Format::affine4: return multiply_as<V, Format::affine4>(m, first, last, x, tokens, out);
    case Format::affine8: return multiply_as<V, Format::affine8>(m, first, last, x, tokens, out);
    case Format::bf16: return multiply_as<V, Format::bf16>(m, first, last, x, tokens, out);
  }
}

template <class V>
constexpr Kernels table{V::name,          quantize<V>, multiply<V>, rms_norm<V>,          swiglu<V>,
                        store_as_bf16<V>, attend<V>,   read<V>,     sum_byte_products<V>, sum_float_products<V>};

}  // namespace gptoss
