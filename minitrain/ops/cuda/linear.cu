// Sums of columns, for the gradient of a bias: first within bands of rows, then over the bands. A block takes
// 32 columns, a lane each; its warps share the rows. The order of every sum is fixed.
//
// types: T = double | float | __half | __nv_bfloat16; G = T
// types: T = __half | __nv_bfloat16; G = float
// no spills
#include "common.cuh"

using C = Compute<T>;

// sum_n x_no of rows first <= n < stop, for this lane's column o; right in the block's first warp only.
template <class X>
__device__ C column_sum(const X* x_NO, long long first, long long stop, long long O, long long o) {
    __shared__ C of_warp[WARP][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    C sum = 0;
    if (o < O) {
#pragma unroll 8  // loads under way at once
        for (long long n = first + warp; n < stop; n += n_warps) sum += wide(x_NO[n * O + o]);
    }
    of_warp[warp][lane] = sum;
    __syncthreads();
    for (int w = 1; w < n_warps && warp == 0; w++) sum += of_warp[w][lane];
    return sum;
}

// partial_PO of band p = blockIdx.y: the sums of its `rows` rows.
extern "C" __global__ void bias_backward_bands(
    const T* dy_NO, C* partial_PO, long long N, long long O, long long rows
) {
    long long o = (long long)blockIdx.x * WARP + threadIdx.x % WARP, first = blockIdx.y * rows;
    C sum = column_sum(dy_NO, first, first + rows < N ? first + rows : N, O, o);
    if (threadIdx.x < WARP && o < O) partial_PO[blockIdx.y * O + o] = sum;
}

// db += sum_p partial_po
extern "C" __global__ void bias_backward_add(const C* partial_PO, G* dbias_O, long long P, long long O) {
    long long o = (long long)blockIdx.x * WARP + threadIdx.x % WARP;
    C sum = column_sum(partial_PO, 0, P, O, o);
    if (threadIdx.x < WARP && o < O) dbias_O[o] = narrow<G>(wide(dbias_O[o]) + sum);
}
