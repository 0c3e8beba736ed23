// Resampling of up to three axes; missing ones have size 1. An output is a sum over runs of inputs, one along each axis,
// weighted by the product of their weights. Tables hold the runs: those of an interpolation, or of its adjoint.
//
// A gather in both directions: a thread owns an output. Neighbouring threads own neighbours of the last axis, whose runs
// overlap or follow each other.
// Floor: input and output once through memory; inputs that outputs share, and the tables, come from the caches.
#include "types.cuh"

struct Run {
  int first, taps;
  Index weights;  // where they begin
};

struct Axes {
  int in[3], out[3];
  Index runs[3];  // where those of an axis begin
};

template <typename T>
__global__ void resample(const T* x, T* y, Index outputs, const Axes axes, const Run* runs,
                         const Compute<T>* weights) {
  Index rest = own_index();
  if (rest >= outputs) return;
  const Index output = rest;
  const Run w = runs[axes.runs[2] + split(rest, axes.out[2])];
  const Run h = runs[axes.runs[1] + split(rest, axes.out[1])];
  const Run d = runs[axes.runs[0] + split(rest, axes.out[0])];
  x += rest * axes.in[0] * axes.in[1] * axes.in[2];

  Compute<T> sum = 0;
  for (int i = 0; i < d.taps; ++i) {
    Compute<T> plane = 0;
    for (int j = 0; j < h.taps; ++j) {
      const T* source = x + (Index(d.first + i) * axes.in[1] + h.first + j) * axes.in[2] + w.first;
      Compute<T> row = 0;
      for (int k = 0; k < w.taps; ++k) row += weights[w.weights + k] * Compute<T>(source[k]);
      plane += weights[h.weights + j] * row;
    }
    sum += weights[d.weights + i] * plane;
  }
  y[output] = T(sum);
}
