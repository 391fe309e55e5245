// AVX-512 with VNNI and VBMI. Each member is defined in simd_portable.h.
#pragma once

#include <immintrin.h>

#include "simd_portable.h"

namespace gptoss {

struct Avx512 {
  static constexpr const char* name = "avx512-vnni";
  static constexpr int lanes = 16;
  static constexpr int heads = 4;
  static constexpr int tokens = 6;
  static constexpr int panel_vectors = 2;

  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  template <class Vector>
  static void forget(Vector& v) {
    asm volatile("" : "+v"(v));
  }
  static Bytes zero_bytes() { return _mm512_setzero_si512(); }
  static Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
  static Bytes load_bytes(const void* p, int count) {
    return _mm512_maskz_loadu_epi8(_cvtu64_mask64(~0ull >> (64 - count)), p);
  }
  static void store_bytes(void* p, Bytes v) { _mm512_storeu_si512(p, v); }
  static Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  // The permutation looks at six bits of an index: the table, which repeats every 16 bytes, need not care for the upper
  // two.
  static Bytes lookup_low_nibbles(Bytes table, Bytes v) { return _mm512_permutexvar_epi8(v, table); }
  static Bytes lookup_high_nibbles(Bytes table, Bytes v) {
    return _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), table);
  }
  static Bytes high_nibbles(Bytes v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

  static void transpose_words(Bytes* v) {
    Bytes a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
      a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; j++) {
        b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
        b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
      }
    }
    // Now quarter q of b[4 i + j] holds rows 4 i..4 i + 3 of column 4 q + j.
    for (int j = 0; j < 4; j++) {
      Bytes even_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), odd_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
      Bytes even_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88),
            odd_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
      v[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
      v[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
      v[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
      v[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
    }
  }

  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Ints broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
  static Bytes broadcast_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  template <bool small>
  static Ints dot(Ints sum, Bytes u, Bytes s) {
    return _mm512_dpbusd_epi32(sum, u, s);
  }
  static Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats broadcast(float x) { return _mm512_set1_ps(x); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats load_bf16(const uint16_t* p) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats load_bf16(const uint16_t* p, int count) {
    return widened(_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p));
  }
  static Floats load_e8m0(const uint8_t* p) { return exponents(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Floats load_e8m0(const uint8_t* p, int count) {
    return exponents(_mm_maskz_loadu_epi8(__mmask16((1u << count) - 1), p));
  }
  static void store_int8(int8_t* p, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static Floats low_bf16(Bytes v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
  static Floats high_bf16(Bytes v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int32_t(0xffff0000))));
  }
  static Floats load_uint8(const uint8_t* p) {
    return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  template <int n>
  static Floats byte_of(Bytes v) {
    return to_floats(_mm512_and_si512(_mm512_srli_epi32(v, 8 * n), _mm512_set1_epi32(255)));
  }
  static void store_bf16(uint16_t* p, Floats v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats round(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Floats times_power_of_two(Floats v, Floats n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
  }
  static float sum(Floats v) { return _mm512_reduce_add_ps(v); }

  template <int n>
  static Floats spread(const float* p) {
    if constexpr (n >= lanes) return _mm512_set1_ps(*p);
    else if constexpr (n == 8)
      return _mm512_permutevar_ps(_mm512_castpd_ps(_mm512_set1_pd(pair_at(p))), lane_over<n>());
    else if constexpr (n == 4) return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(p)), lane_over<n>());
    else return _mm512_permutexvar_ps(lane_over<n>(), _mm512_castps256_ps512(_mm256_loadu_ps(p)));
  }

 private:
  static Floats exponents(__m128i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(v), 23)); }
  static Floats widened(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }

  static double pair_at(const float* p) {
    double pair;
    std::memcpy(&pair, p, 8);
    return pair;
  }

  // i / n for each lane i.
  template <int n>
  static __m512i lane_over() {
    return _mm512_set_epi32(15 / n, 14 / n, 13 / n, 12 / n, 11 / n, 10 / n, 9 / n, 8 / n, 7 / n, 6 / n, 5 / n, 4 / n,
                            3 / n, 2 / n, 1 / n, 0);
  }
};

}  // namespace gptoss
