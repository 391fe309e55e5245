#include <immintrin.h>

#include "standard.h"

GPTOSS_BEGIN_TARGET("avx2,fma")

#include "kernels.inl.h"
#include "simd_avx2.h"

namespace gptoss {

extern const Kernels avx2_kernels = table<Avx2<false>>;

}  // namespace gptoss

GPTOSS_END_TARGET
