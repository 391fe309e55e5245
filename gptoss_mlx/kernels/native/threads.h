// A pool of threads that divide the work of one caller at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gptoss {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return int(shares_.size()); }

  // Calls task(i) once for each i below `count`, on all threads including the caller's, and returns when all are done.
  // Each thread gets a run of neighbours, in order, because neighbours lie together in memory; who is done early helps.
  // `task` must not throw, and must not call `for_each`.
  template <class Task>
  void for_each(int count, const Task& task) {
    run(count, [](const void* context, int i) { (*static_cast<const Task*>(context))(i); }, &task);
  }

 private:
  using Call = void (*)(const void* context, int i);

  // The tasks from `first` to before `last` that nobody has taken.
  struct alignas(8) Range {
    uint32_t first, last;
  };
#if defined(__APPLE__) && defined(__aarch64__)
  static constexpr size_t cache_line = 128;
#else
  static constexpr size_t cache_line = 64;
#endif
  struct alignas(cache_line) Share {
    std::atomic<Range> left;
  };

  void run(int count, Call call, const void* context);
  void take_tasks(int thread);
  bool take(Share& share, bool from_front);
  void work(int thread);
  bool join();

  std::mutex one_caller_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::vector<Share> shares_;  // one for each thread, the caller's first
  // Whether workers may join this round, and how many are in it. A round ends without those that have not come: one
  // that shares its core with another program may be long in coming.
  static constexpr uint32_t open = 1u << 31;
  std::atomic<uint32_t> gate_{0};
  std::atomic<unsigned> round_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// As many threads as the machine has fast cores: not more, since a product waits for the slowest.
int fast_cores();

}  // namespace gptoss
