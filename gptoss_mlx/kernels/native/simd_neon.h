// NEON with the dot product instructions, and with those of mixed signs (i8mm) where there are. Each member is defined
// in simd_portable.h.
#pragma once

#include <arm_neon.h>

#include "simd_portable.h"

namespace gptoss {

template <bool i8mm>
struct Neon {
  static constexpr const char* name = i8mm ? "neon-i8mm" : "neon-dotprod";
  static constexpr int lanes = 4;
  static constexpr int heads = 1;
  static constexpr int tokens = 4;
  static constexpr int panel_vectors = 2;

  using Bytes = uint8x16_t;
  using Ints = int32x4_t;
  using Floats = float32x4_t;

  template <class Vector>
  static void forget(Vector& v) {
    asm volatile("" : "+w"(v));
  }
  static Bytes zero_bytes() { return vdupq_n_u8(0); }
  static Bytes load_bytes(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
  static Bytes load_bytes(const void* p, int count) {
    uint8_t part[16] = {};
    std::memcpy(part, p, count);
    return vld1q_u8(part);
  }
  static void store_bytes(void* p, Bytes v) { vst1q_u8(static_cast<uint8_t*>(p), v); }
  static Bytes low_nibbles(Bytes v) { return vandq_u8(v, vdupq_n_u8(15)); }
  static Bytes high_nibbles(Bytes v) { return vshrq_n_u8(v, 4); }
  static Bytes lookup_low_nibbles(Bytes table, Bytes v) { return vqtbl1q_u8(table, low_nibbles(v)); }
  static Bytes lookup_high_nibbles(Bytes table, Bytes v) { return vqtbl1q_u8(table, high_nibbles(v)); }

  static void transpose_words(Bytes* v) {
    uint32x4_t a[4];
    for (int i = 0; i < 4; i++) a[i] = vreinterpretq_u32_u8(v[i]);
    uint32x4_t b[] = {vtrn1q_u32(a[0], a[1]), vtrn2q_u32(a[0], a[1]), vtrn1q_u32(a[2], a[3]), vtrn2q_u32(a[2], a[3])};
    for (int i = 0; i < 2; i++) {
      uint64x2_t low = vreinterpretq_u64_u32(b[i]), high = vreinterpretq_u64_u32(b[i + 2]);
      v[i] = vreinterpretq_u8_u64(vtrn1q_u64(low, high));
      v[i + 2] = vreinterpretq_u8_u64(vtrn2q_u64(low, high));
    }
  }

  static Ints zero_ints() { return vdupq_n_s32(0); }
  static Ints load_ints(const int32_t* p) { return vld1q_s32(p); }
  static Ints broadcast_int(int32_t x) { return vdupq_n_s32(x); }
  static Bytes broadcast_word(const void* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return vreinterpretq_u8_u32(vdupq_n_u32(word));
  }
  template <bool small>
  static Ints dot(Ints sum, Bytes u, Bytes s) {
    const int8x16_t values = vreinterpretq_s8_u8(s);
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (i8mm) return vusdotq_s32(sum, u, values);
#endif
    if constexpr (small) {
      return vdotq_s32(sum, vreinterpretq_s8_u8(u), values);
    } else {
      // u = (u - 128) + 2 * 64, and u - 128 is u with its highest bit turned round.
      const int8x16_t half = vdupq_n_s8(64);
      sum = vdotq_s32(vdotq_s32(sum, half, values), half, values);
      return vdotq_s32(sum, vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(128))), values);
    }
  }
  static Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }

  static Floats zero() { return vdupq_n_f32(0); }
  static Floats broadcast(float x) { return vdupq_n_f32(x); }
  static Floats load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Floats v) { vst1q_f32(p, v); }
  static Floats load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static Floats load_bf16(const uint16_t* p, int count) {
    uint16_t part[4] = {};
    std::memcpy(part, p, 2 * count);
    return load_bf16(part);
  }
  static Floats load_e8m0(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    const uint16x8_t wide = vmovl_u8(vcreate_u8(word));
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vget_low_u16(wide)), 23));
  }
  static Floats load_e8m0(const uint8_t* p, int count) {
    uint8_t part[4] = {};
    std::memcpy(part, p, count);
    return load_e8m0(part);
  }
  static void store_int8(int8_t* p, Floats v) {
    const int16x4_t half = vqmovn_s32(vcvtnq_s32_f32(v));
    vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(half, half))), 0);
  }
  static Floats low_bf16(Bytes v) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(v), 16)); }
  static Floats high_bf16(Bytes v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(v), vdupq_n_u32(0xffff0000)));
  }
  static Floats load_uint8(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(word)))));
  }
  template <int n>
  static Floats byte_of(Bytes v) {
    const uint32x4_t words = vreinterpretq_u32_u8(v);
    if constexpr (n == 3) return vcvtq_f32_u32(vshrq_n_u32(words, 24));
    else return vcvtq_f32_u32(vshrq_n_u32(vshlq_n_u32(words, 24 - 8 * n), 24));
  }
  static void store_bf16(uint16_t* p, Floats v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t number = vceqq_f32(v, v);
    vst1_u16(p, vshrn_n_u32(vbslq_u32(number, rounded, vorrq_u32(bits, vdupq_n_u32(0x400000))), 16));
  }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats div(Floats a, Floats b) { return vdivq_f32(a, b); }
  static Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
  static Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats round(Floats v) { return vrndnq_f32(v); }
  static Floats times_power_of_two(Floats v, Floats n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
  }
  static float sum(Floats v) { return vaddvq_f32(v); }

  template <int n>
  static Floats spread(const float* p) {
    if constexpr (n >= lanes) return vld1q_dup_f32(p);
    const float32x2_t pair = vld1_f32(p);
    return vcombine_f32(vdup_lane_f32(pair, 0), vdup_lane_f32(pair, 1));
  }
};

}  // namespace gptoss
