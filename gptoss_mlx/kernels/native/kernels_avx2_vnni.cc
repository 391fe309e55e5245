#include <immintrin.h>

#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#endif

#include "simd_avx2.h"
#include "kernels.inl.h"

namespace gptoss {

extern const Kernels avx2_vnni_kernels = table<Avx2<true>>;

}  // namespace gptoss

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
