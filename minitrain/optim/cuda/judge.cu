// What becomes of a step, decided on the GPU: optim/judge.py, whose numbers these are to the bit.
//
// types: none
#include "common.cuh"

// `Kept` of optim/judge.py.
struct Kept { double updates, scale, good_steps, tolerated; };

// The rules of the loss scale: optim/loss_scale.py.
struct LossScale {
    bool dynamic;
    long long growth_interval;
    double backoff;
    long long hysteresis;
    double minimum;

    __device__ bool may_overflow(const Kept& kept) const { return dynamic && kept.scale > minimum; }

    __device__ void update(Kept& kept, bool overflow) const {
        if (!dynamic) return;
        if (overflow) {
            kept.good_steps = 0;
            kept.tolerated -= 1;
            if (kept.tolerated <= 0) kept.scale = max(kept.scale * backoff, minimum);
            return;
        }
        kept.good_steps += 1;
        if (kept.good_steps == growth_interval) {
            kept.good_steps = 0;
            kept.tolerated = hysteresis;
            kept.scale *= 2;
        }
    }
};

// Losses are added one after another. `rejected` is to be made the maximum over all ranks.
extern "C" __global__ void look(
    const double* losses, const double* square, const Kept* kept, Verdict* verdict, long long* rejected,
    long long n_losses
) {
    if (threadIdx.x) return;
    double loss = losses[0];
    for (long long i = 1; i < n_losses; i++) loss += losses[i];
    verdict->loss = loss;
    verdict->norm = sqrt(square[0]) / kept->scale;
    *rejected = !(finite_(verdict->loss) && finite_(verdict->norm));
}

extern "C" __global__ void decide(
    const long long* rejected, Kept* kept, Verdict* verdict, double clip, long long dynamic,
    long long growth_interval, double backoff, long long hysteresis, double minimum
) {
    if (threadIdx.x) return;
    LossScale rules{dynamic != 0, growth_interval, backoff, hysteresis, minimum};
    bool accepted = !*rejected, may_overflow = rules.may_overflow(*kept);
    double clipped = clip == 0 ? 1 : min(1.0, clip / (verdict->norm + 1e-6));  // optim/clip.py
    verdict->factor = accepted ? clipped / kept->scale : 0;
    verdict->accepted = accepted;
    verdict->loss_scale = kept->scale;
    verdict->may_overflow = may_overflow;
    kept->updates += accepted;
    verdict->updates = kept->updates;
    if (accepted || may_overflow) rules.update(*kept, !accepted);
}
