// The kernels against their definitions in double precision, on every instruction set that this machine runs.
//
// Needs neither Python nor MLX, so that it can be built with sanitizers and for other machines:
//   cmake -S . -B build -DGPTOSS_TESTS=ON && cmake --build build && build/kernels_test
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "affine.h"
#include "layers.h"
#include "simd_portable.h"

using namespace gptoss;

namespace {

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  failures++;
  if (failures <= 20) std::printf("FAILED %s: %s\n", kernels().name, what.c_str());
}

std::mt19937 generator(1);

std::vector<float> normal(size_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (auto& v : values) v = distribution(generator);
  return values;
}

std::vector<uint16_t> as_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (float v : values) bits.push_back(bf16_of_float(v));
  return bits;
}

std::vector<uint8_t> random_bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (auto& b : bytes) b = uint8_t(generator());
  return bytes;
}

// A stack of random matrices that owns its memory, of exactly the size that it needs.
struct Stored {
  Matrix matrix;
  std::vector<uint8_t> codes, e8m0;
  std::vector<uint16_t> scales, biases, plain;

  Stored(Format format, int group, int count, int rows, int columns)
      : matrix{format, group, rows, columns, nullptr, nullptr, nullptr} {
    const size_t all = size_t(count) * rows, groups = all * matrix.groups();
    if (format == Format::bf16) {
      plain = as_bf16(normal(all * columns));
      matrix.codes = reinterpret_cast<const uint8_t*>(plain.data());
      return;
    }
    codes = random_bytes(all * matrix.row_bytes());
    matrix.codes = codes.data();
    if (format == Format::mxfp4) {
      for (size_t i = 0; i < groups; i++) e8m0.push_back(uint8_t(120 + generator() % 9));
      matrix.scales = e8m0.data();
    } else {
      scales = as_bf16(normal(groups));
      biases = as_bf16(normal(groups));
      matrix.scales = scales.data(), matrix.biases = biases.data();
    }
  }
};

// The definition of each format (matrix.h).
double value(const Matrix& m, int row, int column) {
  static const double fp4[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const uint8_t* codes = m.codes + row * m.row_bytes();
  const size_t group = size_t(row) * m.groups() + column / m.group;
  const int nibble = codes[column / 2] >> (column % 2 * 4) & 15;
  auto affine = [&](int code) {
    return code * double(float_of_bf16(static_cast<const uint16_t*>(m.scales)[group])) + float_of_bf16(m.biases[group]);
  };
  switch (m.format) {
    case Format::bf16: return float_of_bf16(reinterpret_cast<const uint16_t*>(codes)[column]);
    case Format::mxfp4:
      return (nibble & 8 ? -1 : 1) * fp4[nibble & 7] *
             std::ldexp(1.0, static_cast<const uint8_t*>(m.scales)[group] - 127);
    case Format::affine4: return affine(nibble);
    case Format::affine8: return affine(codes[column]);
  }
  return 0;
}

// What 8-bit activations became.
std::vector<double> restored(const Matrix& m, const Activations& a) {
  std::vector<double> x(m.columns);
  for (int c = 0; c < m.columns; c++) {
    if (m.format == Format::bf16) {
      x[c] = a.plain[c];
      continue;
    }
    int8_t code = m.format == Format::affine8 ? a.even[c] : c % 2 == 0 ? a.even[c / 2] : a.odd[c / 2];
    x[c] = code * double(a.block_scale[c / block]) * (m.format == Format::mxfp4 ? 2 : 1);
  }
  return x;
}

const struct {
  Format format;
  int group;
} forms[] = {{Format::mxfp4, 32},   {Format::affine4, 32}, {Format::affine4, 64},  {Format::affine4, 128},
             {Format::affine8, 32}, {Format::affine8, 64}, {Format::affine8, 128}, {Format::bf16, 32}};

void test_products() {
  for (auto [format, group] : forms) {
    for (int columns : {32, 64, 96, 128, 192, 224, 384, 2880}) {
      if (columns % group) continue;
      for (int rows : {1, 5, 16, 37}) {
        Stored stored(format, group, 1, rows, columns);
        const Matrix& m = stored.matrix;
        for (int tokens : {1, 2, 3, 4, 5, 8, 9, 19}) {
          ActivationRows room(m, tokens);
          std::vector<Activations> x;
          std::vector<std::vector<double>> exact;
          auto values = normal(size_t(tokens) * columns);
          if (tokens == 3) std::fill_n(values.begin(), columns, 0.0f);
          for (int t = 0; t < tokens; t++) {
            x.push_back(room.row(t));
            kernels().quantize(values.data() + t * columns, columns, format, group, x[t]);
            exact.push_back(restored(m, x[t]));
            for (int c = 0; c < columns; c++) {
              double step =
                  format == Format::bf16 ? 0 : x[t].block_scale[c / block] * (format == Format::mxfp4 ? 2 : 1);
              check(std::abs(exact[t][c] - values[t * columns + c]) <= step * 0.501,
                    "quantize " + std::to_string(columns));
            }
          }
          const int first = rows > 5 ? 3 : 0;
          std::vector<float> out(size_t(tokens) * (rows - first));
          kernels().multiply(m, first, rows, x.data(), tokens, out.data());
          for (int t = 0; t < tokens; t++) {
            for (int r = first; r < rows; r++) {
              double sum = 0, size = 0;
              for (int c = 0; c < columns; c++) {
                double product = value(m, r, c) * exact[t][c];
                sum += product, size += std::abs(product);
              }
              double got = out[t * (rows - first) + r - first];
              check(std::abs(got - sum) <= 1e-5 * size,
                    "multiply, format " + std::to_string(int(format)) + " group " + std::to_string(group) +
                        " columns " + std::to_string(columns) + " tokens " + std::to_string(tokens));
            }
          }
        }
      }
    }
  }
}

void test_vector_math() {
  for (int size : {32, 192, 2880}) {
    auto x = normal(size), up = normal(size);
    auto weight = as_bf16(normal(size));
    std::vector<float> out(size);
    kernels().rms_norm(x.data(), weight.data(), size, 1e-5f, out.data());
    double squares = 0;
    for (float v : x) squares += double(v) * v;
    for (int i = 0; i < size; i++) {
      double expected = x[i] / std::sqrt(squares / size + 1e-5) * float_of_bf16(weight[i]);
      check(std::abs(out[i] - expected) <= 1e-5 * std::abs(expected) + 1e-7, "rms_norm");
    }
    for (auto& v : x) v *= 8;
    for (auto& v : up) v *= 8;
    x[0] = -1000, x[1] = 1000;
    auto gate = x;
    kernels().swiglu(gate.data(), up.data(), size, 7);
    for (int i = 0; i < size; i++) {
      double g = std::min(x[i], 7.0f), u = std::clamp(up[i], -7.0f, 7.0f);
      double expected = (u + 1) * g / (1 + std::exp(-1.702 * g));
      check(std::abs(gate[i] - expected) <= 1e-5 * std::abs(expected) + 1e-6, "swiglu of " + std::to_string(x[i]));
    }
    for (float strange : {NAN, INFINITY, -INFINITY}) {
      auto g = x, u = up;
      g[1] = strange, u[2] = strange;
      kernels().swiglu(g.data(), u.data(), size, 7);
      check(std::isnan(g[1]) && std::isnan(g[2]) && std::isfinite(g[3]), "swiglu of " + std::to_string(strange));
    }
    std::vector<uint16_t> bits(size);
    x[2] = NAN, x[3] = INFINITY, x[4] = -0.0f, x[5] = float_of_bits(0x3f808000), x[6] = float_of_bits(0x3f818000);
    kernels().store_as_bf16(x.data(), size, bits.data());
    for (int i = 0; i < size; i++) check(bits[i] == bf16_of_float(x[i]), "store_as_bf16 of " + std::to_string(x[i]));
  }
}

// Keys or values, of exactly the size that they need, and what they stand for.
struct Vectors {
  std::vector<uint16_t> plain, scales, biases;
  std::vector<uint8_t> bytes;
  std::vector<double> meant;

  Vectors(int count, int dim, bool eight_bit) {
    if (!eight_bit) {
      plain = as_bf16(normal(size_t(count) * dim));
      for (uint16_t bits : plain) meant.push_back(float_of_bf16(bits));
      return;
    }
    bytes = random_bytes(size_t(count) * dim);
    for (int p = 0; p < count; p++) {
      scales.push_back(bf16_of_float(0.01f + 0.0001f * (p % 50)));
      biases.push_back(bf16_of_float(-1.3f - 0.01f * (p % 30)));
      for (int d = 0; d < dim; d++) {
        meant.push_back(double(bytes[p * dim + d]) * float_of_bf16(scales[p]) + float_of_bf16(biases[p]));
      }
    }
  }

  HeadVectors view() const {
    if (bytes.empty()) return {plain.data(), nullptr, nullptr};
    return {bytes.data(), scales.data(), biases.data()};
  }
};

void test_attend_of(int dim, int heads, int count, float scale, bool eight_bit, int tokens = 1) {
  const int rows = tokens * heads;
  auto q = normal(size_t(rows) * dim);
  for (auto& value : q) value *= scale;
  const Vectors keys(count, dim, eight_bit), values(count, dim, eight_bit);
  std::vector<float> sums(size_t(rows) * dim);
  std::vector<Attended> states;
  for (int r = 0; r < rows; r++) states.push_back({0.5f, 1, sums.data() + r * dim});
  kernels().attend(q.data(), tokens, heads, dim, keys.view(), values.view(), count, states.data());
  for (int r = 0; r < rows; r++) {
    std::vector<double> expected(dim);
    double weight = std::exp(0.5);
    for (int p = 0; p < count - (tokens - 1 - r / heads); p++) {
      double score = 0;
      for (int d = 0; d < dim; d++) score += q[r * dim + d] * keys.meant[p * dim + d];
      weight += std::exp(score);
      for (int d = 0; d < dim; d++) expected[d] += std::exp(score) * values.meant[p * dim + d];
    }
    for (int d = 0; d < dim; d++) {
      check(std::abs(states[r].value[d] / states[r].weight - expected[d] / weight) <= 2e-5,
            "attend, " + std::to_string(tokens) + " tokens, " + std::to_string(count) + " positions" +
                (eight_bit ? " with 8-bit keys" : ""));
    }
  }
}

void test_attend() {
  for (int dim : {32, 64, 96, 128}) {
    for (int heads : {1, 3, 4, 8, 11}) {
      for (int count : {1, 15, 16, 63, 64, 65, 200}) test_attend_of(dim, heads, count, 1, false);
    }
  }
  // Around the number of positions whose scores are kept, and beyond it.
  for (int count : {255, 256, 257, 600}) test_attend_of(64, 8, count, 0.125f, false);
  // Several tokens: the last ones see a block of positions of which the first ones see nothing.
  for (bool eight_bit : {false, true}) {
    for (int count : {5, 16, 64, 256, 258, 261}) test_attend_of(64, 3, count, 0.125f, eight_bit, 5);
  }
  for (int dim : {32, 64, 128}) {
    for (int heads : {1, 3, 8, 11}) {
      for (int count : {1, 15, 16, 17, 64, 255, 257}) test_attend_of(dim, heads, count, 0.125f, true);
    }
  }
}

// A small network's layers: alone on one thread, and on several, over chunks of a sequence of tokens.
void test_layers() {
  constexpr int hidden = 96, heads = 6, kv_heads = 2, dim = 32, experts_count = 5, inner = 160, length = 23;
  auto norm = as_bf16(normal(hidden)), sinks = as_bf16(normal(heads)), bias = as_bf16(normal(4096 * 4));
  std::vector<float> freqs(dim / 2);
  for (int i = 0; i < dim / 2; i++) freqs[i] = std::pow(100.0f, 2.0f * i / dim);
  Stored q(Format::affine4, 32, 1, heads * dim, hidden), k(Format::affine8, 32, 1, kv_heads * dim, hidden);
  Stored v(Format::bf16, 32, 1, kv_heads * dim, hidden), o(Format::affine4, 64, 1, hidden, heads * dim);
  Stored router(Format::bf16, 32, 1, experts_count, hidden), gate(Format::mxfp4, 32, experts_count, inner, hidden);
  Stored up(Format::mxfp4, 32, experts_count, inner, hidden), down(Format::mxfp4, 32, experts_count, hidden, inner);
  auto x = normal(size_t(length) * hidden);
  const MoeWeights moe_weights{{norm.data(), 1e-5f},
                               {router.matrix, bias.data()},
                               {gate.matrix, bias.data()},
                               {up.matrix, bias.data()},
                               {down.matrix, bias.data()},
                               experts_count,
                               2,
                               experts_count,
                               7};
  for (int window : {0, 7}) {
    const AttentionWeights weights{{norm.data(), 1e-5f},
                                   {q.matrix, bias.data()},
                                   {k.matrix, bias.data()},
                                   {v.matrix, bias.data()},
                                   {o.matrix, bias.data()},
                                   sinks.data(),
                                   freqs.data(),
                                   heads,
                                   kv_heads,
                                   dim,
                                   window,
                                   0.2f};
    auto all = [&](Pool& pool, int chunk) {
      const int capacity = window ? window : length;
      std::vector<uint16_t> keys(kv_heads * capacity * dim), values(keys.size());
      std::vector<float> middle(x.size()), out(x.size());
      for (int t = 0; t < length; t += chunk) {
        const int n = std::min(chunk, length - t);
        attention(pool, weights, x.data() + t * hidden, {{n, t, {{keys.data()}, {values.data()}, capacity}}},
                  middle.data() + t * hidden);
        moe(pool, moe_weights, middle.data() + t * hidden, n, out.data() + t * hidden);
      }
      return out;
    };
    Pool one(1), four(4);
    auto expected = all(one, length);
    double size = 0;
    for (float value : expected) size = std::max(size, double(std::abs(value)));
    for (int chunk : {length, 1, 3, 10}) {
      auto got = all(four, chunk);
      for (size_t i = 0; i < got.size(); i++) {
        check(std::abs(got[i] - expected[i]) <= 2e-2 * size,
              "layers in chunks of " + std::to_string(chunk) + ", window " + std::to_string(window));
      }
    }
    check(all(four, length) == expected, "the number of threads changes a result");

    // Conversations that began one after another, a token of each at a time: the same bits as alone.
    const auto alone = all(four, 1);
    const int capacity = window ? window : length;
    std::vector<std::vector<uint16_t>> keys(few_tokens), values(few_tokens);
    for (int s = 0; s < few_tokens; s++) keys[s].resize(kv_heads * capacity * dim), values[s].resize(keys[s].size());
    for (int step = 0; step < length + 3 * few_tokens; step++) {
      std::vector<Sequence> sequences;
      std::vector<float> rows;
      for (int s = 0; s < few_tokens; s++) {
        const int t = step - 3 * s;
        if (t < 0 || t >= length) continue;
        sequences.push_back({1, t, {{keys[s].data()}, {values[s].data()}, capacity}});
        rows.insert(rows.end(), x.begin() + t * hidden, x.begin() + (t + 1) * hidden);
      }
      std::vector<float> middle(rows.size()), got(rows.size());
      if (sequences.empty()) continue;
      attention(four, weights, rows.data(), sequences, middle.data());
      moe(four, moe_weights, middle.data(), int(sequences.size()), got.data());
      for (size_t i = 0; i < sequences.size(); i++) {
        check(std::equal(got.begin() + i * hidden, got.begin() + (i + 1) * hidden,
                         alone.begin() + sequences[i].offset * hidden),
              "a token beside those of other conversations, window " + std::to_string(window));
      }
    }
  }

  // The MoE block in parts, one expert at a time.
  Pool pool(3);
  std::vector<float> whole(x.size()), normed(x.size()), outputs(2 * x.size()), routing_weights(2 * length),
      out(x.size());
  std::vector<int> chosen(2 * length), slots(2 * length);
  moe(pool, moe_weights, x.data(), length, whole.data());
  route(pool, moe_weights, x.data(), length, normed.data(), chosen.data(), routing_weights.data());
  for (int part = 0; part < experts_count; part++) {
    for (size_t i = 0; i < slots.size(); i++) slots[i] = chosen[i] == part ? chosen[i] : -1;
    expert_outputs(pool, moe_weights, normed.data(), slots.data(), length, outputs.data());
  }
  combine(pool, moe_weights, x.data(), chosen.data(), routing_weights.data(), outputs.data(), length, out.data());
  check(out == whole, "a MoE block in parts gives another result");
}

// Work that does nothing but count: twice the passes, twice the products.
void test_peak() {
  for (auto sum_products : {kernels().sum_byte_products, kernels().sum_float_products}) {
    const double products = sum_products(100);
    check(products > 0 && sum_products(200) == 2 * products, "products that were not made are counted");
  }
}

// Against rounding between a group's smallest and largest value; a count that does not fill the last vector.
void test_affine() {
  const size_t count = 101;
  for (int group : {32, 64, 128})
    for (int bits : {2, 4})
      for (bool weighed : {false, true}) {
        const std::vector<float> values = normal(count * group);
        std::vector<float> importance(group), scales(count), biases(count);
        std::vector<uint8_t> codes(count * group);
        for (int i = 0; i < group; i++) importance[i] = weighed && i % 2 ? 1.9f : weighed ? 0.1f : 1.f;
        fit_affine({group, bits, {1.f}, 2}, count, values.data(), weighed ? importance.data() : nullptr, 1,
                   codes.data(), scales.data(), biases.data());
        double fitted = 0, rounded = 0;
        const int steps = (1 << bits) - 1;
        for (size_t g = 0; g < count; g++) {
          const float* x = &values[g * group];
          const auto [low, high] = std::minmax_element(x, x + group);
          const float scale = float_of_bf16(bf16_of_float((*high - *low) / steps));
          const float bias = float_of_bf16(bf16_of_float(*low));
          check(float_of_bf16(bf16_of_float(scales[g])) == scales[g], "a scale that BF16 does not hold");
          for (int i = 0; i < group; i++) {
            check(codes[g * group + i] <= steps, "a code of too many bits");
            const float near = std::clamp(std::round((x[i] - bias) / scale), 0.f, float(steps)) * scale + bias;
            fitted += importance[i] * std::pow(codes[g * group + i] * scales[g] + biases[g] - x[i], 2);
            rounded += importance[i] * std::pow(near - x[i], 2);
          }
        }
        check(fitted < rounded, "fit_affine is no better than rounding, bits " + std::to_string(bits));
      }
}

void test_pool() {
  Pool pool(4);
  for (int round = 0; round < 2000; round++) {
    const int count = round % 37;
    std::vector<int> done(count);
    pool.for_each(count, [&](int i) { done[i]++; });
    check(std::count(done.begin(), done.end(), 1) == count, "a task was left out or done twice");
  }
}

}  // namespace

int main() {
  for (const auto& name : available_kernels()) {
    use_kernels(name);
    test_products();
    test_vector_math();
    test_attend();
    test_peak();
    test_layers();
    std::printf("%s: %d failures\n", name.c_str(), failures);
  }
  test_affine();
  test_pool();
  bool refused = false;
  try {
    use_kernels("abacus");
  } catch (const std::invalid_argument&) { refused = true; }
  check(refused, "an unknown instruction set was accepted");
  std::printf(failures ? "FAILED\n" : "ok\n");
  return failures != 0;
}
