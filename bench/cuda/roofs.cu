// The rate of float32 multiply-adds: each thread keeps CHAINS independent chains v <- v * a + b in registers and
// touches no memory. The numbers of a chain tend to 2, so that the last line never writes; the compiler cannot know.

constexpr int CHAINS = 8;

extern "C" __global__ void fma_chains(float* never, int steps, float a, float b) {
    float chains[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) chains[i] = threadIdx.x + i;
#pragma unroll 16
    for (int step = 0; step < steps; ++step)
#pragma unroll
        for (int i = 0; i < CHAINS; ++i) chains[i] = fmaf(chains[i], a, b);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sum += chains[i];
    if (sum < 0) never[0] = sum;
}
