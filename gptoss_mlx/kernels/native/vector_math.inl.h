// Norm, activation and attention of the network, for one instruction set V (see simd_portable.h).
#pragma once

#include "standard.h"
#include "tiles.inl.h"

namespace gptoss {

// e^x to within 2 units in the last place, for x from -87 to 88; what lies outside becomes the nearer of these, and NaN
// stays NaN.
template <class V>
typename V::Floats exp(typename V::Floats x) {
  x = V::min(V::broadcast(88.0f), V::max(V::broadcast(-87.0f), x));
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

// gate = (u + 1) * g * sigmoid(1.702 g), where g is gate clamped from above and u is up clamped on both sides. What is
// not finite becomes NaN: clamped, an infinity that a damaged weight left would pass for an ordinary value.
template <class V>
void swiglu(float* gate, const float* up, int size, float limit) {
  auto upper = V::broadcast(limit), lower = V::broadcast(-limit), one = V::broadcast(1);
  for (int i = 0; i < size; i += V::lanes) {
    const auto raw_gate = V::load(gate + i), raw_up = V::load(up + i);
    auto g = V::min(raw_gate, upper);
    auto u = V::max(V::min(raw_up, upper), lower);
    auto sigmoid = V::div(one, V::add(one, exp<V>(V::mul(g, V::broadcast(-1.702f)))));
    const auto nothing = V::mul(V::add(raw_gate, raw_up), V::zero());
    V::store(gate + i, V::fma(V::mul(V::add(u, one), g), sigmoid, nothing));
  }
}

template <class V>
void store_as_bf16(const float* x, int size, uint16_t* out) {
  for (int i = 0; i < size; i += V::lanes) V::store_bf16(out + i, V::load(x + i));
}

constexpr int attention_positions = 256;  // whose scores are kept between the two passes
constexpr int score_rows = 8;             // queries whose scores are summed up together

// One word of each of some keys, transposed, as columns of FP32 [columns of a word][lanes].
template <class V, bool bytes>
void store_columns(typename V::Bytes word, float* columns) {
  if constexpr (bytes) {
    V::store(columns, V::template byte_of<0>(word));
    V::store(columns + V::lanes, V::template byte_of<1>(word));
    V::store(columns + 2 * V::lanes, V::template byte_of<2>(word));
    V::store(columns + 3 * V::lanes, V::template byte_of<3>(word));
  } else {
    V::store(columns, V::low_bf16(word));
    V::store(columns + V::lanes, V::high_bf16(word));
  }
}

// score[r * attention_positions + p] = q[r] . keys[p] for q [rows][dim] and `count` keys; after the last position,
// minus infinity up to a whole vector. Positions lie in lanes, so that no sum runs across a vector.
template <class V, bool bytes>
void scores(const float* q, int rows, int dim, HeadVectors keys, int count, float* score) {
  constexpr int word_columns = bytes ? 4 : 2;
  const auto* codes = static_cast<const uint8_t*>(keys.codes);
  const size_t row = size_t(dim) * 4 / word_columns;
  thread_local std::vector<float> columns;  // [dim][lanes]
  columns.resize(size_t(dim) * V::lanes);
  touch<V>(codes, count * row);
  for (int p = 0; p < count; p += V::lanes) {
    const int positions = std::min(V::lanes, count - p);
    transpose<V>(
        positions, dim / word_columns,
        [&](int r, int word, int words) {
          const uint8_t* from = codes + (p + r) * row + 4 * word;
          return words == V::lanes ? V::load_bytes(from) : V::load_bytes(from, 4 * words);
        },
        [&](int word, typename V::Bytes column) {
          store_columns<V, bytes>(column, columns.data() + word * word_columns * V::lanes);
        });
    for_each_tile<score_rows>(0, rows, [&]<int R>(int r) {
      typename V::Floats sum[R];
      for (auto& v : sum) v = V::zero();
      for (int d = 0; d < dim; d++) {
        auto column = V::load(columns.data() + d * V::lanes);
        for (int i = 0; i < R; i++) sum[i] = V::fma(V::broadcast(q[(r + i) * dim + d]), column, sum[i]);
      }
      for (int i = 0; i < R; i++) V::store(score + (r + i) * attention_positions + p, sum[i]);
    });
    if constexpr (bytes) {
      // q . (scale * codes + bias) = scale * (q . codes) + bias * (the sum of q)
      const auto scale = V::load_bf16(keys.scales + p, positions), bias = V::load_bf16(keys.biases + p, positions);
      for (int r = 0; r < rows; r++) {
        auto sum = V::zero();
        for (int d = 0; d < dim; d += V::lanes) sum = V::add(sum, V::load(q + r * dim + d));
        float* to = score + r * attention_positions + p;
        V::store(to, V::fma(V::load(to), scale, V::mul(bias, V::broadcast(V::sum(sum)))));
      }
    }
  }
  for (int r = 0; r < rows; r++) {
    float* padding = score + r * attention_positions + count;
    std::fill_n(padding, (V::lanes - count % V::lanes) % V::lanes, -std::numeric_limits<float>::infinity());
  }
}

// Scores become exp(score - max) with the running maximum; the sums in `state` are scaled to it.
template <class V>
void weigh(float* score, int count, int dim, Attended& state) {
  auto largest = V::broadcast(state.max);
  for (int p = 0; p < count; p += V::lanes) largest = V::max(largest, V::load(score + p));
  float each[V::lanes];
  V::store(each, largest);
  const float max = *std::max_element(each, each + V::lanes);
  const float kept = std::exp(state.max - max);
  auto weight = V::zero();
  for (int p = 0; p < count; p += V::lanes) {
    // exp stops at e^-87, which is nothing beside the largest: padding has no weight.
    auto w = exp<V>(V::sub(V::load(score + p), V::broadcast(max)));
    V::store(score + p, w);
    weight = V::add(weight, w);
  }
  state.weight = state.weight * kept + V::sum(weight);
  state.max = max;
  for (int i = 0; kept != 1 && i < dim; i += V::lanes) {
    V::store(state.value + i, V::mul(V::load(state.value + i), V::broadcast(kept)));
  }
}

// Of values in bytes: each weight takes in its position's scale, and what the biases give is added to `state`.
template <class V>
void fold_scales(float* score, int count, int dim, HeadVectors values, Attended& state) {
  auto total = V::zero();
  for (int p = 0; p < count; p += V::lanes) {
    const int rows = std::min(V::lanes, count - p);
    const auto weight = V::load(score + p);
    total = V::fma(weight, V::load_bf16(values.biases + p, rows), total);
    V::store(score + p, V::mul(weight, V::load_bf16(values.scales + p, rows)));
  }
  const auto all = V::broadcast(V::sum(total));
  for (int i = 0; i < dim; i += V::lanes) V::store(state.value + i, V::add(V::load(state.value + i), all));
}

template <class V, class Code>
typename V::Floats load_values(const Code* at) {
  if constexpr (sizeof(Code) == 1) return V::load_uint8(at);
  else if constexpr (sizeof(Code) == 2) return V::load_bf16(at);
  else return V::load(at);
}

// Adds values [count][dim], weighted by `score`, to `rows` states: a stretch of them at a time, so that its sums stay
// in registers.
template <class V, int rows, int dims, class Code>
void add_values_to(const float* score, int dim, const Code* values, int count, Attended* state) {
  if (dims) dim = dims;
  constexpr int stretch = dims ? dims : V::lanes;
  for (int from = 0; from < dim; from += stretch) {
    typename V::Floats sum[rows][stretch / V::lanes];
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < stretch / V::lanes; i++) sum[r][i] = V::load(state[r].value + from + i * V::lanes);
    }
    for (int p = 0; p < count; p++) {
      for (int i = 0; i < stretch / V::lanes; i++) {
        const auto value = load_values<V>(values + size_t(p) * dim + from + i * V::lanes);
        for (int r = 0; r < rows; r++) {
          sum[r][i] = V::fma(V::broadcast(score[r * attention_positions + p]), value, sum[r][i]);
        }
      }
    }
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < stretch / V::lanes; i++) V::store(state[r].value + from + i * V::lanes, sum[r][i]);
    }
  }
}

// The same for all rows.
template <class V, class Code>
void add_values(const float* score, int rows, int dim, const Code* values, int count, Attended* state) {
  int r = 0;
  auto scores_of = [&] { return score + size_t(r) * attention_positions; };
  for (; dim == 64 && r + V::heads <= rows; r += V::heads) {
    add_values_to<V, V::heads, 64>(scores_of(), dim, values, count, state + r);
  }
  for (; r < rows; r++) add_values_to<V, 1, 0>(scores_of(), dim, values, count, state + r);
}

// The same for many rows: values are widened once for all of them, as many positions at a time as the nearest cache
// holds.
template <class V, class Code>
void add_widened_values(const float* score, int rows, int dim, const Code* codes, int count, Attended* state) {
  constexpr int at_a_time = 64;
  thread_local std::vector<float> values;
  values.resize(size_t(at_a_time) * dim);
  for (int p = 0; p < count; p += at_a_time) {
    const int n = std::min(at_a_time, count - p);
    for (int i = 0; i < n * dim; i += V::lanes) V::store(values.data() + i, load_values<V>(codes + p * dim + i));
    add_values<V>(score + p, rows, dim, values.data(), n, state);
  }
}

template <class V, class Code>
void attend_over(const float* q, int tokens, int heads, int dim, HeadVectors keys, HeadVectors values, int count,
                 Attended* state) {
  constexpr bool bytes = sizeof(Code) == 1;
  const int rows = tokens * heads;
  thread_local std::vector<float> score;
  score.resize(size_t(rows) * attention_positions);
  for (int p = 0; p < count; p += attention_positions) {
    const int n = std::min(attention_positions, count - p);
    scores<V, bytes>(q, rows, dim, keys.from(p, dim), n, score.data());
    const HeadVectors those = values.from(p, dim);
    for (int r = 0; r < rows; r++) {
      float* weights = score.data() + r * attention_positions;
      // Positions after a token's own have no weight, and must not be the maximum.
      const int seen = std::clamp(count - (tokens - 1 - r / heads) - p, 0, n);
      std::fill(weights + seen, weights + n, -std::numeric_limits<float>::infinity());
      weigh<V>(weights, n, dim, state[r]);
      std::fill(weights + seen, weights + n, 0.0f);
      if constexpr (bytes) fold_scales<V>(weights, n, dim, those, state[r]);
    }
    const auto* codes = static_cast<const Code*>(those.codes);
    if (tokens == 1) add_values<V>(score.data(), rows, dim, codes, n, state);
    else add_widened_values<V>(score.data(), rows, dim, codes, n, state);
  }
}

// The `heads` query heads that share these keys and values, of each of `tokens` tokens: scaled q [tokens][heads][dim].
// The last token sees `count` positions, each one before it one fewer. Keys and values are stored alike.
template <class V>
void attend(const float* q, int tokens, int heads, int dim, HeadVectors keys, HeadVectors values, int count,
            Attended* state) {
  if (keys.is_quantized()) return attend_over<V, uint8_t>(q, tokens, heads, dim, keys, values, count, state);
  attend_over<V, uint16_t>(q, tokens, heads, dim, keys, values, count, state);
}

}  // namespace gptoss
