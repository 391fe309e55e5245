#include "kernels.inl.h"

namespace gptoss {

extern const Kernels portable_kernels = table<Portable>;

}  // namespace gptoss
