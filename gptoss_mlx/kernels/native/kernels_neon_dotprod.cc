// Compiled with flags of its own (CMakeLists.txt): arm_neon.h of older compilers has no intrinsics for a pragma's
// target.
#include "kernels.inl.h"
#include "simd_neon.h"

namespace gptoss {

extern const Kernels neon_dotprod_kernels = table<Neon<false>>;

}  // namespace gptoss
