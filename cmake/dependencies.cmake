# Third-party libraries, all Debian 12 packages (the list with versions: ./dev packages).
# Everything that is found is named here once; modules link the targets.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(Boost 1.81 REQUIRED)      # headers only: Asio, Beast
find_package(OpenSSL REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gflags REQUIRED)
find_package(glog REQUIRED)
find_package(GTest REQUIRED)
find_package(benchmark REQUIRED)
find_package(RocksDB REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UCX REQUIRED IMPORTED_TARGET ucx)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)

# The instruction sets that SIMD code is compiled for: AVX2, AVX-512 with and without VNNI, and NEON,
# all with vectors whose size is known when compiling; elsewhere the reference kernels run.
add_library(simd INTERFACE)
target_link_libraries(simd INTERFACE PkgConfig::HWY)
target_compile_definitions(simd INTERFACE HWY_WANT_AVX3_DL HWY_BROKEN_EMU128=1
  HWY_DISABLED_TARGETS=\(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128|HWY_RVV|HWY_SSSE3|HWY_SSE4\))

# oneDNN: sgemm of the engine. Debian's CMake package asks for OpenCL, which nothing here uses.
find_library(DNNL_LIBRARY dnnl REQUIRED)
find_path(DNNL_INCLUDE_DIR dnnl.h REQUIRED)
find_package(OpenMP REQUIRED)          # oneDNN's threads, switched off by the engine
add_library(dnnl UNKNOWN IMPORTED)
set_target_properties(dnnl PROPERTIES IMPORTED_LOCATION ${DNNL_LIBRARY})
target_include_directories(dnnl SYSTEM INTERFACE ${DNNL_INCLUDE_DIR})
