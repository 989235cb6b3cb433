// What kernels share: storage types and the type they are computed in, sums over a warp and a block, loops.
//
// Values are stored as T, which may have 16 bits, computed as Compute<T> (float, or double for double), and
// rounded once, to the nearest even, where they are stored. Sums have a fixed order, so that a kernel gives
// the same bits every time.
#pragma once

constexpr int WARP = 32;  // threads that run in step

template <class T> struct ComputeOf { using type = float; };
template <> struct ComputeOf<double> { using type = double; };
template <class T> using Compute = typename ComputeOf<T>::type;

__device__ __forceinline__ double wide(double x) { return x; }
__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(__half x) { return __half2float(x); }
__device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

// narrow<T>(x): x rounded to T.
template <class T> __device__ __forceinline__ T narrow(Compute<T> x) {
    if constexpr (sizeof(T) >= 4) return x;
    else return T(x);
}
template <> __device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_(double x) { return tanh(x); }
__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }
__device__ __forceinline__ float abs_(float x) { return fabsf(x); }
__device__ __forceinline__ double abs_(double x) { return fabs(x); }

// Larger of two; NaN if either is one, as NumPy's maximum. (fmaxf would drop it.)
template <class C> __device__ __forceinline__ C max_(C a, C b) { return (a > b || a != a) ? a : b; }

template <class C> __device__ __forceinline__ bool finite_(C x) { return x - x == C(0); }

// Over the 32 lanes of a warp, all of which take part; each gets the result.
template <class C> __device__ __forceinline__ C warp_sum(C x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}
template <class C> __device__ __forceinline__ C warp_max(C x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x = max_(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Over a one-dimensional block of whole warps, all of whose threads take part; each gets the result. May be
// called again and again.
template <class C> __device__ C block_sum(C x) {
    __shared__ C of_warp[WARP];
    x = warp_sum(x);
    __syncthreads();  // all have read the sums of the call before
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    C sum = 0;
    for (int w = 0; w < int(blockDim.x) / WARP; w++) sum += of_warp[w];
    return sum;
}
template <class C> __device__ C block_max(C x) {
    __shared__ C of_warp[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    C most = of_warp[0];
    for (int w = 1; w < int(blockDim.x) / WARP; w++) most = max_(most, of_warp[w]);
    return most;
}

// This thread's first element, and the step to its next, of a loop over elements by all threads of a launch.
__device__ __forceinline__ long long first_element() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ long long next_element() { return (long long)gridDim.x * blockDim.x; }
