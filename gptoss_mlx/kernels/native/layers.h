// The two halves of a layer of the network, and a plain linear map, on the CPU: each from FP32 activations to FP32
// activations in one go, divided among the threads of a pool. Knows the published arithmetic (openai/gpt-oss,
// gpt_oss/torch/model.py); where weights lie and who asks is primitives.cc's affair.
#pragma once

#include "kernels.h"
#include "threads.h"

namespace gptoss {

struct Linear {
  Matrix matrix;
  const uint16_t* bias;  // BF16 [rows], or null
};

struct Norm {
  const uint16_t* weight;  // BF16 [size]
  float eps;
};

struct AttentionWeights {
  Norm norm;
  Linear query, key, value, output;
  const uint16_t* sinks;     // BF16 [heads]
  const float* wavelengths;  // [head_dim / 2]: positions per radian
  int heads, kv_heads, head_dim;
  int window;   // 0: every position is seen
  float scale;  // of the scores
};

// BF16 [kv_heads, capacity, head_dim]. Full layers keep position p in slot p, sliding layers in slot p % window, and
// their capacity is the window.
struct KV {
  uint16_t* keys;
  uint16_t* values;
  int capacity;
};

struct MixtureWeights {
  Norm norm;
  Linear router;
  Linear gate, up, down;  // the first of stacks of `experts`; each bias is [experts, rows]
  int experts, experts_per_token;
  float limit;
};

// x [tokens, columns] -> out [tokens, rows]
void linear(Pool& pool, const Linear& weights, const float* x, int tokens, float* out);

// x [tokens, hidden] at positions offset.. -> out = x + attention(norm(x)); stores keys and values.
void attention(Pool& pool, const AttentionWeights& weights, const float* x, int tokens, int offset, KV kv, float* out);

// x [tokens, hidden] -> out = x + mixture(norm(x))
void mixture(Pool& pool, const MixtureWeights& weights, const float* x, int tokens, float* out);

// Experts alone: x [tokens, hidden], `chosen` and `share` [tokens, experts_per_token] -> out [tokens, hidden].
// Every chosen number is below `experts`.
void experts(Pool& pool, const MixtureWeights& weights, const float* x, const int* chosen, const float* share,
             int tokens, float* out);

// Queries q [tokens, heads, head_dim], rotated, at positions offset.. -> out of the same shape. The keys and values of
// these positions, k and v [tokens, kv_heads, head_dim], are stored first.
void attend(Pool& pool, const AttentionWeights& weights, const float* q, const float* k, const float* v, int tokens,
            int offset, KV kv, float* out);

}  // namespace gptoss
