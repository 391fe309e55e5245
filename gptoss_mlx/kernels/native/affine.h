// Affine quantization by least squares, for the converter: the same search as `fitted` in gptoss_convert/affine.py,
// which defines it and says why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gptoss {

struct AffineSearch {
  int group, bits;
  std::vector<float> shares;  // of the range of values, to start from
  int rounds;                 // how often the line follows its codes
};

// values [count, group] -> codes of the same shape; scales and biases [count], which BF16 can hold. `importance`
// [groups_in_row, group], or null, is that of the groups of a row, with a mean of 1 in each.
void fit_affine(const AffineSearch& search, size_t count, const float* values, const float* importance,
                size_t groups_in_row, uint8_t* codes, float* scales, float* biases);

}  // namespace gptoss
