# Target functions of the project. They set the warnings, the include root and check the layers.
include(layers)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

set(ICEFIELD_SANITIZE "" CACHE STRING "value for -fsanitize=, empty for none")

add_library(icefield_flags INTERFACE)
set(host_flags
  -Wall -Wextra -Wconversion -Wshadow -Werror
  -Wno-missing-field-initializers  # designated initializers leave the defaults on purpose
  # GCC 12 sees overlapping copies in plain std::string concatenation (GCC bug 105651),
  # uninitialized variables inside its own AVX-512 intrinsics (105593), and a wrong operator
  # delete for coroutine frames (109224).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict -Wno-maybe-uninitialized -Wno-mismatched-new-delete>
  # The bytes that kernels compute must not depend on what the optimiser fuses.
  -ffp-contract=off)
target_compile_options(icefield_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:${host_flags}>"
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Werror=all-warnings>)
target_include_directories(icefield_flags INTERFACE ${PROJECT_SOURCE_DIR})
if(ICEFIELD_SANITIZE)
  target_compile_options(icefield_flags INTERFACE  # nvcc is not used then: cmake/cuda.cmake
    -fsanitize=${ICEFIELD_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer
    $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)  # Boost's fences, which tsan does not follow
  target_link_options(icefield_flags INTERFACE -fsanitize=${ICEFIELD_SANITIZE})
endif()

# The row of a module in ICEFIELD_LAYERS.
function(icefield_rank module out)
  set(rank 0)
  foreach(row IN LISTS ICEFIELD_LAYERS)
    separate_arguments(names UNIX_COMMAND "${row}")
    if(module IN_LIST names)
      set(${out} ${rank} PARENT_SCOPE)
      return()
    endif()
    math(EXPR rank "${rank} + 1")
  endforeach()
  message(FATAL_ERROR "module '${module}' is in no row of cmake/layers.cmake")
endfunction()

# The module of the folder being configured: the first part of its path from the root.
function(icefield_module out)
  file(RELATIVE_PATH path ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  string(REGEX REPLACE "/.*" "" module "${path}")
  set(${out} ${module} PARENT_SCOPE)
endfunction()

# Stops when `target` of `module` may not use one of `deps` (names of our own targets).
function(icefield_check_deps target module deps)
  icefield_rank(${module} own)
  foreach(dep IN LISTS deps)
    if(NOT TARGET ${dep})
      message(FATAL_ERROR "${target}: unknown dependency '${dep}'")
    endif()
    get_target_property(dep_module ${dep} ICEFIELD_MODULE)
    if(NOT dep_module)
      message(FATAL_ERROR "${target}: '${dep}' is not ours, name it under LIBS")
    endif()
    icefield_rank(${dep_module} other)
    if(NOT dep_module STREQUAL module AND NOT other LESS own)
      message(FATAL_ERROR
        "${target}: ${module} must not depend on ${dep_module} (cmake/layers.cmake)")
    endif()
    if(dep IN_LIST ICEFIELD_SERVER_TARGETS AND NOT module IN_LIST ICEFIELD_SERVER_USERS)
      message(FATAL_ERROR "${target}: '${dep}' is server code, link its stub instead")
    endif()
  endforeach()
endfunction()

# icefield_library(name SRCS a.cc … [DEPS own targets …] [LIBS third-party targets …])
function(icefield_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;LIBS" ${ARGN})
  icefield_module(module)
  icefield_check_deps(${name} ${module} "${ARG_DEPS}")
  add_library(${name} STATIC ${ARG_SRCS})
  set_target_properties(${name} PROPERTIES ICEFIELD_MODULE ${module})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} ${ARG_LIBS} PRIVATE icefield_flags)
endfunction()

# icefield_program(name SRCS … [DEPS …] [LIBS …]): an executable in build/<preset>/bin.
function(icefield_program name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;LIBS" ${ARGN})
  icefield_module(module)
  icefield_check_deps(${name} ${module} "${ARG_DEPS}")
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} ${ARG_LIBS} icefield_flags)
endfunction()

# icefield_test(name SRCS … [DEPS …] [LIBS …] [LABELS …] [TIMEOUT seconds] [SIMD] [MAIN target]): a
# GoogleTest program that ctest runs as one test. SIMD: once for every instruction set that the CPU
# has. MAIN: a library with a main() of its own.
function(icefield_test name)
  cmake_parse_arguments(ARG "SIMD" "TIMEOUT;MAIN" "SRCS;DEPS;LIBS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(ICEFIELD_SANITIZE)
    math(EXPR ARG_TIMEOUT "10 * ${ARG_TIMEOUT}")
  endif()
  set(main GTest::gtest_main)
  if(ARG_SIMD)
    set(main simd_main)
  elseif(ARG_MAIN)
    set(main ${ARG_MAIN})
  endif()
  icefield_program(${name} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS}
                   LIBS ${ARG_LIBS} GTest::gmock ${main})
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_compile_definitions(${name} PRIVATE
    ICEFIELD_SOURCE_DIR="${PROJECT_SOURCE_DIR}" ICEFIELD_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
  # Tests are half of what there is to compile, and run once.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  # The thread sanitizer does not survive what UCX hooks into mmap.
  set(tsan "suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp:history_size=4")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
    ENVIRONMENT
      "TSAN_OPTIONS=${tsan};UBSAN_OPTIONS=print_stacktrace=1;UCX_MEM_MMAP_HOOK_MODE=none")
endfunction()
