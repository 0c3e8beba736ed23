// A correlation on three axes, as backends/axes.py has it: output j of an axis reads the source at j step + offset for
// each tap and is written to the target at first + j stride. Forward convolution and input gradient are both of this
// kind; of the input gradient each phase of the strides is a correlation of its own. Structures are filled by
// correlation.py; w is read in place, forward and gradient differ in the distance of its rows and channels.
#pragma once
#include "types.cuh"

struct Problem {                     // what all phases share
  Index source_plane, target_plane;  // elements of a channel
  Index row_step, channel_step;      // in w: from one channel of the target to the next, and of the source
  Index source[3], target[3];        // sizes
  Index samples;
  int groups, channels, rows;        // of source and target in each group
  int kernel_taps;                   // in w: taps of a filter
  int relu;
  int padded;                        // outside of the source are zeros, which meet the weights; else nothing
};

struct Phase {
  Index outputs[3];
  Index low[3];                                 // where output 0 reads the source with its lowest tap
  Index weights;                                // where its packed weights begin
  int step[3], first[3], stride[3];
  int spacing[3], box[3], boxes[3], extent[3];  // of tiles: see tile.cuh
  int samples;                                  // in a box
  int taps, first_tap;                          // its part of the table of taps
  int pitch;                                    // words of a channel in a tile
  int chunk, steps;                             // words of a chunk of channels (weight_grad.cu: of a tile), steps of it
  int line_taps, unit, apart;                   // of lines along an axis: see depthwise.cu
};

struct Tap {
  Index offset[3];
  int kernel;  // its place in a filter of w
  int tile;    // and in a tile
};

// Whether a tap of this output lies inside the source, and where.
__device__ __forceinline__ bool inside_source(const Problem& problem, const Phase& phase, const Tap& tap,
                                              const Index output[3], Index& at) {
  bool inside = true;
  at = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const Index position = output[axis] * phase.step[axis] + tap.offset[axis];
    inside = inside && position >= 0 && position < problem.source[axis];
    at = at * problem.source[axis] + position;
  }
  return inside;
}

// One output, straight from the definition. Taps outside the source meet zeros, or nothing.
template <typename T>
__device__ __noinline__ Compute<T> direct_sum(const T* x, const T* w, const Problem& problem, const Phase& phase,
                                              const Tap* taps, Index sample, int group, int row,
                                              const Index output[3]) {
  const T* plane = x + (sample * problem.groups + group) * problem.channels * problem.source_plane;
  const T* filter = w + Index(group) * problem.rows * problem.channels * problem.kernel_taps + row * problem.row_step;
  Compute<T> sum = 0;
  for (int channel = 0; channel < problem.channels; ++channel) {
    for (int i = 0; i < phase.taps; ++i) {
      const Tap& tap = taps[phase.first_tap + i];
      Index at;
      const bool inside = inside_source(problem, phase, tap, output, at);
      if (inside || problem.padded) sum += (inside ? Compute<T>(plane[at]) : 0) * Compute<T>(filter[tap.kernel]);
    }
    plane += problem.source_plane;
    filter += problem.channel_step;
  }
  return sum;
}

// One weight's gradient, straight from the definition: the sum over samples and outputs, in their order.
template <typename T>
__device__ __forceinline__ Compute<T> direct_weight_sum(const T* gy, const T* x, const Problem& problem,
                                                     const Phase& phase, const Tap& tap, int group, int row,
                                                     int channel) {
  Compute<T> sum = 0;
  for (Index sample = 0; sample < problem.samples; ++sample) {
    const T* plane = x + ((sample * problem.groups + group) * problem.channels + channel) * problem.source_plane;
    const T* cotangent = gy + ((sample * problem.groups + group) * problem.rows + row) * problem.target_plane;
    Index output[3], at;
    for (output[0] = 0; output[0] < phase.outputs[0]; ++output[0])
      for (output[1] = 0; output[1] < phase.outputs[1]; ++output[1])
        for (output[2] = 0; output[2] < phase.outputs[2]; ++output[2], ++cotangent)
          sum += Compute<T>(*cotangent) * (inside_source(problem, phase, tap, output, at) ? Compute<T>(plane[at]) : 0);
  }
  return sum;
}

// Where an output of a phase is written in its channel of the target.
__device__ __forceinline__ Index target_offset(const Problem& problem, const Phase& phase, const Index output[3]) {
  Index at = 0;
  for (int axis = 0; axis < 3; ++axis)
    at = at * problem.target[axis] + phase.first[axis] + output[axis] * phase.stride[axis];
  return at;
}

// The end of every sum: bias, activation, rounding to the type of the arrays.
template <typename T>
__device__ __forceinline__ T finished(Compute<T> sum, const T* bias, int channel, int relu) {
  if (bias) sum += Compute<T>(bias[channel]);
  return T(relu && sum < 0 ? Compute<T>(0) : sum);  // NaN stays
}

// Whether a sum is as the definition says: neither infinite nor NaN, nor so large that some part of it may have been cut
// off at the largest float, as tensor cores do.
__device__ __forceinline__ bool is_trusted(float sum) { return fabsf(sum) < 0x1p120f; }
__device__ __forceinline__ bool is_trusted(double sum) { return sum - sum == 0; }
