// The embedding: rows of a matrix by id, and the sums of gradients that came for each row.
//
// For the sums tokens are sorted by row, with a radix sort: stable, so that the order of addition is always the
// same. A token is one number while it is sorted: its row above 32 bits, V if it is not held here, and its place.
//
// types: T = double | float | __half | __nv_bfloat16; G = T
// types: T = __nv_bfloat16; G = float
// no spills
#include "common.cuh"

using C = Compute<T>;
constexpr int RUN = 16 / sizeof(T);

// y_n = w[id_n - first_id] where this rank holds the id, else 0. A block takes a token.
extern "C" __global__ void embedding_forward(
    const long long* ids_N, const T* w_VD, T* y_ND, long long V, long long D, long long first_id
) {
    long long n = blockIdx.x, v = ids_N[n] - first_id;
    bool held = v >= 0 && v < V;
    const T* w = w_VD + (held ? v : 0) * D;
    T* y = y_ND + n * D;
    auto f = [=](auto run) {
        auto values = run.load(w);
#pragma unroll
        for (int i = 0; i < run.size; i++) values[i] = held ? values[i] : 0;
        run.store(y, values);
    };
    for_runs<RUN>(D, threadIdx.x, blockDim.x, f, w, y);
}

__device__ __forceinline__ long long row_of(long long token) { return token >> 32; }
__device__ __forceinline__ long long place_of(long long token) { return token & 0xffffffff; }

extern "C" __global__ void embedding_tokens(
    const long long* ids_N, long long* tokens_N, long long N, long long V, long long first_id
) {
    long long n = first_element();
    if (n >= N) return;
    long long v = ids_N[n] - first_id;
    tokens_N[n] = (v >= 0 && v < V ? v : V) << 32 | n;
}

constexpr int DIGITS = 256;  // values of a digit, which are the threads of a block
constexpr int TILE = 512;    // tokens of a block

__device__ __forceinline__ int digit_of(long long token, long long shift) { return int(token >> shift) & (DIGITS - 1); }

// counts[block][digit]: how many tokens of the block's tile have the digit.
extern "C" __global__ void embedding_count_digits(
    const long long* tokens_N, int* counts, long long N, long long shift
) {
    __shared__ int count[DIGITS];
    count[threadIdx.x] = 0;
    __syncthreads();
    long long start = (long long)blockIdx.x * TILE, stop = start + TILE < N ? start + TILE : N;
    for (long long n = start + threadIdx.x; n < stop; n += DIGITS) atomicAdd(&count[digit_of(tokens_N[n], shift)], 1);
    __syncthreads();
    counts[blockIdx.x * DIGITS + threadIdx.x] = count[threadIdx.x];
}

// One pass of the sort. Thread d moves the tile's tokens of digit d, in their order, behind all tokens of lower
// digits and those of digit d in the tiles before.
extern "C" __global__ void embedding_sort(
    const long long* tokens_N, const int* counts, long long* sorted_N, long long N, long long shift
) {
    __shared__ long long tile[TILE];
    __shared__ int of_digit[DIGITS];
    long long start = (long long)blockIdx.x * TILE;
    int n_tokens = start + TILE < N ? TILE : int(N - start), digit = threadIdx.x;
    for (int i = threadIdx.x; i < n_tokens; i += DIGITS) tile[i] = tokens_N[start + i];
    int place = 0, total = 0;
#pragma unroll 8  // loads under way at once
    for (int block = 0; block < int(gridDim.x); block++) {
        int count = counts[block * DIGITS + digit];
        if (block < int(blockIdx.x)) place += count;
        total += count;
    }
    of_digit[digit] = total;
    __syncthreads();
    for (int lower = 0; lower < digit; lower++) place += of_digit[lower];
    for (int i = 0; i < n_tokens; i++)
        if (digit_of(tile[i], shift) == digit) sorted_N[place++] = tile[i];
}

constexpr int CHUNK = 64;  // sorted tokens that a block adds up
constexpr int BATCH = 4;   // rows whose loads are under way at once

// Sums of dy over the runs of tokens of one row in start .. stop, for the columns of `columns`. A run that lies in
// this chunk is added to dw; of one that began before, or goes on behind, the part in this chunk is put down.
template <class R>
__device__ __forceinline__ void add_chunk(
    R columns, const T* dy_ND, const long long* tokens_N, G* dw_VD, C* from_before_D, C* to_next_D, long long start,
    long long stop, long long N, long long D
) {
    Values<C, R::size> sum{};
    for (long long first = start; first < stop; first += BATCH) {
        Values<C, R::size> rows[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++)
            if (first + b < stop) rows[b] = columns.load(dy_ND + place_of(tokens_N[first + b]) * D);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            long long i = first + b;
            if (i >= stop) break;
            for (int k = 0; k < R::size; k++) sum[k] += rows[b][k];
            long long row = row_of(tokens_N[i]);
            bool ends = i + 1 == N || row_of(tokens_N[i + 1]) != row;
            if (!ends && i + 1 < stop) continue;
            if (start > 0 && row_of(tokens_N[start - 1]) == row) {
                columns.store(from_before_D, sum);
            } else if (!ends) {
                columns.store(to_next_D, sum);
            } else {
                auto dw = columns.load(dw_VD + row * D);
                for (int k = 0; k < R::size; k++) dw[k] += sum[k];
                columns.store(dw_VD + row * D, dw);
            }
            sum = {};
        }
    }
}

// A block takes a chunk of sorted tokens. from_before and to_next: a row for each chunk. [chunks, D]
extern "C" __global__ void embedding_backward_chunks(
    const T* dy_ND, const long long* tokens_N, G* dw_VD, C* from_before, C* to_next, long long N, long long V,
    long long D
) {
    long long start = (long long)blockIdx.x * CHUNK, stop = start + CHUNK < N ? start + CHUNK : N;
    while (stop > start && row_of(tokens_N[stop - 1]) == V) stop--;  // not held here
    from_before += blockIdx.x * D;
    to_next += blockIdx.x * D;
    if (D % RUN == 0 && aligned(dy_ND, dw_VD, from_before, to_next)) {
        for (long long d = threadIdx.x * RUN; d < D; d += blockDim.x * RUN)
            add_chunk(Run<RUN, true>{d}, dy_ND, tokens_N, dw_VD, from_before, to_next, start, stop, N, D);
    } else {
        for (long long d = threadIdx.x; d < D; d += blockDim.x)
            add_chunk(Run<1, false>{d}, dy_ND, tokens_N, dw_VD, from_before, to_next, start, stop, N, D);
    }
}

// Of a run that begins in chunk blockIdx.x and goes on in others: dw += its parts. A block has 32 columns times 8
// threads, each of which adds up every eighth chunk.
extern "C" __global__ void embedding_backward_join(
    const long long* tokens_N, const C* from_before, const C* to_next, G* dw_VD, long long N, long long V, long long D
) {
    __shared__ C sums[8][WARP];
    long long chunk = blockIdx.x, start = chunk * CHUNK, next = start + CHUNK;
    long long row = row_of(tokens_N[next - 1]);
    bool goes_on = row_of(tokens_N[next]) == row, began_before = start > 0 && row_of(tokens_N[start - 1]) == row;
    if (row == V || !goes_on || began_before) return;  // the same for all threads
    int column = threadIdx.x % WARP, lane = threadIdx.x / WARP;
    long long d = (long long)blockIdx.y * WARP + column;
    C sum = 0;
    if (d < D)
        for (long long k = chunk + 1 + lane; k * CHUNK < N && row_of(tokens_N[k * CHUNK]) == row; k += 8)
            sum += from_before[k * D + d];
    sums[lane][column] = sum;
    __syncthreads();
    if (lane > 0 || d >= D) return;
    sum = to_next[chunk * D + d];
    for (int k = 0; k < 8; k++) sum += sums[k][column];
    dw_VD[row * D + d] = narrow<G>(wide(dw_VD[row * D + d]) + sum);
}
