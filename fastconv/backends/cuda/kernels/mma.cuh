// Tensor-core products, ldmatrix and cp.async as functions: inline PTX of sm_80 and later. (tests/emulator
// has them for the CPU.) A warp computes D = A B + C: A is 16 x K by rows, B is K x 8 by columns, C and D are float.
// With g = lane / 4 and t = lane % 4, register r of a lane holds (two 16-bit elements, the first one low)
//   A: row g + 8 (r & 1), column     t + 4 (r >> 1)    for tf32, K = 8
//      row g + 8 (r & 1), columns   2t + 8 (r >> 1)... for f16 and bf16, K = 16
//   B: row t + 4 r (tf32), rows 2t + 8 r... (f16, bf16); column g
//   C: row g + 8 (r >> 1), column   2t + (r & 1)
#pragma once

#ifdef CUDA_CPU
#include "cuda_cpu_mma.hpp"
#else

#if __CUDA_ARCH__ >= 800
// The float nearest to x that tensor cores read in full: they ignore the low 13 bits of their tf32 inputs.
__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

#define MMA_FUNCTION(name, types)                                                                              \
  __device__ __forceinline__ void name(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) { \
    asm volatile("mma.sync.aligned." types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),                             \
                   "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));                                                  \
  }
MMA_FUNCTION(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
MMA_FUNCTION(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA_FUNCTION(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")

#endif

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Lane 8 m + i passes the address of row i of matrix m, 8 x 8 of 16 bits; register m of lane l gets two
// neighbours from matrix m: row l / 4, columns 2 (l % 4)..., or those of its transpose.
#define LDMATRIX_FUNCTION(name, type)                                                                       \
  __device__ __forceinline__ void name(unsigned r[4], const void* row) {                                    \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4." type " {%0, %1, %2, %3}, [%4];"                           \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");   \
  }
LDMATRIX_FUNCTION(ldmatrix_x4, "shared.b16")
LDMATRIX_FUNCTION(ldmatrix_x4_trans, "trans.shared.b16")

#if __CUDA_ARCH__ >= 800
// Copies 16, 8 or 4 bytes to shared memory in the background, or puts zeros there if not `valid`.
#define CP_ASYNC_FUNCTION(name, bytes, cache)                                                                  \
  __device__ __forceinline__ void name(void* to, const void* from, bool valid = true) {                        \
    asm volatile("cp.async." cache ".shared.global [%0], [%1], " #bytes ", %2;" ::"r"(shared_address(to)),     \
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? bytes : 0) : "memory");                      \
  }
CP_ASYNC_FUNCTION(cp_async_16, 16, "cg")
CP_ASYNC_FUNCTION(cp_async_8, 8, "ca")
CP_ASYNC_FUNCTION(cp_async_4, 4, "ca")
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, but for the latest `groups_left` groups. Others see them after a barrier.
template <int groups_left>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}
#else  // at once, through registers
#define CP_ASYNC_FUNCTION(name, Bits)                                                    \
  __device__ __forceinline__ void name(void* to, const void* from, bool valid = true) { \
    Bits bits = {};                                                                      \
    if (valid) bits = *static_cast<const Bits*>(from);                                   \
    *static_cast<Bits*>(to) = bits;                                                      \
  }
CP_ASYNC_FUNCTION(cp_async_16, uint4)
CP_ASYNC_FUNCTION(cp_async_8, uint2)
CP_ASYNC_FUNCTION(cp_async_4, unsigned)
__device__ __forceinline__ void cp_async_commit() {}
template <int groups_left>
__device__ __forceinline__ void cp_async_wait() {}
#endif

#endif
