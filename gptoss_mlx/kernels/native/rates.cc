#include "rates.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels.h"

namespace gptoss {

namespace {

// Longer than a system takes to give each thread a core of its own.
constexpr double min_seconds = 0.1;
constexpr int min_rounds = 5;

// The highest rate of `amount` per second at which `work` runs.
template <class Work>
double best_rate(double amount, const Work& work) {
  double best = 0, all = 0;
  for (int round = 0; round < min_rounds || all < min_seconds; round++) {
    auto started = std::chrono::steady_clock::now();
    work();
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    best = std::max(best, amount / seconds.count());
    all += seconds.count();
  }
  return best;
}

double product_rate(Pool& pool, double (*sum_products)(int passes)) {
  constexpr int passes = 10000, tasks_per_thread = 32;
  const int tasks = tasks_per_thread * pool.threads();
  std::vector<double> products(tasks);
  auto work = [&] { pool.for_each(tasks, [&](int i) { products[i] = sum_products(passes); }); };
  work();
  return best_rate(2 * products[0] * tasks, work);
}

}  // namespace

double read_bandwidth(Pool& pool, size_t bytes) {
  constexpr size_t line = 64, stretch = 1 << 20;
  const int stretches = int(std::max<size_t>(1, bytes / stretch));
  std::vector<uint8_t> memory(size_t(stretches) * stretch, 1);
  std::vector<uint64_t> results(stretches);
  return best_rate(double(memory.size()), [&] {
    pool.for_each(stretches, [&](int i) { results[i] = kernels().read(memory.data() + i * stretch, stretch / line); });
  });
}

double byte_product_rate(Pool& pool) { return product_rate(pool, kernels().sum_byte_products); }

double float_product_rate(Pool& pool) { return product_rate(pool, kernels().sum_float_products); }

}  // namespace gptoss
