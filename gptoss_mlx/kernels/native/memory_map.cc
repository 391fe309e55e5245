#include "memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "mlx/allocator.h"

namespace mx = mlx::core;

namespace gptoss {

namespace {

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
  const size_t size = status.st_size, page = sysconf(_SC_PAGESIZE);
  const size_t words = size / 4;
  if (words == 0 || words > size_t(std::numeric_limits<int32_t>::max())) {
    throw std::runtime_error("cannot map " + path + ": " + std::to_string(size) + " bytes");
  }
  // A buffer of MLX's CPU allocator begins with its size, and its data follow. So one page of ordinary memory goes in
  // front of the file, and the size into its last word.
  char* base = static_cast<char*>(mmap(nullptr, page + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) fail(path);
  if (mmap(base + page, size, PROT_READ, MAP_SHARED | MAP_FIXED, file.number, 0) == MAP_FAILED) {
    munmap(base, page + size);
    fail(path);
  }
  std::memcpy(base + page - sizeof(size_t), &size, sizeof(size_t));
  mx::allocator::Buffer buffer(base + page - sizeof(size_t));
  mx::array result(mx::Shape{int32_t(words)}, mx::uint32, nullptr, {});
  result.set_data(mx::allocator::Data(buffer, [base, page, size](mx::allocator::Buffer) { munmap(base, page + size); }));
  result.set_status(mx::array::Status::available);
  return result;
}

}  // namespace gptoss
