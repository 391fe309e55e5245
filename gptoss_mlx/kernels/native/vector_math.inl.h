// Norm, activation and attention of the network, for one instruction set V (see simd_portable.h).
#pragma once

#include "standard.h"

namespace gptoss {

// e^x to within 2 units in the last place, for x from -87 to 88; what lies outside becomes the nearer of these.
template <class V>
typename V::Floats exp(typename V::Floats x) {
  x = V::min(V::max(x, V::broadcast(-87.0f)), V::broadcast(88.0f));
  auto n = V::round(V::mul(x, V::broadcast(1.44269504f)));
  // x - n ln 2, with ln 2 in two parts
  auto r = V::fma(n, V::broadcast(-0.693359375f), x);
  r = V::fma(n, V::broadcast(2.12194440e-4f), r);
  // Taylor's series: the remainder is below 2^-26 for |r| <= ln 2 / 2.
  auto p = V::broadcast(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = V::fma(p, r, V::broadcast(c));
  return V::times_power_of_two(p, n);
}

// out = x / sqrt(mean(x^2) + eps) * weight
template <class V>
void rms_norm(const float* x, const uint16_t* weight, int size, float eps, float* out) {
  auto squares = V::zero();
  for (int i = 0; i < size; i += V::lanes) squares = V::fma(V::load(x + i), V::load(x + i), squares);
  auto factor = V::broadcast(1 / std::sqrt(V::sum(squares) / size + eps));
  for (int i = 0; i < size; i += V::lanes) {
    V::store(out + i, V::mul(V::mul(V::load(x + i), factor), V::load_bf16(weight + i)));
  }
}

// gate = (u + 1) * g * sigmoid(1.702 g), where g is gate clamped from above and u is up clamped on both sides.
template <class V>
void swiglu(float* gate, const float* up, int size, float limit) {
  auto most = V::broadcast(limit), least = V::broadcast(-limit), one = V::broadcast(1);
  for (int i = 0; i < size; i += V::lanes) {
    auto g = V::min(V::load(gate + i), most);
    auto u = V::max(V::min(V::load(up + i), most), least);
    auto sigmoid = V::div(one, V::add(one, exp<V>(V::mul(g, V::broadcast(-1.702f)))));
    V::store(gate + i, V::mul(V::mul(V::add(u, one), g), sigmoid));
  }
}

template <class V>
void store_as_bf16(const float* x, int size, uint16_t* out) {
  for (int i = 0; i < size; i += V::lanes) V::store_bf16(out + i, V::load(x + i));
}

constexpr int attention_positions = 64;  // scores that are kept between the two passes

// `heads` queries of scaled q [heads][dim] over `count` more positions of keys and values, BF16 [count][dim].
template <class V, int heads, int dims>
void attend_block(const float* q, int dim, const uint16_t* keys, const uint16_t* values, int count, Attended* state) {
  if (dims) dim = dims;
  float score[heads][attention_positions];
  for (int p = 0; p < count; p++) {
    typename V::Floats sum[heads];
    for (auto& v : sum) v = V::zero();
    for (int i = 0; i < dim; i += V::lanes) {
      auto key = V::load_bf16(keys + size_t(p) * dim + i);
      for (int h = 0; h < heads; h++) sum[h] = V::fma(V::load(q + h * dim + i), key, sum[h]);
    }
    for (int h = 0; h < heads; h++) score[h][p] = V::sum(sum[h]);
  }
  const int padded = (count + V::lanes - 1) / V::lanes * V::lanes;
  for (int h = 0; h < heads; h++) {
    std::fill(score[h] + count, score[h] + padded, -std::numeric_limits<float>::infinity());
    float most = std::max(state[h].most, *std::max_element(score[h], score[h] + count));
    float kept = std::exp(state[h].most - most);
    auto weight = V::zero();
    for (int p = 0; p < padded; p += V::lanes) {
      auto w = exp<V>(V::sub(V::load(score[h] + p), V::broadcast(most)));
      V::store(score[h] + p, w);
      weight = V::add(weight, w);
    }
    // exp stops at e^-87: what is padding must weigh nothing at all, and e^-87 is nothing.
    state[h].weight = state[h].weight * kept + V::sum(weight);
    state[h].most = most;
    if (kept != 1) {
      for (int i = 0; i < dim; i += V::lanes)
        V::store(state[h].value + i, V::mul(V::load(state[h].value + i), V::broadcast(kept)));
    }
  }
  // A stretch of the values at a time, so that its sums stay in registers.
  constexpr int stretch = dims ? dims : V::lanes;
  for (int from = 0; from < dim; from += stretch) {
    typename V::Floats sum[heads][stretch / V::lanes];
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < stretch / V::lanes; i++) sum[h][i] = V::load(state[h].value + from + i * V::lanes);
    }
    for (int p = 0; p < count; p++) {
      for (int i = 0; i < stretch / V::lanes; i++) {
        auto value = V::load_bf16(values + size_t(p) * dim + from + i * V::lanes);
        for (int h = 0; h < heads; h++) sum[h][i] = V::fma(V::broadcast(score[h][p]), value, sum[h][i]);
      }
    }
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < stretch / V::lanes; i++) V::store(state[h].value + from + i * V::lanes, sum[h][i]);
    }
  }
}

// All `heads` query heads that share these keys and values, over `count` positions.
template <class V>
void attend(const float* q, int heads, int dim, const uint16_t* keys, const uint16_t* values, int count,
            Attended* state) {
  for (int p = 0; p < count; p += attention_positions) {
    const uint16_t *k = keys + size_t(p) * dim, *v = values + size_t(p) * dim;
    int n = std::min(attention_positions, count - p), h = 0;
    for (; dim == 64 && h + V::heads <= heads; h += V::heads)
      attend_block<V, V::heads, 64>(q + h * dim, dim, k, v, n, state + h);
    for (; h < heads; h++) attend_block<V, 1, 0>(q + h * dim, dim, k, v, n, state + h);
  }
}

}  // namespace gptoss
