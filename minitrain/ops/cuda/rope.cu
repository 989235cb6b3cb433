// Rotary position embedding, in place: components (2j, 2j+1) of a head are a complex number z, and
// z <- z e^(+-i angle). The formula is in ops/rope.py. A block takes the heads of one token.
//
// types: T = double | float | __half | __nv_bfloat16
// no spills
#include "common.cuh"

using C = Compute<T>;
constexpr int RUN = 16 / sizeof(T);

// Of the heads x of a token, K wide each; `turns` has cos and sin of the angle for every pair of a head.
template <class R> __device__ __forceinline__ void rotate(R run, T* x, const C* turns_K, long long K, C direction) {
    auto z = run.load(x), turn = R{int(run.first) % int(K)}.load(turns_K);
#pragma unroll
    for (int i = 0; i < run.size; i += 2) {
        C re = z[i], im = z[i + 1], cos = turn[i], sin = turn[i + 1] * direction;
        z[i] = re * cos - im * sin;
        z[i + 1] = re * sin + im * cos;
    }
    run.store(x, z);
}

// The table has rows of K numbers, K/2 complex ones, for every position; there are `n_positions` in a sequence.
// direction: 1, or -1 to rotate back.
extern "C" __global__ void rope(
    T* x_NHK, const C* table_TK, long long n_positions, long long H, long long K, double direction
) {
    long long n = blockIdx.x, t = n % n_positions, width = H * K;
    T* x = x_NHK + n * width;
    const C* turns_K = table_TK + t * K;
    if (K % RUN == 0 && aligned(x, turns_K)) {
        for (long long i = threadIdx.x * RUN; i < width; i += blockDim.x * RUN)
            rotate(Run<RUN, true>{i}, x, turns_K, K, C(direction));
    } else {
        for (long long i = threadIdx.x * 2; i < width; i += blockDim.x * 2)
            rotate(Run<2, false>{i}, x, turns_K, K, C(direction));
    }
}
