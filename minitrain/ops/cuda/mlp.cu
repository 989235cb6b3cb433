// The nonlinearity of the MLP, forward and backward: SwiGLU and GELU, for each of n elements. The formulas are in
// ops/mlp.py.
//
// types: T = double | float | __half | __nv_bfloat16
// no spills
#include "common.cuh"

using C = Compute<T>;
constexpr int RUN = 16 / sizeof(T);

// 1 / (1 + e^-z). Where e^-z is too large for its type it is infinite, and the result 0.
__device__ __forceinline__ C sigmoid(C z) { return 1 / (1 + exp_(-z)); }

// h = silu(gate) up, silu(z) = z s(z) with the sigmoid s.
extern "C" __global__ void swiglu_forward(const T* gate_NF, const T* up_NF, T* h_NF, long long n) {
    auto f = [=](auto run) {
        auto gate = run.load(gate_NF), up = run.load(up_NF);
#pragma unroll
        for (int i = 0; i < run.size; i++) up[i] *= gate[i] * sigmoid(gate[i]);
        run.store(h_NF, up);
    };
    for_runs<RUN>(n, first_element(), next_element(), f, gate_NF, up_NF, h_NF);
}

// Forward was h = silu(gate) up, so now dup = dh silu, dgate = dh up silu', silu' = s + silu (1 - s).
extern "C" __global__ void swiglu_backward(
    const T* dh_NF, const T* gate_NF, const T* up_NF, T* dgate_NF, T* dup_NF, long long n
) {
    auto f = [=](auto run) {
        auto dh = run.load(dh_NF), gate = run.load(gate_NF), up = run.load(up_NF);
#pragma unroll
        for (int i = 0; i < run.size; i++) {
            C s = sigmoid(gate[i]), silu = gate[i] * s;
            gate[i] = dh[i] * up[i] * (s + silu * (1 - s));
            up[i] = dh[i] * silu;
        }
        run.store(dgate_NF, gate);
        run.store(dup_NF, up);
    };
    for_runs<RUN>(n, first_element(), next_element(), f, dh_NF, gate_NF, up_NF, dgate_NF, dup_NF);
}

constexpr C GELU_C = 0.79788456080286535588;  // sqrt(2 / pi)
constexpr C GELU_A = 0.044715;

// h = x (1 + tanh u) / 2 with u = c (x + a x^3); as (1 + tanh u) / 2 is s(2u), h = x s(2u).
extern "C" __global__ void gelu_forward(const T* x_NF, T* h_NF, long long n) {
    auto f = [=](auto run) {
        auto x = run.load(x_NF);
#pragma unroll
        for (int i = 0; i < run.size; i++) x[i] *= sigmoid(2 * GELU_C * x[i] * (1 + GELU_A * x[i] * x[i]));
        run.store(h_NF, x);
    };
    for_runs<RUN>(n, first_element(), next_element(), f, x_NF, h_NF);
}

// Forward was h = x s with s = s(2u), so now, with s' = s (1 - s) 2u', dx = dh (s + x s (1 - s) 2u'),
// u' = c (1 + 3 a x^2).
extern "C" __global__ void gelu_backward(const T* dh_NF, const T* x_NF, T* dx_NF, long long n) {
    auto f = [=](auto run) {
        auto dh = run.load(dh_NF), x = run.load(x_NF);
#pragma unroll
        for (int i = 0; i < run.size; i++) {
            C square = x[i] * x[i], s = sigmoid(2 * GELU_C * x[i] * (1 + GELU_A * square));
            C slope = 2 * GELU_C * (1 + 3 * GELU_A * square);
            x[i] = dh[i] * (s + x[i] * s * (1 - s) * slope);
        }
        run.store(dx_NF, x);
    };
    for_runs<RUN>(n, first_element(), next_element(), f, dh_NF, x_NF, dx_NF);
}
