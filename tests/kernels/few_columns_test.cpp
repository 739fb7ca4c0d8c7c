// Products with few columns beside naive loops in f64 over what ggml makes of the weights' bytes.
#include "kernels/few_columns.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <string>
#include <vector>

namespace headkv::kernels {
namespace {

struct Type {
    WeightType type;
    ggml_type ggml;
};
constexpr Type kTypes[] = {{WeightType::q4_0, GGML_TYPE_Q4_0}, {WeightType::q4_1, GGML_TYPE_Q4_1},
                           {WeightType::q5_0, GGML_TYPE_Q5_0}, {WeightType::q5_1, GGML_TYPE_Q5_1},
                           {WeightType::q8_0, GGML_TYPE_Q8_0}, {WeightType::q4_K, GGML_TYPE_Q4_K},
                           {WeightType::q5_K, GGML_TYPE_Q5_K}, {WeightType::q6_K, GGML_TYPE_Q6_K}};

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::vector<float> random_floats(std::int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size(count));
    for (float& value : values) value = normal(random);
    return values;
}

// A matrix [rows][in], its bytes no longer than they must be: a sanitizer sees what reads past
// them.
struct Weights {
    Weights(Type of, std::int64_t rows, std::int64_t in) : floats(random_floats(rows * in, 5)) {
        // blocks of unlike size and centre
        for (std::int64_t i = 0; i < rows * in; ++i) {
            auto& value = floats[size(i)];
            value = value * static_cast<float>(1 + i / 32 % 5) + static_cast<float>(i / 64 % 3);
        }
        bytes.resize(ggml_row_size(of.ggml, in) * size(rows));
        ggml_quantize_chunk(of.ggml, floats.data(), bytes.data(), 0, rows, in, nullptr);
        ggml_get_type_traits(of.ggml)->to_float(bytes.data(), floats.data(), rows * in);
    }
    std::vector<std::byte> bytes;
    std::vector<float> floats;
};

// What 8 bits in blocks of 32 make of x.
std::vector<float> rounded(std::vector<float> x) {
    for (std::size_t block = 0; block < x.size(); block += 32) {
        float most = 0;
        for (std::size_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[block + i]));
        const float inverse = most > 0 ? 127 / most : 0;
        for (std::size_t i = 0; i < 32; ++i) {
            x[block + i] = std::nearbyint(x[block + i] * inverse) * (most / 127);
        }
    }
    return x;
}

std::vector<float> product(const FewColumns& kernel, WeightType type, const Weights& weights,
                           std::int64_t rows, std::int64_t in, const std::vector<float>& x,
                           std::int64_t columns) {
    std::vector<float> memory(size(RoundedColumns::bytes(in, columns)) / sizeof(float));
    const RoundedColumns to(reinterpret_cast<std::byte*>(memory.data()), in, columns);
    for (std::int64_t c = 0; c < columns; ++c) {
        kernel.round(x.data() + c * in, 0, 1, c, to);  // in two parts, as threads do
        kernel.round(x.data() + c * in, 1, in / 32, c, to);
    }
    const auto stride = rows + 3;
    std::vector<float> out(size(columns * stride), -7.0F);
    kernel.multiply(type, weights.bytes.data(), rows, to, out.data(), stride);
    std::vector<float> result;
    for (std::int64_t c = 0; c < columns; ++c) {
        const auto first = out.begin() + c * stride;
        result.insert(result.end(), first, first + rows);
        EXPECT_TRUE(std::all_of(first + rows, first + stride, [](float x) { return x == -7; }));
    }
    return result;
}

class FewColumnsTest : public testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        kernel = few_columns_by_name(GetParam());
        if (kernel == nullptr) GTEST_SKIP() << "not on this CPU";
    }
    const FewColumns* kernel = nullptr;
};

TEST_P(FewColumnsTest, EqualsANaiveLoopOverRoundedColumns) {
    struct Shape {
        std::int64_t rows, in, columns;
    };
    for (const auto type : kTypes) {
        const auto step = block_values(type.type);
        for (const auto& [rows, in, columns] :
             {Shape{1, step, 1}, Shape{16, 2 * step, 2}, Shape{17, 3 * step, 3},
              Shape{35, 5 * step, 7}, Shape{8, 13 * step, 16}, Shape{20, 25 * step, 17},
              Shape{3, 4 * step, 65}, Shape{33, step, 130}}) {
            const Weights weights(type, rows, in);
            const auto x = random_floats(in * columns, 9), naive = rounded(x);
            const auto result = product(*kernel, type.type, weights, rows, in, x, columns);
            for (std::int64_t i = 0; i < rows * columns; ++i) {
                double exact = 0, sum = 0, magnitudes = 0, steps = 0;
                for (std::int64_t k = 0; k < in; ++k) {
                    const auto w = static_cast<double>(weights.floats[size(i % rows * in + k)]);
                    const auto at = size(i / rows * in + k);
                    sum += w * static_cast<double>(naive[at]);
                    exact += w * static_cast<double>(x[at]);
                    magnitudes += std::fabs(w * static_cast<double>(naive[at]));
                    // half a step, of magnitudes up to 5
                    steps += std::fabs(w) * 5.0 / 127 / 2;
                }
                ASSERT_NEAR(static_cast<double>(result[size(i)]), sum, 3e-6 * magnitudes + 1e-6)
                    << ggml_type_name(type.ggml) << ": " << rows << " x " << in << " x " << columns
                    << ", " << i;
                ASSERT_NEAR(static_cast<double>(result[size(i)]), exact, steps)
                    << ggml_type_name(type.ggml) << ", " << i;
            }
        }
    }
}

TEST_P(FewColumnsTest, AColumnDoesNotDependOnThoseBesideIt) {
    constexpr std::int64_t kRows = 19, kIn = 1280, kMost = 65;
    for (const auto type : kTypes) {
        const Weights weights(type, kRows, kIn);
        const auto x = random_floats(kIn * kMost, 3);
        const auto all = product(*kernel, type.type, weights, kRows, kIn, x, kMost);
        for (std::int64_t columns = 1; columns < kMost; ++columns) {
            const std::vector<float> some(x.begin(), x.begin() + columns * kIn);
            const auto result = product(*kernel, type.type, weights, kRows, kIn, some, columns);
            ASSERT_TRUE(std::equal(result.begin(), result.end(), all.begin()))
                << ggml_type_name(type.ggml) << ", " << columns;
        }
    }
}

TEST_P(FewColumnsTest, ZerosAndExtremesStayWhatTheyAre) {
    constexpr std::int64_t kRows = 5, kIn = 512;
    for (const auto type : kTypes) {
        const Weights weights(type, kRows, kIn);
        std::vector<float> x(size(kIn * 3), 0.0F);
        for (std::int64_t i = 0; i < kIn; ++i) {
            x[size(kIn + i)] = i % 2 == 0 ? 1e30F : -1e30F;   // all 127 or -127
            x[size(2 * kIn + i)] = i % 32 == 0 ? 1e-30F : 0;  // one value a block
        }
        const auto result = product(*kernel, type.type, weights, kRows, kIn, x, 3);
        for (std::int64_t row = 0; row < kRows; ++row) {
            EXPECT_EQ(result[size(row)], 0);
            for (std::int64_t c = 1; c < 3; ++c) {
                double sum = 0, magnitudes = 0;
                for (std::int64_t k = 0; k < kIn; ++k) {
                    const auto one = static_cast<double>(weights.floats[size(row * kIn + k)]) *
                                     static_cast<double>(x[size(c * kIn + k)]);
                    sum += one;
                    magnitudes += std::fabs(one);
                }
                EXPECT_NEAR(static_cast<double>(result[size(c * kRows + row)]), sum,
                            3e-6 * magnitudes)
                    << ggml_type_name(type.ggml) << ", row " << row << ", column " << c;
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, FewColumnsTest,
                         testing::Values("vnni", "avx2", "portable"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace headkv::kernels
