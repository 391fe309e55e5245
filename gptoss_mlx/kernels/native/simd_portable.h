// The vector layer, and its definition in plain C++.
//
// Every instruction set is a struct with these members; the algorithms (*.inl.h) are templates over it. What a member
// does is defined here, and the other structs do the same faster. A vector has `lanes` lanes of 32 bits: as Floats or
// Ints one value each, as Bytes four bytes each.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace gptoss {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of_bf16(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }

// To nearest, ties to even; what is not a number stays so.
inline uint16_t bf16_of_float(float value) {
  uint32_t bits = bits_of_float(value);
  if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Portable {
  static constexpr const char* name = "portable";
  static constexpr int lanes = 8;
  static constexpr int heads = 1;          // query heads that attention keeps in registers together
  static constexpr int tokens = 4;         // tokens that a batch product keeps in registers together
  static constexpr int panel_vectors = 1;  // vectors of weights, one row per lane, that such a product meets together

  struct Bytes {
    uint8_t at[4 * lanes];
  };
  struct Ints {
    int32_t at[lanes];
  };
  struct Floats {
    float at[lanes];
  };

  template <class Vector, class F>
  static Vector each(F f) {
    Vector v;
    for (int i = 0; i < lanes; i++) v.at[i] = f(i);
    return v;
  }

  // Leaves v as it is, and the compiler does not know.
  template <class Vector>
  static void forget(Vector& v) {
    asm volatile("" : "+m"(v));
  }
  static Bytes zero_bytes() { return {}; }
  static Bytes load_bytes(const void* p) {
    Bytes v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  // The first `count` bytes, then zeros: no byte after them is read.
  static Bytes load_bytes(const void* p, int count) {
    Bytes v{};
    std::memcpy(&v, p, count);
    return v;
  }
  static void store_bytes(void* p, Bytes v) { std::memcpy(p, &v, sizeof v); }
  static Bytes low_nibbles(Bytes v) {
    for (auto& b : v.at) b &= 15;
    return v;
  }
  static Bytes high_nibbles(Bytes v) {
    for (auto& b : v.at) b >>= 4;
    return v;
  }
  // `table` repeats 16 entries; each index is below 16.
  static Bytes lookup_low_nibbles(Bytes table, Bytes v) {
    for (auto& b : v.at) b = table.at[b & 15];
    return v;
  }
  static Bytes lookup_high_nibbles(Bytes table, Bytes v) {
    for (auto& b : v.at) b = table.at[b >> 4];
    return v;
  }

  // `lanes` vectors as the rows of a matrix of words, transposed in place.
  static void transpose_words(Bytes* v) {
    for (int i = 0; i < lanes; i++) {
      for (int j = 0; j < i; j++) {
        for (int byte = 0; byte < 4; byte++) std::swap(v[i].at[4 * j + byte], v[j].at[4 * i + byte]);
      }
    }
  }

  static Ints zero_ints() { return {}; }
  static Ints load_ints(const int32_t* p) {
    Ints v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static Ints broadcast_int(int32_t x) {
    return each<Ints>([&](int) { return x; });
  }
  static Bytes broadcast_word(const void* p) {
    Bytes v;
    for (int i = 0; i < lanes; i++) std::memcpy(v.at + 4 * i, p, 4);
    return v;
  }
  // Each lane plus the four products of unsigned bytes of `u` and signed bytes of `s`. `small`: no u is above 64.
  template <bool small>
  static Ints dot(Ints sum, Bytes u, Bytes s) {
    for (int i = 0; i < 4 * lanes; i++) sum.at[i / 4] += u.at[i] * int8_t(s.at[i]);
    return sum;
  }
  static Floats to_floats(Ints v) {
    return each<Floats>([&](int i) { return float(v.at[i]); });
  }

  static Floats zero() { return {}; }
  static Floats broadcast(float x) {
    return each<Floats>([&](int) { return x; });
  }
  static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
  static Floats load_bf16(const uint16_t* p) {
    return each<Floats>([&](int i) { return float_of_bf16(p[i]); });
  }
  // The first `count`, then zeros: none after them is read.
  static Floats load_bf16(const uint16_t* p, int count) {
    return each<Floats>([&](int i) { return i < count ? float_of_bf16(p[i]) : 0.0f; });
  }
  // 2^(p[i] - 127), the value of an E8M0 scale.
  static Floats load_e8m0(const uint8_t* p) { return load_e8m0(p, lanes); }
  static Floats load_e8m0(const uint8_t* p, int count) {
    return each<Floats>([&](int i) { return i < count ? float_of_bits(uint32_t(p[i]) << 23) : 0.0f; });
  }
  // To nearest, ties to even; each value is from -127 to 127.
  static void store_int8(int8_t* p, Floats v) {
    for (int i = 0; i < lanes; i++) p[i] = int8_t(std::nearbyint(v.at[i]));
  }
  // Each lane's lower, or upper, half as a BF16.
  static Floats low_bf16(Bytes v) {
    return each<Floats>([&](int i) { return float_of_bf16(uint16_t(v.at[4 * i] | v.at[4 * i + 1] << 8)); });
  }
  static Floats high_bf16(Bytes v) {
    return each<Floats>([&](int i) { return float_of_bf16(uint16_t(v.at[4 * i + 2] | v.at[4 * i + 3] << 8)); });
  }
  static Floats load_uint8(const uint8_t* p) {
    return each<Floats>([&](int i) { return float(p[i]); });
  }
  // Byte n of each lane.
  template <int n>
  static Floats byte_of(Bytes v) {
    return each<Floats>([&](int i) { return float(v.at[4 * i + n]); });
  }
  static void store_bf16(uint16_t* p, Floats v) {
    for (int i = 0; i < lanes; i++) p[i] = bf16_of_float(v.at[i]);
  }
  static Floats add(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Floats sub(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Floats mul(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Floats div(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] / b.at[i]; });
  }
  // The smaller, or larger, of two; b where one of them is NaN (on ARM, NaN).
  static Floats min(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Floats max(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  // a * b + c
  static Floats fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return a.at[i] * b.at[i] + c.at[i]; });
  }
  static Floats round(Floats v) {
    return each<Floats>([&](int i) { return std::nearbyint(v.at[i]); });
  }
  // v * 2^n for whole n, where neither n nor the result leaves the range of normal numbers
  static Floats times_power_of_two(Floats v, Floats n) {
    return each<Floats>(
        [&](int i) { return float_of_bits(bits_of_float(v.at[i]) + (uint32_t(int32_t(n.at[i])) << 23)); });
  }
  static float sum(Floats v) {
    float s = 0;
    for (float x : v.at) s += x;
    return s;
  }

  // Lane i gets p[i / n]; n beyond the number of lanes counts as that number.
  template <int n>
  static Floats spread(const float* p) {
    return each<Floats>([&](int i) { return p[i / n]; });
  }
};

}  // namespace gptoss
