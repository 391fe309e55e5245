// How work is cut into pieces that fit registers, for one instruction set V (see simd_portable.h).
#pragma once

#include "standard.h"

namespace gptoss {

// Brings memory into the cache, line by line in order: many rows that are then read side by side would each be a stream
// of its own, and a core prefetches one well.
template <class V>
void touch(const void* from, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) static_cast<void>(*(static_cast<const volatile uint8_t*>(from) + at));
}

// Rows of words as columns: from(r, word, count) gives some words of row r, and store(i, column) gets word i of `lanes`
// rows, of which those from `rows` on are zeros.
template <class V, class From, class Store>
void transpose(int rows, int words, const From& from, const Store& store) {
  for (int word = 0; word < words; word += V::lanes) {
    const int count = std::min(V::lanes, words - word);
    typename V::Bytes column[V::lanes];
    for (int r = 0; r < V::lanes; r++) column[r] = r < rows ? from(r, word, count) : V::zero_bytes();
    V::transpose_words(column);
    for (int i = 0; i < count; i++) store(word + i, column[i]);
  }
}

// Calls f<T>(i) for tiles of T items that begin at item i and cover first..last: as wide as may be, then ever narrower
// ones.
template <int T, class F>
void for_each_tile(int first, int last, const F& f) {
  for (; first + T <= last; first += T) f.template operator()<T>(first);
  if constexpr (T > 1) for_each_tile<T / 2>(first, last, f);
}

}  // namespace gptoss
