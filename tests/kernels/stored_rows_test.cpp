// Rows of every type: stored as ggml's reference quantisers store them, and attended to as naive
// loops in f64 attend to what ggml makes of the stored bytes.
#include <ggml.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace headkv::kernels {
namespace {

constexpr RowType kTypes[] = {RowType::f16, RowType::q8_0, RowType::q4_0};

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

const ggml_type_traits& ggml_traits(RowType type) {
    return *ggml_get_type_traits(type == RowType::f16    ? GGML_TYPE_F16
                                 : type == RowType::q8_0 ? GGML_TYPE_Q8_0
                                                         : GGML_TYPE_Q4_0);
}

std::vector<float> random_floats(std::int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size(count));
    for (float& value : values) value = normal(random);
    return values;
}

// Rows of one head, and what they stand for.
struct Stored {
    std::vector<std::byte> bytes;
    std::vector<float> floats;  // [rows][dim]
};

Stored random_rows(RowType type, std::int64_t rows, std::int64_t dim, unsigned seed) {
    Stored stored;
    stored.floats = random_floats(rows * dim, seed);
    const auto bytes = row_bytes(type, dim);
    stored.bytes.resize(size(rows * bytes));  // no more: a sanitizer sees what reads past the end
    for (std::int64_t row = 0; row < rows; ++row) {
        store_row(type, stored.floats.data() + row * dim, dim, stored.bytes.data() + row * bytes);
    }
    ggml_traits(type).to_float(stored.bytes.data(), stored.floats.data(), rows * dim);
    return stored;
}

// Scores of one query with all keys.
std::vector<double> naive_scores(const float* q, const Stored& keys, std::int64_t rows,
                                 std::int64_t dim) {
    std::vector<double> scores(size(rows));
    for (std::int64_t i = 0; i < rows * dim; ++i) {
        scores[size(i / dim)] +=
            static_cast<double>(q[i % dim]) * static_cast<double>(keys.floats[size(i)]);
    }
    return scores;
}

std::vector<double> naive_attention(const float* q, const Stored& keys, const Stored& values,
                                    std::int64_t rows, HeadDims dims) {
    auto weights = naive_scores(q, keys, rows, dims.k);
    const double top = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - top);
    std::vector<double> out(size(dims.v));
    for (std::int64_t i = 0; i < rows * dims.v; ++i) {
        out[size(i % dims.v)] +=
            weights[size(i / dims.v)] / sum * static_cast<double>(values.floats[size(i)]);
    }
    return out;
}

class StoredRows : public testing::TestWithParam<const char*> {
protected:
    void SetUp() override {
        kernel = by_name(GetParam());
        if (kernel == nullptr) GTEST_SKIP() << "this CPU does not run " << GetParam();
    }
    void compare(RowType type_k, RowType type_v, HeadDims dims, std::int64_t rows,
                 std::int64_t queries) const {
        const auto q = random_floats(queries * dims.k, 1);
        const auto keys = random_rows(type_k, rows, dims.k, 2);
        const auto values = random_rows(type_v, rows, dims.v, 3);
        const Rows all(type_k, keys.bytes.data(), type_v, values.bytes.data(), rows);
        std::vector<float> max(size(queries), -std::numeric_limits<float>::infinity());
        std::vector<float> sum(size(queries)), out(size(queries * dims.v));
        // in two calls, as a head is cut into blocks
        for (const auto& part : {all.slice(0, rows / 3, dims), all.slice(rows / 3, rows, dims)}) {
            kernel->attend_rows(q.data(), queries, part, dims,
                                {max.data(), sum.data(), out.data()});
        }
        const auto stride = rows + 3;
        std::vector<float> scores(size(queries * stride), 42.0F);
        kernel->dot_keys(q.data(), queries, all, dims.k, scores.data(), stride);
        for (std::int64_t query = 0; query < queries; ++query) {
            const float* row = q.data() + query * dims.k;
            const auto expected = naive_attention(row, keys, values, rows, dims);
            for (std::int64_t i = 0; i < dims.v; ++i) {
                ASSERT_NEAR(out[size(query * dims.v + i)] / sum[size(query)], expected[size(i)],
                            2e-5);
            }
            const auto expected_scores = naive_scores(row, keys, rows, dims.k);
            for (std::int64_t i = 0; i < rows; ++i) {
                ASSERT_NEAR(scores[size(query * stride + i)], expected_scores[size(i)], 1e-4);
            }
            ASSERT_EQ(scores[size(query * stride + rows)], 42.0F) << "wrote past the row";
        }
    }
    const Kernels* kernel = nullptr;
};

TEST_P(StoredRows, OfEveryTypeAttendAsNaive) {
    constexpr HeadDims kDims[] = {{32, 32}, {64, 64}, {96, 32}, {64, 96}, {128, 128}};
    for (const auto type_k : kTypes) {
        for (const auto type_v : kTypes) {
            for (const auto dims : kDims) {
                for (const std::int64_t rows : {1, 3, 63, 64, 65, 200}) {
                    for (const std::int64_t queries : {1, 3, 4, 7, 8, 17}) {
                        SCOPED_TRACE(testing::Message()
                                     << "types " << static_cast<int>(type_k) << " "
                                     << static_cast<int>(type_v) << ", dims " << dims.k << " "
                                     << dims.v << ", " << rows << " rows, " << queries
                                     << " queries");
                        ASSERT_NO_FATAL_FAILURE(compare(type_k, type_v, dims, rows, queries));
                    }
                }
            }
        }
    }
}

// A dim that blocks of 32 do not divide, beside one that they do.
TEST_P(StoredRows, HalfKeysOfAnOddDimBesideQuantisedValues) {
    compare(RowType::f16, RowType::q4_0, {33, 64}, 70, 3);
    compare(RowType::q8_0, RowType::f16, {64, 33}, 70, 3);
}

INSTANTIATE_TEST_SUITE_P(All, StoredRows, testing::Values("portable", "avx2", "avx512"),
                         [](const auto& info) { return std::string(info.param); });

TEST(StoreRow, EqualsReferenceQuantisersOfGgml) {
    for (const auto type : kTypes) {
        for (const std::int64_t dim : {32, 64, 96, 128, 256}) {
            ASSERT_EQ(row_bytes(type, dim), static_cast<std::int64_t>(ggml_traits(type).type_size) *
                                                dim / ggml_traits(type).blck_size);
            for (unsigned seed = 0; seed < 2000; ++seed) {
                auto row = random_floats(dim, seed);
                if (seed % 4 == 1) {  // ties: halves of a step, and magnitudes of both signs
                    for (float& value : row) value = std::nearbyint(value * 40) / 2;
                    row[0] = -127;
                    row[31] = 127;
                }
                if (seed % 4 == 2) {  // small: scales below the normal f16s
                    for (float& value : row) value *= 1e-5F;
                }
                if (seed % 4 == 3) row[seed % 32] *= 1000;  // an outlier
                if (seed < 2) std::fill(row.begin(), row.end(), seed == 0 ? 0.0F : -0.0F);
                std::vector<std::byte> ours(size(row_bytes(type, dim))), theirs(ours.size());
                store_row(type, row.data(), dim, ours.data());
                ggml_traits(type).from_float_ref(row.data(), theirs.data(), dim);
                ASSERT_EQ(ours, theirs) << static_cast<int>(type) << " " << dim << " " << seed;
            }
        }
    }
}

// Element (i, j) of the Walsh-Hadamard matrix of n rows is -1 to the number of bits that i and j
// share, over sqrt(n).
TEST(RotateRow, EqualsNaiveAndIsItsOwnInverse) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(-10, 10);
    for (const std::int64_t dim : {1, 2, 7, 32, 64, 80, 96, 128, 256}) {
        std::int64_t n = 1;
        while (dim % (2 * n) == 0) n *= 2;
        std::vector<float> row(size(dim));
        for (float& value : row) value = uniform(random);
        auto turned = row;
        rotate(turned.data(), dim);
        for (std::int64_t i = 0; i < dim; ++i) {
            double right = 0;
            for (std::int64_t j = 0; j < n; ++j) {
                const auto shared = static_cast<std::uint64_t>(i % n & j);
                const auto value = static_cast<double>(row[size(i / n * n + j)]);
                right += std::popcount(shared) % 2 == 0 ? value : -value;
            }
            EXPECT_NEAR(turned[size(i)], right / std::sqrt(static_cast<double>(n)), 1e-4) << dim;
        }
        rotate(turned.data(), dim);
        for (std::int64_t i = 0; i < dim; ++i) {
            EXPECT_NEAR(turned[size(i)], row[size(i)], 1e-4) << dim;
        }
    }
}

// Rows so small that the inverse of their scale overflows become zeros.
TEST(StoreRow, TinyValuesBecomeZero) {
    for (const auto type : {RowType::q8_0, RowType::q4_0}) {
        const std::vector<float> row(32, 1e-38F);
        std::vector<std::byte> stored(size(row_bytes(type, 32)));
        store_row(type, row.data(), 32, stored.data());
        std::vector<float> back(32, 1.0F);
        ggml_traits(type).to_float(stored.data(), back.data(), 32);
        EXPECT_EQ(back, std::vector<float>(32, 0.0F));
    }
}

}  // namespace
}  // namespace headkv::kernels
