// The adjoint of picking elements by arrays of indices: each element of x adds up the gradients of its picks.
//
// The picks come sorted by the element they are of, those of one element in their own order: the thread at the first of
// such a run owns the element and adds up the run. No atomics, so that the sum has the same bits in every run.
// Floor: positions, order and gradients read once; a long run is the work of one thread.
#include "types.cuh"

template <typename T>
__global__ void scatter_add(const T* gy, const Index* positions, const Index* order, T* gx, Index picks) {
  const Index first = own_index();
  if (first >= picks) return;
  const Index element = positions[order[first]];
  if (first > 0 && positions[order[first - 1]] == element) return;
  Compute<T> sum = 0;
  for (Index i = first; i < picks && positions[order[i]] == element; ++i) sum += Compute<T>(gy[order[i]]);
  gx[element] = T(sum);
}
