// RMSNorm and LayerNorm of rows, forward and backward; the sum of a residual before them may be part of it.
// The formulas are in ops/norm.py. A block takes a row, or for sums over rows a band of rows.
//
// types: T = double | float | __half | __nv_bfloat16; G = T
// types: T = __nv_bfloat16; G = float
// no spills
#include "common.cuh"

using C = Compute<T>;

// x <- x + residual, if there is one, then y = gain x^ + bias, with x^ = (x - mean) r. RMSNorm: no mean, no bias.
extern "C" __global__ void norm_forward(
    T* x_ND, const T* residual_ND, const T* gain_D, const T* bias_D, T* y_ND, C* mean_N, C* r_N, long long D, double eps
) {
    long long n = blockIdx.x;
    T* x = x_ND + n * D;
    T* y = y_ND + n * D;
    if (residual_ND) {
        const T* residual = residual_ND + n * D;
        for (long long d = threadIdx.x; d < D; d += blockDim.x) x[d] = narrow<T>(wide(x[d]) + wide(residual[d]));
    }
    C mean = 0;
    if (mean_N) {
        C sum = 0;
        for (long long d = threadIdx.x; d < D; d += blockDim.x) sum += wide(x[d]);  // each thread wrote its own
        mean = block_sum(sum) / D;
    }
    C squares = 0;
    for (long long d = threadIdx.x; d < D; d += blockDim.x) {
        C centred = wide(x[d]) - mean;
        squares += centred * centred;
    }
    C r = 1 / sqrt_(block_sum(squares) / D + C(eps));
    for (long long d = threadIdx.x; d < D; d += blockDim.x) {
        C value = (wide(x[d]) - mean) * r * wide(gain_D[d]);
        y[d] = narrow<T>(bias_D ? value + wide(bias_D[d]) : value);
    }
    if (threadIdx.x == 0) {
        r_N[n] = r;
        if (mean_N) mean_N[n] = mean;
    }
}

// Forward was y = gain x^ + bias, so now, with dx^ = gain dy, dx = r (dx^ - mean(dx^) - x^ mean(dx^ x^)), the
// middle term for LayerNorm alone. What came by the residual is added: dx = dresidual + ...
extern "C" __global__ void norm_backward(
    const T* dy_ND, const T* x_ND, const C* mean_N, const C* r_N, const T* gain_D, const T* dresidual_ND, T* dx_ND,
    long long D
) {
    long long n = blockIdx.x;
    const T *dy = dy_ND + n * D, *x = x_ND + n * D;
    C mean = mean_N ? mean_N[n] : C(0), r = r_N[n];
    C sum = 0, along = 0;
    for (long long d = threadIdx.x; d < D; d += blockDim.x) {
        C dxhat = wide(dy[d]) * wide(gain_D[d]);
        sum += dxhat;
        along += dxhat * (wide(x[d]) - mean) * r;
    }
    C shift = mean_N ? block_sum(sum) / D : C(0);
    along = block_sum(along) / D;
    for (long long d = threadIdx.x; d < D; d += blockDim.x) {
        C xhat = (wide(x[d]) - mean) * r;
        C dx = r * (wide(dy[d]) * wide(gain_D[d]) - shift - xhat * along);
        if (dresidual_ND) dx += wide(dresidual_ND[n * D + d]);
        dx_ND[n * D + d] = narrow<T>(dx);
    }
}

// Of rows blockIdx.y * rows .. + rows: sums over rows of dy x^ and of dy, for 32 columns. [bands, 2, D]
// A block has 32 columns times 8 rows of threads, each of which adds up every eighth row.
extern "C" __global__ void norm_backward_bands(
    const T* dy_ND, const T* x_ND, const C* mean_N, const C* r_N, C* bands, long long N, long long D, long long rows
) {
    __shared__ C sums[2][8][WARP];
    int column = threadIdx.x % WARP, lane = threadIdx.x / WARP;
    long long d = (long long)blockIdx.x * WARP + column, start = blockIdx.y * rows;
    long long stop = start + rows < N ? start + rows : N;
    C of_gain = 0, of_bias = 0;
    if (d < D) {
        for (long long n = start + lane; n < stop; n += 8) {
            C dy = wide(dy_ND[n * D + d]), mean = mean_N ? mean_N[n] : C(0);
            of_gain += dy * (wide(x_ND[n * D + d]) - mean) * r_N[n];
            of_bias += dy;
        }
    }
    sums[0][lane][column] = of_gain;
    sums[1][lane][column] = of_bias;
    __syncthreads();
    if (lane < 2 && d < D) {
        C sum = 0;
        for (int k = 0; k < 8; k++) sum += sums[lane][k][column];
        bands[(blockIdx.y * 2 + lane) * D + d] = sum;
    }
}

// dgain += the bands' sums, one after another; dbias likewise, if there is one.
extern "C" __global__ void norm_backward_gains(const C* bands, G* dgain_D, G* dbias_D, long long n_bands, long long D) {
    long long d = first_element();
    if (d >= D) return;
    C of_gain = 0, of_bias = 0;
    for (long long band = 0; band < n_bands; band++) {
        of_gain += bands[band * 2 * D + d];
        of_bias += bands[(band * 2 + 1) * D + d];
    }
    dgain_D[d] = narrow<G>(Compute<G>(wide(dgain_D[d]) + of_gain));
    if (dbias_D) dbias_D[d] = narrow<G>(Compute<G>(wide(dbias_D[d]) + of_bias));
}
