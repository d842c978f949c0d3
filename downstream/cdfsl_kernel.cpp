// SGD of the CD-FSL classifier in its dual form, one episode after the other: an episode's products, factors and
// velocities fit into the processor's cache, where PyTorch's operations over all episodes go through memory each step.
// The arithmetic is that of `cdfsl._train_plain`, the shapes are those of `cdfsl._train`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Settings {
    double learning_rate, momentum, dampening, weight_decay;
    int64_t epochs, batch;
};

// Products of one row of factors with up to four rows: one accumulator each, so that they do not wait for each other.
template <typename T>
void dot4(const T* a, const T* const* rows, int64_t M, T* out) {
    const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < M; ++i) {
        s0 += a[i] * r0[i];
        s1 += a[i] * r1[i];
        s2 += a[i] * r2[i];
        s3 += a[i] * r3[i];
    }
    out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

template <typename T>
void softmax(T* z, int64_t C, int64_t stride) {
    T largest = z[0], sum = 0;
    for (int64_t c = 1; c < C; ++c) largest = std::max(largest, z[c * stride]);
    for (int64_t c = 0; c < C; ++c) sum += z[c * stride] = std::exp(z[c * stride] - largest);
    for (int64_t c = 0; c < C; ++c) z[c * stride] /= sum;
}

template <typename T>
void step(const T* products, const int64_t* chosen, int64_t n, int64_t N, int64_t C, T share, const Settings& s,
          T* factors, T* velocity, T* z) {
    const int64_t M = N + C, shots = N / C;
    const T momentum = s.momentum, decay = share * T(s.weight_decay), rate = s.learning_rate;
    for (int64_t first = 0; first < n; first += 4) {
        const T* rows[4];
        for (int64_t i = 0; i < 4; ++i) rows[i] = products + chosen[std::min(first + i, n - 1)] * M;
        T out[4];
        for (int64_t c = 0; c < C; ++c) {
            dot4(factors + c * M, rows, M, out);
            for (int64_t i = 0; i < 4 && first + i < n; ++i) z[c * n + first + i] = out[i];
        }
    }
    for (int64_t i = 0; i < n; ++i) softmax(z + i, C, n);
#pragma omp simd
    for (int64_t i = 0; i < C * M; ++i) {
        velocity[i] = momentum * velocity[i] + decay * factors[i];
        factors[i] -= rate * velocity[i];
    }
    for (int64_t c = 0; c < C; ++c) {
        for (int64_t i = 0; i < n; ++i) {
            const T gradient = (z[c * n + i] - T(chosen[i] / shots == c)) * share / T(n);
            velocity[c * M + chosen[i]] += gradient;
            factors[c * M + chosen[i]] -= rate * gradient;
        }
    }
}

template <typename T>
void train(const T* products, const int64_t* orders, int64_t E, int64_t N, int64_t C, const Settings& s, T* factors) {
    const int64_t M = N + C;
    std::vector<T> velocity(C * M), z(C * s.batch);
    for (int64_t e = 0; e < E; ++e) {
        std::fill(velocity.begin(), velocity.end(), T(0));
        T share = 1;
        for (int64_t i = 0; i < s.epochs * N;) {
            const int64_t n = std::min(s.batch, N - i % N);
            step(products + e * N * M, orders + e * s.epochs * N + i, n, N, C, share, s, factors + e * C * M,
                 velocity.data(), z.data());
            share = T(1 - s.dampening);
            i += n;
        }
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                            \
    extern "C" void NAME(const T* products, const int64_t* orders, int64_t E, int64_t N, int64_t C,               \
                         const Settings* settings, T* factors) {                                                   \
        train<T>(products, orders, E, N, C, *settings, factors);                                                   \
    }
EXPORT(train_float32, float)
EXPORT(train_float64, double)
