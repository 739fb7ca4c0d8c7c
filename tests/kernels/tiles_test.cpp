// Products and attention on a matrix unit against naive loops in f64, at even and odd sizes: the
// unit of this CPU where it has one, and its imitation everywhere.
#include "kernels/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace headkv::kernels {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

const TileKernels* unit_named(std::string_view name) {
    return name == "imitated" ? &imitated_unit() : matrix_unit();
}

class Tiles : public testing::TestWithParam<const char*> {
protected:
    void SetUp() override {
        unit = unit_named(GetParam());
        if (unit == nullptr) GTEST_SKIP() << "this CPU has no matrix unit";
    }
    const TileKernels* unit = nullptr;
};
INSTANTIATE_TEST_SUITE_P(Units, Tiles, testing::Values("amx", "imitated"));

struct Rounded {
    std::vector<Half> halves;
    std::vector<double> values;
};

Rounded random_halves(std::int64_t count, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> floats(size(count));
    for (float& value : floats) value = normal(random);
    Rounded result{std::vector<Half>(size(count)), {}};
    best().to_half(floats.data(), result.halves.data(), count);
    result.values.assign(floats.begin(), floats.end());
    return result;
}

struct Packed {
    std::vector<Bf16> keys, values;
};

Packed pack(const TileKernels& unit, const Rounded& keys, const Rounded& values, std::int64_t rows,
            HeadDims dims) {
    const auto blocks = (rows + kPackedRows - 1) / kPackedRows;
    Packed packed{std::vector<Bf16>(size(blocks * kPackedRows * packed_key_dim(dims.k)), 0x7FC0),
                  std::vector<Bf16>(size(blocks * kPackedRows * packed_value_dim(dims.v)), 0x7FC0)};
    for (std::int64_t block = 0; block < blocks; ++block) {
        const auto first = block * kPackedRows;
        const auto count = std::min(kPackedRows, rows - first);
        unit.pack_keys(keys.halves.data() + first * dims.k, count, dims.k,
                       packed.keys.data() + first * packed_key_dim(dims.k));
        unit.pack_values(values.halves.data() + first * dims.v, count, dims.v,
                         packed.values.data() + first * packed_value_dim(dims.v));
    }
    return packed;
}

float widened(Bf16 half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value = 0;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

TEST_P(Tiles, RoundsToTheNearestAndTiesToEven) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> from = {0.0F,
                                     -0.0F,
                                     1.0F,
                                     1.0F + 0x1p-9F,      // below half a step
                                     1.0F + 0x1p-8F,      // a tie: down to the even one
                                     1.0F + 3 * 0x1p-8F,  // a tie: up to the even one
                                     -3.14159F,
                                     infinity,
                                     std::numeric_limits<float>::max(),
                                     nan};
    const std::vector<Bf16> right = {0,      0x8000, 0x3F80, 0x3F80, 0x3F80,
                                     0x3F82, 0xC049, 0x7F80, 0x7F80};
    for (const std::size_t more : {0, 16, 22}) {  // in front: whole vectors, and the rest
        std::vector<float> values(more, 1.0F);
        values.insert(values.end(), from.begin(), from.end());
        std::vector<Bf16> to(values.size());
        unit->round(values.data(), static_cast<std::int64_t>(values.size()), to.data());
        for (std::size_t i = 0; i < right.size(); ++i) EXPECT_EQ(to[more + i], right[i]) << i;
        EXPECT_TRUE(std::isnan(widened(to.back())));
    }
}

TEST_P(Tiles, NormAndSwigluAreRoundedNoMoreThanOnce) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (const std::int64_t count : {1, 15, 16, 17, 576, 1001}) {
        std::vector<float> a(size(count)), b(size(count));
        for (float& value : a) value = 4 * normal(random);
        for (float& value : b) value = normal(random);
        if (count > 20) a[3] = -200.0F, a[4] = 90.0F, a[5] = -81.0F;
        std::vector<Bf16> norm(size(count) + 1, 0x1234), gated(size(count) + 1, 0x1234);
        unit->round_norm(a.data(), b.data(), count, 1e-5F, norm.data());
        unit->round_swiglu(a.data(), b.data(), count, gated.data());
        double squares = 0;
        for (const float value : a) squares += std::pow(static_cast<double>(value), 2);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(count) + 1e-5);
        for (std::size_t i = 0; i < a.size(); ++i) {
            const auto x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
            const double right = x * factor * y, right_gated = x / (1 + std::exp(-x)) * y;
            EXPECT_NEAR(widened(norm[i]), right, std::abs(right) * 0.004);
            EXPECT_NEAR(widened(gated[i]), right_gated, std::abs(right_gated) * 0.0045 + 1e-30);
        }
        EXPECT_EQ(norm.back(), 0x1234);
        EXPECT_EQ(gated.back(), 0x1234);
    }
}

TEST_P(Tiles, ProductsEqualNaive) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (const std::int64_t rows : {1, 5, 64, 192, 193}) {
        for (const std::int64_t depth : {1, 31, 64, 577}) {
            for (const std::int64_t columns : {1, 48, 64, 131}) {
                const std::int64_t x_stride = depth + 3, out_stride = rows + 7;
                std::vector<float> weights(size(rows * depth)), x(size(columns * x_stride));
                for (float& value : weights) value = normal(random);
                for (float& value : x) value = normal(random);
                std::vector<Bf16> x_bf16(x.size()), w_bf16(weights.size());
                unit->round(x.data(), columns * x_stride, x_bf16.data());
                unit->round(weights.data(), rows * depth, w_bf16.data());
                PackedBuffer packed(packed_weights(rows, depth));
                unit->pack_weights(weights.data(), rows, depth, packed.data());
                std::vector<float> out(size(columns * out_stride), -77.0F);
                unit->multiply(packed.data(), rows, depth, x_bf16.data(), x_stride, columns,
                               out.data(), out_stride);
                double worst = 0;
                for (std::int64_t c = 0; c < columns; ++c) {
                    for (std::int64_t r = 0; r < out_stride; ++r) {
                        const float ours = out[size(c * out_stride + r)];
                        if (r >= rows) {
                            ASSERT_EQ(ours, -77.0F) << "written beyond the panel";
                            continue;
                        }
                        double right = 0;
                        for (std::int64_t i = 0; i < depth; ++i) {
                            right += static_cast<double>(widened(x_bf16[size(c * x_stride + i)])) *
                                     static_cast<double>(widened(w_bf16[size(r * depth + i)]));
                        }
                        worst = std::max(worst, std::abs(static_cast<double>(ours) - right));
                    }
                }
                EXPECT_LT(worst, 1e-3) << rows << " x " << depth << " x " << columns;
            }
        }
    }
}

// The largest error relative to the largest output, over all queries.
double error_of(const TileKernels& unit, std::int64_t queries, std::int64_t rows, HeadDims dims,
                unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> q(size(queries * dims.k));
    for (float& value : q) value = normal(random) / std::sqrt(static_cast<float>(dims.k));
    const auto keys = random_halves(rows * dims.k, random);
    const auto values = random_halves(rows * dims.v, random);
    std::vector<std::int64_t> visible(size(queries));
    for (auto& limit : visible) {
        limit = std::uniform_int_distribution<std::int64_t>(1, rows)(random);
    }
    const auto packed = pack(unit, keys, values, rows, dims);
    std::vector<float> out(size(queries * dims.v), -1.0F);
    const auto floats = unit.attend_work_floats(dims);
    PackedBuffer memory(2 * floats);
    auto* work = reinterpret_cast<float*>(memory.data());
    std::fill_n(work, floats, NAN);
    unit.attend(q.data(), queries, visible.data(), {packed.keys.data(), packed.values.data()}, dims,
                out.data(), work);
    double worst = 0, largest = 0;
    for (std::int64_t query = 0; query < queries; ++query) {
        std::vector<double> weights;
        for (std::int64_t row = 0; row < visible[size(query)]; ++row) {
            double score = 0;
            for (std::int64_t i = 0; i < dims.k; ++i) {
                score += static_cast<double>(q[size(query * dims.k + i)]) *
                         keys.values[size(row * dims.k + i)];
            }
            weights.push_back(std::exp(score));
        }
        double sum = 0;
        for (const double weight : weights) sum += weight;
        for (std::int64_t i = 0; i < dims.v; ++i) {
            double expected = 0;
            for (std::size_t row = 0; row < weights.size(); ++row) {
                expected += weights[row] / sum * values.values[row * size(dims.v) + size(i)];
            }
            const auto got = static_cast<double>(out[size(query * dims.v + i)]);
            if (!(std::abs(got - expected) <= 1e3)) return 1e9;  // NaN too
            worst = std::max(worst, std::abs(got - expected));
            largest = std::max(largest, std::abs(expected));
        }
    }
    return worst / largest;
}

TEST_P(Tiles, AttentionEqualsNaiveToThePrecisionOfBf16) {
    for (const HeadDims dims : {HeadDims{64, 64}, HeadDims{128, 128}, HeadDims{80, 96},
                                HeadDims{7, 5}, HeadDims{33, 17}}) {
        for (const std::int64_t rows : {1, 2, 63, 64, 65, 200}) {
            for (const std::int64_t queries : {1, 31, 32, 33, static_cast<int>(kMostQueries)}) {
                EXPECT_LT(error_of(*unit, queries, rows, dims, 3), 0.02)
                    << "dims " << dims.k << ", " << dims.v << " rows " << rows << " queries "
                    << queries;
            }
        }
    }
}

// Rows behind what a query sees must not reach it, whatever they hold.
TEST_P(Tiles, RowsOutOfSightChangeNothing) {
    constexpr HeadDims kDims{64, 64};
    constexpr std::int64_t kRows = 150, kQueries = 40;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> q(kQueries * 64);
    for (float& value : q) value = normal(random);
    auto keys = random_halves(kRows * 64, random);
    auto values = random_halves(kRows * 64, random);
    const std::vector<std::int64_t> visible(kQueries, 70);
    const auto attend = [&] {
        const auto packed = pack(*unit, keys, values, kRows, kDims);
        std::vector<float> out(kQueries * 64);
        const auto floats = unit->attend_work_floats(kDims);
        PackedBuffer memory(2 * floats);
        auto* work = reinterpret_cast<float*>(memory.data());
        unit->attend(q.data(), kQueries, visible.data(), {packed.keys.data(), packed.values.data()},
                     kDims, out.data(), work);
        return out;
    };
    const auto before = attend();
    for (std::size_t i = 70 * 64; i < keys.halves.size(); ++i) {
        keys.halves[i] = 0x7BFF;  // the largest half
        values.halves[i] = 0x7BFF;
    }
    EXPECT_EQ(attend(), before);
}

}  // namespace
}  // namespace headkv::kernels
