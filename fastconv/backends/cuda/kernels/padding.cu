// Padding of up to three axes, and its adjoint; missing axes have size 1 and no padding.
//
// Gather in both directions: forward a thread owns an output and reads the one input it repeats, backward a thread owns
// an input and adds up the outputs that repeat it, in their order.
// Floor: input and output once through memory.
#include "types.cuh"

enum Mode { ZEROS, REFLECT, REPLICATE, CIRCULAR };

struct Padding { int in[3], out[3], before[3]; };

// The input position that output position o of an axis repeats; outside of the input for ZEROS.
template <Mode MODE>
__device__ __forceinline__ int source(int o, int before, int size) {
  const int i = o - before;
  if constexpr (MODE == REFLECT) return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i;
  else if constexpr (MODE == REPLICATE) return i < 0 ? 0 : i >= size ? size - 1 : i;
  else if constexpr (MODE == CIRCULAR) return i < 0 ? i + size : i >= size ? i - size : i;
  else return i;
}

template <typename T, Mode MODE>
__global__ void pad(const T* x, T* y, Index outputs, const Padding padding, Compute<T> value) {
  Index rest = own_index();
  if (rest >= outputs) return;
  const Index output = rest;
  int at[3];
  bool inside = true;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    at[axis] = source<MODE>(split(rest, padding.out[axis]), padding.before[axis], padding.in[axis]);
    inside = inside && at[axis] >= 0 && at[axis] < padding.in[axis];
  }
  const Index input = ((rest * padding.in[0] + at[0]) * padding.in[1] + at[1]) * padding.in[2] + at[2];
  y[output] = inside ? x[input] : T(value);
}

// The outputs of an axis that repeat input i: up to three runs, one after the other.
struct Copies {
  int first[3], last[3];
  __device__ void set(int run, int from, int to) { first[run] = from, last[run] = to; }
};

template <Mode MODE>
__device__ __forceinline__ Copies copies(int i, int before, int size, int total) {
  const int own = before + i;
  Copies result;
  result.set(0, 1, 0);  // empty
  result.set(1, own, own);
  result.set(2, 1, 0);
  if constexpr (MODE == REPLICATE) {
    if (i == 0) result.set(0, 0, before - 1);
    if (i == size - 1) result.set(2, own + 1, total - 1);
  } else if constexpr (MODE == REFLECT) {
    if (i > 0 && i <= before) result.set(0, before - i, before - i);
    const int right = before + 2 * (size - 1) - i;
    if (i < size - 1 && right < total) result.set(2, right, right);
  } else if constexpr (MODE == CIRCULAR) {
    if (own >= size) result.set(0, own - size, own - size);
    if (own + size < total) result.set(2, own + size, own + size);
  }
  return result;
}

template <typename T, Mode MODE>
__global__ void pad_grad(const T* gy, T* gx, Index inputs, const Padding padding) {
  Index rest = own_index();
  if (rest >= inputs) return;
  const Index input = rest;
  Copies along[3];
#pragma unroll
  for (int axis = 2; axis >= 0; --axis)
    along[axis] = copies<MODE>(split(rest, padding.in[axis]), padding.before[axis], padding.in[axis], padding.out[axis]);
  Compute<T> sum = 0;
#pragma unroll
  for (int a = 0; a < 3; ++a)
    for (int d = along[0].first[a]; d <= along[0].last[a]; ++d)
#pragma unroll
      for (int b = 0; b < 3; ++b)
        for (int h = along[1].first[b]; h <= along[1].last[b]; ++h)
#pragma unroll
          for (int c = 0; c < 3; ++c)
            for (int w = along[2].first[c]; w <= along[2].last[c]; ++w)
              sum += Compute<T>(gy[((rest * padding.out[0] + d) * padding.out[1] + h) * padding.out[2] + w]);
  gx[input] = T(sum);
}
