// What stands between two convolutions of a ConvNet - norm, ReLU, average pooling - in one pass over images with channels
// last, forward and back, for a value and for its derivative along a direction. Formulas: src/maths/by_hand.py.
//
// Values are (B, H, W, C), stored as STORED and computed in REAL. Each image is one thread's, and sums over images run in
// their order, so that the number of threads changes no bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#ifndef REAL
#define REAL float
#define STORED float
#endif

struct Bfloat16 {
    uint16_t bits;
};

static inline float read(Bfloat16 stored) {
    uint32_t bits = static_cast<uint32_t>(stored.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static inline float read(float stored) { return stored; }
static inline double read(double stored) { return stored; }

static inline void write(Bfloat16* place, float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    place->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void write(float* place, float value) { *place = value; }
static inline void write(double* place, double value) { *place = value; }

using Real = REAL;
using Stored = STORED;

struct Shape {
    int64_t images, height, width, channels;
    int64_t groups;  // of the norm; 0: none
    int64_t pool;    // 2: average of squares of four pixels; 1: none
    int64_t threads;
    double eps;
};

namespace {

struct Plane {  // one image
    int64_t height, width, channels, pool, rows, columns;  // rows and columns of what is pooled

    explicit Plane(const Shape& shape)
        : height(shape.height), width(shape.width), channels(shape.channels), pool(shape.pool),
          rows(shape.height / shape.pool), columns(shape.width / shape.pool) {}

    int64_t pixels() const { return height * width; }
    int64_t size() const { return pixels() * channels; }
    int64_t pooled() const { return rows * columns * channels; }
    // the pooled pixel that (h, w) is in, or -1 where the side is odd and nothing takes the last pixel
    int64_t at(int64_t h, int64_t w) const {
        const int64_t row = h / pool, column = w / pool;
        return row < rows && column < columns ? (row * columns + column) * channels : -1;
    }
    Real share() const { return Real(1) / Real(pool * pool); }
};

using Row = std::vector<Real>;

// Sums of a group's channels, in place of each channel's own, times a factor.
void gather(Real* sums, int64_t channels, int64_t groups, Real factor) {
    const int64_t each = channels / groups;
    for (int64_t group = 0; group < groups; ++group) {
        Real total = 0;
        for (int64_t c = group * each; c < (group + 1) * each; ++c) total += sums[c];
        for (int64_t c = group * each; c < (group + 1) * each; ++c) sums[c] = total * factor;
    }
}

// Of PIXELS pixels, one after the other: tap[k] += sum over channels of of_u[c] weight[c][k].
constexpr int64_t TAPS = 32;
typedef Real Lane __attribute__((vector_size(TAPS / 2 * sizeof(Real)), aligned(sizeof(Real))));
#ifdef __AVX512F__
constexpr int64_t PIXELS = 6;  // that the registers hold
#else
constexpr int64_t PIXELS = 3;
#endif

template <int64_t COUNT>
void add_taps(const Real* of_u, const Real* weight, int64_t channels, Real* taps) {
    Lane low[COUNT], high[COUNT];
    for (int64_t pixel = 0; pixel < COUNT; ++pixel) {
        low[pixel] = *reinterpret_cast<const Lane*>(taps + pixel * TAPS);
        high[pixel] = *reinterpret_cast<const Lane*>(taps + pixel * TAPS + TAPS / 2);
    }
    for (int64_t c = 0; c < channels; ++c) {
        const Lane first = *reinterpret_cast<const Lane*>(weight + c * TAPS);
        const Lane second = *reinterpret_cast<const Lane*>(weight + c * TAPS + TAPS / 2);
#pragma GCC unroll 6
        for (int64_t pixel = 0; pixel < COUNT; ++pixel) {
            const Real one = of_u[pixel * channels + c];
            low[pixel] += one * first;
            high[pixel] += one * second;
        }
    }
    for (int64_t pixel = 0; pixel < COUNT; ++pixel) {
        *reinterpret_cast<Lane*>(taps + pixel * TAPS) = low[pixel];
        *reinterpret_cast<Lane*>(taps + pixel * TAPS + TAPS / 2) = high[pixel];
    }
}

// One pixel of a value and, unless it is nullptr, of another.
inline void add(const Stored* one, const Stored* other, Real* sum, int64_t channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sum[c] = read(one[c]);
    if (other == nullptr) return;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sum[c] += read(other[c]);
}

void add_up(const Real* partial, Real* whole, int64_t images, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) whole[c] = 0;
    for (int64_t image = 0; image < images; ++image)
        for (int64_t c = 0; c < channels; ++c) whole[c] += partial[image * channels + c];
}

}  // namespace

extern "C" {

// x = (u + bias - mean) r, v = pool(relu(gain x + shift)). Leaves center = mean - bias and r, (B, C) each.
void forward(const Shape* shape, const Stored* u, const Real* bias, const Real* gain, const Real* shift, Stored* v,
             Real* center, Real* r) {
    const Plane plane(*shape);
    const int64_t channels = plane.channels, pixels = plane.pixels(), groups = shape->groups;
    const Real share = plane.share();
#pragma omp parallel for num_threads(shape->threads) schedule(static)
    for (int64_t image = 0; image < shape->images; ++image) {
        const Stored* ui = u + image * plane.size();
        Stored* vi = v + image * plane.pooled();
        Real *mi = center + image * channels, *ri = r + image * channels;
        if (groups == 0) {
            for (int64_t c = 0; c < channels; ++c) mi[c] = -bias[c], ri[c] = 1;
        } else {
            const Real factor = Real(1) / (Real(pixels) * Real(channels / groups));
            for (int64_t c = 0; c < channels; ++c) mi[c] = 0, ri[c] = 0;
            for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                const Stored* up = ui + pixel * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) mi[c] += read(up[c]);
            }
            for (int64_t c = 0; c < channels; ++c) mi[c] += Real(pixels) * bias[c];
            gather(mi, channels, groups, factor);
            for (int64_t c = 0; c < channels; ++c) mi[c] -= bias[c];
            for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                const Stored* up = ui + pixel * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const Real away = read(up[c]) - mi[c];
                    ri[c] += away * away;
                }
            }
            gather(ri, channels, groups, factor);
            for (int64_t c = 0; c < channels; ++c) ri[c] = Real(1) / std::sqrt(ri[c] + Real(shape->eps));
        }
        Row slope(channels), level(channels), sum(channels);
        for (int64_t c = 0; c < channels; ++c) {
            slope[c] = gain[c] * ri[c];
            level[c] = shift[c] - slope[c] * mi[c];
        }
        for (int64_t row = 0; row < plane.rows; ++row)
            for (int64_t column = 0; column < plane.columns; ++column) {
                Real* total = sum.data();
                for (int64_t c = 0; c < channels; ++c) total[c] = 0;
                for (int64_t h = row * plane.pool; h < (row + 1) * plane.pool; ++h)
                    for (int64_t w = column * plane.pool; w < (column + 1) * plane.pool; ++w) {
                        const Stored* up = ui + (h * plane.width + w) * channels;
                        const Real *a = slope.data(), *b = level.data();
#pragma omp simd
                        for (int64_t c = 0; c < channels; ++c) {
                            const Real y = a[c] * read(up[c]) + b[c];
                            total[c] += y < 0 ? Real(0) : y;  // what is not a number stays so
                        }
                    }
                Stored* vp = vi + plane.at(row * plane.pool, column * plane.pool);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) write(vp + c, total[c] * share);
            }
    }
}

// From q of v that of u; and of gain and shift, (C,).
void backward(const Shape* shape, const Stored* u, const Real* center, const Real* r, const Real* gain, const Real* shift,
              const Stored* q, Stored* q_u, Real* of_gain, Real* of_shift, Real* partial) {
    const Plane plane(*shape);
    const int64_t channels = plane.channels, groups = shape->groups;
    const Real share = plane.share();
    Real *gains = partial, *shifts = partial + shape->images * channels;
#pragma omp parallel for num_threads(shape->threads) schedule(static)
    for (int64_t image = 0; image < shape->images; ++image) {
        const Stored* ui = u + image * plane.size();
        const Stored* qi = q + image * plane.pooled();
        const Real *mi = center + image * channels, *ri = r + image * channels;
        Row slope(channels), level(channels), mean(channels), pull(channels);
        for (int64_t c = 0; c < channels; ++c) {
            slope[c] = gain[c] * ri[c];
            level[c] = shift[c] - slope[c] * mi[c];
        }
        const Real *a = slope.data(), *b = level.data();
        Real *sum = shifts + image * channels, *product = gains + image * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] = product[c] = 0;
        for (int64_t h = 0; h < plane.rows * plane.pool; ++h)
            for (int64_t w = 0; w < plane.columns * plane.pool; ++w) {
                const Stored *up = ui + (h * plane.width + w) * channels, *qp = qi + plane.at(h, w);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const Real value = read(up[c]);
                    const Real whole = read(qp[c]) * share, of_y = a[c] * value + b[c] > 0 ? whole : Real(0);
                    sum[c] += of_y;
                    product[c] += of_y * (value - mi[c]) * ri[c];
                }
            }
        if (groups != 0) {
            const Real factor = Real(1) / (Real(plane.pixels()) * Real(channels / groups));
            for (int64_t c = 0; c < channels; ++c) mean[c] = gain[c] * sum[c], pull[c] = gain[c] * product[c];
            gather(mean.data(), channels, groups, factor);
            gather(pull.data(), channels, groups, factor);
        }
        const Real *mq = mean.data(), *pq = pull.data();
        for (int64_t h = 0; h < plane.height; ++h)
            for (int64_t w = 0; w < plane.width; ++w) {
                const int64_t pixel = (h * plane.width + w) * channels, from = plane.at(h, w);
                const Stored* up = ui + pixel;
                Stored* to = q_u + image * plane.size() + pixel;
                const Real part = from < 0 ? Real(0) : share;
                const Stored* qp = qi + (from < 0 ? 0 : from);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const Real value = read(up[c]), x = (value - mi[c]) * ri[c];
                    const Real whole = gain[c] * read(qp[c]) * part, of_x = a[c] * value + b[c] > 0 ? whole : Real(0);
                    write(to + c, (of_x - mq[c] - x * pq[c]) * ri[c]);
                }
            }
    }
    add_up(gains, of_gain, shape->images, channels);
    add_up(shifts, of_shift, shape->images, channels);
}

// The derivative of `forward` along a direction: u_d becomes u_d + more (nullptr: nothing is added), v_d is made of it.
// Leaves center_d = mean(u_d + bias_d) - bias_d and lean = mean(x u_d), (B, C) each.
void forward_along(const Shape* shape, const Stored* u, const Real* center, const Real* r, const Real* gain,
                   const Real* shift, Stored* u_d, const Stored* more, const Real* bias_d, const Real* gain_d,
                   const Real* shift_d, Stored* v_d, Real* center_d, Real* lean) {
    const Plane plane(*shape);
    const int64_t channels = plane.channels, pixels = plane.pixels(), groups = shape->groups;
    const Real share = plane.share();
#pragma omp parallel for num_threads(shape->threads) schedule(static)
    for (int64_t image = 0; image < shape->images; ++image) {
        const Stored* ui = u + image * plane.size();
        Stored *di = u_d + image * plane.size(), *vi = v_d + image * plane.pooled();
        const Stored* ei = more == nullptr ? nullptr : more + image * plane.size();
        const Real *mi = center + image * channels, *ri = r + image * channels;
        Real *md = center_d + image * channels, *li = lean + image * channels;
        for (int64_t c = 0; c < channels; ++c) md[c] = li[c] = 0;
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
            const Stored* up = ui + pixel * channels;
            Stored* dp = di + pixel * channels;
            if (ei != nullptr) {
                const Stored* ep = ei + pixel * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) write(dp + c, read(dp[c]) + read(ep[c]));
            }
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                const Real along = read(dp[c]);
                md[c] += along;
                li[c] += along * (read(up[c]) - mi[c]);
            }
        }
        if (groups == 0) {
            for (int64_t c = 0; c < channels; ++c) md[c] = -bias_d[c], li[c] = 0;
        } else {
            const Real factor = Real(1) / (Real(pixels) * Real(channels / groups));
            if (groups < channels) {  // the mean of x is 0 over a group, not over each of its channels
                Row sums(channels);
                for (int64_t pixel = 0; pixel < pixels; ++pixel)
                    for (int64_t c = 0; c < channels; ++c) sums[c] += read(ui[pixel * channels + c]) - mi[c];
                for (int64_t c = 0; c < channels; ++c) li[c] += bias_d[c] * sums[c];
            }
            for (int64_t c = 0; c < channels; ++c) md[c] += Real(pixels) * bias_d[c], li[c] *= ri[c];
            gather(md, channels, groups, factor);
            gather(li, channels, groups, factor);
            for (int64_t c = 0; c < channels; ++c) md[c] -= bias_d[c];
        }
        // y = a u + b, y_d = e u + f u_d + g
        Row slope(channels), level(channels), of_u(channels), of_d(channels), rest(channels), sum(channels);
        for (int64_t c = 0; c < channels; ++c) {
            slope[c] = gain[c] * ri[c];
            level[c] = shift[c] - slope[c] * mi[c];
            of_d[c] = slope[c];
            of_u[c] = (gain_d[c] - slope[c] * li[c]) * ri[c];
            rest[c] = shift_d[c] - slope[c] * md[c] - of_u[c] * mi[c];
        }
        const Real *a = slope.data(), *b = level.data(), *e = of_u.data(), *f = of_d.data(), *g = rest.data();
        for (int64_t row = 0; row < plane.rows; ++row)
            for (int64_t column = 0; column < plane.columns; ++column) {
                Real* total = sum.data();
                for (int64_t c = 0; c < channels; ++c) total[c] = 0;
                for (int64_t h = row * plane.pool; h < (row + 1) * plane.pool; ++h)
                    for (int64_t w = column * plane.pool; w < (column + 1) * plane.pool; ++w) {
                        const int64_t pixel = (h * plane.width + w) * channels;
                        const Stored *up = ui + pixel, *dp = di + pixel;
#pragma omp simd
                        for (int64_t c = 0; c < channels; ++c) {
                            const Real value = read(up[c]), along = read(dp[c]);
                            const Real y_d = e[c] * value + f[c] * along + g[c];
                            total[c] += a[c] * value + b[c] > 0 ? y_d : Real(0);
                        }
                    }
                Stored* vp = vi + plane.at(row * plane.pool, column * plane.pool);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) write(vp + c, total[c] * share);
            }
    }
}

// From p + more of v and q of v_d the gradient of u; and of gain and shift, (C,).
void backward_along(const Shape* shape, const Stored* u, const Stored* u_d, const Real* center, const Real* r,
                    const Real* center_d, const Real* lean, const Real* gain, const Real* shift, const Real* gain_d,
                    const Stored* p, const Stored* more, const Stored* q, Stored* p_u, Real* of_gain, Real* of_shift,
                    Real* partial) {
    const Plane plane(*shape);
    const int64_t channels = plane.channels, groups = shape->groups;
    const Real share = plane.share();
    Real *gains = partial, *shifts = partial + shape->images * channels;
#pragma omp parallel for num_threads(shape->threads) schedule(static)
    for (int64_t image = 0; image < shape->images; ++image) {
        const int64_t first = image * plane.size(), first_pooled = image * plane.pooled();
        const Real *mi = center + image * channels, *ri = r + image * channels;
        const Real *md = center_d + image * channels, *li = lean + image * channels;
        Row slope(channels), level(channels), sums(5 * channels), factors(4 * channels), of_v(channels);
        for (int64_t c = 0; c < channels; ++c) {
            slope[c] = gain[c] * ri[c];
            level[c] = shift[c] - slope[c] * mi[c];
        }
        const Real *a = slope.data(), *b = level.data();
        Real* pc = of_v.data();
        Real *sp = sums.data(), *spx = sp + channels, *sq = spx + channels, *sqx = sq + channels, *sqd = sqx + channels;
        for (int64_t h = 0; h < plane.rows * plane.pool; ++h)
            for (int64_t w = 0; w < plane.columns * plane.pool; ++w) {
                const int64_t pixel = first + (h * plane.width + w) * channels, from = first_pooled + plane.at(h, w);
                const Stored *up = u + pixel, *dp = u_d + pixel, *pp = p + from, *qp = q + from;
                const Stored* ep = more == nullptr ? nullptr : more + from;
                add(pp, ep, pc, channels);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const Real value = read(up[c]), x = (value - mi[c]) * ri[c];
                    const Real x_d = (read(dp[c]) - md[c] - x * li[c]) * ri[c];
                    const Real open = a[c] * value + b[c] > 0 ? share : Real(0);
                    const Real of_p = pc[c] * open, of_q = read(qp[c]) * open;
                    sp[c] += of_p;
                    spx[c] += of_p * x;
                    sq[c] += of_q;
                    sqx[c] += of_q * x;
                    sqd[c] += of_q * x_d;
                }
            }
        for (int64_t c = 0; c < channels; ++c) {
            gains[image * channels + c] = spx[c] + sqd[c];
            shifts[image * channels + c] = sp[c];
        }
        // of u: (of_p - steep of_q - pull x_d - flat x - mean) r, with of_p = gain p + gain_d q and of_q = gain q
        Real *steep = factors.data(), *pull = steep + channels, *flat = pull + channels, *mean = flat + channels;
        if (groups != 0) {
            const Real factor = Real(1) / (Real(plane.pixels()) * Real(channels / groups));
            for (int64_t c = 0; c < channels; ++c) {
                sp[c] = gain[c] * sp[c] + gain_d[c] * sq[c];
                spx[c] = gain[c] * spx[c] + gain_d[c] * sqx[c];
                sq[c] *= gain[c], sqx[c] *= gain[c], sqd[c] *= gain[c];
            }
            for (Real* one : {sp, spx, sq, sqx, sqd}) gather(one, channels, groups, factor);
            for (int64_t c = 0; c < channels; ++c) {
                const Real square = Real(1) - Real(shape->eps) * ri[c] * ri[c];  // mean(x x)
                steep[c] = ri[c] * li[c];
                pull[c] = sqx[c];
                mean[c] = sp[c] - steep[c] * sq[c];
                const Real crossed = steep[c] * (Real(1) - square);  // mean(x x_d)
                const Real tilt = spx[c] - steep[c] * sqx[c] - pull[c] * crossed - pull[c] * steep[c] * square + sqd[c];
                flat[c] = pull[c] * steep[c] + tilt;
            }
        }
        for (int64_t h = 0; h < plane.height; ++h)
            for (int64_t w = 0; w < plane.width; ++w) {
                const int64_t pixel = first + (h * plane.width + w) * channels, inside = plane.at(h, w);
                const int64_t from = first_pooled + (inside < 0 ? 0 : inside);
                const Stored *up = u + pixel, *dp = u_d + pixel, *pp = p + from, *qp = q + from;
                const Stored* ep = more == nullptr ? nullptr : more + from;
                Stored* to = p_u + pixel;
                const Real part = inside < 0 ? Real(0) : share;
                add(pp, ep, pc, channels);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const Real value = read(up[c]), x = (value - mi[c]) * ri[c];
                    const Real x_d = (read(dp[c]) - md[c] - x * li[c]) * ri[c];
                    const Real open = a[c] * value + b[c] > 0 ? part : Real(0);
                    const Real of_x = (gain[c] * pc[c] + (gain_d[c] - steep[c] * gain[c]) * read(qp[c])) * open;
                    write(to + c, (of_x - pull[c] * x_d - flat[c] * x - mean[c]) * ri[c]);
                }
            }
    }
    add_up(gains, of_gain, shape->images, channels);
    add_up(shifts, of_shift, shape->images, channels);
}

// The gradient of the first layer's images, (B, inputs, H, W) with rows last, from p of its output and weight, and from q and
// weight_d (nullptr: nothing is added). Weights are (C, TAPS): inputs x 3 x 3 taps, and zeros.
void to_images(const Shape* shape, const Stored* p, const Real* weight, const Stored* q, const Real* weight_d, int64_t inputs,
               Real* images) {
    const int64_t height = shape->height, width = shape->width, channels = shape->channels, pixels = height * width;
#pragma omp parallel for num_threads(shape->threads) schedule(static)
    for (int64_t image = 0; image < shape->images; ++image) {
        Row taps(pixels * TAPS), row(PIXELS * channels);
        for (const auto& [given, factors] : {std::pair{p, weight}, std::pair{q, weight_d}}) {
            if (given == nullptr) continue;
            for (int64_t pixel = 0; pixel < pixels; pixel += PIXELS) {
                const int64_t count = pixel + PIXELS <= pixels ? PIXELS : pixels - pixel;
                const Stored* from = given + (image * pixels + pixel) * channels;
                Real* to = row.data();
#pragma omp simd
                for (int64_t i = 0; i < count * channels; ++i) to[i] = read(from[i]);
                if (count == PIXELS)
                    add_taps<PIXELS>(to, factors, channels, taps.data() + pixel * TAPS);
                else
                    for (int64_t i = 0; i < count; ++i)
                        add_taps<1>(to + i * channels, factors, channels, taps.data() + (pixel + i) * TAPS);
            }
        }
        Real* whole = images + image * inputs * pixels;
        for (int64_t i = 0; i < inputs * pixels; ++i) whole[i] = 0;
        for (int64_t input = 0; input < inputs; ++input)
            for (int64_t tap = 0; tap < 9; ++tap) {
                const int64_t down = tap / 3 - 1, right = tap % 3 - 1;
                for (int64_t h = std::max<int64_t>(0, -down); h < std::min(height, height - down); ++h)
                    for (int64_t w = std::max<int64_t>(0, -right); w < std::min(width, width - right); ++w)
                        whole[(input * height + h + down) * width + w + right] +=
                            taps[(h * width + w) * TAPS + input * 9 + tap];
            }
    }
}
}
