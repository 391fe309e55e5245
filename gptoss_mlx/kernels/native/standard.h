// What the algorithms need of the standard library and of each other that does not depend on the instruction set.
//
// kernels_*.cc include this before the pragma that allows their instructions, and *.inl.h after it: of an inline function
// the linker keeps one copy, and that one has to run on every machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "simd_portable.h"
