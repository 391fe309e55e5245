#include "memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "mlx/allocator.h"

namespace mx = mlx::core;

namespace gptoss {

namespace {

constexpr size_t huge_page = 2 << 20;  // of x86-64, and of ARM with pages of 4 KiB

[[noreturn]] void fail(const std::string& path) {
  throw std::runtime_error("cannot map " + path + ": " + std::strerror(errno));
}

struct Descriptor {
  int number;
  ~Descriptor() { close(number); }
};

}  // namespace

mx::array map_file(const std::string& path) {
  Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) fail(path);
  struct stat status;
  if (fstat(file.number, &status) != 0) fail(path);
  const size_t size = status.st_size, words = size / 4;
  if (words == 0 || words > size_t(std::numeric_limits<int32_t>::max())) {
    throw std::runtime_error("cannot map " + path + ": " + std::to_string(size) + " bytes");
  }
  // A buffer of MLX's CPU allocator begins with its size, and its data follow: so some ordinary memory goes in front of
  // the file, and the size into its last word. The file begins where a huge page could, so that what of it the page
  // cache holds in huge pages is mapped in huge pages: a token touches gigabytes, and each page costs a fault and its
  // lookups.
  const size_t reserved = size + 2 * huge_page;
  char* base = static_cast<char*>(
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED) fail(path);
  char* start = base + huge_page + (huge_page - reinterpret_cast<uintptr_t>(base) % huge_page) % huge_page;
  if (mmap(start, size, PROT_READ, MAP_SHARED | MAP_FIXED, file.number, 0) == MAP_FAILED) {
    munmap(base, reserved);
    fail(path);
  }
  std::memcpy(start - sizeof(size_t), &size, sizeof(size_t));
  mx::allocator::Buffer buffer(start - sizeof(size_t));
  mx::array result(mx::Shape{int32_t(words)}, mx::uint32, nullptr, {});
  result.set_data(mx::allocator::Data(buffer, [base, reserved](mx::allocator::Buffer) { munmap(base, reserved); }));
  result.set_status(mx::array::Status::available);
  return result;
}

}  // namespace gptoss
