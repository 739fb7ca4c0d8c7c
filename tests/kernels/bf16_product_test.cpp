#include "kernels/bf16_product.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace headkv {
namespace {

std::vector<float> random_floats(std::int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(random);
    return values;
}

float widened(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value = 0;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

TEST(ToBf16, RoundsToTheNearestAndTiesToEven) {
    const std::vector<float> from = {0.0F,
                                     -0.0F,
                                     1.0F,
                                     1.0F + 0x1p-9F,
                                     1.0F + 0x1p-8F,
                                     1.0F + 3 * 0x1p-8F,
                                     -3.14159F,
                                     std::numeric_limits<float>::infinity(),
                                     std::numeric_limits<float>::max()};
    std::vector<std::uint16_t> to(from.size());
    to_bf16(from, to.data());
    EXPECT_EQ(to[0], 0x0000);
    EXPECT_EQ(to[1], 0x8000);
    EXPECT_EQ(to[2], 0x3F80);
    EXPECT_EQ(to[3], 0x3F80);  // below half a step
    EXPECT_EQ(to[4], 0x3F80);  // a tie: down to the even one
    EXPECT_EQ(to[5], 0x3F82);  // a tie: up to the even one
    EXPECT_EQ(to[6], 0xC049);
    EXPECT_EQ(to[7], 0x7F80);
    EXPECT_EQ(to[8], 0x7F80);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    to_bf16({&nan, 1}, to.data());
    EXPECT_TRUE(std::isnan(widened(to[0])));
}

// On a CPU with bf16 units this tests oneDNN's packed product, elsewhere the plain loops.
TEST(Bf16Product, EqualsTheNaiveProductAtOddSizes) {
    for (const std::int64_t rows : {1, 5, 64, 192, 193}) {
        for (const std::int64_t depth : {1, 31, 64, 577}) {
            for (const std::int64_t columns : {1, 48, 131}) {
                const std::int64_t x_stride = depth + 3, out_stride = rows + 7;
                const auto weights = random_floats(rows * depth, 1);
                const auto x = random_floats(columns * x_stride, 2);
                std::vector<std::uint16_t> x_bf16(x.size()), w_bf16(weights.size());
                to_bf16(x, x_bf16.data());
                to_bf16(weights, w_bf16.data());
                Bf16Product product(rows, depth, weights.data());
                std::vector<float> out(static_cast<std::size_t>(columns * out_stride), -77.0F);
                product.multiply(x_bf16.data(), x_stride, columns, out.data(), out_stride);
                double worst = 0;
                for (std::int64_t c = 0; c < columns; ++c) {
                    for (std::int64_t r = 0; r < out_stride; ++r) {
                        const float ours = out[static_cast<std::size_t>(c * out_stride + r)];
                        if (r >= rows) {
                            ASSERT_EQ(ours, -77.0F) << "written beyond the panel";
                            continue;
                        }
                        double right = 0;
                        for (std::int64_t i = 0; i < depth; ++i) {
                            right += static_cast<double>(widened(
                                         x_bf16[static_cast<std::size_t>(c * x_stride + i)])) *
                                     static_cast<double>(
                                         widened(w_bf16[static_cast<std::size_t>(r * depth + i)]));
                        }
                        worst = std::max(worst, std::abs(static_cast<double>(ours) - right));
                    }
                }
                EXPECT_LT(worst, 1e-3) << rows << " x " << depth << " x " << columns;
            }
        }
    }
}

}  // namespace
}  // namespace headkv
