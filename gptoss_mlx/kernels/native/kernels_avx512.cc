#include <immintrin.h>

#include "standard.h"

GPTOSS_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,bmi2")

#include "kernels.inl.h"
#include "simd_avx512.h"

namespace gptoss {

extern const Kernels avx512_kernels = table<Avx512>;

}  // namespace gptoss

GPTOSS_END_TARGET
