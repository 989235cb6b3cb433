// The optimizers that work element by element: for each a rule of a few lines, and what they have in common.
// Their formulas and sources are in optim/*.py; the rules keep to the order of operations there.
//
// M is the type of the master copy and of the moments, G that of the gradient, P that of the parameters where
// these have one of their own next to the master copy, else M.
//
// types: M = double; G = double; P = double
// types: M = float; G = float; P = float | __nv_bfloat16
// types: M = float; G = __half; P = __half
// types: M = __nv_bfloat16; G = __nv_bfloat16; P = __nv_bfloat16
// no spills
// no fma
#include "common.cuh"

using C = Compute<M>;

// A running mean: beta mean + (1 - beta) x. V is the type of the moment: C, or float where it has 8 bits.
struct Mean {
    C old, now;
    Mean() = default;
    __device__ Mean(double beta) : old(C(beta)), now(C(1 - beta)) {}
    template <class V> __device__ V operator()(V mean, C x) const { return V(V(old) * mean + now * x); }
};

// ---- The rules: made of numbers in fp64, then called for every element with g, w and the moments.

struct Sgd {
    C rate, keep;
    Sgd() = default;
    __device__ Sgd(double lr, double decay) : rate(C(lr)), keep(C(1 - lr * decay)) {}
    __device__ void operator()(C g, C& w) const { w = keep * w - rate * g; }
};

struct Momentum {
    C beta, gain, rate, keep;
    Momentum() = default;
    __device__ Momentum(double lr, double decay, double beta, double gain)
        : beta(C(beta)), gain(C(gain)), rate(C(lr)), keep(C(1 - lr * decay)) {}
    __device__ void operator()(C g, C& w, C& m) const {
        m = beta * m + gain * g;
        w = keep * w - rate * m;
    }
};

struct Nesterov : Momentum {
    using Momentum::Momentum;
    __device__ void operator()(C g, C& w, C& m) const {
        m = beta * m + gain * g;
        w = keep * w - rate * (gain * g + beta * m);
    }
};

struct Adagrad {
    C eps, rate, keep;
    Adagrad() = default;
    __device__ Adagrad(double lr, double decay, double eps)
        : eps(C(eps)), rate(C(lr)), keep(C(1 - lr * decay)) {}
    __device__ void operator()(C g, C& w, C& v) const {
        v += g * g;
        w = keep * w - rate * (g / (sqrt_(v) + eps));
    }
};

struct Rmsprop {
    Mean mean;
    C eps, rate, keep;
    Rmsprop() = default;
    __device__ Rmsprop(double lr, double decay, double beta, double eps)
        : mean(beta), eps(C(eps)), rate(C(lr)), keep(C(1 - lr * decay)) {}
    __device__ void operator()(C g, C& w, C& v) const {
        v = mean(v, g * g);
        w = keep * w - rate * (g / (sqrt_(v) + eps));
    }
};

struct Adamw {
    Mean first, second;
    C scale, floor, keep;  // the rate is in the denominator
    bool moves;
    Adamw() = default;
    __device__ Adamw(double lr, double decay, double t, double b1, double b2, double eps)
        : first(b1), second(b2), keep(C(1 - lr * decay)), moves(lr != 0) {
        double rate = lr / (1 - pow(b1, t));
        scale = C(1 / (rate * sqrt(1 - pow(b2, t))));
        floor = C(eps / rate);
    }
    template <class V> __device__ void operator()(C g, C& w, V& m, V& v) const {
        m = first(m, g);
        v = second(v, g * g);
        if (moves) w = keep * w - m / (C(sqrt_(v)) * scale + floor);
    }
};

struct Radam {
    Mean first, second;
    C eps, rate, keep;
    bool trusts;  // v: it is the average of gradients enough
    Radam() = default;
    __device__ Radam(double lr, double decay, double t, double b1, double b2, double eps)
        : first(b1), second(b2), eps(C(eps)), keep(C(1 - lr * decay)) {
        double power = pow(b2, t), rho_inf = 2 / (1 - b2) - 1, rho = rho_inf - 2 * t * power / (1 - power);
        double step = lr / (1 - pow(b1, t));
        trusts = rho > 5;
        if (trusts) {
            double square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho);
            step = step * sqrt(square) * sqrt(1 - power);
        }
        rate = C(step);
    }
    __device__ void operator()(C g, C& w, C& m, C& v) const {
        m = first(m, g);
        v = second(v, g * g);
        w = keep * w - rate * (trusts ? m / (sqrt_(v) + eps) : m);
    }
};

struct Sage {
    Mean first, second, third;
    C eps, eps_square, correction, rate, keep;
    Sage() = default;
    __device__ Sage(double lr, double decay, double t, double b1, double b2, double b3, double eps)
        : first(b1), second(b2), third(b3), eps(C(eps)), eps_square(C(eps * eps)), keep(C(1 - lr * decay)) {
        correction = C(1 - pow(b3, t));
        rate = C(lr * sqrt(1 - pow(b2, t)) / (1 - pow(b1, t)));
    }
    __device__ void operator()(C g, C& w, C& m, C& v, C& s) const {
        C sensitivity = abs_(w * g);
        m = first(m, g);
        v = second(v, g * g);
        s = third(s, sensitivity);
        C mean = s / correction, factor = (abs_(sensitivity - mean) + eps_square) / (mean + eps_square);
        w = keep * (w - m / (sqrt_(v) + eps) * rate * factor);
    }
};

struct Sophia {
    Mean first;
    C eps, rho, rate, keep;
    Sophia() = default;
    __device__ Sophia(double lr, double decay, double b1, double eps, double rho)
        : first(b1), eps(C(eps)), rho(C(rho)), rate(C(lr)), keep(C(1 - lr * decay)) {}
    __device__ void operator()(C g, C& w, C& m, C h) const {
        m = first(m, g);
        C ratio = m / max_(rho * h, eps);
        w = keep * w - rate * (ratio > 1 ? C(1) : ratio < -1 ? C(-1) : ratio);
    }
};

struct Lion {
    Mean step, remembered;
    C rate, keep;
    Lion() = default;
    __device__ Lion(double lr, double decay, double b1, double b2)
        : step(b1), remembered(b2), rate(C(lr)), keep(C(1 - lr * decay)) {}
    __device__ void operator()(C g, C& w, C& m) const {
        C along = step(m, g);
        w = keep * w - rate * (along > 0 ? C(1) : along < 0 ? C(-1) : along);
        m = remembered(m, g);
    }
};

// Made by one thread of each block: powers in fp64 take long.
template <class Rule, class... Numbers> __device__ Rule made(Numbers... numbers) {
    __shared__ Rule rule;
    if (threadIdx.x == 0) rule = Rule(numbers...);
    __syncthreads();
    return rule;
}

// ---- What a step is given, and how its results are rounded.

// The chances of stochastic rounding to bf16 (optim/stochastic.py), a function of a key and the place in the
// whole tensor. Element i at hand is element at + i of the box that tensor parallelism has cut out of it; the
// box has rows of `columns`, the tensor of `stride` elements. No columns: values go to the nearest.
struct Chance {
    long long key, at, columns, stride, offset;

    __device__ unsigned long long bits(long long i) const {
        long long place = at + i;
        if (columns != stride) place = place / columns * stride + place % columns;
        return splitmix64(splitmix64(place + offset) ^ key);
    }
    __device__ static unsigned long long splitmix64(unsigned long long x) {
        x += 0x9E3779B97F4A7C15ull;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
        return x ^ (x >> 31);
    }
};

struct Step {
    const Verdict* verdict;
    const G* grad;
    M* w;
    P* copy;  // of w, in the type of the parameters; or null
    long long n;
    Chance chance;
};

// The first and the last parameters of every kernel, and both together.
#define VECTORS const Verdict *verdict, const G *grad, M *w, P *copy, long long n
#define CHANCE long long key, long long at, long long columns, long long stride, long long offset
#define STEP Step{verdict, grad, w, copy, n, Chance{key, at, columns, stride, offset}}

// x with the last 16 bits gone, away from zero where these and 16 random ones add up to 2^16 or more: as bf16
// can hold it. What is not finite stays: all bits of a GPU's NaN are set, and would carry over.
__device__ __forceinline__ float cut(float x, unsigned long long bits) {
    unsigned rounded = (__float_as_uint(x) + unsigned(bits & 0xFFFF)) & 0xFFFF0000u;
    return finite_(x) ? __uint_as_float(rounded) : x;
}

// One step on w and the moments; nothing if it was rejected.
template <class Rule, class... Moments>
__device__ void update(const Rule& rule, const Step& step, Moments*... moments) {
    if (!step.verdict->accepted) return;
    constexpr int V = 1 + sizeof...(moments), NARROWEST = sizeof(G) < sizeof(P) ? sizeof(G) : sizeof(P);
    M* const vectors[V] = {step.w, moments...};
    C factor = C(step.verdict->factor);
    auto f = [&](auto run) {
        constexpr int N = decltype(run)::size;
        Values<C, N> g = run.load(step.grad), x[V];
        for (int v = 0; v < V; v++) x[v] = run.load(vectors[v]);
        for (int k = 0; k < N; k++) {
            if constexpr (V == 1) rule(factor * g[k], x[0][k]);
            if constexpr (V == 2) rule(factor * g[k], x[0][k], x[1][k]);
            if constexpr (V == 3) rule(factor * g[k], x[0][k], x[1][k], x[2][k]);
            if constexpr (V == 4) rule(factor * g[k], x[0][k], x[1][k], x[2][k], x[3][k]);
        }
        if (sizeof(M) == 2 && step.chance.columns) {
            for (int k = 0; k < N; k++) {
                unsigned long long bits = step.chance.bits(run.first + k);
                for (int v = 0; v < V; v++) x[v][k] = cut(x[v][k], bits >> 16 * v);
            }
        }
        for (int v = 0; v < V; v++) run.store(vectors[v], x[v]);
        if (step.copy) run.store(step.copy, x[0]);
    };
    const P* copy = step.copy ? step.copy : (const P*)step.w;  // where there is none P is M
    for_runs<16 / NARROWEST>(step.n, first_element(), next_element(), f, step.grad, copy, step.w, moments...);
}

// ---- The kernels.

extern "C" __global__ void sgd(VECTORS, double lr, double decay, CHANCE) {
    update(made<Sgd>(lr, decay), STEP);
}

extern "C" __global__ void momentum(
    VECTORS, M* m, double lr, double decay, double beta, double gain, CHANCE
) {
    update(made<Momentum>(lr, decay, beta, gain), STEP, m);
}

extern "C" __global__ void nesterov(
    VECTORS, M* m, double lr, double decay, double beta, double gain, CHANCE
) {
    update(made<Nesterov>(lr, decay, beta, gain), STEP, m);
}

extern "C" __global__ void adagrad(VECTORS, M* v, double lr, double decay, double eps, CHANCE) {
    update(made<Adagrad>(lr, decay, eps), STEP, v);
}

extern "C" __global__ void rmsprop(VECTORS, M* v, double lr, double decay, double beta, double eps, CHANCE) {
    update(made<Rmsprop>(lr, decay, beta, eps), STEP, v);
}

extern "C" __global__ void adamw(
    VECTORS, M* m, M* v, double lr, double decay, double b1, double b2, double eps, CHANCE
) {
    update(made<Adamw>(lr, decay, verdict->updates, b1, b2, eps), STEP, m, v);
}

extern "C" __global__ void radam(
    VECTORS, M* m, M* v, double lr, double decay, double b1, double b2, double eps, CHANCE
) {
    update(made<Radam>(lr, decay, verdict->updates, b1, b2, eps), STEP, m, v);
}

extern "C" __global__ void sage(
    VECTORS, M* m, M* v, M* s, double lr, double decay, double b1, double b2, double b3, double eps, CHANCE
) {
    update(made<Sage>(lr, decay, verdict->updates, b1, b2, b3, eps), STEP, m, v, s);
}

extern "C" __global__ void sophia(
    VECTORS, M* m, M* h, double lr, double decay, double b1, double b2, double eps, double rho, CHANCE
) {
    update(made<Sophia>(lr, decay, b1, eps, rho), STEP, m, h);
}

extern "C" __global__ void lion(VECTORS, M* m, double lr, double decay, double b1, double b2, CHANCE) {
    update(made<Lion>(lr, decay, b1, b2), STEP, m);
}

// h takes in an estimate, unless that is rejected.
extern "C" __global__ void sophia_absorb(
    const long long* rejected, const C* estimate, M* m, M* h, long long n, double b1, double b2, double eps,
    double rho
) {
    if (*rejected) return;
    Mean mean(b2);
    for (long long i = first_element(); i < n; i += next_element())
        h[i] = narrow<M>(mean(wide(h[i]), estimate[i]));
}

// ---- AdamW on moments of 8 bits (optim/quantised.py).

constexpr int BLOCK = 256, EACH = BLOCK / WARP;  // elements with one `largest`; of these a thread's

// The 256 values, ascending, and the 255 numbers in the middle between two of them.
struct Table { float values[256], middles[255]; };

struct Quantised {
    unsigned char* codes;
    const float* largest;  // of |values| in each block
    const Table& table;

    __device__ float load(long long i) const { return table.values[codes[i]] * largest[i / BLOCK]; }

    // The nearest code: how many middles are below. Of two equally near ones the lower.
    __device__ void save(long long i, float x, float most) const {
        float share = x / (most == 0 ? 1 : most);
        int below = 0;
        for (int step = 128; step > 0; step /= 2)
            if (!(table.middles[below + step - 1] >= share)) below += step;
        codes[i] = below;
    }
};

__device__ __forceinline__ float largest_of_warp(const float (&x)[EACH]) {
    float most = 0;
    for (int k = 0; k < EACH; k++) most = max_(most, abs_(x[k]));
    return warp_max(most);
}

// A warp takes a block of 256, each of its threads every 32nd element.
extern "C" __global__ void adam8bit(
    VECTORS, unsigned char* m_codes, float* m_largest, const Table* m_table, unsigned char* v_codes,
    float* v_largest, const Table* v_table, double lr, double decay, double b1, double b2, double eps, CHANCE
) {
    __shared__ Table tables[2];
    if (!verdict->accepted) return;
    for (int k = threadIdx.x; k < 256; k += blockDim.x) {
        tables[0].values[k] = m_table->values[k];
        tables[1].values[k] = v_table->values[k];
        if (k == 255) break;
        tables[0].middles[k] = m_table->middles[k];
        tables[1].middles[k] = v_table->middles[k];
    }
    Adamw rule = made<Adamw>(lr, decay, verdict->updates, b1, b2, eps);  // and all see the tables
    Quantised of_m{m_codes, m_largest, tables[0]}, of_v{v_codes, v_largest, tables[1]};
    Chance chance{key, at, columns, stride, offset};
    C factor = C(verdict->factor);
    for (long long block = first_element() / WARP; block * BLOCK < n; block += next_element() / WARP) {
        long long first = block * BLOCK + threadIdx.x % WARP;
        C g[EACH] = {}, x[EACH] = {};
        float m[EACH] = {}, v[EACH] = {};  // zero behind the last of n, in the largest
        for (int k = 0; k < EACH; k++) {
            long long i = first + k * WARP;
            if (i < n) {
                g[k] = factor * wide(grad[i]);
                x[k] = wide(w[i]);
                m[k] = of_m.load(i);
                v[k] = of_v.load(i);
            }
        }
        for (int k = 0; k < EACH; k++) rule(g[k], x[k], m[k], v[k]);
        float m_most = largest_of_warp(m), v_most = largest_of_warp(v);
        for (int k = 0; k < EACH; k++) {
            long long i = first + k * WARP;
            if (i < n) {
                of_m.save(i, m[k], m_most);
                of_v.save(i, v[k], v_most);
                if (sizeof(M) == 2 && columns) x[k] = cut(x[k], chance.bits(i));
                w[i] = narrow<M>(x[k]);
                if (copy) copy[i] = narrow<P>(x[k]);
            }
        }
        if (threadIdx.x % WARP == 0) {
            m_largest[block] = m_most;
            v_largest[block] = v_most;
        }
    }
}
