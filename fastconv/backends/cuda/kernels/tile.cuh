// The tile of the source that a block of threads reads, in shared memory.
//
// A block computes a box of outputs (of one or, where they are small, several samples) in some channels of one
// group. All that these outputs read of a channel is a box too, the halo included; every spacing-th position of it is
// kept, the others are read by no tap. So each value comes from memory once and serves all taps: tap t of pixel p is
// at offset(t) + offset(p), wherever the box lies.
//
//   tile[word][sample][depth][height][width]     a word: one channel, or two neighbouring ones of 16-bit numbers
//
// Positions of the box in the source are the same in all channels: a table of them is made once.
#pragma once
#include "correlation.cuh"
#include "mma.cuh"

constexpr int THREADS = 128, PIXELS = 128;

struct Grid {  // how the work is numbered: blockIdx.x counts row blocks, then boxes, splits, groups, samples
  int row_blocks, boxes, splits;
  int tiles;  // at a time: two, or one where two are too large
};

struct Place {  // what this block computes
  int row_block, split, group;
  Index sample, output[3];  // the first of its box
  bool empty;               // this phase has fewer boxes than another one
};

// The first output of a box; whether the phase has not that many boxes.
__device__ __forceinline__ bool first_of_box(const Phase& phase, int box, Index output[3]) {
  for (int axis = 2; axis >= 0; --axis) {
    output[axis] = Index(box % phase.boxes[axis]) * phase.box[axis];
    box /= phase.boxes[axis];
  }
  return box > 0;
}

// The place of a box that is counted from the first box of place.sample on, through the samples behind it; `box` becomes
// its number in its own samples. False behind the last one.
__device__ __forceinline__ bool find_box(const Problem& problem, const Phase& phase, int& box, Place& place) {
  const int boxes = phase.boxes[0] * phase.boxes[1] * phase.boxes[2];
  while (box >= boxes && place.sample < problem.samples) box -= boxes, place.sample += phase.samples;
  if (place.sample >= problem.samples) return false;
  first_of_box(phase, box, place.output);
  return true;
}

__device__ __forceinline__ Place place_of_block(const Grid& grid, const Problem& problem, const Phase& phase) {
  Place place;
  unsigned i = blockIdx.x;
  place.row_block = i % grid.row_blocks, i /= grid.row_blocks;
  int box = i % grid.boxes;
  i /= grid.boxes;
  place.split = i % grid.splits, i /= grid.splits;
  place.group = i % problem.groups, i /= problem.groups;
  place.sample = Index(i) * phase.samples;
  place.empty = first_of_box(phase, box, place.output) || place.sample >= problem.samples;
  return place;
}

// The outputs of a pixel of the box, its sample, and whether they exist.
__device__ __forceinline__ bool output_of_pixel(const Place& place, const Problem& problem, const Phase& phase,
                                                int pixel, Index output[3], Index& sample) {
  bool exists = true;
  for (int axis = 2; axis >= 0; --axis) {
    output[axis] = place.output[axis] + pixel % phase.box[axis];
    pixel /= phase.box[axis];
    exists = exists && output[axis] < phase.outputs[axis];
  }
  sample = place.sample + pixel;
  return exists && pixel < phase.samples && sample < problem.samples;
}

// Where a pixel of the box finds its lowest tap in the tile.
__device__ __forceinline__ int pixel_in_tile(const Phase& phase, int pixel) {
  int at = 0, size = 1;
  for (int axis = 2; axis >= 0; --axis) {
    at += pixel % phase.box[axis] * (phase.step[axis] / phase.spacing[axis]) * size;
    pixel /= phase.box[axis];
    size *= phase.extent[axis];
  }
  return pixel < phase.samples ? at + pixel * size : at;  // behind the last one, where boxes are small: anywhere
}

// Fills positions[0 .. count): where each word of a tile's channel lies behind `origin` in that channel of the source,
// or -1 in the padding. Returns the origin, which may itself lie in the padding.
__device__ __forceinline__ Index find_positions(const Place& place, const Problem& problem, const Phase& phase,
                                                int channels, int count, int* positions) {
  Index first[3], origin = 0;
  for (int axis = 0; axis < 3; ++axis) {
    first[axis] = place.output[axis] * phase.step[axis] + phase.low[axis];
    origin = origin * problem.source[axis] + first[axis];
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += THREADS) {
    int rest = i;
    Index at = 0, size = 1;
    bool inside = true;
    for (int axis = 2; axis >= 0; --axis) {
      const int offset = rest % phase.extent[axis] * phase.spacing[axis];
      rest /= phase.extent[axis];
      const Index position = first[axis] + offset;
      inside = inside && position >= 0 && position < problem.source[axis];
      at += offset * size;
      size *= problem.source[axis];
    }
    inside = inside && place.sample + rest < problem.samples;
    positions[i] = inside ? int(at + rest * (Index(problem.groups) * channels * problem.source_plane)) : -1;
  }
  return origin;
}

// The same for the outputs of a box, behind the first one in its channel of the target; -1 for those that do not exist.
__device__ __forceinline__ void find_outputs(const Place& place, const Problem& problem, const Phase& phase, int count,
                                             int* offsets) {
  const Index origin = target_offset(problem, phase, place.output);
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += THREADS) {
    Index output[3], sample;
    const bool exists = output_of_pixel(place, problem, phase, i, output, sample);
    const Index channels = (sample - place.sample) * problem.groups * problem.rows;
    offsets[i] = exists ? int(target_offset(problem, phase, output) - origin + channels * problem.target_plane) : -1;
  }
}

// One word of a tile: channel `channel` at `position` behind the origin, or a zero. Numbers that need no conversion come
// in the background (cp.async).
template <typename T>
struct Source {
  const T* x;  // the first channel of the group
  Index plane, origin;
  int channels;

  __device__ __forceinline__ bool has(int channel, int position) const { return position >= 0 && channel < channels; }
  __device__ __forceinline__ const T* at(int channel, int position) const {
    return has(channel, position) ? x + channel * plane + origin + position : x;
  }
};

__device__ __forceinline__ void fetch(float* to, const Source<float>& source, int word, int position) {
  cp_async_4(to, source.at(word, position), source.has(word, position));
}
__device__ __forceinline__ void fetch(unsigned* to, const Source<float>& source, int word, int position) {
  cp_async_4(to, source.at(word, position), source.has(word, position));
}
__device__ __forceinline__ void fetch(double* to, const Source<double>& source, int word, int position) {
  cp_async_8(to, source.at(word, position), source.has(word, position));
}
template <typename T>
__device__ __forceinline__ void fetch(float* to, const Source<T>& source, int word, int position) {
  *to = source.has(word, position) ? float(*source.at(word, position)) : 0.f;
}
template <typename T>
__device__ __forceinline__ void fetch(T* to, const Source<T>& source, int word, int position) {
  *to = source.has(word, position) ? *source.at(word, position) : T(0.f);
}
template <typename T>
__device__ __forceinline__ void fetch(unsigned* to, const Source<T>& source, int word, int position) {
  unsigned bits = 0;  // of two channels, the first one low
  if (source.has(2 * word, position)) bits = bits_of(*source.at(2 * word, position));
  if (source.has(2 * word + 1, position)) bits |= unsigned(bits_of(*source.at(2 * word + 1, position))) << 16;
  *to = bits;
}

// Brings `words` words from `first` on of each of the `count` positions into a tile.
template <typename Word, typename T>
__device__ __forceinline__ void load_tile(Word* tile, int pitch, const Source<T>& source, const int* positions,
                                          int count, int first, int words) {
  int position = threadIdx.x, word = 0;
#pragma unroll 1
  while (true) {
#pragma unroll 1
    while (position >= count) position -= count, ++word;
    if (word >= words) return;
    fetch(tile + word * pitch + position, source, first + word, positions[position]);
    position += THREADS;
  }
}
