#include "affine.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace gptoss {
namespace {

// Groups are fitted side by side, one in each lane; every machine has vectors of four.
constexpr int lanes = 4;
constexpr int longest = 128;
using Floats = float __attribute__((vector_size(4 * lanes)));
using Bits = uint32_t __attribute__((vector_size(4 * lanes)));

// Adding this and taking it away rounds what is below 2^22 to whole numbers, ties to even.
constexpr float rounder = 12582912.f;
constexpr float least_scale = 1e-30f;

Floats min(Floats x, Floats y) { return x < y ? x : y; }
Floats max(Floats x, Floats y) { return x > y ? x : y; }

Floats as_bf16(Floats x) {
  const Bits bits = (Bits)x;
  return (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

template <bool weighed>
class Fit {
 public:
  explicit Fit(const AffineSearch& search) : search_(search), steps_(float((1 << search.bits) - 1)) {}

  Floats value[longest], weight[longest], code[longest];
  Floats scale, bias;  // of the best line

  void run() {
    const int size = search_.group;
    Floats low = value[0], high = value[0], center = {}, spread = {};
    for (int i = 0; i < size; ++i) {
      low = min(low, value[i]), high = max(high, value[i]);
      center += weighted(i, value[i]);
    }
    center /= float(size);
    for (int i = 0; i < size; ++i) {
      const Floats x = value[i] - center;
      from_center_[i] = weighted(i, x);
      spread += x * from_center_[i];
    }
    spread /= float(size);
    Floats least = Floats{} + std::numeric_limits<float>::infinity();
    for (float share : search_.shares) {
      Floats s = max((high - low) * share / steps_, Floats{} + least_scale);
      Floats b = low + (high - low) * (1 - share) / 2;
      for (int turn = 0; turn <= search_.rounds; ++turn) {
        Floats middle = {}, slope = {}, width = {};
        nearest(s, b);
        for (int i = 0; i < size; ++i) {
          const Floats q = weighted(i, code[i]);
          middle += q;
          slope += code[i] * from_center_[i];
          width += code[i] * q;
        }
        middle /= float(size), slope /= float(size);
        width = width / float(size) - middle * middle;
        const Floats off = center - b - s * middle;
        const Floats error = spread + s * (s * width - 2 * slope) + off * off;
        if (turn) {
          const auto better = error < least;
          least = better ? error : least, scale = better ? s : scale, bias = better ? b : bias;
        }
        const Floats straight = width > 0 ? slope / width : Floats{};
        s = as_bf16(straight > 0 ? straight : s);
        b = as_bf16(center - s * middle);
      }
    }
    nearest(scale, bias);
  }

 private:
  Floats weighted(int i, Floats x) const { return weighed ? x * weight[i] : x; }

  void nearest(Floats s, Floats b) {
    const Floats inverse = 1 / s;
    for (int i = 0; i < search_.group; ++i) {
      const Floats x = min(max((value[i] - b) * inverse, Floats{}), Floats{} + steps_);
      code[i] = (x + rounder) - rounder;
    }
  }

  const AffineSearch& search_;
  const float steps_;
  Floats from_center_[longest];
};

template <bool weighed>
void fit_all(const AffineSearch& search, size_t count, const float* values, const float* importance,
             size_t groups_in_row, uint8_t* codes, float* scales, float* biases) {
  const int size = search.group;
  Fit<weighed> fit(search);
  for (size_t first = 0; first < count; first += lanes) {
    // The last lanes of the last block repeat its last group.
    for (int lane = 0; lane < lanes; ++lane) {
      const size_t group = std::min(first + lane, count - 1);
      for (int i = 0; i < size; ++i) {
        fit.value[i][lane] = values[group * size + i];
        if (weighed) fit.weight[i][lane] = importance[group % groups_in_row * size + i];
      }
    }
    fit.run();
    for (int lane = 0; lane < lanes && first + lane < count; ++lane) {
      const size_t group = first + lane;
      for (int i = 0; i < size; ++i) codes[group * size + i] = uint8_t(fit.code[i][lane]);
      scales[group] = fit.scale[lane];
      biases[group] = fit.bias[lane];
    }
  }
}

}  // namespace

void fit_affine(const AffineSearch& search, size_t count, const float* values, const float* importance,
                size_t groups_in_row, uint8_t* codes, float* scales, float* biases) {
  if (search.group < 1 || search.group > longest || search.bits < 1 || search.bits > 8)
    throw std::invalid_argument("fit_affine: no such form");
  const auto fit = importance ? fit_all<true> : fit_all<false>;
  fit(search, count, values, importance, groups_in_row, codes, scales, biases);
}

}  // namespace gptoss
