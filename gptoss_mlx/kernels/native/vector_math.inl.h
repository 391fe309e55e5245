// Norm, activation and attention of the network, for one instruction set V (see simd_portable.h).
#pragma once

#include "standard.h"
#include "tiles.inl.h"

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

constexpr int attention_positions = 256;  // whose scores are kept between the two passes
constexpr int score_heads = 8;            // query heads whose scores are summed up together

// score[h * attention_positions + p] = q[h] . keys[p] for q [heads][dim] and BF16 keys [count][dim]; behind the last
// position, minus infinity up to a whole vector. Positions lie in lanes, so that no sum runs across a vector.
template <class V>
void scores(const float* q, int heads, int dim, const uint16_t* keys, int count, float* score) {
  thread_local std::vector<float> columns;  // [dim][lanes]
  columns.resize(size_t(dim) * V::lanes);
  touch<V>(keys, size_t(count) * dim * sizeof *keys);
  for (int p = 0; p < count; p += V::lanes) {
    transpose<V>(
        std::min(V::lanes, count - p), dim / 2,
        [&](int r, int word, int) { return V::load_bytes(keys + size_t(p + r) * dim + 2 * word); },
        [&](int word, typename V::Bytes column) {
          V::store(columns.data() + (2 * word) * V::lanes, V::low_bf16(column));
          V::store(columns.data() + (2 * word + 1) * V::lanes, V::high_bf16(column));
        });
    for_each_tile<score_heads>(0, heads, [&]<int H>(int h) {
      typename V::Floats sum[H];
      for (auto& v : sum) v = V::zero();
      for (int d = 0; d < dim; d++) {
        auto column = V::load(columns.data() + d * V::lanes);
        for (int i = 0; i < H; i++) sum[i] = V::fma(V::broadcast(q[(h + i) * dim + d]), column, sum[i]);
      }
      for (int i = 0; i < H; i++) V::store(score + (h + i) * attention_positions + p, sum[i]);
    });
  }
  for (int h = 0; h < heads; h++) {
    float* behind = score + h * attention_positions + count;
    std::fill_n(behind, (V::lanes - count % V::lanes) % V::lanes, -std::numeric_limits<float>::infinity());
  }
}

// Scores become exp(score - most), and `state` follows the largest: what it has summed up so far shrinks.
template <class V>
void weigh(float* score, int count, int dim, Attended& state) {
  auto largest = V::broadcast(state.most);
  for (int p = 0; p < count; p += V::lanes) largest = V::max(largest, V::load(score + p));
  float each[V::lanes];
  V::store(each, largest);
  const float most = *std::max_element(each, each + V::lanes);
  const float kept = std::exp(state.most - most);
  auto weight = V::zero();
  for (int p = 0; p < count; p += V::lanes) {
    // exp stops at e^-87: what is padding must weigh nothing at all, and e^-87 is nothing.
    auto w = exp<V>(V::sub(V::load(score + p), V::broadcast(most)));
    V::store(score + p, w);
    weight = V::add(weight, w);
  }
  state.weight = state.weight * kept + V::sum(weight);
  state.most = most;
  for (int i = 0; kept != 1 && i < dim; i += V::lanes) {
    V::store(state.value + i, V::mul(V::load(state.value + i), V::broadcast(kept)));
  }
}

// Adds values [count][dim], BF16, weighted by `score`, to `heads` states: a stretch of them at a time, so that its sums
// stay in registers.
template <class V, int heads, int dims>
void add_values(const float* score, int dim, const uint16_t* values, int count, Attended* state) {
  if (dims) dim = dims;
  constexpr int stretch = dims ? dims : V::lanes;
  for (int from = 0; from < dim; from += stretch) {
    typename V::Floats sum[heads][stretch / V::lanes];
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < stretch / V::lanes; i++) sum[h][i] = V::load(state[h].value + from + i * V::lanes);
    }
    for (int p = 0; p < count; p++) {
      for (int i = 0; i < stretch / V::lanes; i++) {
        auto value = V::load_bf16(values + size_t(p) * dim + from + i * V::lanes);
        for (int h = 0; h < heads; h++) {
          sum[h][i] = V::fma(V::broadcast(score[h * attention_positions + p]), value, sum[h][i]);
        }
      }
    }
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < stretch / V::lanes; i++) V::store(state[h].value + from + i * V::lanes, sum[h][i]);
    }
  }
}

// All `heads` query heads of scaled q [heads][dim] that share these keys and values, over `count` positions.
template <class V>
void attend(const float* q, int heads, int dim, const uint16_t* keys, const uint16_t* values, int count,
            Attended* state) {
  thread_local std::vector<float> score;
  score.resize(size_t(heads) * attention_positions);
  for (int p = 0; p < count; p += attention_positions) {
    const int n = std::min(attention_positions, count - p);
    scores<V>(q, heads, dim, keys + size_t(p) * dim, n, score.data());
    for (int h = 0; h < heads; h++) weigh<V>(score.data() + h * attention_positions, n, dim, state[h]);
    const uint16_t* v = values + size_t(p) * dim;
    int h = 0;
    auto scores_of = [&] { return score.data() + h * attention_positions; };
    for (; dim == 64 && h + V::heads <= heads; h += V::heads) {
      add_values<V, V::heads, 64>(scores_of(), dim, v, n, state + h);
    }
    for (; h < heads; h++) add_values<V, 1, 0>(scores_of(), dim, v, n, state + h);
  }
}

}  // namespace gptoss
