// The highest rates that the threads of a pool reach: the best of many passes in a tenth of a second.
#pragma once

#include <cstddef>

#include "threads.h"

namespace gptoss {

// Bytes per second, read from `bytes` of memory.
double read_bandwidth(Pool& pool, size_t bytes);

// Operations per second, of which a multiplication and an addition are two.
double byte_product_rate(Pool& pool);
double float_product_rate(Pool& pool);

}  // namespace gptoss
