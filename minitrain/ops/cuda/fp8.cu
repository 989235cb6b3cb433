// Rounding to 8-bit floats with delayed scaling (ops/fp8.py): an array is scaled by a power of two, rounded,
// and scaled back; its largest magnitude is noted. The results have few digits, so that 16 bits hold them
// exactly.
//
// A format has `digits` binary digits behind the first; numbers below 2^lowest have the steps of those at it.
// The largest is 1.75 x 2^top. Magnitudes are compared as bits: floats that are not negative have the order
// of these, also the smallest, which arithmetic takes for zero.
//
// types: T = __nv_bfloat16
// no spills
#include "common.cuh"

constexpr int RUN = 16 / sizeof(T);
constexpr unsigned INFINITE = 0x7f800000;
constexpr int MOST_DOUBLINGS = 100;  // of ops/fp8.py, where the reason is

__device__ __forceinline__ unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

// |x|; what is not a number counts as infinite.
__device__ __forceinline__ unsigned magnitude(float x) {
    unsigned bits = __float_as_uint(x) & 0x7fffffff;
    return bits < INFINITE ? bits : INFINITE;
}

// 2^k, -126 <= k <= 127
__device__ __forceinline__ float power(int k) { return __uint_as_float(unsigned(k + 127) << 23); }

// The largest power of two, up to 2^MOST_DOUBLINGS, that leaves `amax` in range; 1 if that is zero or infinite.
__device__ __forceinline__ float fitting(unsigned amax, int top) {
    if (amax == 0 || amax >= INFINITE) return 1;
    bool above = (amax & 0x7fffff) > 0x600000;  // a fraction of more than 1.75
    int k = top - (int(amax >> 23) - 127) - above;
    return power(k < MOST_DOUBLINGS ? k : MOST_DOUBLINGS);
}

// v rounded to the format, of two equally near numbers to the even one.
__device__ __forceinline__ float round_to(float v, int digits, int lowest) {
    int exponent = int(__float_as_uint(v) >> 23 & 255) - 127;
    exponent = exponent > lowest ? exponent : lowest;
    return rintf(v * power(digits - exponent)) * power(exponent - digits);
}

// max|x| of what each block has seen.
extern "C" __global__ void fp8_largest(const T* x, unsigned* of_blocks, long long n) {
    unsigned most = 0;
    auto f = [&](auto run) {
        auto values = run.load(x);
#pragma unroll
        for (int i = 0; i < run.size; i++) most = larger(most, magnitude(values[i]));
    };
    for_runs<RUN>(n, first_element(), next_element(), f, x);
    most = block_max(most);
    if (threadIdx.x == 0) of_blocks[blockIdx.x] = most;
}

// y = round(clamp(x s)) / s, and amax <- max(amax, max|x|). s is `scale`, or with `of_blocks`, n_of_blocks
// maxima of x, what fits these.
extern "C" __global__ void fp8_round(
    const T* x, T* y, const float* scale, const unsigned* of_blocks, long long n_of_blocks, unsigned* amax,
    long long n, long long digits, long long lowest, long long top
) {
    float s = *scale;
    if (of_blocks) {
        unsigned most = 0;
        for (long long i = threadIdx.x; i < n_of_blocks; i += blockDim.x) most = larger(most, of_blocks[i]);
        s = fitting(block_max(most), int(top));
    }
    float largest = 1.75f * power(int(top)), back = 1 / s;
    unsigned most = 0;
    auto f = [&](auto run) {
        auto values = run.load(x);
#pragma unroll
        for (int i = 0; i < run.size; i++) {
            most = larger(most, magnitude(values[i]));
            float v = values[i] * s;
            v = v > largest ? largest : v < -largest ? -largest : v;  // what is not a number stays so
            values[i] = round_to(v, int(digits), int(lowest)) * back;
        }
        run.store(y, values);
    };
    for_runs<RUN>(n, first_element(), next_element(), f, x, y);
    most = block_max(most);
    if (threadIdx.x == 0) atomicMax(amax, most);
}

// For each of n tensors: its maximum in this step, if finite, enters the history of H steps as the latest,
// and the scale of the next step follows from them all.
extern "C" __global__ void fp8_end_step(
    unsigned* amax_n, unsigned* history_nH, float* scale_n, const long long* top_n, long long n, long long H
) {
    long long i = first_element();
    if (i >= n) return;
    unsigned* history = history_nH + i * H;
    unsigned now = amax_n[i] < INFINITE ? amax_n[i] : 0, most = now;
    for (long long k = H - 1; k > 0; k--) {
        history[k] = history[k - 1];
        most = larger(most, history[k]);
    }
    history[0] = now;
    amax_n[i] = 0;
    scale_n[i] = fitting(most, int(top_n[i]));
}
