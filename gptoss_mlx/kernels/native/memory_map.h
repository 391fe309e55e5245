// Memory that the system maps, a file or nothing yet, as an MLX array on the CPU, without a copy. Both functions throw
// std::runtime_error where MLX is built for Metal.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mlx/array.h"

namespace gptoss {

// uint32 [file size / 4], read-only: writing to it ends the process. Throws std::runtime_error where the file cannot be
// mapped. The bytes after the last whole word are left out.
mlx::core::array map_file(const std::string& path);

// Zeros that take no memory before they are touched, in huge pages where the system has them. Throws std::bad_alloc.
mlx::core::array untouched_memory(const mlx::core::Shape& shape, mlx::core::Dtype dtype);

// Bytes start..end of a file, read-only, mapped as long as somebody has them; MLX knows nothing of them. Throws
// std::runtime_error where the file cannot be mapped.
std::shared_ptr<const uint8_t> map_bytes(const std::string& path, size_t start, size_t end);

}  // namespace gptoss
