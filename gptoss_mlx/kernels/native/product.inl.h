// Products of a weight matrix and activations, for one instruction set V (see simd_portable.h).
//
// Few tokens: each row of codes is read once, as it lies, against all of them (`multiply_rows`), which is bound by
// memory. Many tokens: as many rows as one or two vectors have lanes are decoded once and transposed into a panel
// (`Panel`), which then meets every token, arranged in tiles (`TileBlock`); that is bound by arithmetic.
#pragma once

#include "standard.h"
#include "tiles.inl.h"

namespace gptoss {

// FP4 times two, plus 12: what an unsigned byte can hold. The 12 is taken back by Activations::block_start.
alignas(64) inline const uint8_t fp4_codes[64] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
                                                  12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
                                                  12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
                                                  12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <Format format>
struct Codes {
  static constexpr bool nibbles = format == Format::mxfp4 || format == Format::affine4;
  static constexpr bool affine = format == Format::affine4 || format == Format::affine8;
  static constexpr bool offset = format == Format::mxfp4;
  static constexpr int lane_columns = nibbles ? 8 : 4;  // columns of one lane, which is four bytes of codes
  static constexpr int block_lanes = block / lane_columns;
  using Scale = std::conditional_t<affine, uint16_t, uint8_t>;

  template <class V>
  static typename V::Bytes even(typename V::Bytes bytes) {
    if constexpr (format == Format::mxfp4) return V::lookup_low_nibbles(V::load_bytes(fp4_codes), bytes);
    else return V::low_nibbles(bytes);
  }
  template <class V>
  static typename V::Bytes odd(typename V::Bytes bytes) {
    if constexpr (format == Format::mxfp4) return V::lookup_high_nibbles(V::load_bytes(fp4_codes), bytes);
    else return V::high_nibbles(bytes);
  }

  // The scales at p, or the first `count` of them and zeros.
  template <class V>
  static typename V::Floats load_scales(const Scale* p, int count) {
    const bool all = count >= V::lanes;
    if constexpr (affine) return all ? V::load_bf16(p) : V::load_bf16(p, count);
    else return all ? V::load_e8m0(p) : V::load_e8m0(p, count);
  }
};

// x [columns] -> 8-bit activations: per block of 32, the largest magnitude becomes 127. For mxfp4 the scale is
// halved, which takes the doubling of its codes back. A block with a NaN or an infinity becomes NaN.
template <class V>
void quantize(const float* x, int columns, Format format, int group, Activations out) {
  if (format == Format::bf16) {
    std::memcpy(out.plain, x, columns * sizeof(float));
    return;
  }
  constexpr float smallest = 1e-30f;  // below it, 127 / magnitude leaves the range of FP32
  for (int b = 0; b < columns / block; b++, x += block) {
    auto max = V::zero(), nothing = V::zero();
    for (int i = 0; i < block; i += V::lanes) {
      auto v = V::load(x + i);
      max = V::max(max, V::max(v, V::sub(V::zero(), v)));
      nothing = V::fma(v, V::zero(), nothing);
    }
    float largest[V::lanes];
    V::store(largest, max);
    const float magnitude = *std::max_element(largest, largest + V::lanes);
    const bool finite = V::sum(nothing) == 0;
    float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : magnitude < smallest ? 0 : magnitude / 127;
    int8_t values[block] = {};
    if (scale > 0) {
      const auto inverse = V::broadcast(127 / magnitude);
      for (int i = 0; i < block; i += V::lanes) V::store_int8(values + i, V::mul(V::load(x + i), inverse));
    }
    int sum = 0;
    for (int8_t value : values) sum += value;
    if (format == Format::affine8) {
      std::memcpy(out.even + b * block, values, block);
    } else {
      for (int i = 0; i < block / 2; i++) {
        out.even[b * block / 2 + i] = values[2 * i];
        out.odd[b * block / 2 + i] = values[2 * i + 1];
      }
    }
    if (format == Format::mxfp4) {
      scale /= 2;
      out.block_start[b] = -12 * sum;
    } else {
      const int g = b * block / group;
      out.group_sum[g] = (b * block % group ? out.group_sum[g] : 0) + scale * sum;
    }
    out.block_scale[b] = scale;
  }
}

// Scales of one row of weights times those of T tokens, per block, into `combined`, a row of it per token; `wide`
// blocks share a scale of the weights. What of the product does not depend on the codes is added to `total`.
template <class V, Format format, int wide, int T>
void combine_scales(const Matrix& m, int groups, int row, const Activations* x, float* combined, int stride,
                    typename V::Floats* total) {
  using C = Codes<format>;
  const auto* scales = static_cast<const typename C::Scale*>(m.scales) + size_t(row) * groups;
  float* by_group = combined + T * stride;
  for (int g = 0; g < groups; g += V::lanes) {
    const auto scale = C::template load_scales<V>(scales + g, groups - g);
    if constexpr (wide > 1) V::store(by_group + g, scale);
    for (int t = 0; wide == 1 && t < T; t++) {
      const auto both = V::mul(scale, V::load(x[t].block_scale + g));
      V::store(combined + t * stride + g, both);
      if constexpr (C::offset) total[t] = V::fma(both, V::to_floats(V::load_ints(x[t].block_start + g)), total[t]);
    }
    if constexpr (C::affine) {
      const auto bias = C::template load_scales<V>(m.biases + size_t(row) * groups + g, groups - g);
      for (int t = 0; t < T; t++) total[t] = V::fma(bias, V::load(x[t].group_sum + g), total[t]);
    }
  }
  for (int b = 0; wide > 1 && b < m.columns / block; b += V::lanes) {
    const auto scale = V::template spread<wide>(by_group + b / wide);
    for (int t = 0; t < T; t++) V::store(combined + t * stride + b, V::mul(scale, V::load(x[t].block_scale + b)));
  }
}

// Rows first..last of `m` times T tokens: out[t * (last - first) + r - first]. All scales of a row are met before its
// codes, in a loop of their own: the fewer instructions between two loads of codes, the more of them a core has under
// way.
template <class V, Format format, int wide, int T>
void multiply_rows(const Matrix& m, int first, int last, const Activations* x, float* out) {
  using C = Codes<format>;
  const size_t row_bytes = m.row_bytes();
  const int groups = m.groups(), lanes = int(row_bytes / 4), whole = lanes - lanes % V::lanes;
  const int stride = (m.columns / block + V::lanes - 1) / V::lanes * V::lanes;
  thread_local std::vector<float> combined;
  combined.resize((T + 1) * stride);
  for (int r = first; r < last; r++) {
    const uint8_t* codes = m.codes + r * row_bytes;
    typename V::Floats total[T];
    for (auto& v : total) v = V::zero();
    combine_scales<V, format, wide, T>(m, groups, r, x, combined.data(), stride, total);

    auto step = [&, scales = combined.data()](size_t lane, typename V::Bytes bytes) {
      for (int t = 0; t < T; t++) {
        auto sum = V::zero_ints();
        if constexpr (C::nibbles) {
          sum = V::template dot<true>(sum, C::template even<V>(bytes), V::load_bytes(x[t].even + 4 * lane));
          sum = V::template dot<true>(sum, C::template odd<V>(bytes), V::load_bytes(x[t].odd + 4 * lane));
        } else {
          sum = V::template dot<false>(sum, bytes, V::load_bytes(x[t].even + 4 * lane));
        }
        const auto scale = V::template spread<C::block_lanes>(scales + t * stride + lane / C::block_lanes);
        total[t] = V::fma(V::to_floats(sum), scale, total[t]);
      }
    };
    for (size_t lane = 0; lane < size_t(whole); lane += V::lanes) {
      // The next page may lie anywhere, and the core's own prefetch ends with this one.
      __builtin_prefetch(codes + 4 * lane + 4096);
      step(lane, V::load_bytes(codes + 4 * lane));
    }
    if (whole < lanes) step(whole, V::load_bytes(codes + 4 * whole, 4 * (lanes - whole)));
    for (int t = 0; t < T; t++) out[t * (last - first) + r - first] = V::sum(total[t]);
  }
}

template <class V, int T>
void multiply_rows_bf16(const Matrix& m, int first, int last, const Activations* x, float* out) {
  for (int r = first; r < last; r++) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(m.codes) + size_t(r) * m.columns;
    typename V::Floats total[T];
    for (auto& v : total) v = V::zero();
    for (int c = 0; c < m.columns; c += V::lanes) {
      auto w = V::load_bf16(row + c);
      for (int t = 0; t < T; t++) total[t] = V::fma(w, V::load(x[t].plain + c), total[t]);
    }
    for (int t = 0; t < T; t++) out[t * (last - first) + r - first] = V::sum(total[t]);
  }
}

template <class V, Format format, int T>
void multiply_rows_of(const Matrix& m, int first, int last, const Activations* x, float* out) {
  if constexpr (format == Format::bf16) {
    multiply_rows_bf16<V, T>(m, first, last, x, out);
  } else {
    const int wide = m.group / block;
    if (wide == 1) return multiply_rows<V, format, 1, T>(m, first, last, x, out);
    if constexpr (Codes<format>::affine) {
      if (wide == 2) return multiply_rows<V, format, 2, T>(m, first, last, x, out);
      return multiply_rows<V, format, 4, T>(m, first, last, x, out);
    }
  }
}

// The same for up to few_tokens tokens.
template <class V, Format format>
void multiply_few(const Matrix& m, int first, int last, const Activations* x, int tokens, float* out) {
  switch (tokens) {
    case 1: return multiply_rows_of<V, format, 1>(m, first, last, x, out);
    case 2: return multiply_rows_of<V, format, 2>(m, first, last, x, out);
    case 3: return multiply_rows_of<V, format, 3>(m, first, last, x, out);
    case 4: return multiply_rows_of<V, format, 4>(m, first, last, x, out);
  }
}

// How many rows a panel has.
template <class V>
constexpr int panel_rows = V::panel_vectors * V::lanes;

// Rows first.. of `m`; rows after the last become zeros.
template <class V, Format format>
void fill_panel(const Matrix& m, int first, Panel& panel) {
  using C = Codes<format>;
  using Bytes = typename V::Bytes;
  constexpr size_t width = panel_rows<V>;
  if constexpr (format == Format::bf16) {
    panel.plain.assign(m.columns * width, 0);
    for (size_t i = 0; i < width && first + int(i) < m.rows; i++) {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(m.codes) + (first + i) * m.columns;
      for (int c = 0; c < m.columns; c++) panel.plain[c * width + i] = float_of_bf16(row[c]);
    }
  } else {
    const int words = int(m.row_bytes() / 4), groups = m.groups();
    panel.codes.resize(m.columns * width);
    panel.scales.resize(groups * width);
    panel.biases.resize(C::affine ? groups * width : 0);
    for (size_t i = 0; i < width; i += V::lanes, first += V::lanes) {
      const int rows = std::max(0, m.rows - first);
      touch<V>(m.codes + first * m.row_bytes(), std::min(rows, V::lanes) * m.row_bytes());
      transpose<V>(
          rows, words,
          [&](int r, int word, int count) {
            const uint8_t* codes = m.codes + (first + r) * m.row_bytes() + 4 * word;
            return count == V::lanes ? V::load_bytes(codes) : V::load_bytes(codes, 4 * count);
          },
          [&](int word, Bytes column) {
            uint8_t* to = panel.codes.data() + word * C::lane_columns * width + 4 * i;
            if constexpr (C::nibbles) {
              V::store_bytes(to, C::template even<V>(column));
              V::store_bytes(to + 4 * width, C::template odd<V>(column));
            } else {
              V::store_bytes(to, column);
            }
          });
      auto fill = [&](std::vector<float>& to, const auto* scales) {
        transpose<V>(
            rows, groups,
            [&](int r, int g, int count) {
              float row[V::lanes];
              V::store(row, C::template load_scales<V>(scales + size_t(first + r) * groups + g, count));
              return V::load_bytes(row);
            },
            [&](int g, Bytes column) { V::store_bytes(to.data() + g * width + i, column); });
      };
      fill(panel.scales, static_cast<const typename C::Scale*>(m.scales));
      if constexpr (C::affine) fill(panel.biases, m.biases);
    }
  }
}

// Where a block of T tokens lies in a tile: for each word of a row of codes the T words of activations that meet it
// (for nibbles first the even columns', then the odd ones'), then the T scales, then the T starts.
template <int T>
struct TileBlock {
  uint32_t words[block / 4][T];
  float scale[T];
  int32_t start[T];
};

// The T tokens x as one stream, in the order in which a panel meets them.
template <class V, Format format, int T>
void fill_tile(const Matrix& m, const Activations* x, TileBlock<T>* tile) {
  using C = Codes<format>;
  for (int b = 0; b < m.columns / block; b++) {
    for (int t = 0; t < T; t++) {
      uint32_t word[block / 4];
      if constexpr (C::nibbles) {
        uint32_t even[C::block_lanes], odd[C::block_lanes];
        std::memcpy(even, x[t].even + b * block / 2, block / 2);
        std::memcpy(odd, x[t].odd + b * block / 2, block / 2);
        for (int i = 0; i < C::block_lanes; i++) word[2 * i] = even[i], word[2 * i + 1] = odd[i];
      } else {
        std::memcpy(word, x[t].even + b * block, block);
      }
      for (int i = 0; i < block / 4; i++) tile[b].words[i][t] = word[i];
      tile[b].scale[t] = x[t].block_scale[b];
      tile[b].start[t] = C::offset ? x[t].block_start[b] : 0;
    }
  }
}

// out[t * panel_rows + i] for T tokens, whose `tile` is theirs, and the rows i of a panel of `m`. Each word of
// activations that is loaded meets as many vectors of weights as a panel has: what limits the product is dot products,
// not loads.
template <class V, Format format, int T>
void multiply_panel(const Matrix& m, const Panel& panel, const Activations* x, const TileBlock<T>* tile, float* out) {
  using C = Codes<format>;
  constexpr int vectors = V::panel_vectors;
  constexpr size_t width = panel_rows<V>;
  typename V::Floats total[T][vectors];
  for (int t = 0; t < T; t++) {
    for (auto& v : total[t]) v = V::zero();
  }
  auto add = [&](const float* weights, auto value) {
    for (int i = 0; i < vectors; i++) {
      const auto w = V::load(weights + i * V::lanes);
      for (int t = 0; t < T; t++) total[t][i] = V::fma(w, V::broadcast(value(t)), total[t][i]);
    }
  };
  if constexpr (format == Format::bf16) {
    for (int c = 0; c < m.columns; c++) add(panel.plain.data() + c * width, [&](int t) { return x[t].plain[c]; });
  } else {
    const uint8_t* codes = panel.codes.data();
    const int wide = m.group / block;
    for (int b = 0; b < m.columns / block; b++, tile++) {
      typename V::Ints sum[T][vectors];
      for (int t = 0; t < T; t++) {
        for (auto& v : sum[t]) v = C::offset ? V::broadcast_int(tile->start[t]) : V::zero_ints();
      }
      for (int word = 0; word < block / 4; word++, codes += 4 * width) {
        typename V::Bytes w[vectors];
        for (int i = 0; i < vectors; i++) w[i] = V::load_bytes(codes + 4 * V::lanes * i);
        for (int t = 0; t < T; t++) {
          const auto activations = V::broadcast_word(&tile->words[word][t]);
          for (int i = 0; i < vectors; i++) sum[t][i] = V::template dot<C::nibbles>(sum[t][i], w[i], activations);
        }
      }
      for (int i = 0; i < vectors; i++) {
        const auto scale = V::load(panel.scales.data() + (b / wide) * width + i * V::lanes);
        for (int t = 0; t < T; t++) {
          total[t][i] = V::fma(V::to_floats(sum[t][i]), V::mul(scale, V::broadcast(tile->scale[t])), total[t][i]);
        }
      }
    }
    if constexpr (C::affine) {
      for (int g = 0; g < m.groups(); g++) {
        add(panel.biases.data() + g * width, [&](int t) { return x[t].group_sum[g]; });
      }
    }
  }
  for (int t = 0; t < T; t++) {
    for (int i = 0; i < vectors; i++) V::store(out + t * width + i * V::lanes, total[t][i]);
  }
}

// The same for any number of tokens.
template <class V, Format format>
void multiply_many(const Matrix& m, int first, int last, const Activations* x, int tokens, float* out) {
  thread_local Panel panel;
  thread_local std::vector<uint32_t> tiles;
  const size_t words_per_token = format == Format::bf16 ? 0 : size_t(m.columns / block) * (sizeof(TileBlock<1>) / 4);
  tiles.resize(tokens * words_per_token);
  auto tile_at = [&]<int T>(int t) { return reinterpret_cast<TileBlock<T>*>(tiles.data() + t * words_per_token); };
  if constexpr (format != Format::bf16) {
    for_each_tile<V::tokens>(
        0, tokens, [&]<int T>(int t) { fill_tile<V, format, T>(m, x + t, tile_at.template operator()<T>(t)); });
  }
  constexpr int width = panel_rows<V>;
  for (int r = first; r < last; r += width) {
    fill_panel<V, format>(m, r, panel);
    for_each_tile<V::tokens>(0, tokens, [&]<int T>(int t) {
      float products[T * width];
      multiply_panel<V, format, T>(m, panel, x + t, tile_at.template operator()<T>(t), products);
      for (int i = 0; i < T; i++) {
        std::copy_n(products + i * width, std::min(width, last - r), out + size_t(t + i) * (last - first) + r - first);
      }
    });
  }
}

}  // namespace gptoss
