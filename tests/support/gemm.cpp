#include "support/gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

namespace headkv::test {
namespace {

#if defined(__x86_64__)
#define HEADKV_TEST_AVX2 __attribute__((target("avx2,fma")))
#else
#define HEADKV_TEST_AVX2
#endif

typedef float Vec __attribute__((vector_size(32)));

constexpr int kRows = 6;  // 6 x 16 accumulators fill the registers of AVX2

// One tile: `count` rows of x times one panel. Always inlined, so that it is compiled once for each
// instruction set of its callers.
template <int count>
[[gnu::always_inline]] inline void tile(const float* panel, const Product& p, std::int64_t row,
                                        std::int64_t o) {
    Vec sum[count][2] = {};
    const float* x[count];
    for (int r = 0; r < count; ++r) x[r] = p.x + (row + r) * p.x_stride;
    for (std::int64_t i = 0; i < p.in; ++i) {
        Vec low, high;
        std::memcpy(&low, panel + i * 16, sizeof(low));
        std::memcpy(&high, panel + i * 16 + 8, sizeof(high));
        for (int r = 0; r < count; ++r) {
            sum[r][0] += low * x[r][i];
            sum[r][1] += high * x[r][i];
        }
    }
    const std::int64_t width = std::min<std::int64_t>(16, p.out - o);
    for (int r = 0; r < count; ++r) {
        std::memcpy(p.y + (row + r) * p.y_stride + o, sum[r],
                    static_cast<std::size_t>(width) * sizeof(float));
    }
}

[[gnu::always_inline]] inline void all_tiles(const Packed& w, const Product& p) {
    for (std::int64_t o = 0; o < p.out; o += 16) {
        const float* panel = w.panel(o);
        std::int64_t row = 0;
        for (; row + kRows <= p.rows; row += kRows) tile<kRows>(panel, p, row, o);
        for (; row < p.rows; ++row) tile<1>(panel, p, row, o);
    }
}

HEADKV_TEST_AVX2 void multiply_avx2(const Packed& w, const Product& p) { all_tiles(w, p); }
void multiply_portable(const Packed& w, const Product& p) { all_tiles(w, p); }

bool has_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

}  // namespace

Packed::Packed(std::int64_t out, std::int64_t in)
    : out_(out), in_(in), data_(static_cast<std::size_t>((out + 15) / 16 * 16 * in)) {}

Packed Packed::from_rows(std::span<const float> rows, std::int64_t out, std::int64_t in) {
    Packed packed(out, in);
    for (std::int64_t o = 0; o < out; ++o) {
        const float* row = rows.data() + o * in;
        for (std::int64_t i = 0; i < in; ++i) packed.set(o, i, row[i]);
    }
    return packed;
}

Packed Packed::from_columns(std::span<const float> columns, std::int64_t out, std::int64_t in) {
    Packed packed(out, in);
    for (std::int64_t i = 0; i < in; ++i) {
        const float* column = columns.data() + i * out;
        for (std::int64_t o = 0; o < out; ++o) packed.set(o, i, column[o]);
    }
    return packed;
}

void multiply(const Packed& w, const Product& p) {
    static const bool avx2 = has_avx2();
    if (avx2) {
        multiply_avx2(w, p);
    } else {
        multiply_portable(w, p);
    }
}

void multiply_parallel(const Packed& w, std::span<const float> x, std::span<float> y,
                       std::int64_t rows) {
    // Blocks of 48 rows stay in the first cache while the panels pass by.
    constexpr std::int64_t block = 48;
    if (rows > 1) {
        parallel_for((rows + block - 1) / block, [&](std::int64_t b) {
            const std::int64_t row = b * block;
            multiply(w, {x.data() + row * w.in(), w.in(), y.data() + row * w.out(), w.out(),
                         std::min(block, rows - row), w.in(), w.out()});
        });
    } else {
        multiply(w, {x.data(), w.in(), y.data(), w.out(), 1, w.in(), w.out()});
    }
}

void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& body) {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
        for (std::int64_t i = next++; i < count; i = next++) body(i);
    };
    if (count < 2) return work();
    std::jthread helper(work);
    work();
}

}  // namespace headkv::test
