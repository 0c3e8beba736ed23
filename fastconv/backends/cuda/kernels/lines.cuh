// Runs of outputs along one axis, for depthwise.cu and depthwise_weight_grad.cu: RUN outputs of a box that follow one
// another `apart` (the dilation) from each other, so that neighbours share what they read. RUN is odd: runs that begin
// one behind the other read different banks.
#pragma once
#include "tile.cuh"

constexpr int RUN = 7;

// values[axis], without an index that would put the values into memory.
template <typename A>
__device__ __forceinline__ A of_axis(const A values[3], int axis) {
  return axis == 0 ? values[0] : axis == 1 ? values[1] : values[2];
}

// From one position along an axis to the next, in an array of these sizes.
template <typename A>
__device__ __forceinline__ A line_step(const A sizes[3], int axis) {
  return axis == 2 ? A(1) : axis == 1 ? sizes[2] : sizes[1] * sizes[2];
}

// The first output, in the box, of a run along `axis`.
__device__ __forceinline__ void first_of_run(const Phase& phase, int axis, int run, int output[3]) {
#pragma unroll
  for (int i = 2; i >= 0; --i) {
    const int size = i == axis ? phase.box[i] / RUN : phase.box[i];
    output[i] = run % size;
    run /= size;
    if (i == axis) output[i] += output[i] / phase.apart * ((RUN - 1) * phase.apart);
  }
}

// From one output to the next along each axis: words of the tile.
__device__ __forceinline__ void steps_in_tile(const Phase& phase, int step[3]) {
  int size = 1;
  for (int axis = 2; axis >= 0; --axis) {
    step[axis] = phase.step[axis] / phase.spacing[axis] * size;
    size *= phase.extent[axis];
  }
}
