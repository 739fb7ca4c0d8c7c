// Every attention kernel of this CPU against naive loops in f64, at even and odd sizes.
#include "kernels/attention.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace headkv::kernels {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

float to_float(Half half) {
    const int sign = half >> 15, exponent = (half >> 10) & 31, mantissa = half & 1023;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return static_cast<float>(sign != 0 ? -value : value);
}

struct Problem {
    std::int64_t queries, rows;
    HeadDims dims;
    std::vector<float> q;               // [queries][dims.k]
    std::vector<Half> keys, values;     // [rows][dim]
    std::vector<std::int64_t> visible;  // [queries]
};

Problem make_problem(const Kernels& kernel, std::int64_t queries, std::int64_t rows, HeadDims dims,
                     unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Problem problem{queries, rows, dims, {}, {}, {}, {}};
    for (std::int64_t i = 0; i < queries * dims.k; ++i) problem.q.push_back(normal(random));
    const auto halves = [&](std::int64_t count) {
        std::vector<float> floats(size(count));
        for (auto& value : floats) value = normal(random);
        std::vector<Half> result(size(count));
        kernel.to_half(floats.data(), result.data(), count);
        return result;
    };
    problem.keys = halves(rows * dims.k);
    problem.values = halves(rows * dims.v);
    for (std::int64_t i = 0; i < queries; ++i) {
        problem.visible.push_back(std::uniform_int_distribution<std::int64_t>(1, rows)(random));
    }
    return problem;
}

// Softmax attention of one query over its visible rows.
std::vector<double> naive(const Problem& problem, std::int64_t query, std::int64_t visible) {
    std::vector<double> weights;
    double top = -std::numeric_limits<double>::infinity();
    for (std::int64_t row = 0; row < visible; ++row) {
        double score = 0;
        for (std::int64_t i = 0; i < problem.dims.k; ++i) {
            score += static_cast<double>(problem.q[size(query * problem.dims.k + i)]) *
                     static_cast<double>(to_float(problem.keys[size(row * problem.dims.k + i)]));
        }
        weights.push_back(score);
        top = std::max(top, score);
    }
    double sum = 0;
    for (auto& weight : weights) sum += weight = std::exp(weight - top);
    std::vector<double> out(size(problem.dims.v));
    for (std::int64_t row = 0; row < visible; ++row) {
        for (std::int64_t i = 0; i < problem.dims.v; ++i) {
            out[size(i)] +=
                weights[size(row)] / sum *
                static_cast<double>(to_float(problem.values[size(row * problem.dims.v + i)]));
        }
    }
    return out;
}

struct State {
    std::vector<float> max, sum, out;
    explicit State(std::int64_t queries, std::int64_t stride)
        : max(size(queries), -std::numeric_limits<float>::infinity()),
          sum(size(queries)),
          out(size(queries * stride)) {}
    SoftmaxState view() { return {max.data(), sum.data(), out.data()}; }
};

class AttentionKernels : public testing::TestWithParam<const char*> {
protected:
    void SetUp() override {
        kernel = by_name(GetParam());
        if (kernel == nullptr) GTEST_SKIP() << "this CPU does not run " << GetParam();
    }
    const Kernels* kernel = nullptr;
};

constexpr HeadDims kDims[] = {{64, 64}, {128, 128}, {80, 96}, {7, 5}, {33, 17}, {1, 1}};

TEST_P(AttentionKernels, RowsEqualNaive) {
    for (const auto dims : kDims) {
        for (const std::int64_t rows : {1, 2, 3, 5, 63, 64, 65, 200}) {
            for (const std::int64_t queries : {1, 2, 3, 4, 7, 17}) {
                const auto problem = make_problem(*kernel, queries, rows, dims, 1);
                State state(queries, dims.v);
                // in two calls, as a head is cut into blocks
                const auto first = rows / 2;
                kernel->attend_rows(problem.q.data(), queries,
                                    {problem.keys.data(), problem.values.data(), first}, dims,
                                    state.view());
                kernel->attend_rows(problem.q.data(), queries,
                                    {problem.keys.data() + first * dims.k,
                                     problem.values.data() + first * dims.v, rows - first},
                                    dims, state.view());
                for (std::int64_t query = 0; query < queries; ++query) {
                    const auto expected = naive(problem, query, rows);
                    for (std::int64_t i = 0; i < dims.v; ++i) {
                        ASSERT_NEAR(state.out[size(query * dims.v + i)] / state.sum[size(query)],
                                    expected[size(i)], 2e-5)
                            << dims.k << " " << rows << " " << queries;
                    }
                }
            }
        }
    }
}

TEST_P(AttentionKernels, TilesEqualNaiveUnderCausalLimits) {
    for (const auto dims : kDims) {
        for (const std::int64_t rows : {1, 63, 64, 65, 130}) {
            for (const std::int64_t queries : {1, 5, 6, 7, 50, static_cast<int>(kMostQueries)}) {
                const auto problem = make_problem(*kernel, queries, rows, dims, 2);
                const auto stride = kernel->padded_dim(dims.v);
                ASSERT_GE(stride, dims.v);
                State state(queries, stride);
                std::vector<float> work(size(kernel->tile_work_floats(dims)));
                kernel->attend_tiles(problem.q.data(), queries, problem.visible.data(),
                                     {problem.keys.data(), problem.values.data(), rows}, dims,
                                     state.view(), work.data());
                for (std::int64_t query = 0; query < queries; ++query) {
                    const auto expected = naive(problem, query, problem.visible[size(query)]);
                    for (std::int64_t i = 0; i < dims.v; ++i) {
                        ASSERT_NEAR(state.out[size(query * stride + i)] / state.sum[size(query)],
                                    expected[size(i)], 2e-5)
                            << dims.k << " " << rows << " " << queries;
                    }
                }
            }
        }
    }
}

TEST_P(AttentionKernels, DotRowsAndSoftmaxEqualNaive) {
    for (const auto dims : kDims) {
        for (const std::int64_t rows : {1, 4, 5, 77}) {
            const std::int64_t queries = 5;
            const auto problem = make_problem(*kernel, queries, rows, dims, 3);
            const auto stride = rows + 3;
            std::vector<float> scores(size(queries * stride), 42.0F);
            kernel->dot_rows(problem.q.data(), queries, problem.keys.data(), rows, dims.k,
                             scores.data(), stride);
            for (std::int64_t query = 0; query < queries; ++query) {
                std::vector<double> expected;
                double top = -std::numeric_limits<double>::infinity(), sum = 0;
                for (std::int64_t row = 0; row < rows; ++row) {
                    double score = 0;
                    for (std::int64_t i = 0; i < dims.k; ++i) {
                        score +=
                            static_cast<double>(problem.q[size(query * dims.k + i)]) *
                            static_cast<double>(to_float(problem.keys[size(row * dims.k + i)]));
                    }
                    ASSERT_NEAR(scores[size(query * stride + row)], score, 1e-4);
                    expected.push_back(score);
                    top = std::max(top, score);
                }
                ASSERT_EQ(scores[size(query * stride + rows)], 42.0F) << "wrote past the row";
                kernel->softmax(scores.data() + query * stride, rows);
                for (auto& value : expected) sum += value = std::exp(value - top);
                for (std::int64_t row = 0; row < rows; ++row) {
                    ASSERT_NEAR(scores[size(query * stride + row)], expected[size(row)] / sum,
                                1e-5);
                }
            }
        }
    }
}

// Scores far apart must not overflow, and a late larger maximum must shrink what was summed before.
TEST_P(AttentionKernels, ExtremeScoresStayFinite) {
    const HeadDims dims{16, 16};
    const std::vector<float> q(16, 60.0F);
    std::vector<float> floats(2080);  // 130 rows of 16
    for (std::size_t i = 0; i < floats.size(); ++i) {
        floats[i] = i / 16 == 100 ? 60.0F : -60.0F;
    }
    std::vector<Half> rows(floats.size());
    kernel->to_half(floats.data(), rows.data(), static_cast<std::int64_t>(floats.size()));
    State state(1, dims.v);
    kernel->attend_rows(q.data(), 1, {rows.data(), rows.data(), 130}, dims, state.view());
    for (int i = 0; i < 16; ++i) EXPECT_NEAR(state.out[size(i)] / state.sum[0], 60.0F, 1e-3);
}

TEST_P(AttentionKernels, HalfConversionRoundsToNearestEven) {
    std::vector<float> from = {0.0F,           -0.0F,    1.0F,    -2.5F, 65504.0F,
                               1e-7F,          6.1e-5F,  5.9e-8F, 0.1F,  1.00048828125F,
                               1.00146484375F, 3.14159F, 1e6F};
    const std::vector<Half> expected = {0x0000, 0x8000, 0x3C00, 0xC100, 0x7BFF, 0x0002, 0x03FF,
                                        0x0001, 0x2E66, 0x3C00, 0x3C02, 0x4248, 0x7C00};
    std::vector<Half> to(from.size());
    kernel->to_half(from.data(), to.data(), static_cast<std::int64_t>(from.size()));
    for (std::size_t i = 0; i < from.size(); ++i) EXPECT_EQ(to[i], expected[i]) << from[i];
}

TEST_P(AttentionKernels, EveryHalfBecomesItsFloatAndBack) {
    std::vector<Half> from;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const bool nan = (bits & 0x7FFF) > 0x7C00;
        if (!nan) from.push_back(static_cast<Half>(bits));
    }
    std::vector<float> floats(from.size());
    std::vector<Half> back(from.size());
    kernel->to_float(from.data(), floats.data(), static_cast<std::int64_t>(from.size()));
    kernel->to_half(floats.data(), back.data(), static_cast<std::int64_t>(from.size()));
    EXPECT_EQ(back, from);
    for (std::size_t i = 0; i < from.size(); ++i) {
        ASSERT_EQ(floats[i], ggml_fp16_to_fp32(from[i])) << from[i];
    }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionKernels, testing::Values("portable", "avx2", "avx512"),
                         [](const auto& info) { return std::string(info.param); });

TEST(BestKernels, IsOneOfTheNamedOnes) { EXPECT_EQ(by_name(best().name), &best()); }
TEST(BestKernels, UnknownNameGivesNone) { EXPECT_EQ(by_name("mmx"), nullptr); }

}  // namespace
}  // namespace headkv::kernels
