#include <immintrin.h>

#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#include "simd_avx512.h"
#include "kernels.inl.h"

namespace gptoss {

extern const Kernels avx512_kernels = table<Avx512>;

}  // namespace gptoss

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
