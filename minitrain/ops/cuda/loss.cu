// Cross-entropy of a vocabulary cut over the tp ranks. The formulas are in ops/loss.py. Logits are of the type of
// computation, T; their gradients are written as O. A block takes the row of a token, but for cross_entropy.
//
// types: T = double; O = T
// types: T = float; O = T | __half | __nv_bfloat16
// no spills
#include "common.cuh"

constexpr int RUN = 16 / sizeof(T);

__device__ __forceinline__ T below_all() { return -T(__int_as_float(0x7f800000)); }  // -infinity

// m_n = max_v z_nv; NaN if there is one.
extern "C" __global__ void local_max(const T* z_NV, T* m_N, long long V) {
    const T* z = z_NV + blockIdx.x * V;
    T most = below_all();
    auto f = [&](auto run) {
        auto values = run.load(z);
#pragma unroll
        for (int i = 0; i < run.size; i++) most = max_(most, values[i]);
    };
    for_runs<RUN>(V, threadIdx.x, blockDim.x, f, z);
    most = block_max(most);
    if (threadIdx.x == 0) m_N[blockIdx.x] = most;
}

// z <- e^(z - m); sums: sum_v e^(z_v - m), and z_target - m if the target is held here, else 0.
extern "C" __global__ void exp_and_sums(
    T* z_NV, const T* m_N, const long long* targets_N, T* sums_2N, long long N, long long V, long long first_id
) {
    long long n = blockIdx.x, target = targets_N[n] - first_id;
    T* z = z_NV + n * V;
    T m = m_N[n], of_target = 0, sum = 0;
    if (threadIdx.x == 0 && target >= 0 && target < V) of_target = z[target] - m;
    __syncthreads();  // now z may be overwritten
    auto f = [&](auto run) {
        auto values = run.load(z);
#pragma unroll
        for (int i = 0; i < run.size; i++) sum += values[i] = exp_(values[i] - m);
        run.store(z, values);
    };
    for_runs<RUN>(V, threadIdx.x, blockDim.x, f, z);
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums_2N[n] = sum;
        sums_2N[N + n] = of_target;
    }
}

// Both at once, in one pass and without a write: m_n over the ids held here, and the sums for this m. Each thread
// keeps the sum for the largest that it has seen, and corrects it when a larger one comes (Milakov and Gimelshein
// 2018, Online normalizer calculation for softmax), beginning with one that is below all but finite.
extern "C" __global__ void max_and_sums(
    const T* z_NV, const long long* targets_N, T* m_N, T* sums_2N, long long N, long long V, long long first_id
) {
    long long n = blockIdx.x, target = targets_N[n] - first_id;
    const T* z = z_NV + n * V;
    T most = -3.4e38, sum = 0;
    auto f = [&](auto run) {
        auto values = run.load(z);
        T before = most;
#pragma unroll
        for (int i = 0; i < run.size; i++) most = max_(most, values[i]);
        sum *= exp_(before - most);
#pragma unroll
        for (int i = 0; i < run.size; i++) sum += exp_(values[i] - most);
    };
    for_runs<RUN>(V, threadIdx.x, blockDim.x, f, z);
    T m = block_max(most);
    sum = block_sum(sum * exp_(most - m));
    if (threadIdx.x == 0) {
        m_N[n] = m;
        sums_2N[n] = sum;
        sums_2N[N + n] = target >= 0 && target < V ? z[target] - m : T(0);
    }
}

// -log softmax(z)_target = log sum_v e^(z_v - m) - (z_target - m); 0 for ignored targets.
extern "C" __global__ void cross_entropy(const T* sums_2N, const long long* targets_N, T* nll_N, long long N) {
    long long n = first_element();
    if (n < N) nll_N[n] = targets_N[n] < 0 ? T(0) : log_(sums_2N[n]) - sums_2N[N + n];
}

// Forward was nll = log sum_v e^z_v - z_target, so now dz = scale (softmax(z) - onehot(target)), 0 for ignored
// targets. x is e^(z - m), or with m_N the logits z. dz may be x itself. `scales`: where scale is, if not null.
extern "C" __global__ void logits_backward(
    const T* x_NV, const T* m_N, const T* sums_2N, const long long* targets_N, O* dz_NV, long long V,
    long long first_id, const double* scales, double scale
) {
    constexpr int RUN = 16 / sizeof(O);
    long long n = blockIdx.x, target = targets_N[n] - first_id;
    const T* x = x_NV + n * V;
    O* dz = dz_NV + n * V;
    T at_target = scales ? *scales : scale, factor = targets_N[n] < 0 ? T(0) : at_target / sums_2N[n];
    T m = m_N ? m_N[n] : T(0);
    auto f = [=](auto run) {
        auto values = run.load(x);
#pragma unroll
        for (int i = 0; i < run.size; i++) {
            if (m_N) values[i] = exp_(values[i] - m);
            values[i] *= factor;
            if (i == target - run.first) values[i] -= at_target;
        }
        run.store(dz, values);
    };
    for_runs<RUN>(V, threadIdx.x, blockDim.x, f, x, dz);
}
