#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace gptoss {

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx2_vnni_kernels, avx512_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_dotprod_kernels, neon_i8mm_kernels;
#endif

namespace {

#if defined(__x86_64__)
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#elif defined(__APPLE__)
bool has_neon(const std::string& feature) {
  const std::string name = "hw.optional.arm.FEAT_" + std::string(feature == "i8mm" ? "I8MM" : "DotProd");
  int present = 0;
  size_t size = sizeof present;
  return sysctlbyname(name.c_str(), &present, &size, nullptr, 0) == 0 && present;
}
#elif defined(__aarch64__)
bool has_neon(const std::string& feature) {
  constexpr unsigned long i8mm = 1ul << 13, dotprod = 1ul << 20;  // HWCAP2_I8MM, HWCAP_ASIMDDP
  return feature == "i8mm" ? getauxval(AT_HWCAP2) & i8mm : getauxval(AT_HWCAP) & dotprod;
}
#endif

// Best first.
std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
  auto add = [&](bool runs, const Kernels& kernels) {
    if (runs) found.push_back(&kernels);
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
  add(avx512 && vnni && __builtin_cpu_supports("bmi2"), avx512_kernels);
  add(avx2 && has_avx_vnni(), avx2_vnni_kernels);
  add(avx2, avx2_kernels);
#elif defined(__aarch64__)
  add(has_neon("i8mm"), neon_i8mm_kernels);
  add(has_neon("dotprod"), neon_dotprod_kernels);
#endif
  add(true, portable_kernels);
  return found;
}

std::atomic<const Kernels*>& in_use() {
  static std::atomic<const Kernels*> kernels{available().front()};
  return kernels;
}

}  // namespace

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

const Kernels& kernels() { return *in_use().load(std::memory_order_relaxed); }

void use_kernels(const std::string& name) {
  for (const Kernels* kernels : available()) {
    if (kernels->name == name) {
      in_use() = kernels;
      return;
    }
  }
  throw std::invalid_argument("this machine has no kernels for '" + name + "'");
}

}  // namespace gptoss
