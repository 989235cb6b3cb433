// CUDA C++ on a CPU: what a kernel needs of the language and of its run time, so that g++ compiles it and it
// runs, one block after another. Every thread of a block is a fibre, which runs until it comes to a barrier;
// barriers of blocks and warps, shuffles and votes are real. It shows wrong indices, missing barriers (by the
// order of threads, which each launch reverses) and wrong arithmetic. It has no tensor cores, no inline PTX.
#pragma once
#include <cfloat>
#include <climits>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>
#include <cuda_runtime_api.h>  // types of the host: dim3, float4, ...

#define CPU_EMULATION 1  // for the few places where a GPU has an instruction of its own
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __shared__
#define __shared__ static
#undef __constant__
#define __constant__ static
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __restrict__
#define __restrict__ __restrict

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace cpu {
constexpr int STACK = 256 * 1024;

struct Barrier { int waiting = 0, phase = 0; };

struct Copy {  // into shared memory, of something or of zeros
    void* to;
    const void* from;
    int size;
    bool zeros;
    void make() const { if (zeros) memset(to, 0, size); else memcpy(to, from, size); }
};

struct Fibre {
    ucontext_t first;    // where it begins
    jmp_buf here;        // where it goes on
    std::unique_ptr<char[]> stack{new char[STACK]};  // not cleared: what is not touched takes no memory
    bool begun, ended;
    const Barrier* waits_at;  // this barrier, until its phase changes
    int waits_in;
    std::vector<Copy> copies;  // started, not yet made
    bool late;
    bool stands() const { return ended || (waits_at && waits_at->phase == waits_in); }
};

static std::vector<Fibre> fibres;
static int n_fibres, current;
static ucontext_t main_first;
static jmp_buf main_here;
static void (*body)(void*);
static void* body_arguments;
static Barrier block_barrier;
static std::vector<Barrier> warp_barriers;
static std::vector<uint64_t> exchanged;  // what each thread shows to its warp
static bool moved;                       // since the last round, some fibre came through a barrier or ended

static void enter() {
    body(body_arguments);
    fibres[current].ended = moved = true;
    longjmp(main_here, 1);
}
static void rest() {
    int me = current;
    if (setjmp(fibres[me].here) == 0) longjmp(main_here, 1);
}
static void pass(Barrier& barrier, int n_members) {
    int phase = barrier.phase;
    moved = true;
    if (++barrier.waiting == n_members) {
        barrier.waiting = 0;
        barrier.phase++;
        return;
    }
    Fibre& me = fibres[current];
    me.waits_at = &barrier;
    me.waits_in = phase;
    while (barrier.phase == phase) rest();
    me.waits_at = nullptr;
}
static int warp_size() {
    int first = current & ~31;
    return n_fibres - first < 32 ? n_fibres - first : 32;
}
static void pass_warp() { pass(warp_barriers[current >> 5], warp_size()); }

static void go_on(int i) {
    Fibre& fibre = fibres[i];
    current = i;
    threadIdx = {unsigned(i) % blockDim.x, unsigned(i) / blockDim.x % blockDim.y, unsigned(i) / (blockDim.x * blockDim.y)};
    if (setjmp(main_here)) return;
    if (fibre.begun) longjmp(fibre.here, 1);
    fibre.begun = true;
    getcontext(&fibre.first);
    fibre.first.uc_stack.ss_sp = fibre.stack.get();
    fibre.first.uc_stack.ss_size = STACK;
    fibre.first.uc_link = nullptr;
    makecontext(&fibre.first, enter, 0);
    setcontext(&fibre.first);
}

// Runs all blocks. 0, or 1 if threads of a block wait at a barrier that others never come to.
static int run(dim3 grid, dim3 block, bool backwards, void (*kernel)(void*), void* arguments) {
    gridDim = grid;
    blockDim = block;
    n_fibres = int(block.x * block.y * block.z);
    if (int(fibres.size()) < n_fibres) fibres = std::vector<Fibre>(n_fibres);
    body = kernel;
    body_arguments = arguments;
    exchanged.assign(n_fibres, 0);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                block_barrier = Barrier();
                warp_barriers.assign((n_fibres + 31) / 32, Barrier());
                for (int i = 0; i < n_fibres; i++) {
                    fibres[i].begun = fibres[i].ended = false;
                    fibres[i].waits_at = nullptr;
                    fibres[i].copies.clear();
                }
                for (int left = n_fibres; left;) {
                    bool any = false;
                    for (int k = 0, n_warps = (n_fibres + 31) / 32; k < n_warps; k++) {
                        int first = (backwards ? n_warps - 1 - k : k) * 32;
                        do {  // a warp goes on as far as it can while the others stand
                            moved = false;
                            for (int lane = 0; lane < 32; lane++) {
                                int i = first + (backwards ? 31 - lane : lane);
                                if (i >= n_fibres || fibres[i].stands()) continue;
                                go_on(i);
                                left -= fibres[i].ended;
                            }
                            any |= moved;
                        } while (moved);
                    }
                    if (!any) return 1;
                }
            }
    return 0;
}

template <class V> static V shuffle(V value, int source) {
    static_assert(sizeof(V) <= 8, "a shuffle moves 4 or 8 bytes");
    int first = current & ~31;
    memcpy(&exchanged[current], &value, sizeof(V));
    pass_warp();
    V result;
    memcpy(&result, &exchanged[first | (source & 31)], sizeof(V));
    pass_warp();
    return result;
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), const uint64_t* words, std::index_sequence<I...>) {
    static_assert(((sizeof(A) == 8) && ...), "every argument of a kernel takes 8 bytes");
    auto read = [&](auto tag, size_t i) { decltype(tag) x; memcpy(&x, &words[i], 8); return x; };
    kernel(read(A{}, I)...);
}
template <class... A> static int start(void (*kernel)(A...), const int64_t* grid, int64_t threads, int64_t backwards,
                                       const uint64_t* words, int64_t n_words) {
    if (n_words != int64_t(sizeof...(A))) return 2;
    struct Bound { void (*kernel)(A...); const uint64_t* words; } bound{kernel, words};
    return run(dim3(grid[0], grid[1], grid[2]), dim3(threads), backwards, [](void* p) {
        auto* b = static_cast<Bound*>(p);
        call(b->kernel, b->words, std::index_sequence_for<A...>());
    }, &bound);
}
}  // namespace cpu

static inline void __syncthreads() { cpu::pass(cpu::block_barrier, cpu::n_fibres); }
static inline void __syncwarp(unsigned = ~0u) { cpu::pass_warp(); }
static inline int __syncthreads_or(int p) {
    static int any;
    __syncthreads();
    any = 0;
    __syncthreads();
    any |= p;
    __syncthreads();
    return any;
}
static inline void __threadfence() {}
template <class V> static V __shfl_xor_sync(unsigned, V v, int distance, int = 32) { return cpu::shuffle(v, (cpu::current & 31) ^ distance); }
template <class V> static V __shfl_sync(unsigned, V v, int source, int width = 32) { return cpu::shuffle(v, width == 32 ? source : ((cpu::current & 31) & ~(width - 1)) | (source & (width - 1))); }
template <class V> static V __shfl_down_sync(unsigned, V v, int d, int = 32) { int lane = cpu::current & 31; return cpu::shuffle(v, lane + d < 32 ? lane + d : lane); }
template <class V> static V __shfl_up_sync(unsigned, V v, int d, int = 32) { int lane = cpu::current & 31; return cpu::shuffle(v, lane >= d ? lane - d : lane); }
static inline unsigned __ballot_sync(unsigned, int p) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= unsigned(cpu::shuffle(p != 0, lane)) << lane;
    return bits;
}

// Copies that a GPU makes at any time until they are waited for (arrays/tensor_core.cuh): here every second one
// at once, the others when they are waited for.
template <int BYTES> static void start_copy(void* shared, const void* global, bool zeros) {
    cpu::Fibre& me = cpu::fibres[cpu::current];
    cpu::Copy copy{shared, global, BYTES, zeros};
    me.late = !me.late;
    if (me.late) me.copies.push_back(copy);
    else copy.make();
}
static inline void finish_copies() {
    cpu::Fibre& me = cpu::fibres[cpu::current];
    for (const cpu::Copy& copy : me.copies) copy.make();
    me.copies.clear();
}

template <class V> static V atomicMin(V* p, V v) { V old = *p; if (v < old) *p = v; return old; }
template <class V> static V atomicMax(V* p, V v) { V old = *p; if (v > old) *p = v; return old; }
template <class V> static V atomicAdd(V* p, V v) { V old = *p; *p = old + v; return old; }
template <class V> static V atomicOr(V* p, V v) { V old = *p; *p = old | v; return old; }

static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }
static inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
template <class V> static V __ldg(const V* p) { return *p; }
template <class V> static void __stwb(V* p, V v) { *p = v; }
using std::max;
using std::min;
