#include "memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#include "mlx/allocator.h"
#include "mlx/backend/metal/metal.h"

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

// In a build for Metal every buffer, the CPU's too, is an object of Metal's: what follows would be taken for one.
void only_without_metal() {
  if (mx::metal::is_available()) throw std::runtime_error("arrays of a build for Metal lie in its own buffers");
}

// A buffer of MLX's CPU allocator begins with its size, and its data follow: so some ordinary memory goes in front of
// what is mapped, and the size into its last word. The data begin where a huge page could.
struct Region {
  char* base;
  size_t reserved;
  char* start;

  explicit Region(size_t size) : reserved(size + 2 * huge_page) {
    base = static_cast<char*>(
        mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    start = base + huge_page + (huge_page - reinterpret_cast<uintptr_t>(base) % huge_page) % huge_page;
  }

  bool failed() const { return base == MAP_FAILED; }

  // What lies here, as an array that owns the region.
  mx::array as_array(const mx::Shape& shape, mx::Dtype dtype, size_t size) {
    std::memcpy(start - sizeof(size_t), &size, sizeof(size_t));
    mx::allocator::Buffer buffer(start - sizeof(size_t));
    mx::array result(shape, dtype, nullptr, {});
    auto release = [base = base, reserved = reserved](mx::allocator::Buffer) { munmap(base, reserved); };
    result.set_data(mx::allocator::Data(buffer, release));
    result.set_status(mx::array::Status::available);
    return result;
  }
};

}  // namespace

mx::array map_file(const std::string& path) {
  only_without_metal();
  Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) fail(path);
  struct stat status;
  if (fstat(file.number, &status) != 0) fail(path);
  const size_t size = status.st_size, words = size / 4;
  if (words == 0 || words > size_t(std::numeric_limits<int32_t>::max()))
    throw std::runtime_error("cannot map " + path + ": " + std::to_string(size) + " bytes");
  // What of the file the page cache holds in huge pages is mapped in huge pages: a token touches gigabytes, and each
  // page costs a fault and its lookups.
  Region region(size);
  if (region.failed()) fail(path);
  if (mmap(region.start, size, PROT_READ, MAP_SHARED | MAP_FIXED, file.number, 0) == MAP_FAILED) {
    munmap(region.base, region.reserved);
    fail(path);
  }
  return region.as_array({int32_t(words)}, mx::uint32, size);
}

mx::array untouched_memory(const mx::Shape& shape, mx::Dtype dtype) {
  only_without_metal();
  size_t size = mx::size_of(dtype);
  for (int32_t length : shape) {
    if (length < 1) throw std::invalid_argument("memory of no size");
    size *= length;
  }
  Region region(size);
  if (region.failed()) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(region.start, size, MADV_HUGEPAGE);
#endif
  return region.as_array(shape, dtype, size);
}

std::shared_ptr<const uint8_t> map_bytes(const std::string& path, size_t start, size_t end) {
  Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) fail(path);
  const size_t before = start % sysconf(_SC_PAGESIZE), size = before + end - start;
  auto* base = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ, MAP_SHARED, file.number, off_t(start - before)));
  if (base == MAP_FAILED) fail(path);
  return {base + before, [base, size](const uint8_t*) { munmap(base, size); }};
}

}  // namespace gptoss
