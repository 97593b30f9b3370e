# CUDA: the language is on wherever nvcc is found, and everything that needs it is built then. On a
# machine without it nothing is missing but these targets.
option(ICEFIELD_ONLY_CUDA "only the kernels, with tests and benchmarks: needs no other package" OFF)

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # code for both, and PTX for what comes later
endif()
if(NOT ICEFIELD_SANITIZE)  # the sanitizers' flags are not nvcc's
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
  else()
    message(STATUS "no nvcc: the CUDA kernels are not built")
  endif()
endif()

# The cuda preset takes GoogleTest as Debian's package `googletest` ships it, in source, so that a
# GPU machine needs a compiler and CUDA and no more.
set(ICEFIELD_GTEST_DIR /usr/src/googletest CACHE PATH "sources of GoogleTest, for the cuda preset")
if(ICEFIELD_ONLY_CUDA)
  set(INSTALL_GTEST OFF)
  add_subdirectory(${ICEFIELD_GTEST_DIR} ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
endif()
