// Causal grouped-query attention without its matrix of probabilities, forward and backward (Dao 2023,
// "FlashAttention-2"). The formulas are in ops/attention.py.
//
// Scores are computed in blocks, used, and dropped. A warp owns 16 rows (queries, or keys for their
// gradients), whose results stay in its registers; the rows that these meet pass through shared memory in
// tiles, one being copied while another is used. A softmax is divided by its sum at the end. Until then, with
// m the largest score met so far, it is e^(s - m), and when m grows what was added up before is scaled down.
// The backward needs L = m + log sum e^(s - m) of each row, no more: p = e^(s - L).
//
// Arrays are [B, T, heads, HEAD], L and delta [B, H, T]. Positions t are those of queries, u those of keys.
//
// types: T = double; HEAD = 32
// types: T = float; HEAD = 32 | 64
// types: T = __half | __nv_bfloat16; HEAD = 32 | 64 | 128
// no spills
#include "tensor_core.cuh"

using C = Compute<T>;

constexpr int STEPS = HEAD / 16;                         // a row is so many fragments a, twice as many c
constexpr int ROWS = sizeof(T) == 2 && HEAD <= 64 ? 64 : 32;  // of a tile: all of a kernel are within 48 KB
constexpr int BLOCK = 16 * WARPS<T>;                     // rows of a block of threads
constexpr int RESIDENT = sizeof(T) == 2 && HEAD <= 64 ? 2 : 1;  // blocks whose registers a multiprocessor has
constexpr double LOG2_E = 1.4426950408889634;

__device__ __forceinline__ float exp2_(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_(double x) { return exp2(x); }

// Where the rows of a head of the sequence blockIdx.z are, in an array [B, n, heads, HEAD].
struct Head {
    long long first;
    int stride, n;
    __device__ __forceinline__ Head(int n_heads, int head, int n)
        : first(((long long)blockIdx.z * n * n_heads + head) * HEAD), stride(n_heads * HEAD), n(n) {}
    __device__ __forceinline__ long long row(int t) const { return first + (long long)t * stride; }
};

// Rows in shared memory, with 16 bytes between, so that the eight rows of a matrix lie in different banks.
struct alignas(16) Tile { T x[ROWS][HEAD + 16 / sizeof(T)]; };

// Starts to copy rows t .. t + ROWS; zeros where there are none.
__device__ __forceinline__ void start_tile(Tile& tile, const T* x, const Head& head, int t) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = HEAD / PIECE;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * PIECES; i += 2 * BLOCK) {
        int row = i / PIECES, column = i % PIECES * PIECE;
        bool none = t + row >= head.n;
        start_copy<16>(&tile.x[row][column], x + head.row(none ? 0 : t + row) + column, none);
    }
}

// Rows t .. t + 16 as fragments a; zeros where there are none.
__device__ __forceinline__ void load_rows(Pair<T> (&a)[STEPS][4], const T* x, const Head& head, int t) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < STEPS * 4; i++) {
        int row = t + lane / 4 + i % 2 * 8, column = i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2;
        a[i / 4][i % 4] = row < head.n ? *(const Pair<T>*)(x + head.row(row) + column) : Pair<T>{};
    }
}

// Rows t .. t + 16 <- fragments c, those of the upper and lower eight rows times a factor each.
__device__ __forceinline__ void store_rows(
    const C (&c)[2 * STEPS][4], T* x, const Head& head, int t, C upper, C lower
) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < STEPS * 4; i++) {
        int row = t + lane / 4 + i % 2 * 8, column = i / 2 * 8 + lane % 4 * 2;
        const C* values = &c[i / 2][i % 2 * 2];
        C factor = i % 2 ? lower : upper;
        if (row < head.n)
            *(Pair<T>*)(x + head.row(row) + column) = pair<T>(values[0] * factor, values[1] * factor);
    }
}

// c (16 x 16) += a (16 x HEAD) times rows first .. first + 16 of the tile, transposed.
__device__ __forceinline__ void add_scores(
    C (&c)[2][4], const Pair<T> (&a)[STEPS][4], const Tile& tile, int first
) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        Pair<T> b[4];
        load_matrices<false>(b, &tile.x[first + lane / 16 * 8 + lane % 8][step * 16 + lane / 8 % 2 * 8]);
        multiply_add(c[0], a[step], b[0], b[1]);
        multiply_add(c[1], a[step], b[2], b[3]);
    }
}

// c (16 x HEAD) += p (16 x 16), rounded, times rows first .. first + 16 of the tile.
__device__ __forceinline__ void add_rows(
    C (&c)[2 * STEPS][4], const C (&p)[2][4], const Tile& tile, int first
) {
    int lane = threadIdx.x % WARP;
    Pair<T> a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pair<T>(p[i / 2][i % 2 * 2], p[i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        Pair<T> b[4];
        load_matrices<true>(b, &tile.x[first + lane % 16][step * 16 + lane / 16 * 8]);
        multiply_add(c[2 * step], a, b[0], b[1]);
        multiply_add(c[2 * step + 1], a, b[2], b[3]);
    }
}

// o = softmax(q k^T scale) v, and L. In powers of 2: e^(s scale) = 2^(s scale2).
extern "C" __global__ void __launch_bounds__(2 * BLOCK, RESIDENT) attention_forward(
    const T* q_BTHK, const T* k_BTGK, const T* v_BTGK, T* o_BTHK, C* L_BHT, long long n_positions,
    long long n_heads, long long n_kv_heads, double scale
) {
    __shared__ Tile k_tile[2], v_tile[2];
    int n = n_positions, H = n_heads, G = n_kv_heads, h = blockIdx.y, g = h / (H / G);
    int lane = threadIdx.x % WARP, start = (gridDim.x - 1 - blockIdx.x) * BLOCK;  // the longest rows first
    int stop = min(start + BLOCK, n), t = start + threadIdx.x / WARP * 16;
    Head of_queries(H, h, n), of_keys(G, g, n);

    Pair<T> q[STEPS][4];
    load_rows(q, q_BTHK, of_queries, t);
    C o[2 * STEPS][4] = {}, m[2] = {-1 / C(0), -1 / C(0)}, sum[2] = {};  // of rows lane / 4 and 8 below it
    C scale2 = scale * LOG2_E;

    start_tile(k_tile[0], k_BTGK, of_keys, 0);
    start_tile(v_tile[0], v_BTGK, of_keys, 0);
    for (int u = 0; u < stop; u += ROWS) {
        int now = u / ROWS % 2, next = 1 - now;
        finish_copies();
        __syncthreads();  // all threads have copied this tile, and none uses the other any more
        if (u + ROWS < stop) {
            start_tile(k_tile[next], k_BTGK, of_keys, u + ROWS);
            start_tile(v_tile[next], v_BTGK, of_keys, u + ROWS);
        }
        if (u >= t + 16) continue;  // these queries see none of the keys

        C s[ROWS / 16][2][4] = {};
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++) add_scores(s[i], q, k_tile[now], i * 16);
        int ahead = u - t + lane % 4 * 2 - lane / 4;  // of this lane's first key before its first query
        if (u + ROWS > t) {
#pragma unroll
            for (int i = 0; i < ROWS / 2; i++)
                if (ahead + i / 4 * 8 + i % 2 > i / 2 % 2 * 8) s[i / 8][i / 4 % 2][i % 4] = -1 / C(0);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            C largest = m[half];
#pragma unroll
            for (int i = 0; i < ROWS / 4; i++) largest = max(largest, s[i / 4][i / 2 % 2][half * 2 + i % 2]);
            largest = max(largest, __shfl_xor_sync(~0u, largest, 1));  // four lanes have a row
            largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
            C shrink = exp2_((m[half] - largest) * scale2);
            m[half] = largest;
            sum[half] *= shrink;
#pragma unroll
            for (int i = 0; i < ROWS / 4; i++) {
                C& score = s[i / 4][i / 2 % 2][half * 2 + i % 2];
                score = exp2_(score * scale2 - largest * scale2);
                sum[half] += score;
            }
#pragma unroll
            for (int i = 0; i < STEPS * 4; i++) o[i / 2][half * 2 + i % 2] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++) add_rows(o, s[i], v_tile[now], i * 16);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        int row = t + lane / 4 + half * 8;
        if (row < n && lane % 4 == 0)
            L_BHT[((long long)blockIdx.z * H + h) * n + row] = m[half] * C(scale) + log_(sum[half]);
    }
    store_rows(o, o_BTHK, of_queries, t, 1 / sum[0], 1 / sum[1]);
}

// delta = o . do, which is sum_u p_tu dp_tu. A warp takes a row.
extern "C" __global__ void attention_backward_delta(
    const T* o_BTHK, const T* do_BTHK, C* delta_BHT, long long n_rows, long long n, long long H
) {
    long long row = first_element() / WARP, b = row / (n * H), t = row / H % n, h = row % H;
    if (row >= n_rows) return;
    C sum = 0;
    for (long long i = row * HEAD + threadIdx.x % WARP; i < (row + 1) * HEAD; i += WARP)
        sum += wide(o_BTHK[i]) * wide(do_BTHK[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta_BHT[(b * H + h) * n + t] = sum;
}

// dq = ds k scale, with ds = p (do v^T - delta).
extern "C" __global__ void __launch_bounds__(2 * BLOCK, RESIDENT) attention_backward_queries(
    const T* q_BTHK, const T* k_BTGK, const T* v_BTGK, const T* do_BTHK, const C* L_BHT, const C* delta_BHT,
    T* dq_BTHK, long long n_positions, long long n_heads, long long n_kv_heads, double scale
) {
    __shared__ Tile k_tile[2], v_tile[2];
    int n = n_positions, H = n_heads, G = n_kv_heads, h = blockIdx.y, g = h / (H / G);
    int lane = threadIdx.x % WARP, start = (gridDim.x - 1 - blockIdx.x) * BLOCK;
    int stop = min(start + BLOCK, n), t = start + threadIdx.x / WARP * 16;
    Head of_queries(H, h, n), of_keys(G, g, n);

    Pair<T> q[STEPS][4], d_o[STEPS][4];
    load_rows(q, q_BTHK, of_queries, t);
    load_rows(d_o, do_BTHK, of_queries, t);
    C dq[2 * STEPS][4] = {}, L2[2] = {}, delta[2] = {}, scale2 = scale * LOG2_E;
    for (int half = 0; half < 2; half++) {
        int row = t + lane / 4 + half * 8;
        if (row >= n) continue;
        L2[half] = L_BHT[((long long)blockIdx.z * H + h) * n + row] * C(LOG2_E);
        delta[half] = delta_BHT[((long long)blockIdx.z * H + h) * n + row];
    }

    start_tile(k_tile[0], k_BTGK, of_keys, 0);
    start_tile(v_tile[0], v_BTGK, of_keys, 0);
    for (int u = 0; u < stop; u += ROWS) {
        int now = u / ROWS % 2, next = 1 - now;
        finish_copies();
        __syncthreads();
        if (u + ROWS < stop) {
            start_tile(k_tile[next], k_BTGK, of_keys, u + ROWS);
            start_tile(v_tile[next], v_BTGK, of_keys, u + ROWS);
        }
#pragma unroll 1
        for (int first = 0; first < ROWS && u + first < t + 16; first += 16) {
            C s[2][4] = {}, ds[2][4] = {};
            add_scores(s, q, k_tile[now], first);
            add_scores(ds, d_o, v_tile[now], first);
            int ahead = u + first - t + lane % 4 * 2 - lane / 4;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int half = i / 2 % 2;
                bool seen = ahead + i / 4 * 8 + i % 2 <= half * 8;
                C p = exp2_(s[i / 4][i % 4] * scale2 - L2[half]);
                ds[i / 4][i % 4] = seen ? p * (ds[i / 4][i % 4] - delta[half]) : C(0);
            }
            add_rows(dq, ds, k_tile[now], first);
        }
    }
    store_rows(dq, dq_BTHK, of_queries, t, scale, scale);
}

// dk = ds^T q scale and dv = p^T do, over all queries of the H/G query heads that share the key/value head.
extern "C" __global__ void __launch_bounds__(2 * BLOCK, 1) attention_backward_keys(
    const T* q_BTHK, const T* k_BTGK, const T* v_BTGK, const T* do_BTHK, const C* L_BHT, const C* delta_BHT,
    T* dk_BTGK, T* dv_BTGK, long long n_positions, long long n_heads, long long n_kv_heads, double scale
) {
    __shared__ Tile q_tile[2], do_tile[2];
    __shared__ C L[2][ROWS], delta[2][ROWS];
    int n = n_positions, H = n_heads, G = n_kv_heads, g = blockIdx.y, lane = threadIdx.x % WARP;
    int start = blockIdx.x * BLOCK, u = start + threadIdx.x / WARP * 16;

    Head of_keys(G, g, n);
    Pair<T> k[STEPS][4], v[STEPS][4];
    load_rows(k, k_BTGK, of_keys, u);
    load_rows(v, v_BTGK, of_keys, u);
    C dk[2 * STEPS][4] = {}, dv[2 * STEPS][4] = {}, scale2 = scale * LOG2_E;

    auto start_tiles = [&](int i, int h, int t) {
        start_tile(q_tile[i], q_BTHK, Head(H, h, n), t);
        start_tile(do_tile[i], do_BTHK, Head(H, h, n), t);
        if (threadIdx.x >= ROWS) return;
        bool none = t + threadIdx.x >= n;
        long long row = ((long long)blockIdx.z * H + h) * n + (none ? 0 : t + threadIdx.x);
        start_copy<sizeof(C)>(&L[i][threadIdx.x], L_BHT + row, none);
        start_copy<sizeof(C)>(&delta[i][threadIdx.x], delta_BHT + row, none);
    };
    int next_h = g * (H / G), next_t = start, stop_h = next_h + H / G;
    start_tiles(0, next_h, next_t);
    for (int now = 0; next_h < stop_h; now = 1 - now) {
        int t = next_t;
        next_t += ROWS;
        if (next_t >= n) next_t = start, next_h++;
        finish_copies();
        __syncthreads();
        if (next_h < stop_h) start_tiles(1 - now, next_h, next_t);
#pragma unroll 1
        for (int first = 0; first < ROWS && t + first < n; first += 16) {
            if (u >= t + first + 16) continue;  // these queries see none of the keys
            C p[2][4] = {}, ds[2][4] = {};      // a row of these is a key, a column a query
            add_scores(p, k, q_tile[now], first);
            add_scores(ds, v, do_tile[now], first);
            int query = first + lane % 4 * 2, key = u - t + lane / 4;  // this lane's first, counted from t
#pragma unroll
            for (int i = 0; i < 8; i++) {  // queries that do not exist are zeros and add nothing
                int column = query + i / 4 * 8 + i % 2;
                bool seen = key + i / 2 % 2 * 8 <= column;
                C e = seen ? exp2_(p[i / 4][i % 4] * scale2 - L[now][column] * C(LOG2_E)) : C(0);
                p[i / 4][i % 4] = e;
                ds[i / 4][i % 4] = e * (ds[i / 4][i % 4] - delta[now][column]);
            }
            add_rows(dv, p, do_tile[now], first);
            add_rows(dk, ds, q_tile[now], first);
        }
    }
    store_rows(dk, dk_BTGK, of_keys, u, scale, scale);
    store_rows(dv, dv_BTGK, of_keys, u, 1, 1);
}
