// The layers of layers.h as MLX primitives for the CPU stream, and everything checked that they take for granted.
//
// An object holds a layer's weights as tensors in memory (views of a mapped file, as a rule) and is called with
// activations. Every complaint is a std::invalid_argument.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers.h"
#include "mlx/array.h"

namespace gptoss {

// A tensor row by row in memory, and what keeps it there.
struct Tensor {
  explicit Tensor(const mlx::core::array& a);  // evaluates it
  // Mapped from byte `start` of a file: MLX's allocator does not count it. Throws std::runtime_error.
  Tensor(const std::string& path, size_t start, mlx::core::Dtype dtype, mlx::core::Shape shape);

  mlx::core::Dtype dtype;
  mlx::core::Shape shape;
  std::shared_ptr<const void> owner;
  const uint8_t* data;
};

// A weight as config.json describes it. `mode` is MLX's "mxfp4" or "affine", or "bf16" without scales.
struct StoredMatrix {
  std::string mode;
  int bits, group;
  Tensor weight;
  std::optional<Tensor> scales, biases;
  std::optional<Tensor> bias;  // of the linear map
};

// A stored matrix of `rows` and `columns`, or a stack of `count` of them, checked, with pointers into tensors that it
// keeps.
class HeldLinear {
 public:
  HeldLinear(const std::string& name, const StoredMatrix& stored, int count, int rows, int columns);

  Linear linear;

 private:
  std::vector<Tensor> tensors_;
};

// A BF16 vector, or another array, that is evaluated and contiguous.
class HeldVector {
 public:
  HeldVector(const std::string& name, const mlx::core::array& values, mlx::core::Dtype dtype, int size);

  template <class T>
  const T* data() const {
    return array_.data<T>();
  }

 private:
  mlx::core::array array_;
};

// Rows `index` [...] of a matrix [rows, columns] -> [..., columns], read by the CPU when they are evaluated. A number
// out of range is an exception then.
mlx::core::array rows_of(const Tensor& matrix, const mlx::core::array& index);

// x [..., columns] FP32 -> [..., rows] FP32
class LinearMap {
 public:
  LinearMap(const StoredMatrix& stored, int rows, int columns);
  mlx::core::array operator()(const mlx::core::array& x) const;

 private:
  std::shared_ptr<const HeldLinear> held_;
};

struct AttentionSizes {
  int hidden, heads, kv_heads, head_dim, window;  // window 0: a full layer
  float eps, scale;
};

class AttentionLayer {
 public:
  AttentionLayer(const AttentionSizes& sizes, const mlx::core::array& norm, const StoredMatrix& query,
                 const StoredMatrix& key, const StoredMatrix& value, const StoredMatrix& output,
                 const mlx::core::array& sinks, const mlx::core::array& freqs);

  // x [1, L, hidden] FP32 at positions offset.., and the buffers of its KV cache -> x + attention(norm(x)), and the
  // buffers with keys and values of x stored. They are taken over: the arrays that were passed in must not be used any
  // more. The buffers are keys and values in BF16 [1, kv_heads, capacity, head_dim]; in a full layer they may be an
  // 8-bit KV cache in MLX's affine form, one group a head: codes, scales and biases of the keys, then of the values.
  std::vector<mlx::core::array> operator()(const mlx::core::array& x, const std::vector<mlx::core::array>& buffers,
                                           int offset) const;

  // The same for tokens of several conversations [1, conversations, hidden], each at its offset and with its buffers.
  // They must be different arrays. Returns the sum, and all buffers one after another.
  std::vector<mlx::core::array> together(const mlx::core::array& x,
                                         const std::vector<std::vector<mlx::core::array>>& buffers,
                                         const std::vector<int>& offsets) const;

  // The middle of it, for tests: q [1, L, heads, head_dim], k and v [1, L, kv_heads, head_dim], all FP32, rotated.
  std::vector<mlx::core::array> attend(const mlx::core::array& q, const mlx::core::array& k, const mlx::core::array& v,
                                       const std::vector<mlx::core::array>& buffers, int offset) const;

  struct Held;

 private:
  void check_buffers(const std::vector<mlx::core::array>& buffers, int tokens, int offset) const;

  AttentionSizes sizes_;
  std::shared_ptr<const Held> held_;
};

struct MoeSizes {
  int hidden, intermediate, experts, experts_per_token;
  int slots;  // matrices in the stacks of gate, up and down
  float eps, limit;
};

class MoeLayer {
 public:
  MoeLayer(const MoeSizes& sizes, const mlx::core::array& norm, const StoredMatrix& router, const StoredMatrix& gate,
           const StoredMatrix& up, const StoredMatrix& down);

  // x [1, L, hidden] FP32 -> x + moe(norm(x)), where the stacks hold all experts
  mlx::core::array operator()(const mlx::core::array& x) const;

  // The same in parts, where they hold some: see layers.h. Numbers out of range are found when the result is evaluated,
  // and are an exception then.
  //
  // x [1, L, hidden] -> normed [L, hidden] FP32, chosen [L, k] int32, routing weights [L, k] FP32
  std::vector<mlx::core::array> route(const mlx::core::array& x) const;
  // normed, slots [L, k] int32, outputs [L, k, hidden] FP32, which are taken over -> outputs
  mlx::core::array expert_outputs(const mlx::core::array& normed, const mlx::core::array& slots,
                                  const mlx::core::array& outputs) const;
  // -> [1, L, hidden]
  mlx::core::array combine(const mlx::core::array& x, const mlx::core::array& chosen,
                           const mlx::core::array& routing_weights, const mlx::core::array& outputs) const;

  struct Held;

 private:
  MoeSizes sizes_;
  std::shared_ptr<const Held> held_;
};

// The threads of all layers, the caller's included, and how many there are from now on. Throws for a count below 1.
std::shared_ptr<Pool> pool();
void set_threads(int count);

}  // namespace gptoss
