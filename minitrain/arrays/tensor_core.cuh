// Products of small matrices by a warp, and copies into shared memory that do not hold it up.
//
// c (16 x 8) += a (16 x 16) b (16 x 8) is one instruction of a tensor core, for a and b of 16 bits. Each
// lane of the warp has a part of each matrix, its fragment. With row = lane / 4, column = 2 (lane % 4) it
// holds, as pairs of neighbours (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"):
//
//     a   (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8), each and to its right
//     b   (column, row), (column + 8, row), each and below it
//     c   (row, column), (row + 8, column), each and to its right
//
// so that two c side by side, rounded, are the a of a next product. float and double have no such
// instruction: the same fragments are multiplied by ordinary arithmetic, as all are where there is no tensor
// core (in tests).
#pragma once
#include "common.cuh"

template <class T> constexpr int WARPS = sizeof(T) == 8 ? 4 : 8;  // of a block

template <class T> struct alignas(2 * sizeof(T)) Pair { T first, second; };

template <class T> __device__ __forceinline__ Pair<T> pair(Compute<T> first, Compute<T> second) {
    return {narrow<T>(first), narrow<T>(second)};
}

// c += a b
template <class T>
__device__ void multiply_add(
    Compute<T> (&c)[4], const Pair<T> (&a)[4], const Pair<T>& b0, const Pair<T>& b1
) {
    __shared__ T a_rows[WARPS<T>][16][16], b_rows[WARPS<T>][16][8];
    int warp = threadIdx.x / WARP, row = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
    __syncwarp();  // all lanes are done with the product before
    for (int i = 0; i < 4; i++) {
        a_rows[warp][row + i % 2 * 8][column + i / 2 * 8] = a[i].first;
        a_rows[warp][row + i % 2 * 8][column + i / 2 * 8 + 1] = a[i].second;
    }
    b_rows[warp][column][row] = b0.first;
    b_rows[warp][column + 1][row] = b0.second;
    b_rows[warp][column + 8][row] = b1.first;
    b_rows[warp][column + 9][row] = b1.second;
    __syncwarp();
#pragma unroll 1  // of many calls, all in line
    for (int k = 0; k < 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            c[i] += wide(a_rows[warp][row + i / 2 * 8][k]) * wide(b_rows[warp][k][column + i % 2]);
}

#ifndef CPU_EMULATION
template <class T> __device__ __forceinline__ const unsigned& bits(const Pair<T>& x) {
    return reinterpret_cast<const unsigned&>(x);
}
__device__ __forceinline__ void multiply_add(
    float (&c)[4], const Pair<__half> (&a)[4], const Pair<__half>& b0, const Pair<__half>& b1
) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b0)), "r"(bits(b1)));
}
__device__ __forceinline__ void multiply_add(
    float (&c)[4], const Pair<__nv_bfloat16> (&a)[4], const Pair<__nv_bfloat16>& b0,
    const Pair<__nv_bfloat16>& b1
) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b0)), "r"(bits(b1)));
}
#endif

// Four matrices of 8 x 8 in shared memory. Lane l gives the address of row l % 8 of matrix l / 8, and gets
// (lane / 4, 2 (lane % 4)) and the element to the right of every matrix, if TRANSPOSED of its transpose.
template <bool TRANSPOSED, class T>
__device__ __forceinline__ void load_matrices(Pair<T> (&x)[4], const T* row_of_lane) {
#ifndef CPU_EMULATION
    if constexpr (sizeof(T) == 2) {
        auto& words = reinterpret_cast<unsigned(&)[4]>(x);
        unsigned address = __cvta_generic_to_shared(row_of_lane);
        if constexpr (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                         : "r"(address) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                         : "r"(address) : "memory");
        return;
    }
#endif
    auto element = [&](int matrix, int row, int column) {
        auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(row_of_lane), 8 * matrix + row);
        return reinterpret_cast<const T*>(address)[column];
    };
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
    for (int m = 0; m < 4; m++) {
        x[m].first = TRANSPOSED ? element(m, column, row) : element(m, row, column);
        x[m].second = TRANSPOSED ? element(m, column + 1, row) : element(m, row, column + 1);
    }
}

#ifndef CPU_EMULATION  // tests/cuda/cuda_cpu.h has others
// Starts to copy 4, 8 or 16 bytes, or to write as many zeros. Both addresses are multiples of so many.
template <int BYTES>
__device__ __forceinline__ void start_copy(void* shared, const void* global, bool zeros) {
    unsigned address = __cvta_generic_to_shared(shared);
    int read = zeros ? 0 : BYTES;
    if constexpr (BYTES == 16)  // cg: past the L1 cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(read)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(BYTES),
                     "r"(read) : "memory");
}
// Waits for the copies that this thread has started.
__device__ __forceinline__ void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif
