// What is done with whole gradients besides the update: optim/vectors.py.
//
// types: G = double | float | __half | __nv_bfloat16
// no spills
#include "common.cuh"

constexpr int RUN = 16 / sizeof(G);  // elements of 16 bytes

// The squares of all elements that a block meets, in fp64, added up. [blocks]
extern "C" __global__ void squares_of_parts(const G* x, double* parts, long long n) {
    double sum = 0;
    auto f = [&](auto run) {
        auto g = run.load(x);
        for (int k = 0; k < run.size; k++) sum += double(g[k]) * double(g[k]);
    };
    for_runs<RUN>(n, first_element(), next_element(), f, x);
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// total += all parts. One block.
extern "C" __global__ void add_parts(const double* parts, double* total, long long n_parts) {
    double sum = 0;
    for (long long i = threadIdx.x; i < n_parts; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[0] += sum;
}

// The squares of each row, in fp64, added up by a warp.
extern "C" __global__ void squares_of_rows(const G* rows_NK, double* sums_N, long long N, long long K) {
    for (long long n = first_element() / WARP; n < N; n += next_element() / WARP) {
        double sum = 0;
        for (long long k = threadIdx.x % WARP; k < K; k += WARP) {
            double g = wide(rows_NK[n * K + k]);
            sum += g * g;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) sums_N[n] = sum;
    }
}

// first <- the place of the first element that is infinite or NaN, if that is less.
extern "C" __global__ void first_not_finite(const G* x, long long* first, long long n) {
    long long found = n;
    auto f = [&](auto run) {
        auto g = run.load(x);
        for (int k = run.size - 1; k >= 0; k--)
            if (!finite_(g[k]) && run.first + k < found) found = run.first + k;
    };
    for_runs<RUN>(n, first_element(), next_element(), f, x);
    if (found < n) atomicMin(first, found);
}
