#include "primitives.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <sstream>
#include <stdexcept>

#include "memory_map.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mx = mlx::core;

namespace gptoss {

namespace {

std::string described(mx::Dtype dtype, const mx::Shape& shape) {
  std::ostringstream text;
  text << dtype << " [";
  for (size_t i = 0; i < shape.size(); i++) text << (i ? ", " : "") << shape[i];
  text << "]";
  return text.str();
}

void expect(const std::string& name, mx::Dtype is, const mx::Shape& is_shape, mx::Dtype dtype, const mx::Shape& shape) {
  if (is == dtype && is_shape == shape) return;
  throw std::invalid_argument(name + " is " + described(is, is_shape) + ", not " + described(dtype, shape));
}

void expect(const std::string& name, const mx::array& a, mx::Dtype dtype, const mx::Shape& shape) {
  expect(name, a.dtype(), a.shape(), dtype, shape);
}

// The array row by row in memory. (Of a view of a large buffer, as a mapped file is, `contiguous` makes a copy.)
mx::array in_rows(const mx::array& a) { return mx::contiguous(a, false, mx::Device::cpu); }

// The array evaluated and row by row in memory: a view of a mapped file stays one.
mx::array settled(mx::array a) {
  a.eval();
  if (a.flags().row_contiguous) return a;
  mx::array copy = in_rows(a);
  copy.eval();
  return copy;
}

std::mutex pool_mutex;
std::shared_ptr<Pool>& pool_slot() {
  static std::shared_ptr<Pool> pool = std::make_shared<Pool>(fast_cores());
  return pool;
}

// A primitive whose work is one task on the CPU stream. Its inputs have to be row by row in memory.
class Task : public mx::Primitive {
 public:
  using Work = std::function<void(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs)>;

  // The last `taken_over` outputs are the last inputs, whose buffers they take over.
  Task(const char* name, int taken_over, Work work)
      : Primitive(mx::default_stream(mx::Device::cpu)), name_(name), taken_over_(taken_over), work_(std::move(work)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (const auto& input : inputs) {
      if (!input.flags().row_contiguous) throw std::runtime_error(std::string(name_) + " was given a strided array");
    }
    const size_t fresh = outputs.size() - taken_over_;
    for (size_t i = 0; i < outputs.size(); i++) {
      if (i < fresh) outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
      else outputs[i].copy_shared_buffer(inputs[inputs.size() - outputs.size() + i]);
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const auto& input : inputs) encoder.set_input_array(input);
    for (auto& output : outputs) encoder.set_output_array(output);
    std::vector<mx::array> from, to;
    for (const auto& input : inputs) from.push_back(mx::array::unsafe_weak_copy(input));
    for (const auto& output : outputs) to.push_back(mx::array::unsafe_weak_copy(output));
    encoder.dispatch([work = work_, from = std::move(from), to = std::move(to)]() mutable { work(from, to); });
  }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name_) + " runs on the CPU alone");
  }
  const char* name() const override { return name_; }

 private:
  const char* name_;
  size_t taken_over_;
  Work work_;
};

std::vector<mx::array> run(const char* name, std::vector<mx::Shape> shapes, std::vector<mx::Dtype> dtypes,
                           int taken_over, std::vector<mx::array> inputs, Task::Work work) {
  return mx::array::make_arrays(std::move(shapes), dtypes, std::make_shared<Task>(name, taken_over, std::move(work)),
                                inputs);
}

Format format_of(const std::string& name, const StoredMatrix& stored) {
  if (stored.mode == "bf16") return Format::bf16;
  if (stored.mode == "mxfp4" && stored.bits == 4 && stored.group == block) return Format::mxfp4;
  bool group = stored.group == 32 || stored.group == 64 || stored.group == 128;
  if (stored.mode == "affine" && group && stored.bits == 4) return Format::affine4;
  if (stored.mode == "affine" && group && stored.bits == 8) return Format::affine8;
  throw std::invalid_argument(name + ": no kernel for " + stored.mode + " with " + std::to_string(stored.bits) +
                              " bits in groups of " + std::to_string(stored.group));
}

}  // namespace

Tensor::Tensor(const mx::array& a) : dtype(a.dtype()), shape(a.shape()) {
  auto array = std::make_shared<const mx::array>(settled(a));
  owner = array;
  data = array->data<uint8_t>();
}

Tensor::Tensor(const std::string& path, size_t start, mx::Dtype dtype, mx::Shape shape)
    : dtype(dtype), shape(std::move(shape)) {
  size_t size = mx::size_of(dtype);
  for (int32_t length : this->shape) size *= length;
  auto bytes = map_bytes(path, start, start + size);
  owner = bytes;
  data = bytes.get();
}

HeldLinear::HeldLinear(const std::string& name, const StoredMatrix& stored, int count, int rows, int columns) {
  const Format format = format_of(name, stored);
  const int group = format == Format::bf16 ? block : stored.group;
  if (rows < 1 || count < 1 || columns < 1 || columns % block || columns % group) {
    throw std::invalid_argument(name + ": no kernel for " + std::to_string(rows) + " rows of " +
                                std::to_string(columns) + " columns in groups of " + std::to_string(group));
  }
  auto shape = [&](int last) { return count == 1 ? mx::Shape{rows, last} : mx::Shape{count, rows, last}; };
  auto held = [&](const char* part, const std::optional<Tensor>& t, mx::Dtype dtype, mx::Shape wanted) {
    if (!t) throw std::invalid_argument(name + " has no " + part);
    expect(name + "." + part, t->dtype, t->shape, dtype, wanted);
    tensors_.push_back(*t);
    return t->data;
  };
  auto as_bf16 = [](const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); };
  const bool affine = format == Format::affine4 || format == Format::affine8;
  const mx::Dtype dtype = format == Format::bf16 ? mx::bfloat16 : mx::uint32;
  const int words = format == Format::bf16 ? columns : columns * stored.bits / 32;
  linear.matrix = {format, group, rows, columns, held("weight", stored.weight, dtype, shape(words)), nullptr, nullptr};
  if (format == Format::mxfp4) linear.matrix.scales = held("scales", stored.scales, mx::uint8, shape(columns / group));
  if (affine) {
    linear.matrix.scales = held("scales", stored.scales, mx::bfloat16, shape(columns / group));
    linear.matrix.biases = as_bf16(held("biases", stored.biases, mx::bfloat16, shape(columns / group)));
  }
  linear.bias = nullptr;
  if (stored.bias) {
    mx::Shape wanted = count == 1 ? mx::Shape{rows} : mx::Shape{count, rows};
    linear.bias = as_bf16(held("bias", stored.bias, mx::bfloat16, wanted));
  }
}

HeldVector::HeldVector(const std::string& name, const mx::array& values, mx::Dtype dtype, int size)
    : array_((expect(name, values, dtype, {size}), settled(values))) {}

LinearMap::LinearMap(const StoredMatrix& stored, int rows, int columns)
    : held_(std::make_shared<HeldLinear>("linear", stored, 1, rows, columns)) {}

mx::array LinearMap::operator()(const mx::array& x) const {
  const Matrix& m = held_->linear.matrix;
  if (x.dtype() != mx::float32 || x.ndim() == 0 || x.shape(-1) != m.columns) {
    throw std::invalid_argument("x is " + described(x.dtype(), x.shape()) + ", not float32 [..., " +
                                std::to_string(m.columns) + "]");
  }
  mx::Shape shape = x.shape();
  shape.back() = m.rows;
  return run("gptoss_linear", {shape}, {mx::float32}, 0, {in_rows(x)}, [held = held_](const auto& in, auto& out) {
    const int tokens = int(in[0].size() / held->linear.matrix.columns);
    linear(*pool(), held->linear, in[0].template data<float>(), tokens, out[0].template data<float>());
  })[0];
}

struct AttentionLayer::Held {
  HeldVector norm;
  HeldLinear query, key, value, output;
  HeldVector sinks, freqs;
  AttentionWeights weights;
};

AttentionLayer::AttentionLayer(const AttentionSizes& s, const mx::array& norm, const StoredMatrix& query,
                               const StoredMatrix& key, const StoredMatrix& value, const StoredMatrix& output,
                               const mx::array& sinks, const mx::array& freqs)
    : sizes_(s) {
  if (s.heads < 1 || s.kv_heads < 1 || s.heads % s.kv_heads || s.head_dim % 32 || s.head_dim < 32 || s.window < 0) {
    throw std::invalid_argument("no kernel for " + std::to_string(s.heads) + " heads of " + std::to_string(s.head_dim) +
                                " over " + std::to_string(s.kv_heads) + " KV heads");
  }
  auto held = std::make_shared<Held>(Held{{"norm", norm, mx::bfloat16, s.hidden},
                                          {"query", query, 1, s.heads * s.head_dim, s.hidden},
                                          {"key", key, 1, s.kv_heads * s.head_dim, s.hidden},
                                          {"value", value, 1, s.kv_heads * s.head_dim, s.hidden},
                                          {"output", output, 1, s.hidden, s.heads * s.head_dim},
                                          {"sinks", sinks, mx::bfloat16, s.heads},
                                          {"freqs", freqs, mx::float32, s.head_dim / 2},
                                          {}});
  held->weights = {{held->norm.data<uint16_t>(), s.eps},
                   held->query.linear,
                   held->key.linear,
                   held->value.linear,
                   held->output.linear,
                   held->sinks.data<uint16_t>(),
                   held->freqs.data<float>(),
                   s.heads,
                   s.kv_heads,
                   s.head_dim,
                   s.window,
                   s.scale};
  held_ = held;
}

void AttentionLayer::check_buffers(const std::vector<mx::array>& buffers, int tokens, int offset) const {
  const bool bytes = buffers.size() == 6;
  if (buffers.size() != 2 && !bytes) throw std::invalid_argument("a KV cache has 2 buffers, or 6 with 8 bits");
  if (bytes && sizes_.window) throw std::invalid_argument("a sliding layer keeps BF16");
  const int capacity = buffers[0].ndim() == 4 ? buffers[0].shape(2) : 0;
  auto expect_width = [&](const char* name, size_t i, mx::Dtype dtype, int width) {
    expect(name, buffers[i], dtype, {1, sizes_.kv_heads, capacity, width});
  };
  for (size_t i = 0; i < buffers.size(); i += buffers.size() / 2) {
    const std::string name = i ? "values" : "keys";
    expect_width(name.c_str(), i, bytes ? mx::uint32 : mx::bfloat16, bytes ? sizes_.head_dim / 4 : sizes_.head_dim);
    for (size_t part = 1; bytes && part < 3; part++) {
      expect_width((name + (part == 1 ? ".scales" : ".biases")).c_str(), i + part, mx::bfloat16, 1);
    }
  }
  if (tokens < 1 || offset < 0) throw std::invalid_argument("attention needs a token, at a position from 0");
  const bool fits = sizes_.window ? capacity == sizes_.window : tokens <= capacity - offset;
  if (!fits) {
    throw std::invalid_argument(std::to_string(tokens) + " tokens at position " + std::to_string(offset) +
                                " do not fit keys of " + std::to_string(capacity) + " positions");
  }
}

namespace {

// The `count` outputs from `first` on are the buffers.
KV kv_of(std::vector<mx::array>& outputs, size_t first, size_t count) {
  auto pointer = [&](size_t i) { return outputs[first + i].data<uint16_t>(); };
  const int capacity = outputs[first].shape(2);
  if (count == 2) return {{pointer(0)}, {pointer(1)}, capacity};
  return {{pointer(0), pointer(1), pointer(2)}, {pointer(3), pointer(4), pointer(5)}, capacity};
}

// One task with the buffers of a KV cache after its own inputs, and after its one own output.
std::vector<mx::array> run_with_buffers(const char* name, const mx::Shape& shape, std::vector<mx::array> inputs,
                                        const std::vector<mx::array>& buffers, Task::Work work) {
  std::vector<mx::Shape> shapes{shape};
  std::vector<mx::Dtype> dtypes{mx::float32};
  for (const auto& buffer : buffers) {
    shapes.push_back(buffer.shape());
    dtypes.push_back(buffer.dtype());
    inputs.push_back(buffer);
  }
  return run(name, std::move(shapes), std::move(dtypes), int(buffers.size()), std::move(inputs), std::move(work));
}

}  // namespace

std::vector<mx::array> AttentionLayer::operator()(const mx::array& x, const std::vector<mx::array>& buffers,
                                                  int offset) const {
  const int tokens = x.ndim() == 3 ? x.shape(1) : 0;
  expect("x", x, mx::float32, {1, tokens, sizes_.hidden});
  check_buffers(buffers, tokens, offset);
  return run_with_buffers("gptoss_attention", x.shape(), {in_rows(x)}, buffers,
                          [held = held_, tokens, offset](const auto& in, auto& out) {
                            attention(*pool(), held->weights, in[0].template data<float>(),
                                      {{tokens, offset, kv_of(out, 1, out.size() - 1)}}, out[0].template data<float>());
                          });
}

std::vector<mx::array> AttentionLayer::together(const mx::array& x, const std::vector<std::vector<mx::array>>& buffers,
                                                const std::vector<int>& offsets) const {
  expect("x", x, mx::float32, {1, int(offsets.size()), sizes_.hidden});
  if (buffers.empty() || buffers.size() != offsets.size()) throw std::invalid_argument("each offset needs buffers");
  std::vector<mx::array> all;
  for (size_t i = 0; i < offsets.size(); i++) {
    check_buffers(buffers[i], 1, offsets[i]);
    if (buffers[i].size() != buffers[0].size()) throw std::invalid_argument("some buffers have 8 bits, others 16");
    all.insert(all.end(), buffers[i].begin(), buffers[i].end());
  }
  return run_with_buffers("gptoss_attention", x.shape(), {in_rows(x)}, all,
                          [held = held_, offsets, each = buffers[0].size()](const auto& in, auto& out) {
                            std::vector<Sequence> sequences;
                            for (size_t i = 0; i < offsets.size(); i++) {
                              sequences.push_back({1, offsets[i], kv_of(out, 1 + i * each, each)});
                            }
                            attention(*pool(), held->weights, in[0].template data<float>(), sequences,
                                      out[0].template data<float>());
                          });
}

std::vector<mx::array> AttentionLayer::attend(const mx::array& q, const mx::array& k, const mx::array& v,
                                              const std::vector<mx::array>& buffers, int offset) const {
  const int tokens = q.ndim() == 4 ? q.shape(1) : 0;
  expect("q", q, mx::float32, {1, tokens, sizes_.heads, sizes_.head_dim});
  expect("k", k, mx::float32, {1, tokens, sizes_.kv_heads, sizes_.head_dim});
  expect("v", v, mx::float32, {1, tokens, sizes_.kv_heads, sizes_.head_dim});
  check_buffers(buffers, tokens, offset);
  return run_with_buffers("gptoss_attend", q.shape(), {in_rows(q), in_rows(k), in_rows(v)}, buffers,
                          [held = held_, tokens, offset](const auto& in, auto& out) {
                            gptoss::attend(*pool(), held->weights, in[0].template data<float>(),
                                           in[1].template data<float>(), in[2].template data<float>(), tokens, offset,
                                           kv_of(out, 1, out.size() - 1), out[0].template data<float>());
                          });
}

struct MoeLayer::Held {
  HeldVector norm;
  HeldLinear router, gate, up, down;
  MoeWeights weights;
};

MoeLayer::MoeLayer(const MoeSizes& s, const mx::array& norm, const StoredMatrix& router, const StoredMatrix& gate,
                   const StoredMatrix& up, const StoredMatrix& down)
    : sizes_(s) {
  if (s.experts_per_token < 1 || s.experts < s.experts_per_token) {
    throw std::invalid_argument(std::to_string(s.experts_per_token) + " of " + std::to_string(s.experts) + " experts");
  }
  auto held = std::make_shared<Held>(Held{{"norm", norm, mx::bfloat16, s.hidden},
                                          {"router", router, 1, s.experts, s.hidden},
                                          {"gate", gate, s.slots, s.intermediate, s.hidden},
                                          {"up", up, s.slots, s.intermediate, s.hidden},
                                          {"down", down, s.slots, s.hidden, s.intermediate},
                                          {}});
  const Linear &g = held->gate.linear, &u = held->up.linear, &d = held->down.linear;
  if (!g.bias || !u.bias || !d.bias) throw std::invalid_argument("an expert has no bias");
  if (g.matrix.format != u.matrix.format || g.matrix.group != u.matrix.group) {
    throw std::invalid_argument("gate and up are stored in different forms");
  }
  held->weights = {{held->norm.data<uint16_t>(), s.eps},
                   held->router.linear,
                   g,
                   u,
                   d,
                   s.experts,
                   s.experts_per_token,
                   s.slots,
                   s.limit};
  held_ = held;
}

namespace {

int tokens_of(const mx::array& x, int hidden) {
  const int tokens = x.ndim() == 3 ? x.shape(1) : 0;
  expect("x", x, mx::float32, {1, tokens, hidden});
  return tokens;
}

// Throws unless every number is at least `start` and below `end`.
void check_numbers(const char* what, const mx::array& numbers, int start, int end) {
  for (size_t i = 0; i < numbers.size(); i++) {
    const int number = numbers.data<int>()[i];
    if (number < start || number >= end) {
      throw std::invalid_argument("there is no " + std::string(what) + " " + std::to_string(number));
    }
  }
}

}  // namespace

mx::array rows_of(const Tensor& matrix, const mx::array& index) {
  if (matrix.shape.size() != 2) throw std::invalid_argument("the rows of no matrix");
  expect("index", index, mx::int32, index.shape());
  mx::Shape shape = index.shape();
  shape.push_back(matrix.shape[1]);
  return run("gptoss_rows", {shape}, {matrix.dtype}, 0, {in_rows(index)}, [matrix](const auto& in, auto& out) {
    check_numbers("row", in[0], 0, matrix.shape[0]);
    const size_t bytes = matrix.shape[1] * mx::size_of(matrix.dtype);
    auto* to = out[0].template data<uint8_t>();
    for (size_t i = 0; i < in[0].size(); i++) {
      std::memcpy(to + i * bytes, matrix.data + in[0].template data<int>()[i] * bytes, bytes);
    }
  })[0];
}

mx::array MoeLayer::operator()(const mx::array& x) const {
  const int tokens = tokens_of(x, sizes_.hidden);
  if (sizes_.slots != sizes_.experts) throw std::invalid_argument("not every expert is in the stacks");
  return run("gptoss_moe", {x.shape()}, {mx::float32}, 0, {in_rows(x)},
             [held = held_, tokens](const auto& in, auto& out) {
               moe(*pool(), held->weights, in[0].template data<float>(), tokens, out[0].template data<float>());
             })[0];
}

std::vector<mx::array> MoeLayer::route(const mx::array& x) const {
  const int tokens = tokens_of(x, sizes_.hidden), k = sizes_.experts_per_token;
  return run("gptoss_route", {{tokens, sizes_.hidden}, {tokens, k}, {tokens, k}}, {mx::float32, mx::int32, mx::float32},
             0, {in_rows(x)}, [held = held_, tokens](const auto& in, auto& out) {
               gptoss::route(*pool(), held->weights, in[0].template data<float>(), tokens,
                             out[0].template data<float>(), out[1].template data<int>(), out[2].template data<float>());
             });
}

mx::array MoeLayer::expert_outputs(const mx::array& normed, const mx::array& slots, const mx::array& outputs) const {
  const int tokens = normed.ndim() == 2 ? normed.shape(0) : 0, k = sizes_.experts_per_token;
  expect("normed", normed, mx::float32, {tokens, sizes_.hidden});
  expect("slots", slots, mx::int32, {tokens, k});
  expect("outputs", outputs, mx::float32, {tokens, k, sizes_.hidden});
  return run("gptoss_expert_outputs", {outputs.shape()}, {mx::float32}, 1, {in_rows(normed), in_rows(slots), outputs},
             [held = held_, tokens](const auto& in, auto& out) {
               check_numbers("slot", in[1], std::numeric_limits<int>::min(), held->weights.slots);
               gptoss::expert_outputs(*pool(), held->weights, in[0].template data<float>(), in[1].template data<int>(),
                                      tokens, out[0].template data<float>());
             })[0];
}

mx::array MoeLayer::combine(const mx::array& x, const mx::array& chosen, const mx::array& routing_weights,
                            const mx::array& outputs) const {
  const int tokens = tokens_of(x, sizes_.hidden), k = sizes_.experts_per_token;
  expect("chosen", chosen, mx::int32, {tokens, k});
  expect("routing_weights", routing_weights, mx::float32, {tokens, k});
  expect("outputs", outputs, mx::float32, {tokens, k, sizes_.hidden});
  return run("gptoss_combine", {x.shape()}, {mx::float32}, 0,
             {in_rows(x), in_rows(chosen), in_rows(routing_weights), in_rows(outputs)},
             [held = held_, tokens](const auto& in, auto& out) {
               gptoss::combine(*pool(), held->weights, in[0].template data<float>(), in[1].template data<int>(),
                               in[2].template data<float>(), in[3].template data<float>(), tokens,
                               out[0].template data<float>());
             })[0];
}

void set_threads(int count) {
  if (count < 1 || count > 1024) throw std::invalid_argument("the number of threads is from 1 to 1024");
  auto fresh = std::make_shared<Pool>(count);
  std::lock_guard lock(pool_mutex);
  pool_slot() = fresh;
}

std::shared_ptr<Pool> pool() {
  std::lock_guard lock(pool_mutex);
  return pool_slot();
}

}  // namespace gptoss
