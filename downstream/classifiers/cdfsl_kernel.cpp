// SGD of the CD-FSL classifier in its dual form, one episode at a time: an episode's products, factors and velocities
// fit into the processor cache, while PyTorch's operations over all episodes go through memory in every step.
// The arithmetic is that of `cdfsl._train_plain`, the shapes are those of `cdfsl._train`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Settings {
    double learning_rate, momentum, dampening, weight_decay;
    int64_t epochs;
};

constexpr int64_t ROWS = 4;    // images of a batch
constexpr int64_t LANES = 16;  // the width of all rows is a multiple of it, so loops over them have no remainder

// Products of A rows of factors with four others: enough independent sums that none waits for the previous one.
template <int A, typename T>
void dots(const T* factors, const T* const* rows, int64_t M, T (*out)[ROWS]) {
    const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3], *a = factors, *b = factors + (A - 1) * M;
    T a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
#pragma omp simd reduction(+ : a0, a1, a2, a3, b0, b1, b2, b3)
    for (int64_t i = 0; i < M / LANES * LANES; ++i) {
        a0 += a[i] * r0[i], a1 += a[i] * r1[i], a2 += a[i] * r2[i], a3 += a[i] * r3[i];
        if (A == 2) b0 += b[i] * r0[i], b1 += b[i] * r1[i], b2 += b[i] * r2[i], b3 += b[i] * r3[i];
    }
    out[0][0] = a0, out[0][1] = a1, out[0][2] = a2, out[0][3] = a3;
    if (A == 2) out[1][0] = b0, out[1][1] = b1, out[1][2] = b2, out[1][3] = b3;
}

// Over C classes, for four images at a time.
template <typename T>
void softmax(T (*z)[ROWS], int64_t C) {
    T largest[ROWS], sum[ROWS] = {0, 0, 0, 0};
    std::copy(z[0], z[0] + ROWS, largest);
    for (int64_t c = 1; c < C; ++c)
        for (int64_t i = 0; i < ROWS; ++i) largest[i] = std::max(largest[i], z[c][i]);
    for (int64_t c = 0; c < C; ++c)
        for (int64_t i = 0; i < ROWS; ++i) sum[i] += z[c][i] = std::exp(z[c][i] - largest[i]);
    for (int64_t i = 0; i < ROWS; ++i) sum[i] = 1 / sum[i];
    for (int64_t c = 0; c < C; ++c)
        for (int64_t i = 0; i < ROWS; ++i) z[c][i] *= sum[i];
}

template <typename T>
void step(const T* products, const int64_t* chosen, int64_t n, int64_t shots, int64_t C, int64_t M, T share,
          const Settings& s, T* factors, T* velocity, T (*z)[ROWS]) {
    const T momentum = s.momentum, decay = share * T(s.weight_decay), rate = s.learning_rate;
    const T* rows[ROWS];
    for (int64_t i = 0; i < ROWS; ++i) rows[i] = products + chosen[std::min(i, n - 1)] * M;
    for (int64_t c = 0; c + 1 < C; c += 2) dots<2>(factors + c * M, rows, M, z + c);
    if (C % 2) dots<1>(factors + (C - 1) * M, rows, M, z + C - 1);
    softmax(z, C);
#pragma omp simd
    for (int64_t i = 0; i < C * M / LANES * LANES; ++i) {
        velocity[i] = momentum * velocity[i] + decay * factors[i];
        factors[i] -= rate * velocity[i];
    }
    for (int64_t i = 0; i < n; ++i) {
        z[chosen[i] / shots][i] -= 1;
        for (int64_t c = 0; c < C; ++c) {
            const T gradient = z[c][i] * (share / T(n));
            velocity[c * M + chosen[i]] += gradient;
            factors[c * M + chosen[i]] -= rate * gradient;
        }
    }
}

template <typename T>
void train(const T* products, const int64_t* orders, int64_t E, int64_t N, int64_t C, int64_t M, const Settings& s,
           T* factors) {
    std::vector<T> velocity(C * M), z(C * ROWS);
    for (int64_t e = 0; e < E; ++e) {
        std::fill(velocity.begin(), velocity.end(), T(0));
        T share = 1;
        for (int64_t i = 0; i < s.epochs * N;) {
            const int64_t n = std::min(ROWS, N - i % N);
            step(products + e * N * M, orders + e * s.epochs * N + i, n, N / C, C, M, share, s, factors + e * C * M,
                 velocity.data(), reinterpret_cast<T(*)[ROWS]>(z.data()));
            share = T(1 - s.dampening);
            i += n;
        }
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                            \
    extern "C" void NAME(const T* products, const int64_t* orders, int64_t E, int64_t N, int64_t C, int64_t M,    \
                         const Settings* settings, T* factors) {                                                   \
        train<T>(products, orders, E, N, C, M, *settings, factors);                                                \
    }
EXPORT(train_float32, float)
EXPORT(train_float64, double)
