// The attention and the MoE block of a layer, and a plain linear map, on the CPU: each from FP32 activations to FP32
// activations in one go, divided among the threads of a pool. Knows the published arithmetic (openai/gpt-oss,
// gpt_oss/torch/model.py); where weights lie and who asks is primitives.cc's affair.
#pragma once

#include <vector>

#include "kernels.h"
#include "kv_vectors.h"
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
  const uint16_t* sinks;  // BF16 [heads]
  const float* freqs;     // [head_dim / 2]: positions per radian
  int heads, kv_heads, head_dim;
  int window;   // 0: every position is seen
  float scale;  // of the scores
};

// Full layers keep position p in slot p, sliding layers, always in BF16, in slot p % window, and their capacity is the
// window.
struct KV {
  StoredVectors keys, values;
  int capacity;
};

// New tokens of one conversation at positions offset.., and its KV cache.
struct Sequence {
  int tokens, offset;
  KV kv;
};

struct MoeWeights {
  Norm norm;
  Linear router;
  Linear gate, up, down;  // the first of stacks; each bias is [matrices of the stack, rows]
  int experts, experts_per_token;
  int slots;  // matrices of a stack: as many as there are experts, if slot e holds expert e
  float limit;
};

// x [tokens, columns] -> out [tokens, rows]
void linear(Pool& pool, const Linear& weights, const float* x, int tokens, float* out);

// x [tokens of all sequences, hidden] -> out = x + attention(norm(x)), each in its own sequence; stores keys and
// values.
void attention(Pool& pool, const AttentionWeights& weights, const float* x, const std::vector<Sequence>& sequences,
               float* out);

// x [tokens, hidden] -> out = x + moe(norm(x))
void moe(Pool& pool, const MoeWeights& weights, const float* x, int tokens, float* out);

// The same in three parts, for experts of which only some are in memory at a time; together they give the same bits.
//
// x [tokens, hidden] -> normed [tokens, hidden]; the experts of each token and their routing weights [tokens, k]
void route(Pool& pool, const MoeWeights& weights, const float* x, int tokens, float* normed, int* chosen,
           float* routing_weights);

// normed [tokens, hidden] -> outputs [tokens, k, hidden] of the experts in `slots` [tokens, k]; where a slot is below
// 0, the output stays as it is. Every slot is below `slots`.
void expert_outputs(Pool& pool, const MoeWeights& weights, const float* normed, const int* slots, int tokens,
                    float* outputs);

// out = x + the outputs times their routing weights, in the order of the experts' numbers
void combine(Pool& pool, const MoeWeights& weights, const float* x, const int* chosen, const float* routing_weights,
             const float* outputs, int tokens, float* out);

// Queries q [tokens, heads, head_dim], rotated, at positions offset.. -> out of the same shape. The keys and values of
// these positions, k and v [tokens, kv_heads, head_dim], are stored first.
void attend(Pool& pool, const AttentionWeights& weights, const float* q, const float* k, const float* v, int tokens,
            int offset, KV kv, float* out);

}  // namespace gptoss
