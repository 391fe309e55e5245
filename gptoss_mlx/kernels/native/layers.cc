#include "layers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "simd_portable.h"

namespace gptoss {

namespace {

constexpr int positions_per_task = 512;  // of one KV head, where one token attends to a long context
constexpr int queries_per_task = 64;     // of one KV head, where several tokens do

struct Rows {
  int first, last;
  int count() const { return last - first; }
};

// The tasks that the rows of a product are divided into.
struct Slices {
  int rows, each;

  int count() const { return (rows + each - 1) / each; }
  Rows operator[](int task) const { return {task * each, std::min(rows, (task + 1) * each)}; }
};

// With few tokens a task reads memory, whose speed comes with length; but no thread should wait long for the last one.
// With many it has to be worth arranging the tokens for. Whole units are whole vectors, which the activation in between
// works on. `matrices` of `rows` are divided together.
Slices sliced(const Pool& pool, int rows, int tokens, int matrices = 1) {
  constexpr int tasks_per_thread = 6, unit = 32, longest = 480, many_tokens = 288;
  if (tokens > few_tokens) return {rows, many_tokens};
  const int units = rows * matrices / (tasks_per_thread * pool.threads() * unit);
  return {rows, std::clamp(units * unit, unit, longest)};
}

// Activations of several tokens, quantized for one matrix.
struct Quantized {
  ActivationRows rows;
  std::vector<Activations> each;

  Quantized(const Matrix& matrix, int tokens) : rows(matrix, tokens) {
    for (int t = 0; t < tokens; t++) each.push_back(rows.row(t));
  }

  void set(int t, const float* x) { kernels().quantize(x, rows.columns, rows.format, rows.group, each[t]); }
};

// x [tokens, columns], for a matrix of as many columns.
Quantized quantized(Pool& pool, const Matrix& matrix, const float* x, int tokens) {
  Quantized input(matrix, tokens);
  pool.for_each(tokens, [&](int t) { input.set(t, x + size_t(t) * matrix.columns); });
  return input;
}

bool same_form(const Matrix& a, const Matrix& b) {
  return a.format == b.format && a.group == b.group && a.columns == b.columns;
}

std::vector<float>& scratch() {
  thread_local std::vector<float> values;
  return values;
}

// Rows of `weights` times all tokens, bias included: [tokens][rows.count()].
void multiply(const Linear& weights, Rows rows, const Activations* x, int tokens, float* out) {
  kernels().multiply(weights.matrix, rows.first, rows.last, x, tokens, out);
  if (!weights.bias) return;
  for (int t = 0; t < tokens; t++) {
    for (int i = 0; i < rows.count(); i++) out[t * rows.count() + i] += float_of_bf16(weights.bias[rows.first + i]);
  }
}

// out[t * stride + row] = product, plus `residual` of the same layout where there is one.
void multiply_into(const Linear& weights, Rows rows, const Activations* x, int tokens, const float* residual,
                   float* out, int stride) {
  auto& tile = scratch();
  tile.resize(size_t(tokens) * rows.count());
  multiply(weights, rows, x, tokens, tile.data());
  for (int t = 0; t < tokens; t++) {
    const float* from = tile.data() + size_t(t) * rows.count();
    size_t at = size_t(t) * stride + rows.first;
    for (int i = 0; i < rows.count(); i++) out[at + i] = from[i] + (residual ? residual[at + i] : 0);
  }
}

struct Angles {
  std::vector<float> cos, sin;

  Angles(const float* freqs, int pairs, int position) : cos(pairs), sin(pairs) {
    for (int i = 0; i < pairs; i++) {
      double angle = position / double(freqs[i]);
      cos[i] = float(std::cos(angle)), sin[i] = float(std::sin(angle));
    }
  }
};

// Rotates the halves of each of `heads` vectors x [heads, dim] against each other.
void rotate(float* x, int heads, int dim, const Angles& angles) {
  for (int h = 0; h < heads; h++, x += dim) {
    for (int i = 0; i < dim / 2; i++) {
      float a = x[i], b = x[i + dim / 2];
      x[i] = a * angles.cos[i] - b * angles.sin[i];
      x[i + dim / 2] = b * angles.cos[i] + a * angles.sin[i];
    }
  }
}

}  // namespace

void linear(Pool& pool, const Linear& weights, const float* x, int tokens, float* out) {
  Quantized input = quantized(pool, weights.matrix, x, tokens);
  Slices slices = sliced(pool, weights.matrix.rows, tokens);
  pool.for_each(slices.count(), [&](int task) {
    multiply_into(weights, slices[task], input.each.data(), tokens, nullptr, out, weights.matrix.rows);
  });
}

void attend(Pool& pool, const AttentionWeights& w, const float* q, const float* k, const float* v, int tokens,
            int offset, KV kv, float* out) {
  const int dim = w.head_dim, group = w.heads / w.kv_heads;
  const size_t row = size_t(w.kv_heads) * dim;
  const bool ring = w.window > 0;

  // Several tokens of a sliding layer may see positions that their own keys overwrite in the ring: what they see is set
  // aside, in order.
  const bool in_order = ring && tokens > 1;
  const int before = ring ? std::min(offset, w.window - 1) : offset;
  std::vector<uint16_t> aside;
  KV seen = kv;
  if (in_order) {
    seen.capacity = before + tokens;
    aside.resize(2 * seen.capacity * row);
    seen.keys.codes = aside.data(), seen.values.codes = aside.data() + seen.capacity * row;
  }
  pool.for_each(w.kv_heads, [&](int head) {
    if (in_order) {
      auto copy = [&](const StoredVectors& from, const StoredVectors& to, int slot, int i) {
        const auto* vector = static_cast<const uint16_t*>(from.codes) + (size_t(head) * kv.capacity + slot) * dim;
        std::copy_n(vector, dim, static_cast<uint16_t*>(to.codes) + (size_t(head) * seen.capacity + i) * dim);
      };
      for (int i = 0; i < before; i++) {
        const int slot = (offset - before + i) % w.window;
        copy(kv.keys, seen.keys, slot, i);
        copy(kv.values, seen.values, slot, i);
      }
    }
    for (int t = 0; t < tokens; t++) {
      const size_t slot = size_t(head) * kv.capacity + (ring ? (offset + t) % w.window : offset + t);
      const float *key = k + t * row + head * dim, *value = v + t * row + head * dim;
      store_vector(key, dim, slot, kv.keys);
      store_vector(value, dim, slot, kv.values);
      if (in_order) {
        store_vector(key, dim, size_t(head) * seen.capacity + before + t, seen.keys);
        store_vector(value, dim, size_t(head) * seen.capacity + before + t, seen.values);
      }
    }
  });

  // One token over a long context is divided by positions, and the parts are put together at the end. Of several, those
  // that see all positions before them meet keys and values together, which are then unpacked once for all of them.
  const int parts = tokens > 1 ? 1 : (before + 1 + positions_per_task - 1) / positions_per_task;
  const int together = ring ? 1 : std::clamp(queries_per_task / group, 1, tokens);
  const int tiles = (tokens + together - 1) / together, rows = together * group;  // of a task
  std::vector<float> values(size_t(tiles) * w.kv_heads * parts * rows * dim);
  std::vector<Attended> states(size_t(tiles) * w.kv_heads * parts * rows);
  pool.for_each(tiles * w.kv_heads * parts, [&](int task) {
    const int part = task % parts, head = task / parts % w.kv_heads, t = task / parts / w.kv_heads * together;
    const int count = std::min(together, tokens - t);
    int last = ring && !in_order ? std::min(offset + 1, w.window) : before + t + count;
    int first = ring ? std::max(0, last - w.window) : 0;
    first += part * positions_per_task;
    if (parts > 1) last = std::min(last, first + positions_per_task);

    thread_local std::vector<float> scaled;
    scaled.resize(size_t(rows) * dim);
    Attended* state = states.data() + size_t(task) * rows;
    for (int i = 0; i < count * group; i++) {
      const int query_head = head * group + i % group;
      const float* query = q + (size_t(t + i / group) * w.heads + query_head) * dim;
      for (int d = 0; d < dim; d++) scaled[size_t(i) * dim + d] = query[d] * w.scale;
      const float sink = float_of_bf16(w.sinks[query_head]);  // a score without a value, counted once
      state[i] = {sink, part == 0 ? 1.0f : 0.0f, values.data() + (size_t(task) * rows + i) * dim};
    }
    const size_t from = size_t(head) * seen.capacity + first;
    kernels().attend(scaled.data(), count, group, dim, from_vector(seen.keys, from, dim),
                     from_vector(seen.values, from, dim), last - first, state);
  });
  for (int i = 0; i < tokens * w.heads; i++) {
    const int head = i % w.heads, t = i / w.heads, task = (t / together * w.kv_heads + head / group) * parts;
    Attended* state = states.data() + size_t(task) * rows + t % together * group + head % group;
    float max = state[0].max, weight = 0;
    for (int part = 1; part < parts; part++) max = std::max(max, state[part * rows].max);
    float* to = out + size_t(i) * dim;
    std::fill_n(to, dim, 0.0f);
    for (int part = 0; part < parts; part++) {
      const float factor = std::exp(state[part * rows].max - max);
      weight += factor * state[part * rows].weight;
      for (int d = 0; d < dim; d++) to[d] += factor * state[part * rows].value[d];
    }
    for (int d = 0; d < dim; d++) to[d] /= weight;
  }
}

void attention(Pool& pool, const AttentionWeights& w, const float* x, const std::vector<Sequence>& sequences,
               float* out) {
  const int hidden = w.query.matrix.columns;
  std::vector<int> positions;  // of each token
  for (const Sequence& s : sequences) {
    for (int t = 0; t < s.tokens; t++) positions.push_back(s.offset + t);
  }
  const int tokens = int(positions.size());
  const Linear* projections[] = {&w.query, &w.key, &w.value};
  std::vector<float> results[3];
  std::vector<Quantized> inputs;  // one for all three where they are stored alike
  std::vector<Slices> slices;
  int input_of[3], first_task[4] = {};
  for (int p = 0; p < 3; p++) {
    const Matrix& m = projections[p]->matrix;
    results[p].resize(size_t(tokens) * m.rows);
    if (p == 0 || !same_form(m, projections[p - 1]->matrix)) inputs.emplace_back(m, tokens);
    input_of[p] = int(inputs.size()) - 1;
    slices.push_back(sliced(pool, m.rows, tokens));
    first_task[p + 1] = first_task[p] + slices[p].count();
  }
  pool.for_each(tokens, [&](int t) {
    auto& normed = scratch();
    normed.resize(hidden);
    kernels().rms_norm(x + size_t(t) * hidden, w.norm.weight, hidden, w.norm.eps, normed.data());
    for (auto& input : inputs) input.set(t, normed.data());
  });
  pool.for_each(first_task[3], [&](int task) {
    int p = task < first_task[1] ? 0 : task < first_task[2] ? 1 : 2;
    multiply_into(*projections[p], slices[p][task - first_task[p]], inputs[input_of[p]].each.data(), tokens, nullptr,
                  results[p].data(), slices[p].rows);
  });
  std::vector<float>& q = results[0];
  std::vector<float>& k = results[1];
  std::vector<float>& v = results[2];
  pool.for_each(tokens, [&](int t) {
    Angles angles(w.freqs, w.head_dim / 2, positions[t]);
    rotate(q.data() + size_t(t) * w.heads * w.head_dim, w.heads, w.head_dim, angles);
    rotate(k.data() + size_t(t) * w.kv_heads * w.head_dim, w.kv_heads, w.head_dim, angles);
  });
  std::vector<float> attended(q.size());
  size_t first = 0;  // token of a sequence
  for (const Sequence& s : sequences) {
    const size_t query = first * w.heads * w.head_dim, key = first * w.kv_heads * w.head_dim;
    attend(pool, w, q.data() + query, k.data() + key, v.data() + key, s.tokens, s.offset, s.kv,
           attended.data() + query);
    first += s.tokens;
  }

  Quantized input = quantized(pool, w.output.matrix, attended.data(), tokens);
  Slices out_slices = sliced(pool, hidden, tokens);
  pool.for_each(out_slices.count(), [&](int task) {
    multiply_into(w.output, out_slices[task], input.each.data(), tokens, x, out, hidden);
  });
}

namespace {

// The pairs of token and place among its chosen experts, in the order of their slots: [begin[e], begin[e + 1]) is e's.
struct Division {
  std::vector<int> pair, begin;

  Division(const int* slots, int pairs, int count) : begin(count + 1) {
    for (int i = 0; i < pairs; i++) {
      if (slots[i] >= 0) begin[slots[i] + 1]++;
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    pair.resize(begin.back());
    std::vector<int> next(begin.begin(), begin.end() - 1);
    for (int i = 0; i < pairs; i++) {
      if (slots[i] >= 0) pair[next[slots[i]]++] = i;
    }
  }
};

Linear of_stack(const Linear& first, int index) {
  return {first.matrix.of_stack(index), first.bias + size_t(index) * first.matrix.rows};
}

// Gives each row of each pair's output to `emit(pair, row, count, values)`, `count` rows from `row` on. A pair is a
// token and one of its experts, which lies in slots[pair]; below 0 it is left out. `input` holds the tokens quantized
// for gate and up. Pairs of one slot are emitted in order, and slots in order, on one thread for the same row.
template <class Emit>
void for_each_output(Pool& pool, const MoeWeights& w, Quantized& input, const int* slots, int tokens,
                     const Emit& emit) {
  const int k = w.experts_per_token, inner = w.gate.matrix.rows, hidden = w.down.matrix.rows;
  Division division(slots, tokens * k, w.slots);
  const int pairs = int(division.pair.size());
  std::vector<int> active;
  for (int e = 0; e < w.slots; e++) {
    if (division.begin[e] < division.begin[e + 1]) active.push_back(e);
  }
  if (active.empty()) return;
  std::vector<Activations> sorted;  // the tokens, in the order of `division`
  for (int p : division.pair) sorted.push_back(input.each[p / k]);

  std::vector<float> between(size_t(pairs) * inner);
  const int pairs_per_expert = pairs / int(active.size());
  Slices slices = sliced(pool, inner, pairs_per_expert, int(active.size()));
  Slices down_slices = sliced(pool, hidden, pairs_per_expert);
  const int tasks = slices.count();
  pool.for_each(int(active.size()) * tasks, [&](int task) {
    const int e = active[task / tasks], begin = division.begin[e], count = division.begin[e + 1] - begin;
    Rows rows = slices[task % tasks];
    auto& tiles = scratch();
    const size_t size = size_t(count) * rows.count();
    tiles.resize(2 * size);
    float *gate = tiles.data(), *up = gate + size;
    multiply(of_stack(w.gate, e), rows, sorted.data() + begin, count, gate);
    multiply(of_stack(w.up, e), rows, sorted.data() + begin, count, up);
    for (int i = 0; i < count; i++) {
      kernels().swiglu(gate + i * rows.count(), up + i * rows.count(), rows.count(), w.limit);
      std::copy_n(gate + i * rows.count(), rows.count(), between.data() + size_t(begin + i) * inner + rows.first);
    }
  });

  Quantized middle = quantized(pool, w.down.matrix, between.data(), pairs);
  pool.for_each(down_slices.count(), [&](int task) {
    Rows rows = down_slices[task];
    for (int e : active) {
      const int begin = division.begin[e], count = division.begin[e + 1] - begin;
      auto& tile = scratch();
      tile.resize(size_t(count) * rows.count());
      multiply(of_stack(w.down, e), rows, middle.each.data() + begin, count, tile.data());
      for (int i = 0; i < count; i++) {
        emit(division.pair[begin + i], rows.first, rows.count(), tile.data() + i * rows.count());
      }
    }
  });
}

// out += factor * values. Compiled once, it rounds one way.
[[gnu::noinline]] void add_scaled(float factor, const float* values, int count, float* out) {
  for (int i = 0; i < count; i++) out[i] += factor * values[i];
}

// The k largest of `scores`, and the softmax over these alone: their routing weights.
void choose(const float* scores, int count, int k, int* chosen, float* routing_weights) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  float total = 0;
  for (int i = 0; i < k; i++) {
    chosen[i] = order[i];
    total += routing_weights[i] = std::exp(scores[order[i]] - scores[order[0]]);
  }
  for (int i = 0; i < k; i++) routing_weights[i] /= total;
}

}  // namespace

void route(Pool& pool, const MoeWeights& w, const float* x, int tokens, float* normed, int* chosen,
           float* routing_weights) {
  const int hidden = w.router.matrix.columns, k = w.experts_per_token;
  Quantized for_router(w.router.matrix, tokens);
  std::vector<float> scores(size_t(tokens) * w.experts);
  pool.for_each(tokens, [&](int t) {
    float* row = normed + size_t(t) * hidden;
    kernels().rms_norm(x + size_t(t) * hidden, w.norm.weight, hidden, w.norm.eps, row);
    for_router.set(t, row);
  });
  Slices slices{w.experts, tokens > few_tokens ? w.experts : 8};
  pool.for_each(slices.count(), [&](int task) {
    multiply_into(w.router, slices[task], for_router.each.data(), tokens, nullptr, scores.data(), w.experts);
  });
  pool.for_each(tokens, [&](int t) {
    choose(scores.data() + size_t(t) * w.experts, w.experts, k, chosen + t * k, routing_weights + t * k);
  });
}

void expert_outputs(Pool& pool, const MoeWeights& w, const float* normed, const int* slots, int tokens,
                    float* outputs) {
  Quantized input = quantized(pool, w.gate.matrix, normed, tokens);
  const int hidden = w.down.matrix.rows;
  for_each_output(pool, w, input, slots, tokens, [&](int pair, int row, int count, const float* values) {
    std::copy_n(values, count, outputs + size_t(pair) * hidden + row);
  });
}

void combine(Pool& pool, const MoeWeights& w, const float* x, const int* chosen, const float* routing_weights,
             const float* outputs, int tokens, float* out) {
  const int hidden = w.down.matrix.rows, k = w.experts_per_token;
  pool.for_each(tokens, [&](int t) {
    std::vector<int> order(k);
    std::iota(order.begin(), order.end(), t * k);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return chosen[a] < chosen[b]; });
    float* row = out + size_t(t) * hidden;
    std::copy_n(x + size_t(t) * hidden, hidden, row);
    for (int pair : order) add_scaled(routing_weights[pair], outputs + size_t(pair) * hidden, hidden, row);
  });
}

void moe(Pool& pool, const MoeWeights& w, const float* x, int tokens, float* out) {
  const int hidden = w.down.matrix.rows, k = w.experts_per_token;
  std::vector<float> normed(size_t(tokens) * hidden);
  std::vector<int> chosen(size_t(tokens) * k);
  std::vector<float> routing_weights(chosen.size());
  route(pool, w, x, tokens, normed.data(), chosen.data(), routing_weights.data());
  Quantized input = quantized(pool, w.gate.matrix, normed.data(), tokens);
  std::copy_n(x, size_t(tokens) * hidden, out);
  for_each_output(pool, w, input, chosen.data(), tokens, [&](int pair, int row, int count, const float* values) {
    add_scaled(routing_weights[pair], values, count, out + size_t(pair / k) * hidden + row);
  });
}

}  // namespace gptoss
