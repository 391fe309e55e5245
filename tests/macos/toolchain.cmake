# A Mac with Apple silicon, as Zig's compiler builds for it.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_CXX_COMPILER zig-c++)
set(CMAKE_CXX_COMPILER_TARGET aarch64-macos.14.0)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# Zig has no system's C++ library to link with, and would build its own.
set(CMAKE_MODULE_LINKER_FLAGS_INIT -nostdlib++)
# Without Apple's tool, an rpath is the installed one from the first.
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_CXX_FLAGS_INIT "-Wall -Wextra -Werror")
set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG" CACHE STRING "")
find_program(CMAKE_AR zig-ar REQUIRED)
find_program(CMAKE_RANLIB zig-ranlib REQUIRED)
set(CMAKE_INSTALL_NAME_TOOL ${CMAKE_AR})  # never called
