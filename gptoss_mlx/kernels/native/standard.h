// What the algorithms need of the standard library and of each other that does not depend on the instruction set.
//
// kernels_*.cc include this before GPTOSS_BEGIN_TARGET, and *.inl.h after it: of an inline function the linker keeps
// one copy, and that one has to run on every machine. So each function of *.inl.h is a template over the instruction
// set, used or not.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "simd_portable.h"

// What lies between these two may use the instructions of `features`.
#define GPTOSS_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define GPTOSS_BEGIN_TARGET(features) \
  GPTOSS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define GPTOSS_END_TARGET GPTOSS_PRAGMA(clang attribute pop)
#else
#define GPTOSS_BEGIN_TARGET(features) GPTOSS_PRAGMA(GCC push_options) GPTOSS_PRAGMA(GCC target(features))
#define GPTOSS_END_TARGET GPTOSS_PRAGMA(GCC pop_options)
#endif
