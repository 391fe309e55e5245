#include "threads.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gptoss {

namespace {

// Between two products of a token lie microseconds: shorter than it takes to wake a thread that sleeps.
constexpr int spins_before_sleep = 20000;
constexpr int spins_before_yield = 2000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // "yield" takes no time where cores have one thread, as Apple's and Arm's have
#endif
}

}  // namespace

Pool::Pool(int threads) : shares_(threads) {
  for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  {
    std::lock_guard lock(sleep_);
    stop_ = true;
    round_++;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(int count, Call call, const void* context) {
  std::lock_guard caller(one_caller_);
  call_ = call, context_ = context;
  for (int64_t i = 0, n = threads(); i < n; i++)
    shares_[i].left = {uint32_t(count * i / n), uint32_t(count * (i + 1) / n)};
  gate_ = open;
  {
    std::lock_guard lock(sleep_);  // so that no worker falls asleep between its last look and this change
    round_++;
  }
  wake_.notify_all();
  take_tasks(0);
  gate_ &= ~open;
  // A worker that lost its core in the middle of a task may want this one.
  for (int spins = 0; gate_ != 0; spins++) spins < spins_before_yield ? pause() : std::this_thread::yield();
}

void Pool::take_tasks(int thread) {
  while (take(shares_[thread], true)) {}
  // The end of another's run is where it arrives last.
  for (int other = 1; other < threads(); other++) {
    while (take(shares_[(thread + other) % threads()], false)) {}
  }
}

bool Pool::take(Share& share, bool from_front) {
  for (Range left = share.left; left.first < left.last;) {
    Range after = from_front ? Range{left.first + 1, left.last} : Range{left.first, left.last - 1};
    if (!share.left.compare_exchange_weak(left, after)) continue;
    call_(context_, int(from_front ? left.first : after.last));
    return true;
  }
  return false;
}

void Pool::work(int thread) {
  for (unsigned seen = 0;;) {
    for (int spins = 0; round_ == seen && spins < spins_before_sleep; spins++) pause();
    if (round_ == seen) {
      std::unique_lock lock(sleep_);
      wake_.wait(lock, [&] { return round_ != seen; });
    }
    if (stop_) return;
    seen = round_;
    if (!join()) continue;
    take_tasks(thread);
    gate_--;
  }
}

bool Pool::join() {
  for (uint32_t gate = gate_; gate & open;) {
    if (gate_.compare_exchange_weak(gate, gate + 1)) return true;
  }
  return false;
}

int fast_cores() {
#ifdef __APPLE__
  int count = 0;
  size_t size = sizeof count;
  if (sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, nullptr, 0) == 0 && count > 0) return count;
#endif
  int allowed = int(std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return std::max(1, allowed);
  // big.LITTLE: the cores within a quarter of the highest clock; hyperthreads of one core count once.
  std::vector<long> clocks;
  long highest = 0;
  std::vector<std::string> siblings;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &set)) continue;
    std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
    std::string same;
    std::ifstream(folder + "/topology/thread_siblings_list") >> same;
    if (!same.empty() && std::find(siblings.begin(), siblings.end(), same) != siblings.end()) continue;
    siblings.push_back(same);
    long clock = 0;
    std::ifstream(folder + "/cpufreq/cpuinfo_max_freq") >> clock;
    clocks.push_back(clock);
    highest = std::max(highest, clock);
  }
  allowed =
      int(std::count_if(clocks.begin(), clocks.end(), [&](long clock) { return clock >= highest - highest / 4; }));
#endif
  return std::max(1, allowed);
}

}  // namespace gptoss
