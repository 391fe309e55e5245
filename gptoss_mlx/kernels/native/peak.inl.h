// The highest rates of a core, for one instruction set V (see simd_portable.h): reads, and products of operands that
// lie in its nearest cache. The kernels cannot be faster than this.
#pragma once

#include "standard.h"

namespace gptoss {

template <class V>
uint64_t read(const void* lines, size_t count) {
  uint64_t all[8] = {};
  const auto* p = static_cast<const uint64_t*>(lines);
  for (size_t i = 0; i < count; i++, p += 8) {
    for (int j = 0; j < 8; j++) all[j] ^= p[j];
  }
  uint64_t result = 0;
  for (uint64_t part : all) result ^= part;
  return result;
}

// Twelve sums hide each other's latency: no core begins more than two products in a cycle that take five, or four that
// take three. The compiler does not know that the operands stay the same, and multiplies them anew each time.
template <class V, class Operand, class Sum, class Multiply>
void sum_products(int passes, Operand a, Operand b, Sum (&sums)[12], const Multiply& multiply) {
  for (int pass = 0; pass < passes; pass++) {
    for (auto& sum : sums) {
      V::forget(a);
      sum = multiply(sum, a, b);
    }
  }
}

// Bytes times bytes, as weights meet activations.
template <class V>
double sum_byte_products(int passes) {
  const uint32_t ones = 0x01010101;
  typename V::Ints sums[12];
  for (auto& sum : sums) sum = V::zero_ints();
  sum_products<V>(passes, V::broadcast_word(&ones), V::broadcast_word(&ones), sums,
                  [](auto sum, auto a, auto b) { return V::template dot<true>(sum, a, b); });
  double total = 0;
  for (auto& sum : sums) total += V::sum(V::to_floats(sum));
  return total;
}

// The same in FP32, as queries meet keys.
template <class V>
double sum_float_products(int passes) {
  typename V::Floats sums[12];
  for (auto& sum : sums) sum = V::zero();
  sum_products<V>(passes, V::broadcast(1), V::broadcast(1), sums,
                  [](auto sum, auto a, auto b) { return V::fma(a, b, sum); });
  double total = 0;
  for (auto& sum : sums) total += V::sum(sum);
  return total;
}

}  // namespace gptoss
