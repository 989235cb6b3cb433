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

// W neighbours, moved by one instruction, for which they must be aligned.
template <class X, int W> struct alignas(sizeof(X) * W) Pack { X x[W]; };

// N consecutive values, as they are computed with.
template <class C, int N> struct Values {
    C at[N];
    __device__ C& operator[](int i) { return at[i]; }
};

// Elements first .. first + N of arrays, which a thread loads or stores at once: if WHOLE in words of 16 bytes,
// which must lie at multiples of 16, else one by one.
template <int N, bool WHOLE> struct Run {
    static constexpr int size = N;
    long long first;

    template <class T> __device__ __forceinline__ Values<Compute<T>, N> load(const T* x) const {
        Values<Compute<T>, N> values;
        if constexpr (WHOLE) {
            constexpr int W = 16 / sizeof(T);
#pragma unroll
            for (int i = 0; i < N; i += W) {
                Pack<T, W> pack = *(const Pack<T, W>*)(x + first + i);
#pragma unroll
                for (int k = 0; k < W; k++) values[i + k] = wide(pack.x[k]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) values[i] = wide(x[first + i]);
        }
        return values;
    }
    template <class T> __device__ __forceinline__ void store(T* x, Values<Compute<T>, N> values) const {
        if constexpr (WHOLE) {
            constexpr int W = 16 / sizeof(T);
#pragma unroll
            for (int i = 0; i < N; i += W) {
                Pack<T, W> pack;
#pragma unroll
                for (int k = 0; k < W; k++) pack.x[k] = narrow<T>(values[i + k]);
                uint4 word;
                memcpy(&word, &pack, 16);
                __stwb((uint4*)(x + first + i), word);  // a plain store is sometimes cut into smaller ones
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) x[first + i] = narrow<T>(values[i]);
        }
    }
};

// Whether all arrays begin at multiples of 16 bytes.
template <class... X> __device__ __forceinline__ bool aligned(const X*... x) { return ((size_t(x) % 16 == 0) && ...); }

// Calls f(run) for runs that together are the elements 0 .. n, dealt out to n_threads threads, of which this is
// `thread`. They are of N elements, 16 bytes of the narrowest of the arrays x, as far as that can be for all of
// these arrays, and else of one.
template <int N, class F, class... X>
__device__ __forceinline__ void for_runs(long long n, long long thread, long long n_threads, F f, const X*... x) {
    long long before = n;  // elements that come before the first run
    for (int k = 0; k < N && k < n; k++)
        if (aligned((x + k)...)) {
            before = k;
            break;
        }
    long long n_runs = (n - before) / N, n_others = n - n_runs * N;
#pragma unroll 1
    for (long long i = thread; i < n_runs; i += n_threads) f(Run<N, true>{before + i * N});
#pragma unroll 1
    for (long long i = thread; i < n_others; i += n_threads) f(Run<1, false>{i < before ? i : i + n_runs * N});
}

// What is decided of a step: `Numbers` of optim/judge.py.
struct Verdict { double loss, norm, factor, accepted, updates, loss_scale, may_overflow; };
