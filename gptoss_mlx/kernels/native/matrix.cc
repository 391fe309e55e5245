#include "matrix.h"

namespace gptoss {

ActivationRows::ActivationRows(const Matrix& matrix, int count)
    : format(matrix.format), group(matrix.group), columns(matrix.columns) {
  size_t end = 0;
  auto place = [&](size_t bytes) {
    size_t line = end;
    end += (bytes + sizeof(Line) - 1) / sizeof(Line);
    return line;
  };
  bool nibbles = format == Format::mxfp4 || format == Format::affine4;
  bool affine = format == Format::affine4 || format == Format::affine8;
  bool integers = nibbles || affine;
  size_t blocks = integers ? columns / block : 0;
  plain_ = place(integers ? 0 : columns * sizeof(float));
  even_ = place(!integers ? 0 : nibbles ? columns / 2 : columns);
  odd_ = place(nibbles ? columns / 2 : 0);
  block_scale_ = place(blocks * sizeof(float));
  block_start_ = place(format == Format::mxfp4 ? blocks * sizeof(int32_t) : 0);
  group_sum_ = place(affine ? matrix.groups() * sizeof(float) : 0);
  stride_ = end;
  storage_.resize(stride_ * count);
}

Activations ActivationRows::row(int i) {
  return {at<float>(i, plain_),       at<int8_t>(i, even_),         at<int8_t>(i, odd_),
          at<float>(i, block_scale_), at<int32_t>(i, block_start_), at<float>(i, group_sum_)};
}

}  // namespace gptoss
