// Maxima and averages of windows, and their gradients, for 1 to 3 axes: missing ones have size 1.
//
// Gather in both directions, so that no two threads write to one place: forward a thread (or, for windows of many taps,
// a warp) owns an output and reads its window; backward a thread owns an input and visits, in their order, the outputs
// whose windows hold it. Neighbouring threads own neighbours of the last axis.
// Floor: input and output once through memory; taps that windows share come from the caches. Indices of maxima cost
// 8 bytes an output.
#include "lanes.cuh"

struct Pool {
  int in[3], out[3], kernel[3], stride[3], dilation[3], before[3], after[3];
  int adaptive;     // windows [floor(o S / O), ceil((o + 1) S / O)); kernel, stride and padding do not count
  int include_pad;  // an average divides by the taps in the padding too
  int divisor;      // what an average divides by, or 0
};

struct Window {
  int start, stop, step, taps;  // taps start, start + step ... below stop, all inside the input
  int divisor;                  // the share of this axis in the divisor of an average
};

__device__ __forceinline__ int taps_between(int start, int stop, int step) {
  return stop > start ? (stop - start + step - 1) / step : 0;
}

__device__ __forceinline__ Window window(const Pool& pool, int axis, int o) {
  const int size = pool.in[axis], step = pool.dilation[axis];
  if (pool.adaptive) {
    const int start = Index(o) * size / pool.out[axis];
    const int stop = (Index(o + 1) * size + pool.out[axis] - 1) / pool.out[axis];
    return {start, stop, 1, stop - start, stop - start};
  }
  const int first = o * pool.stride[axis] - pool.before[axis];
  const int end = first + step * (pool.kernel[axis] - 1) + 1;
  const int start = first >= 0 ? first : (step - (-first) % step) % step;  // whole steps are skipped
  const int stop = min(end, size), taps = taps_between(start, stop, step);
  return {start, stop, step, taps, pool.include_pad ? taps_between(first, min(end, size + pool.after[axis]), step) : taps};
}

// The outputs whose windows may hold input position i.
__device__ __forceinline__ void outputs_around(const Pool& pool, int axis, int i, int& first, int& last) {
  const int count = pool.out[axis];
  if (pool.adaptive) {
    first = Index(i) * count / pool.in[axis];
    last = (Index(i + 1) * count + pool.in[axis] - 1) / pool.in[axis] - 1;
    return;
  }
  const int stride = pool.stride[axis], at = i + pool.before[axis], span = pool.dilation[axis] * (pool.kernel[axis] - 1);
  first = at > span ? (at - span + stride - 1) / stride : 0;
  last = min(at / stride, count - 1);
}

__device__ __forceinline__ bool holds(const Window& w, int i) {
  return i >= w.start && i < w.stop && (i - w.start) % w.step == 0;
}

template <typename A>
__device__ __forceinline__ A divisor(const Pool& pool, const Window& d, const Window& h, const Window& w) {
  return pool.divisor ? A(pool.divisor) : A(Index(d.divisor) * h.divisor * w.divisor);
}

// Calls visit(offset in the plane) for the taps of a window, shared out among LANES.
template <int LANES, typename F>
__device__ __forceinline__ void each_tap(const Pool& pool, const Window& d, const Window& h, const Window& w, F visit) {
  const Index height = pool.in[1], width = pool.in[2];
  if constexpr (LANES == 1) {
    for (int i = d.start; i < d.stop; i += d.step)
      for (int j = h.start; j < h.stop; j += h.step)
        for (int k = w.start; k < w.stop; k += w.step) visit((i * height + j) * width + k);
  } else {
    const Index taps = Index(d.taps) * h.taps * w.taps;
    for (Index tap = threadIdx.x % LANES; tap < taps; tap += LANES) {
      Index rest = tap;
      const int k = split(rest, w.taps), j = split(rest, h.taps), i = int(rest);
      visit(((d.start + i * d.step) * height + h.start + j * h.step) * width + w.start + k * w.step);
    }
  }
}

template <typename A>
struct Best {
  A value;
  Index at;
  // The first of equal values wins, the last of several NaN.
  __device__ bool loses_to(A other, Index place) const {
    if (other != other) return value == value || place > at;
    return other > value || (other == value && place < at);
  }
  __device__ void offer(A other, Index place) {
    if (loses_to(other, place)) value = other, at = place;
  }
};

template <typename T, int LANES>
__global__ void max_pool(const T* x, T* y, Index* indices, Index outputs, const Pool pool) {
  Index rest = own_index() / LANES;
  if (rest >= outputs) return;
  const Index output = rest;
  const Window w = window(pool, 2, split(rest, pool.out[2]));
  const Window h = window(pool, 1, split(rest, pool.out[1]));
  const Window d = window(pool, 0, split(rest, pool.out[0]));
  x += rest * pool.in[0] * pool.in[1] * pool.in[2];

  const Index first = (Index(d.start) * pool.in[1] + h.start) * pool.in[2] + w.start;
  Best<Compute<T>> best = {Compute<T>(x[first]), first};
  each_tap<LANES>(pool, d, h, w, [&](Index at) { best.offer(Compute<T>(x[at]), at); });
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    const Compute<T> value = __shfl_xor_sync(WARP, best.value, distance);
    const Index at = __shfl_xor_sync(WARP, best.at, distance);
    best.offer(value, at);
  }
  if (LANES > 1 && threadIdx.x % LANES) return;
  y[output] = T(best.value);
  if (indices) indices[output] = best.at;
}

// Each gradient goes to the input that won, if this thread's is it.
template <typename T>
__global__ void max_pool_grad(const T* gy, const Index* indices, T* gx, Index inputs, const Pool pool) {
  Index rest = own_index();
  if (rest >= inputs) return;
  const Index input = rest;
  const int k = split(rest, pool.in[2]), j = split(rest, pool.in[1]), i = split(rest, pool.in[0]);
  const Index own = (Index(i) * pool.in[1] + j) * pool.in[2] + k;
  const Index plane = rest * pool.out[0] * pool.out[1] * pool.out[2];
  int d0, d1, h0, h1, w0, w1;
  outputs_around(pool, 0, i, d0, d1);
  outputs_around(pool, 1, j, h0, h1);
  outputs_around(pool, 2, k, w0, w1);
  Compute<T> sum = 0;
  for (int d = d0; d <= d1; ++d)
    for (int h = h0; h <= h1; ++h)
      for (int w = w0; w <= w1; ++w) {
        const Index output = plane + (Index(d) * pool.out[1] + h) * pool.out[2] + w;
        if (indices[output] == own) sum += Compute<T>(gy[output]);
      }
  gx[input] = T(sum);
}

template <typename T, int LANES>
__global__ void avg_pool(const T* x, T* y, Index outputs, const Pool pool) {
  Index rest = own_index() / LANES;
  if (rest >= outputs) return;
  const Index output = rest;
  const Window w = window(pool, 2, split(rest, pool.out[2]));
  const Window h = window(pool, 1, split(rest, pool.out[1]));
  const Window d = window(pool, 0, split(rest, pool.out[0]));
  x += rest * pool.in[0] * pool.in[1] * pool.in[2];

  Compute<T> sum = 0;
  each_tap<LANES>(pool, d, h, w, [&](Index at) { sum += Compute<T>(x[at]); });
  sum = sum_over_lanes<LANES>(sum);
  if (LANES > 1 && threadIdx.x % LANES) return;
  y[output] = T(sum / divisor<Compute<T>>(pool, d, h, w));
}

template <typename T>
__global__ void avg_pool_grad(const T* gy, T* gx, Index inputs, const Pool pool) {
  Index rest = own_index();
  if (rest >= inputs) return;
  const Index input = rest;
  const int k = split(rest, pool.in[2]), j = split(rest, pool.in[1]), i = split(rest, pool.in[0]);
  gy += rest * pool.out[0] * pool.out[1] * pool.out[2];
  int d0, d1, h0, h1, w0, w1;
  outputs_around(pool, 0, i, d0, d1);
  outputs_around(pool, 1, j, h0, h1);
  outputs_around(pool, 2, k, w0, w1);
  Compute<T> sum = 0;
  for (int d = d0; d <= d1; ++d) {
    const Window depth = window(pool, 0, d);
    if (!holds(depth, i)) continue;
    for (int h = h0; h <= h1; ++h) {
      const Window row = window(pool, 1, h);
      if (!holds(row, j)) continue;
      for (int w = w0; w <= w1; ++w) {
        const Window column = window(pool, 2, w);
        if (!holds(column, k)) continue;
        const Compute<T> g = Compute<T>(gy[(Index(d) * pool.out[1] + h) * pool.out[2] + w]);
        sum += g / divisor<Compute<T>>(pool, depth, row, column);
      }
    }
  }
  gx[input] = T(sum);
}
