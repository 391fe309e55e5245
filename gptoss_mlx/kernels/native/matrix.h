// What a product is made of: a weight matrix as it lies in a converted folder, and 8-bit activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gptoss {

// How rows of a weight are stored, always along the columns (the inputs):
//   mxfp4    nibbles, low first; a U8 scale s per 32 columns; value = FP4(nibble) * 2^(s - 127)
//   affine4  nibbles, low first; BF16 scale and bias per group; value = nibble * scale + bias
//   affine8  bytes; BF16 scale and bias per group; value = byte * scale + bias
//   bf16     BF16, as it is
enum class Format { mxfp4, affine4, affine8, bf16 };

constexpr int block = 32;      // columns that share one scale of the activations, and of MXFP4
constexpr int few_tokens = 4;  // so many are met by each row of codes as it is read

struct Matrix {
  Format format;
  int group;  // columns per scale
  int rows, columns;
  const uint8_t* codes;
  const void* scales;      // uint8_t [rows, columns / 32] for mxfp4, uint16_t [rows, columns / group] for affine
  const uint16_t* biases;  // [rows, columns / group] for affine

  int groups() const { return columns / group; }
  size_t row_bytes() const {
    return format == Format::bf16 ? 2 * size_t(columns) : format == Format::affine8 ? columns : columns / 2;
  }

  // Matrix `index` of a stack whose first one is this.
  Matrix of_stack(int index) const {
    Matrix m = *this;
    size_t skipped = size_t(index) * rows;
    m.codes += skipped * row_bytes();
    if (format == Format::mxfp4) {
      m.scales = static_cast<const uint8_t*>(scales) + skipped * groups();
    } else if (format != Format::bf16) {
      m.scales = static_cast<const uint16_t*>(scales) + skipped * groups();
      m.biases += skipped * groups();
    }
    return m;
  }
};

// One row of activations as products read it. With a BF16 weight that is `plain`; with any other, 8-bit integers
// x = values * scale, a scale per block of 32, arranged so that four bytes of weight codes meet one lane:
// for nibbles the even columns in `even` and the odd ones in `odd`, for bytes all columns in `even`.
// All arrays are followed by zeros up to a multiple of the longest vector.
struct Activations {
  float* plain;  // [columns]
  int8_t* even;
  int8_t* odd;
  float* block_scale;    // [columns / 32]
  int32_t* block_start;  // [columns / 32], mxfp4 alone: -12 times the sum of the block's values
  float* group_sum;      // [groups], affine alone: the sum of the group's activations
};

// Room for `count` rows of activations that will meet a matrix like `matrix`.
class ActivationRows {
 public:
  ActivationRows(const Matrix& matrix, int count);

  Activations row(int i);

  const Format format;
  const int group, columns;

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };  // the longest vector

  template <class T>
  T* at(int i, size_t line) {
    return reinterpret_cast<T*>(storage_.data() + i * stride_ + line);
  }

  size_t plain_, even_, odd_, block_scale_, block_start_, group_sum_, stride_;  // in lines
  std::vector<Line> storage_;
};

// The transposed form of some rows of a matrix, as many as fill one or two vectors: each has one lane.
struct Panel {
  std::vector<uint8_t> codes;  // [columns / 4, rows, 4 columns]; for nibbles even and odd columns of 8 in turn
  std::vector<float> scales;   // [groups, rows]
  std::vector<float> biases;   // [groups, rows], for affine
  std::vector<float> plain;    // [columns, rows], for BF16
};

}  // namespace gptoss
