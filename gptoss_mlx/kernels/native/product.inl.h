// Products of a weight matrix and activations, for one instruction set V (see simd_portable.h).
//
// Few tokens: each row of codes is read once, as it lies, against all of them (`multiply_rows`), which is bound by
// memory. Many tokens: as many rows as a vector has lanes are decoded once and transposed into a panel (`Panel`), which
// then meets every token, and is bound by arithmetic.
#pragma once

#include "standard.h"

namespace gptoss {

// FP4 times two, plus 12: what an unsigned byte can hold. The 12 is taken back by Activations::start.
alignas(64) inline const uint8_t fp4_codes[64] = {
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0, 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0, 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <Format format>
struct Codes {
  static constexpr bool nibbles = format == Format::mxfp4 || format == Format::affine4;
  static constexpr bool affine = format == Format::affine4 || format == Format::affine8;
  static constexpr bool offset = format == Format::mxfp4;
  static constexpr int lane_columns = nibbles ? 8 : 4;            // columns of one lane, which is four bytes of codes
  static constexpr int block_lanes = block / lane_columns;
  using Scale = std::conditional_t<affine, uint16_t, uint8_t>;

  template <class V>
  static typename V::Bytes decode(typename V::Bytes nibble) {
    if constexpr (format == Format::mxfp4) return V::lookup(V::load_bytes(fp4_codes), nibble);
    else return nibble;
  }

  template <class V, int count>
  static typename V::Floats scales(const Scale* p) {
    if constexpr (affine) return V::template spread_bf16<count>(p);
    else return V::template spread_e8m0<count>(p);
  }
};

// x [columns] -> activations in 8 bits: per block of 32, the largest magnitude becomes 127. For mxfp4 the scale is
// halved, which takes the doubling of its codes back. A block with a NaN or an infinity becomes NaN.
template <class V>
void quantize(const float* x, int columns, Format format, int group, Activations out) {
  if (format == Format::bf16) {
    std::memcpy(out.plain, x, columns * sizeof(float));
    return;
  }
  constexpr float smallest = 1e-30f;  // below it, 127 / magnitude leaves the range of FP32
  const bool nibbles = format != Format::affine8;
  const int lanes = nibbles ? 4 : 8;  // of a block
  for (int b = 0; b < columns / block; b++, x += block) {
    auto most = V::zero(), nothing = V::zero();
    for (int i = 0; i < block; i += V::lanes) {
      auto v = V::load(x + i);
      most = V::max(most, V::max(v, V::sub(V::zero(), v)));
      nothing = V::fma(v, V::zero(), nothing);
    }
    float largest[V::lanes];
    V::store(largest, most);
    const float magnitude = *std::max_element(largest, largest + V::lanes);
    const bool finite = V::sum(nothing) == 0;
    float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : magnitude < smallest ? 0 : magnitude / 127;
    const auto inverse = V::broadcast(scale > 0 ? 127 / magnitude : 0);
    float rounded[block] = {};
    if (scale > 0) {
      for (int i = 0; i < block; i += V::lanes) V::store(rounded + i, V::round(V::mul(V::load(x + i), inverse)));
    }
    int32_t lane_sum[8] = {}, sum = 0;
    for (int i = 0; i < block; i++) {
      const int value = int(rounded[i]);
      if (nibbles) (i % 2 == 0 ? out.even : out.odd)[(b * block + i) / 2] = int8_t(value);
      else out.even[b * block + i] = int8_t(value);
      lane_sum[i * lanes / block] += value;
      sum += value;
    }
    if (format == Format::mxfp4) {
      scale /= 2;
      for (int lane = 0; lane < lanes; lane++) out.start[b * lanes + lane] = -12 * lane_sum[lane];
      out.block_start[b] = -12 * sum;
    } else {
      const int g = b * block / group;
      out.group_sum[g] = (b * block % group ? out.group_sum[g] : 0) + scale * sum;
    }
    out.block_scale[b] = scale;
    for (int lane = 0; lane < lanes; lane++) out.scale[b * lanes + lane] = scale;
  }
}

// Sum over the groups of bias times sum of activations.
template <class V>
float bias_part(const uint16_t* biases, const float* sums, int groups) {
  typename V::Floats total = V::zero();
  int g = 0;
  for (; g + V::lanes <= groups; g += V::lanes) total = V::fma(V::load_bf16(biases + g), V::load(sums + g), total);
  if (g < groups) total = V::fma(V::load_bf16(biases + g, groups - g), V::load(sums + g), total);
  return V::sum(total);
}

// out[t][r] for rows first..last of `m` and T tokens; `count` scales lie along one vector of codes.
template <class V, Format format, int count, int T>
void multiply_rows(const Matrix& m, int first, int last, const Activations* x, float* const* out) {
  using C = Codes<format>;
  using Scale = typename C::Scale;
  const int lanes = int(m.row_bytes() / 4), whole = lanes - lanes % V::lanes;
  const int scale_lanes = m.group / C::lane_columns;
  for (int r = first; r < last; r++) {
    const uint8_t* codes = m.codes + r * m.row_bytes();
    const Scale* scales = static_cast<const Scale*>(m.scales) + size_t(r) * m.groups();
    typename V::Floats total[T];
    for (auto& v : total) v = V::zero();

    auto step = [&](int lane, typename V::Bytes bytes, typename V::Floats scale) {
      for (int t = 0; t < T; t++) {
        auto sum = C::offset ? V::load_ints(x[t].start + lane) : V::zero_ints();
        if constexpr (C::nibbles) {
          sum = V::template dot<true>(sum, C::template decode<V>(V::low_nibbles(bytes)), V::load_bytes(x[t].even + 4 * lane));
          sum = V::template dot<true>(sum, C::template decode<V>(V::high_nibbles(bytes)), V::load_bytes(x[t].odd + 4 * lane));
        } else {
          sum = V::template dot<false>(sum, bytes, V::load_bytes(x[t].even + 4 * lane));
        }
        total[t] = V::fma(V::to_floats(sum), V::mul(scale, V::load(x[t].scale + lane)), total[t]);
      }
    };
    for (int lane = 0; lane < whole; lane += V::lanes) {
      __builtin_prefetch(codes + 4 * lane + 4096);
      step(lane, V::load_bytes(codes + 4 * lane), C::template scales<V, count>(scales + lane / scale_lanes));
    }
    if (whole < lanes) {
      Scale part[count] = {};
      std::copy(scales + whole / scale_lanes, scales + m.groups(), part);
      step(whole, V::load_bytes(codes + 4 * whole, 4 * (lanes - whole)), C::template scales<V, count>(part));
    }
    for (int t = 0; t < T; t++) {
      out[t][r] = V::sum(total[t]);
      if constexpr (C::affine) {
        out[t][r] += bias_part<V>(m.biases + size_t(r) * m.groups(), x[t].group_sum, m.groups());
      }
    }
  }
}

template <class V, int T>
void multiply_rows_bf16(const Matrix& m, int first, int last, const Activations* x, float* const* out) {
  for (int r = first; r < last; r++) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(m.codes) + size_t(r) * m.columns;
    typename V::Floats total[T];
    for (auto& v : total) v = V::zero();
    for (int c = 0; c < m.columns; c += V::lanes) {
      auto w = V::load_bf16(row + c);
      for (int t = 0; t < T; t++) total[t] = V::fma(w, V::load(x[t].plain + c), total[t]);
    }
    for (int t = 0; t < T; t++) out[t][r] = V::sum(total[t]);
  }
}

template <class V, Format format, int T>
void multiply_rows_of(const Matrix& m, int first, int last, const Activations* x, float* const* out) {
  if constexpr (format == Format::bf16) {
    multiply_rows_bf16<V, T>(m, first, last, x, out);
  } else {
    // How many scales lie along a vector: 32-column groups are the shortest.
    constexpr int most = std::max(1, V::lanes / Codes<format>::block_lanes);
    int count = std::max(1, V::lanes * Codes<format>::lane_columns / m.group);
    if (count == most) return multiply_rows<V, format, most, T>(m, first, last, x, out);
    if constexpr (Codes<format>::affine && most > 1) {
      if (count == most / 2) return multiply_rows<V, format, most / 2, T>(m, first, last, x, out);
      if constexpr (most > 2) return multiply_rows<V, format, 1, T>(m, first, last, x, out);
    }
  }
}

constexpr int few_tokens = 4;

// Rows first..last of `m` times `tokens` (at most few_tokens) rows of activations: out[t][r].
template <class V, Format format>
void multiply_few(const Matrix& m, int first, int last, const Activations* x, int tokens, float* const* out) {
  switch (tokens) {
    case 1: return multiply_rows_of<V, format, 1>(m, first, last, x, out);
    case 2: return multiply_rows_of<V, format, 2>(m, first, last, x, out);
    case 3: return multiply_rows_of<V, format, 3>(m, first, last, x, out);
    case 4: return multiply_rows_of<V, format, 4>(m, first, last, x, out);
  }
}

// Rows first.. of `m`; rows behind the last become zeros.
template <class V, Format format>
void fill_panel(const Matrix& m, int first, Panel& panel) {
  using C = Codes<format>;
  const int rows = std::min(V::lanes, m.rows - first);
  if constexpr (format == Format::bf16) {
    panel.plain.assign(size_t(m.columns) * V::lanes, 0);
    for (int r = 0; r < rows; r++) {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(m.codes) + size_t(first + r) * m.columns;
      for (int c = 0; c < m.columns; c++) panel.plain[c * V::lanes + r] = float_of_bf16(row[c]);
    }
  } else {
    const int words = int(m.row_bytes() / 4);
    panel.codes.resize(size_t(m.columns) * V::lanes);
    panel.scales.assign(size_t(m.columns / block) * V::lanes, 0);
    panel.biases.assign(C::affine ? size_t(m.groups()) * V::lanes : 0, 0);
    for (int word = 0; word < words; word += V::lanes) {
      const int count = std::min(V::lanes, words - word);
      typename V::Bytes column[V::lanes];
      for (int r = 0; r < V::lanes; r++) {
        const uint8_t* codes = m.codes + (first + r) * m.row_bytes() + 4 * word;
        column[r] = r >= rows ? V::zero_bytes() : count == V::lanes ? V::load_bytes(codes) : V::load_bytes(codes, 4 * count);
      }
      V::transpose_words(column);
      uint8_t* to = panel.codes.data() + size_t(word) * C::lane_columns * V::lanes;
      for (int i = 0; i < count; i++, to += C::lane_columns * V::lanes) {
        if constexpr (C::nibbles) {
          V::store_bytes(to, C::template decode<V>(V::low_nibbles(column[i])));
          V::store_bytes(to + 4 * V::lanes, C::template decode<V>(V::high_nibbles(column[i])));
        } else {
          V::store_bytes(to, column[i]);
        }
      }
    }
    for (int r = 0; r < rows; r++) {
      const auto* scales = static_cast<const typename C::Scale*>(m.scales) + size_t(first + r) * m.groups();
      for (int b = 0; b < m.columns / block; b++) {
        auto scale = scales[b * block / m.group];
        panel.scales[b * V::lanes + r] = C::affine ? float_of_bf16(scale) : float_of_bits(uint32_t(scale) << 23);
      }
      if constexpr (C::affine) {
        for (int g = 0; g < m.groups(); g++) {
          panel.biases[g * V::lanes + r] = float_of_bf16(m.biases[size_t(first + r) * m.groups() + g]);
        }
      }
    }
  }
}

// out[t * V::lanes + i] for T tokens and the rows i of a panel of `m`.
template <class V, Format format, int T>
void multiply_panel(const Matrix& m, const Panel& panel, const Activations* x, float* out) {
  using C = Codes<format>;
  typename V::Floats total[T];
  for (auto& v : total) v = V::zero();
  if constexpr (format == Format::bf16) {
    for (int c = 0; c < m.columns; c++) {
      auto w = V::load(panel.plain.data() + size_t(c) * V::lanes);
      for (int t = 0; t < T; t++) total[t] = V::fma(w, V::broadcast(x[t].plain[c]), total[t]);
    }
  } else {
    const uint8_t* codes = panel.codes.data();
    for (int b = 0; b < m.columns / block; b++) {
      typename V::Ints sum[T];
      for (int t = 0; t < T; t++) sum[t] = C::offset ? V::broadcast_int(x[t].block_start[b]) : V::zero_ints();
      for (int word = b * C::block_lanes; word < (b + 1) * C::block_lanes; word++) {
        auto w = V::load_bytes(codes);
        codes += 4 * V::lanes;
        for (int t = 0; t < T; t++) {
          sum[t] = V::template dot<C::nibbles>(sum[t], w, V::broadcast_word(x[t].even + 4 * word));
        }
        if constexpr (C::nibbles) {
          w = V::load_bytes(codes);
          codes += 4 * V::lanes;
          for (int t = 0; t < T; t++) sum[t] = V::template dot<true>(sum[t], w, V::broadcast_word(x[t].odd + 4 * word));
        }
      }
      auto scale = V::load(panel.scales.data() + size_t(b) * V::lanes);
      for (int t = 0; t < T; t++) {
        total[t] = V::fma(V::to_floats(sum[t]), V::mul(scale, V::broadcast(x[t].block_scale[b])), total[t]);
      }
    }
    if constexpr (C::affine) {
      for (int g = 0; g < m.groups(); g++) {
        auto bias = V::load(panel.biases.data() + size_t(g) * V::lanes);
        for (int t = 0; t < T; t++) total[t] = V::fma(bias, V::broadcast(x[t].group_sum[g]), total[t]);
      }
    }
  }
  for (int t = 0; t < T; t++) V::store(out + t * V::lanes, total[t]);
}

// Rows first..first + V::lanes of `m` times any number of tokens: out[t * V::lanes + i].
template <class V, Format format>
void multiply_many(const Matrix& m, int first, const Activations* x, int tokens, Panel& panel, float* out) {
  fill_panel<V, format>(m, first, panel);
  int t = 0;
  for (; t + V::tokens <= tokens; t += V::tokens) multiply_panel<V, format, V::tokens>(m, panel, x + t, out + t * V::lanes);
  for (; t + 2 <= tokens; t += 2) multiply_panel<V, format, 2>(m, panel, x + t, out + t * V::lanes);
  if (t < tokens) multiply_panel<V, format, 1>(m, panel, x + t, out + t * V::lanes);
}

}  // namespace gptoss
