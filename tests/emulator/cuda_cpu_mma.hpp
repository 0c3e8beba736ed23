// mma, ldmatrix and cp.async of fastconv/backends/cuda/kernels/mma.cuh on the CPU, with the documented layouts of
// fragments: those stand in mma.cuh.
#pragma once

namespace cuda_cpu {

// How an input register reads: the number of elements in it, and each of them.
struct Tf32 {
  static constexpr int count = 1;
  static float element(unsigned bits, int) { return __uint_as_float(bits & 0xFFFFE000); }
};
struct F16 {
  static constexpr int count = 2;
  static float element(unsigned bits, int i) { return bits_as<_Float16>(uint16_t(bits >> 16 * i)); }
};
struct Bf16 {
  static constexpr int count = 2;
  static float element(unsigned bits, int i) { return __uint_as_float(bits >> 16 * i << 16); }
};

template <class Type>
struct Mma : Collective {
  static constexpr int depth = 8 * Type::count;
  float* d;
  const unsigned *a, *b;
  const float* c;
  Mma(Site site, float* d, const unsigned* a, const unsigned* b, const float* c)
      : Collective("mma", ~0u, site), d(d), a(a), b(b), c(c) {}
  static Mma& of(unsigned lane) { return static_cast<Mma&>(share_of(lane)); }

  __attribute__((no_sanitize("undefined")))  // for speed
  void run() override {
    if (members != ~0u) fail(site, "mma needs all 32 lanes");
    double A[16][depth], B[depth][8], product[16][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      const Mma& share = of(lane);
      for (int r = 0; r < 4; ++r)
        for (int i = 0; i < Type::count; ++i) {
          const int g = lane / 4, k = lane % 4 * Type::count + i + depth / 2 * (r >> 1);
          A[g + 8 * (r & 1)][k] = Type::element(share.a[r], i);
          if (r % 2 == 0) B[k][g] = Type::element(share.b[r / 2], i);
        }
    }
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < 8; ++column) product[row][column] += A[row][k] * B[k][column];
    for (int lane = 0; lane < 32; ++lane) {
      const Mma& share = of(lane);
      for (int r = 0; r < 4; ++r)
        share.d[r] = toward_zero(share.c[r] + product[lane / 4 + 8 * (r >> 1)][lane % 4 * 2 + (r & 1)]);
    }
  }

  // Tensor cores cut sums off where IEEE arithmetic rounds them; a test must not pass thanks to the rounding.
  static float toward_zero(double x) {
    const float y = x;
    return std::fabs(double(y)) > std::fabs(x) ? __uint_as_float(__float_as_uint(y) - 1) : y;
  }
};

struct LoadMatrix : Collective {
  unsigned* registers;
  const void* row;
  bool transposed;
  LoadMatrix(Site site, unsigned* registers, const void* row, bool transposed)
      : Collective("ldmatrix", ~0u, site), registers(registers), row(row), transposed(transposed) {}
  static LoadMatrix& of(unsigned lane) { return static_cast<LoadMatrix&>(share_of(lane)); }

  void run() override {
    if (members != ~0u) fail(site, "ldmatrix needs all 32 lanes");
    for (int lane = 0; lane < 32; ++lane)
      if (uintptr_t(of(lane).row) % 16) fail(site, "ldmatrix: a row is not aligned to 16 bytes");
    for (int lane = 0; lane < 32; ++lane)
      for (int m = 0; m < 4; ++m) of(lane).registers[m] = element(lane, m, 0) | element(lane, m, 1) << 16;
  }

  unsigned element(int lane, int matrix, int i) const {
    int row = lane / 4, column = lane % 4 * 2 + i;
    if (transposed) std::swap(row, column);
    return static_cast<const uint16_t*>(of(8 * matrix + row).row)[column];
  }
};

}  // namespace cuda_cpu

inline unsigned to_tf32(float x) {  // to nearest, ties away from zero
  return std::isfinite(x) ? (__float_as_uint(x) + 0x1000) & 0xFFFFE000 : __float_as_uint(x);
}

#define MMA_FUNCTION(name, type)                                                           \
  inline void name(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], \
                   cuda_cpu::Site site = cuda_cpu::Site::here()) {                         \
    cuda_cpu::together(cuda_cpu::Mma<cuda_cpu::type>(site, d, a, b, c));                   \
  }
MMA_FUNCTION(mma_m16n8k8_tf32, Tf32)
MMA_FUNCTION(mma_m16n8k16_f16, F16)
MMA_FUNCTION(mma_m16n8k16_bf16, Bf16)

#define LDMATRIX_FUNCTION(name, transposed)                                                           \
  inline void name(unsigned r[4], const void* row, cuda_cpu::Site site = cuda_cpu::Site::here()) {    \
    cuda_cpu::together(cuda_cpu::LoadMatrix(site, r, row, transposed));                               \
  }
LDMATRIX_FUNCTION(ldmatrix_x4, false)
LDMATRIX_FUNCTION(ldmatrix_x4_trans, true)

#define CP_ASYNC_FUNCTION(name, bytes)                                              \
  inline void name(void* to, const void* from, bool valid = true,                   \
                   cuda_cpu::Site site = cuda_cpu::Site::here()) {                  \
    cuda_cpu::async_copy(to, from, bytes, valid ? bytes : 0, site);                 \
  }
CP_ASYNC_FUNCTION(cp_async_16, 16)
CP_ASYNC_FUNCTION(cp_async_8, 8)
CP_ASYNC_FUNCTION(cp_async_4, 4)
inline void cp_async_commit() { cuda_cpu::async_commit(); }
template <int groups_left>
void cp_async_wait() { cuda_cpu::async_wait(groups_left); }
