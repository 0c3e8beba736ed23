// CUDA C++ as far as kernels see it, for running them on the CPU. cuda_cpu.cpp is what runs them.
#pragma once
#include <cmath>
#include <math.h>  // exp and its like for float too, outside of std
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <typeinfo>
#include <utility>

#define CUDA_CPU 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Thus the library's TLS segment *is* the static shared memory of a block. `used`: an array that is only
// read must not be taken for zeros.
#define __shared__ thread_local __attribute__((used))

#define CUDA_CPU_VECTORS(T, name)                                    \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                 \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(16) name##4 { T x, y, z, w; };                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_CPU_VECTORS(float, float)
CUDA_CPU_VECTORS(double, double)
CUDA_CPU_VECTORS(int, int)
CUDA_CPU_VECTORS(unsigned, uint)

struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;
constexpr int warpSize = 32;

namespace cuda_cpu {

struct Site {  // a line of source; as a default argument, the caller's
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(Site other) const {
    return line == other.line && (file == other.file || !strcmp(file, other.file));
  }
};

[[noreturn]] void fail(Site site, const char* what);  // ends the launch

// One thread's share in an operation of its warp, or in __syncthreads. It lives on the thread's stack
// while that waits for the others; then one lane runs the operation for all members.
struct Collective {
  const char* name;
  unsigned mask;
  Site site;
  unsigned members = 0;  // set for that one lane only
  Collective(const char* name, unsigned mask, Site site) : name(name), mask(mask), site(site) {}
  virtual void run() {}
};

constexpr unsigned whole_block = 0;  // the mask of __syncthreads

void wait(Collective& share);
unsigned lane_id();
Collective& share_of(unsigned lane);  // in the same operation

template <class Operation>
Operation& together(Operation&& share) {
  if (!(share.mask >> lane_id() & 1)) fail(share.site, "the calling lane is not in the mask");
  wait(share);
  if (share.members) share.run();
  return share;
}

template <class T>
struct Shuffle : Collective {
  T value, result;
  unsigned source;
  Shuffle(const char* name, unsigned mask, Site site, T value, unsigned source)
      : Collective(name, mask, site), value(value), source(source) {}
  static Shuffle& of(unsigned lane) { return static_cast<Shuffle&>(share_of(lane)); }
  void run() override {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(members >> lane & 1)) continue;
      memset(static_cast<void*>(&of(lane).result), 0xFF, sizeof(T));  // undefined in CUDA if the source is absent
      if (members >> of(lane).source & 1) of(lane).result = of(of(lane).source).value;
    }
  }
};

extern char* dynamic_shared;
void async_copy(void* to, const void* from, int bytes, int valid, Site site);
void async_commit();
void async_wait(int groups_left);

// ---- For emulator.py: how to call a kernel, and with what -----------------------------------------

struct Parameter { const char* type; size_t size; };

template <class... P>
const Parameter* parameters(void (*)(P...)) {
  static const Parameter list[] = {{typeid(P).name(), sizeof(P)}..., {nullptr, 0}};
  return list;
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<P>*>(args[I])...);
}

template <class... P>
void call(void (*kernel)(P...), void** args) { call(kernel, args, std::index_sequence_for<P...>()); }

#define CUDA_CPU_PUBLIC extern "C" __attribute__((visibility("default")))
#define CUDA_CPU_EXPORT(number, ...)                                                                           \
  CUDA_CPU_PUBLIC void kernel_##number(void** args) { cuda_cpu::call(&__VA_ARGS__, args); }                    \
  CUDA_CPU_PUBLIC const cuda_cpu::Parameter* parameters_##number() { return cuda_cpu::parameters(&__VA_ARGS__); }

}  // namespace cuda_cpu

// ---- CUDA's built-in functions --------------------------------------------------------------------

inline void __syncthreads(cuda_cpu::Site site = cuda_cpu::Site::here()) {
  cuda_cpu::Collective barrier("__syncthreads", cuda_cpu::whole_block, site);
  cuda_cpu::wait(barrier);
}

inline void __syncwarp(unsigned mask = ~0u, cuda_cpu::Site site = cuda_cpu::Site::here()) {
  cuda_cpu::together(cuda_cpu::Collective("__syncwarp", mask, site));
}

// A lane whose source lies outside its segment of `width` lanes reads its own value.
#define CUDA_CPU_SHUFFLE(name, argument, source)                                                               \
  template <class T>                                                                                           \
  T name(unsigned mask, T value, int argument, int width = 32, cuda_cpu::Site site = cuda_cpu::Site::here()) { \
    int lane = cuda_cpu::lane_id(), first = lane & -width, last = first + width - 1;                           \
    return cuda_cpu::together(cuda_cpu::Shuffle<T>(#name, mask, site, value, source)).result;                         \
  }
CUDA_CPU_SHUFFLE(__shfl_sync, from, first + (from & (width - 1)))
CUDA_CPU_SHUFFLE(__shfl_up_sync, delta, lane - delta < first ? lane : lane - delta)
CUDA_CPU_SHUFFLE(__shfl_down_sync, delta, lane + delta > last ? lane : lane + delta)
CUDA_CPU_SHUFFLE(__shfl_xor_sync, bits, (lane ^ bits) > last ? lane : lane ^ bits)

// Fibers are never interrupted, so a plain update is atomic.
#define CUDA_CPU_ATOMIC(name, updated) \
  template <class T, class U>          \
  T name(T* address, U value) {        \
    T old = *address;                  \
    *address = updated;                \
    return old;                        \
  }
CUDA_CPU_ATOMIC(atomicAdd, old + T(value))
CUDA_CPU_ATOMIC(atomicMax, old < T(value) ? T(value) : old)
CUDA_CPU_ATOMIC(atomicMin, T(value) < old ? T(value) : old)
CUDA_CPU_ATOMIC(atomicExch, T(value))

template <class A, class B>
auto min(A a, B b) {
  if constexpr (std::is_floating_point_v<decltype(a + b)>) return std::fmin(a, b);  // as in CUDA, NaN loses
  else return b < a ? b : a;
}
template <class A, class B>
auto max(A a, B b) {
  if constexpr (std::is_floating_point_v<decltype(a + b)>) return std::fmax(a, b);
  else return a < b ? b : a;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline double __longlong_as_double(long long bits) { return bits_as<double>(bits); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline void __threadfence() {}
inline void __trap() { __builtin_trap(); }
template <class T>
T __ldg(const T* address) { return *address; }
#define __expf expf
#define __fdividef(a, b) ((a) / (b))
#define assert(condition) ((condition) ? void() : cuda_cpu::fail(cuda_cpu::Site::here(), "assert(" #condition ")"))

// Half-precision numbers, stored as in CUDA. Arithmetic happens in float: only conversions round.
struct __half {
  _Float16 value;
  __half() = default;
  __half(float x) : value(x) {}
  operator float() const { return value; }
};
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {  // to nearest, ties to even
    unsigned u = __float_as_uint(x);
    bits = x != x ? 0x7FFF : (u + 0x7FFF + (u >> 16 & 1)) >> 16;
  }
  operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
using half = __half;
inline __half __float2half(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
