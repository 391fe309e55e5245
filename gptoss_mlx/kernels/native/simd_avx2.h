// AVX2, and AVX2 with AVX-VNNI. Each member is defined in simd_portable.h.
#pragma once

#include <immintrin.h>

#include "simd_portable.h"

namespace gptoss {

template <bool vnni>
struct Avx2 {
  static constexpr const char* name = vnni ? "avx2-vnni" : "avx2";
  static constexpr int lanes = 8;
  static constexpr int heads = 1;
  static constexpr int tokens = 4;
  static constexpr int panel_vectors = 1;

  using Bytes = __m256i;
  using Ints = __m256i;
  using Floats = __m256;

  template <class Vector>
  static void forget(Vector& v) {
    asm volatile("" : "+x"(v));
  }
  static Bytes zero_bytes() { return _mm256_setzero_si256(); }
  static Bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Bytes load_bytes(const void* p, int count) {
    alignas(32) uint8_t part[32] = {};
    std::memcpy(part, p, count);
    return load_bytes(part);
  }
  static void store_bytes(void* p, Bytes v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static Bytes low_nibbles(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
  static Bytes lookup_low_nibbles(Bytes table, Bytes v) { return _mm256_shuffle_epi8(table, low_nibbles(v)); }
  static Bytes lookup_high_nibbles(Bytes table, Bytes v) { return _mm256_shuffle_epi8(table, high_nibbles(v)); }

  static void transpose_words(Bytes* v) {
    Bytes a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
      a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; j++) {
        b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
        b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
      }
    }
    // Now half h of b[4 i + j] holds rows 4 i..4 i + 3 of column 4 h + j.
    for (int j = 0; j < 4; j++) {
      v[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
      v[4 + j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
    }
  }

  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints load_ints(const int32_t* p) { return load_bytes(p); }
  static Ints broadcast_int(int32_t x) { return _mm256_set1_epi32(x); }
  static Bytes broadcast_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  template <bool small>
  static Ints dot(Ints sum, Bytes u, Bytes s) {
    if constexpr (vnni) {
      return _mm256_dpbusd_avx_epi32(sum, u, s);
    } else if constexpr (small) {
      // Sums of two products in 16 bits: 2 * 64 * 127 fits.
      return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
    } else {
      // 2 * 255 * 127 does not, so even and odd bytes apart.
      const __m256i low_byte = _mm256_set1_epi16(255);
      __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low_byte), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
      __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
      return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
    }
  }
  static Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }

  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats broadcast(float x) { return _mm256_set1_ps(x); }
  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static Floats load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static Floats load_bf16(const uint16_t* p, int count) {
    uint16_t part[8] = {};
    std::memcpy(part, p, 2 * count);
    return load_bf16(part);
  }
  static Floats load_e8m0(const uint8_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 23));
  }
  static Floats load_e8m0(const uint8_t* p, int count) {
    uint8_t part[8] = {};
    std::memcpy(part, p, count);
    return load_e8m0(part);
  }
  static void store_int8(int8_t* p, Floats v) {
    __m256i words = _mm256_cvtps_epi32(v);
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
  }
  static Floats low_bf16(Bytes v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  static Floats high_bf16(Bytes v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int32_t(0xffff0000))));
  }
  static Floats load_uint8(const uint8_t* p) {
    return to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  template <int n>
  static Floats byte_of(Bytes v) {
    return to_floats(_mm256_and_si256(_mm256_srli_epi32(v, 8 * n), _mm256_set1_epi32(255)));
  }
  static void store_bf16(uint16_t* p, Floats v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
    rounded = _mm256_srli_epi32(rounded, 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats round(Floats v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Floats times_power_of_two(Floats v, Floats n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
  }
  static float sum(Floats v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }

  template <int n>
  static Floats spread(const float* p) {
    if constexpr (n >= lanes) return _mm256_set1_ps(*p);
    else if constexpr (n == 4) return _mm256_set_m128(_mm_set1_ps(p[1]), _mm_set1_ps(p[0]));
    else
      return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                      _mm256_setr_epi32(0, 1 / n, 2 / n, 3 / n, 4 / n, 5 / n, 6 / n, 7 / n));
  }
};

}  // namespace gptoss
