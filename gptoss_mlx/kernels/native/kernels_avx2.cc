#include <immintrin.h>

#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "simd_avx2.h"
#include "kernels.inl.h"

namespace gptoss {

extern const Kernels avx2_kernels = table<Avx2<false>>;

}  // namespace gptoss

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
