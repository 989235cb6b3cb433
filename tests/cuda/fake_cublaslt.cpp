// libcublasLt on the host's memory: the functions that minitrain/ops/cuda/cublaslt.py calls, by their
// documentation. The numbers and structures of cublasLt.h are repeated here, not shared with the binding.
// What is not documented to work is refused.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>
#include <cstring>

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_64F = 70 };
enum Epilogue { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };

struct Desc {
    static constexpr uint64_t KIND = 1;
    uint64_t kind = KIND;
    int32_t compute, scale, transa = 0, transb = 0;
    uint32_t epilogue = EPILOGUE_DEFAULT;
    const char* bias = nullptr;
};

struct Layout {
    static constexpr uint64_t KIND = 2;
    uint64_t kind = KIND;
    int32_t type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t count = 1;
    int64_t stride = 0;
};

struct Preference {
    static constexpr uint64_t KIND = 3;
    uint64_t kind = KIND;
    uint64_t workspace = 0;
    uint32_t schemes = 7, aligned_a = 256, aligned_b = 256, aligned_c = 256, aligned_d = 256;
};

struct Algo {  // cublasLtMatmulAlgo_t: what it was chosen for
    uint64_t problem, aligned_a, aligned_b, aligned_c, aligned_d, aligned_bias, workspace, unused;
};

struct Result {  // cublasLtMatmulHeuristicResult_t
    Algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Algo) == 64 && sizeof(Result) == 96);

// What the tests look at.
extern "C" int64_t seen_heuristics = 0, seen_products = 0, seen_stream = 0, seen_schemes = 0;
extern "C" int64_t seen_preferences = 0;  // that were not destroyed

static void* const HANDLE = reinterpret_cast<void*>(0x1234);

// The object at p, or null if there is none of this kind.
template <class X> static X* valid(void* p) {
    X* x = static_cast<X*>(p);
    return x && x->kind == X::KIND ? x : nullptr;
}

template <class X> static Status put(X& target, const void* value, size_t size) {
    if (!value || size != sizeof(X)) return INVALID_VALUE;
    std::memcpy(&target, value, size);
    return SUCCESS;
}
static uint64_t alignment(const void* p) { return uint64_t(p) & -uint64_t(p); }

static size_t bytes(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }
static double load(const char* p, int type) {
    if (type == R_64F) return *reinterpret_cast<const double*>(p);
    if (type == R_32F) return *reinterpret_cast<const float*>(p);
    if (type == R_16F) return __half2float(*reinterpret_cast<const __half*>(p));
    return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(p));
}
static void store(double x, char* p, int type) {
    if (type == R_64F) *reinterpret_cast<double*>(p) = x;
    else if (type == R_32F) *reinterpret_cast<float*>(p) = float(x);
    else if (type == R_16F) *reinterpret_cast<__half*>(p) = __float2half_rn(float(x));
    else *reinterpret_cast<__nv_bfloat16*>(p) = __float2bfloat16_rn(float(x));
}

// Whether D = alpha op(A) op(B) + beta C, with D like C, is in the documentation's tables.
static Status check(Desc* d, Layout* a, Layout* b, Layout* c) {
    if (!d || !a || !b || !c) return INVALID_VALUE;
    uint64_t m = d->transa ? a->cols : a->rows, k = d->transa ? a->rows : a->cols;
    uint64_t n = d->transb ? b->rows : b->cols, k_b = d->transb ? b->cols : b->rows;
    if (!m || !n || !k || k != k_b || c->rows != m || c->cols != n) return INVALID_VALUE;
    for (Layout* x : {a, b, c})
        if (x->ld < int64_t(x->rows) || x->count < 1 || x->count != c->count) return INVALID_VALUE;
    if (c->count > 1 && c->stride == 0) return INVALID_VALUE;
    int ab = a->type;
    bool wide = d->compute == COMPUTE_64F && d->scale == R_64F && ab == R_64F && c->type == R_64F;
    bool narrow = d->compute == COMPUTE_32F && d->scale == R_32F && ab != R_64F
        && (c->type == ab || c->type == R_32F);
    if (b->type != ab || !(wide || narrow)) return NOT_SUPPORTED;
    if (d->epilogue == EPILOGUE_BIAS) return d->bias && c->count == 1 ? SUCCESS : INVALID_VALUE;
    return d->epilogue == EPILOGUE_DEFAULT ? SUCCESS : NOT_SUPPORTED;
}

static uint64_t digest(Desc* d, Layout* a, Layout* b, Layout* c) {
    uint64_t sum = 0;
    auto add = [&sum](uint64_t part) { sum = (sum ^ part) * 1099511628211u; };
    for (int64_t part : {d->compute, d->transa, d->transb, int32_t(d->epilogue)}) add(part);
    for (Layout* x : {a, b, c}) {
        for (int64_t part : {int64_t(x->type), int64_t(x->count), x->ld, x->stride}) add(part);
        add(x->rows);
        add(x->cols);
    }
    return sum;
}

extern "C" {

int cublasLtCreate(void** handle) {
    *handle = HANDLE;
    return SUCCESS;
}

int cublasLtMatmulDescCreate(Desc** made, int compute, int scale) {
    *made = new Desc;
    (*made)->compute = compute;
    (*made)->scale = scale;
    return SUCCESS;
}
int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t size) {
    Desc* d = valid<Desc>(desc);
    if (!d) return INVALID_VALUE;
    switch (attribute) {
        case 3: return put(d->transa, value, size);
        case 4: return put(d->transb, value, size);
        case 7: return put(d->epilogue, value, size);
        case 8: return put(d->bias, value, size);
    }
    return INVALID_VALUE;
}

int cublasLtMatrixLayoutCreate(Layout** made, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    *made = new Layout;
    (*made)->type = type;
    (*made)->rows = rows;
    (*made)->cols = cols;
    (*made)->ld = ld;
    return SUCCESS;
}
int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* value, size_t size) {
    Layout* x = valid<Layout>(layout);
    if (!x) return INVALID_VALUE;
    switch (attribute) {
        case 5: return put(x->count, value, size);
        case 6: return put(x->stride, value, size);
    }
    return INVALID_VALUE;
}

int cublasLtMatmulPreferenceCreate(Preference** made) {
    *made = new Preference;
    seen_preferences++;
    return SUCCESS;
}
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t size) {
    Preference* p = valid<Preference>(preference);
    if (!p) return INVALID_VALUE;
    switch (attribute) {
        case 1: return put(p->workspace, value, size);
        case 3: return put(p->schemes, value, size);
        case 5: return put(p->aligned_a, value, size);
        case 6: return put(p->aligned_b, value, size);
        case 7: return put(p->aligned_c, value, size);
        case 8: return put(p->aligned_d, value, size);
    }
    return INVALID_VALUE;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
    Preference* p = valid<Preference>(preference);
    if (!p) return INVALID_VALUE;
    p->kind = 0;
    delete p;
    seen_preferences--;
    return SUCCESS;
}

// The algorithm needs the alignment that it was told, and half of the workspace that it may have.
int cublasLtMatmulAlgoGetHeuristic(
    void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
    Result* results, int* found
) {
    if (handle != HANDLE) return NOT_INITIALIZED;
    Desc* op = valid<Desc>(desc);
    Layout *la = valid<Layout>(a), *lb = valid<Layout>(b), *lc = valid<Layout>(c);
    Preference* p = valid<Preference>(preference);
    if (!p || wanted < 1 || !results || !found || c != d) return INVALID_VALUE;
    Status status = check(op, la, lb, lc);
    if (status != SUCCESS) return status;
    std::memset(results, 0, sizeof *results);
    uint64_t workspace = p->workspace / 2;
    results->algo = {digest(op, la, lb, lc), p->aligned_a, p->aligned_b, p->aligned_c, p->aligned_d};
    results->algo.aligned_bias = op->bias ? alignment(op->bias) : 0;
    results->algo.workspace = workspace;
    results->workspace = workspace;
    *found = 1;
    seen_schemes |= p->schemes;
    seen_heuristics++;
    return SUCCESS;
}

int cublasLtMatmul(
    void* handle, void* desc, const char* alpha, const char* a, void* a_desc, const char* b, void* b_desc,
    const char* beta, const char* c, void* c_desc, char* d, void* d_desc, const Algo* algo, void* workspace,
    size_t size, void* stream
) {
    if (handle != HANDLE) return NOT_INITIALIZED;
    Desc* op = valid<Desc>(desc);
    Layout *la = valid<Layout>(a_desc), *lb = valid<Layout>(b_desc), *lc = valid<Layout>(c_desc);
    if (!alpha || !beta || !a || !b || !d || !algo || !workspace) return INVALID_VALUE;
    if (c != d || c_desc != d_desc) return INVALID_VALUE;
    Status status = check(op, la, lb, lc);
    if (status != SUCCESS) return status;
    if (algo->problem != digest(op, la, lb, lc)) return INVALID_VALUE;
    if (size < algo->workspace || alignment(workspace) < 16) return INVALID_VALUE;
    if (alignment(a) < algo->aligned_a || alignment(b) < algo->aligned_b) return INVALID_VALUE;
    if (alignment(c) < algo->aligned_c || alignment(d) < algo->aligned_d) return INVALID_VALUE;
    bool biased = op->epilogue == EPILOGUE_BIAS, doubles = op->compute == COMPUTE_64F;
    if (biased && alignment(op->bias) < algo->aligned_bias) return INVALID_VALUE;
    double by = load(alpha, op->scale), plus = load(beta, op->scale);
    uint64_t terms = op->transa ? la->rows : la->cols;
    auto element = [](const Layout* x, int64_t i, int64_t row, int64_t col) {
        return (i * x->stride + row + col * x->ld) * int64_t(bytes(x->type));
    };
    for (int64_t i = 0; i < lc->count; i++)
        for (uint64_t col = 0; col < lc->cols; col++)
            for (uint64_t row = 0; row < lc->rows; row++) {
                double sum = 0;
                for (uint64_t k = 0; k < terms; k++) {
                    int64_t in_a = op->transa ? element(la, i, k, row) : element(la, i, row, k);
                    int64_t in_b = op->transb ? element(lb, i, col, k) : element(lb, i, k, col);
                    sum += load(a + in_a, la->type) * load(b + in_b, lb->type);
                    if (!doubles) sum = float(sum);
                }
                char* place = d + element(lc, i, row, col);
                sum *= by;
                if (plus != 0) sum += plus * load(place, lc->type);
                if (biased) sum += load(op->bias + row * bytes(lc->type), lc->type);
                store(doubles ? sum : float(sum), place, lc->type);
            }
    std::memset(workspace, 0x7F, algo->workspace);
    seen_stream = int64_t(stream);
    seen_products++;
    return SUCCESS;
}

}  // extern "C"
