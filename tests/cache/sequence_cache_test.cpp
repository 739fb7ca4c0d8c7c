// The cache against a naive one: the same operations on vectors of rows, at odd sizes and with
// rows of every pair of types.
#include "cache/sequence_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "support/random.h"

namespace headkv {
namespace {

using kernels::RowType;
using test::Random;
using Bytes = std::vector<std::byte>;
using KeepLists = std::vector<std::vector<std::int32_t>>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Rows as plain vectors; slow and obvious.
struct NaiveHead {
    std::vector<std::int32_t> positions;
    std::vector<Bytes> keys, values;  // [rows], as stored
};
using NaiveCache = std::vector<std::vector<NaiveHead>>;  // [layers][heads]

// Values of f16, exactly; quantised rows would not be exact, but both sides round the same ones.
std::vector<float> random_values(std::int64_t count, Random& random) {
    std::vector<float> values(at(count));
    for (float& value : values) value = static_cast<float>(random.below(4096) - 2048) / 64;
    return values;
}

std::vector<Half> halves(const std::vector<float>& values) {
    std::vector<Half> result(values.size());
    kernels::best().to_half(values.data(), result.data(), static_cast<std::int64_t>(values.size()));
    return result;
}

// Rows of quantised types are rotated first.
std::vector<float> as_stored(RowType type, const float* row, std::int64_t dim) {
    std::vector<float> values(row, row + dim);
    if (kernels::rotated(type)) kernels::rotate(values.data(), dim);
    return values;
}

Bytes stored(RowType type, const float* row, std::int64_t dim) {
    Bytes bytes(at(kernels::row_bytes(type, dim)));
    kernels::store_row(type, as_stored(type, row, dim).data(), dim, bytes.data());
    return bytes;
}

// What a stored row stands for, value by value.
std::vector<float> values_of(RowType type, const std::byte* row, std::int64_t dim) {
    std::vector<float> values(at(dim));
    if (type == RowType::f16) {
        std::vector<Half> half(at(dim));
        std::memcpy(half.data(), row, half.size() * sizeof(Half));
        kernels::best().to_float(half.data(), values.data(), dim);
        return values;
    }
    constexpr auto kBlock = kernels::kQuantBlock;
    for (std::int64_t i = 0; i < dim; ++i) {
        const std::byte* block = row + i / kBlock * kernels::row_bytes(type, kBlock);
        Half half = 0;
        float scale = 0;
        std::memcpy(&half, block, sizeof(half));
        kernels::best().to_float(&half, &scale, 1);
        const auto place = i % kBlock;
        if (type == RowType::q8_0) {
            values[at(i)] = scale * static_cast<float>(static_cast<std::int8_t>(block[2 + place]));
            continue;
        }
        const auto both = static_cast<unsigned>(block[2 + place % (kBlock / 2)]);
        const unsigned nibble = place < kBlock / 2 ? both & 15U : both >> 4;
        values[at(i)] = scale * (static_cast<float>(nibble) - 8);
    }
    return values;
}

// Sorted positions below `tokens`, at least one.
std::vector<std::int32_t> random_positions(std::int64_t tokens, Random& random) {
    std::vector<std::int32_t> positions;
    const double share = random.uniform();
    for (std::int32_t p = 0; p < tokens; ++p) {
        if (random.uniform() < share) positions.push_back(p);
    }
    if (positions.empty()) positions.push_back(static_cast<std::int32_t>(random.below(tokens)));
    return positions;
}

struct Case {
    CacheShape shape;
    std::int64_t tokens;
};

class CacheAgainstNaive : public testing::TestWithParam<Case> {
protected:
    CacheShape shape() const { return GetParam().shape; }

    // Fills every layer of both caches with the same random rows and keep lists.
    void fill(SequenceCache& cache, NaiveCache& naive, std::int64_t reserve) {
        const std::int64_t n = GetParam().tokens;
        naive.assign(at(shape().layers), {});
        for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
            const auto keys = random_values(shape().heads * n * shape().dim_k, random_);
            const auto values = random_values(shape().heads * n * shape().dim_v, random_);
            KeepLists keep;
            for (std::int64_t head = 0; head < shape().heads; ++head) {
                keep.push_back(random_positions(n, random_));
                naive[at(layer)].push_back(kept(keys, values, head, keep.back()));
            }
            const auto half_keys = halves(keys), half_values = halves(values);
            const auto filled = cache.fill(layer, {half_keys, half_values, n}, keep, reserve);
            ASSERT_TRUE(filled) << filled.error().message;
        }
    }

    NaiveHead kept(const std::vector<float>& keys, const std::vector<float>& values,
                   std::int64_t head, const std::vector<std::int32_t>& keep) const {
        NaiveHead result{keep, {}, {}};
        for (const std::int32_t p : keep) {
            const std::int64_t row = head * GetParam().tokens + p;
            add_row(result, keys.data() + row * shape().dim_k, values.data() + row * shape().dim_v);
        }
        return result;
    }
    void add_row(NaiveHead& head, const float* key, const float* value) const {
        head.keys.push_back(stored(shape().type_k, key, shape().dim_k));
        head.values.push_back(stored(shape().type_v, value, shape().dim_v));
    }

    // Writes `count` random rows behind the last ones of every head and declares them.
    void append(SequenceCache& cache, NaiveCache& naive, std::int64_t first, std::int64_t count) {
        for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
            for (std::int64_t head = 0; head < shape().heads; ++head) {
                NaiveHead& plain = naive[at(layer)][at(head)];
                const SequenceCache::Head place = cache.head(layer, head);
                for (std::int64_t i = 0; i < count; ++i) {
                    plain.positions.push_back(static_cast<std::int32_t>(first + i));
                    const auto key = random_values(shape().dim_k, random_);
                    const auto value = random_values(shape().dim_v, random_);
                    add_row(plain, key.data(), value.data());
                    cache.store(layer, head, place.count + i, key.data(), value.data());
                }
            }
        }
        cache.append(first, count);
    }

    void keep_some(SequenceCache& cache, NaiveCache& naive, std::int64_t layer, std::int64_t head) {
        NaiveHead& plain = naive[at(layer)][at(head)];
        const std::vector<std::int32_t> keep =
            random_positions(static_cast<std::int64_t>(plain.positions.size()), random_);
        NaiveHead rest;
        for (const std::int32_t row : keep) {
            rest.positions.push_back(plain.positions[at(row)]);
            rest.keys.push_back(plain.keys[at(row)]);
            rest.values.push_back(plain.values[at(row)]);
        }
        plain = rest;
        cache.keep(layer, head, keep);
    }

    void expect_equal(const SequenceCache& cache, const NaiveCache& naive) const {
        std::int64_t rows = 0;
        for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
            for (std::int64_t head = 0; head < shape().heads; ++head) {
                const NaiveHead& plain = naive[at(layer)][at(head)];
                const SequenceCache::Head ours = cache.head(layer, head);
                ASSERT_EQ(ours.count, static_cast<std::int64_t>(plain.positions.size()));
                ASSERT_LE(ours.count, ours.capacity);
                ASSERT_TRUE(std::ranges::equal(cache.positions(layer, head), plain.positions));
                for (std::int64_t row = 0; row < ours.count; ++row) {
                    const Bytes &key = plain.keys[at(row)], &value = plain.values[at(row)];
                    ASSERT_TRUE(
                        std::equal(key.begin(), key.end(), ours.keys + row * shape().key_bytes()));
                    ASSERT_TRUE(std::equal(value.begin(), value.end(),
                                           ours.values + row * shape().value_bytes()));
                }
                rows += ours.count;
            }
        }
        EXPECT_EQ(cache.held_bytes(), rows * shape().row_bytes());
        EXPECT_GE(cache.allocated_bytes(), cache.held_bytes());
    }

    Random random_{99};
};

TEST_P(CacheAgainstNaive, FillKeepsExactlyTheListedRows) {
    SequenceCache cache(shape());
    NaiveCache naive;
    fill(cache, naive, 5);
    expect_equal(cache, naive);
    EXPECT_EQ(cache.room(), 5);
    const std::int64_t heads = shape().layers * shape().heads;
    EXPECT_EQ(cache.allocated_bytes(), cache.held_bytes() + 5 * heads * shape().row_bytes());
}

TEST_P(CacheAgainstNaive, AppendsInPieces) {
    SequenceCache cache(shape());
    NaiveCache naive;
    fill(cache, naive, 7);
    std::int64_t position = GetParam().tokens;
    for (const std::int64_t count : {1, 4, 2}) {
        append(cache, naive, position, count);
        position += count;
        expect_equal(cache, naive);
    }
    EXPECT_EQ(cache.room(), 0);
}

TEST_P(CacheAgainstNaive, GrowKeepsEveryRowAndMakesRoom) {
    SequenceCache cache(shape());
    NaiveCache naive;
    fill(cache, naive, 1);
    append(cache, naive, GetParam().tokens, 1);
    ASSERT_TRUE(cache.grow(9));
    EXPECT_EQ(cache.room(), 9);
    expect_equal(cache, naive);
    append(cache, naive, GetParam().tokens + 1, 9);
    expect_equal(cache, naive);
}

TEST_P(CacheAgainstNaive, KeepDropsRowsInPlaceAndGivesRoomBack) {
    SequenceCache cache(shape());
    NaiveCache naive;
    fill(cache, naive, 6);
    append(cache, naive, GetParam().tokens, 6);
    const std::int64_t allocated = cache.allocated_bytes();
    for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
        for (std::int64_t head = 0; head < shape().heads; ++head) {
            keep_some(cache, naive, layer, head);
            expect_equal(cache, naive);
        }
    }
    EXPECT_EQ(cache.allocated_bytes(), allocated);
    const std::int64_t room = cache.room();
    if (room > 0) append(cache, naive, GetParam().tokens + 6, room);
    expect_equal(cache, naive);
}

TEST_P(CacheAgainstNaive, ACopyHasItsOwnRows) {
    SequenceCache cache(shape());
    NaiveCache naive;
    fill(cache, naive, 3);
    SequenceCache copy = cache.copy();
    NaiveCache copied = naive;
    append(copy, copied, GetParam().tokens, 2);
    keep_some(copy, copied, 0, 0);
    expect_equal(copy, copied);
    expect_equal(cache, naive);
}

TEST_P(CacheAgainstNaive, RandomOperationsInAnyOrder) {
    SequenceCache cache(shape());
    NaiveCache naive;
    fill(cache, naive, 3);
    std::int64_t position = GetParam().tokens;
    for (int i = 0; i < 60; ++i) {
        const std::int64_t what = random_.below(3);
        if (what == 0 && cache.room() > 0) {
            const std::int64_t count = 1 + random_.below(std::min<std::int64_t>(cache.room(), 4));
            append(cache, naive, position, count);
            position += count;
        } else if (what == 1) {
            keep_some(cache, naive, random_.below(shape().layers), random_.below(shape().heads));
        } else if (cache.room() == 0) {
            ASSERT_TRUE(cache.grow(1 + random_.below(5)));
        }
        expect_equal(cache, naive);
        if (HasFatalFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(OddSizes, CacheAgainstNaive,
                         testing::Values(Case{{1, 1, 1, 1}, 1}, Case{{2, 3, 5, 7}, 11},
                                         Case{{3, 2, 16, 16}, 64}, Case{{1, 8, 33, 1}, 129},
                                         Case{{4, 1, 64, 64}, 7}));

std::vector<Case> cases_of_every_pair() {
    std::vector<Case> cases;
    for (const auto type_k : {RowType::f16, RowType::q8_0, RowType::q4_0}) {
        for (const auto type_v : {RowType::f16, RowType::q8_0, RowType::q4_0}) {
            cases.push_back({{2, 3, 32, 96, type_k, type_v}, 11});
            cases.push_back({{1, 2, 128, 64, type_k, type_v}, 67});
        }
    }
    // a dim that no block divides, beside quantised rows of the other kind
    cases.push_back({{2, 3, 33, 32, RowType::f16, RowType::q4_0}, 13});
    cases.push_back({{2, 3, 64, 7, RowType::q8_0, RowType::f16}, 13});
    return cases;
}
INSTANTIATE_TEST_SUITE_P(EveryPairOfTypes, CacheAgainstNaive,
                         testing::ValuesIn(cases_of_every_pair()));

TEST(StoredRows, StandForTheirValues) {
    Random random(5);
    const std::int64_t dim = 96, tokens = 9;
    const auto keys = random_values(tokens * dim, random);
    const auto& values = keys;
    const auto half = halves(keys);
    for (const auto type : {RowType::f16, RowType::q8_0, RowType::q4_0}) {
        SequenceCache cache({1, 1, dim, dim, type, type});
        ASSERT_TRUE(cache.fill(0, {half, half, tokens}, {{0, 2, 3, 8}}, 1));
        cache.store(0, 0, 4, keys.data() + dim, values.data() + dim);
        cache.append(tokens, 1);
        const std::int64_t kept[] = {0, 2, 3, 8, 1};
        for (std::int64_t row = 0; row < 5; ++row) {
            const auto place = cache.head(0, 0);
            for (const std::byte* from : {place.keys + row * cache.shape().key_bytes(),
                                          place.values + row * cache.shape().value_bytes()}) {
                const auto ours = values_of(type, from, dim);
                const auto right = as_stored(type, keys.data() + kept[row] * dim, dim);
                for (std::int64_t i = 0; i < dim; ++i) {
                    const float* block = right.data() + i / 32 * 32;
                    float most = 0;
                    for (int j = 0; j < 32; ++j) most = std::max(most, std::abs(block[j]));
                    // half a step and the rounding of the scale; with 4 bits the far end of the
                    // range is cut by up to a whole step
                    const float step = type == RowType::f16    ? 0
                                       : type == RowType::q8_0 ? most / 127 * 0.57F
                                                               : most / 8 * 1.01F;
                    ASSERT_NEAR(ours[at(i)], right[at(i)], step) << row << " " << i;
                }
            }
        }
    }
}

// Layers 1 and 2 read the rows of layer 0; only those of 0 and 3 are stored.
TEST(SequenceCache, LayersReadTheRowsOfTheirOwner) {
    Random random(5);
    const CacheShape shape{4, 2, 8, 8};
    SequenceCache cache(shape, {0, 0, 0, 3});
    const auto keys = halves(random_values(2 * 10 * 8, random));
    const auto values = halves(random_values(2 * 10 * 8, random));
    const LayerRows rows{keys, values, 10};
    ASSERT_TRUE(cache.fill(0, rows, {{0, 3, 9}, {1, 2}}, 2));
    ASSERT_TRUE(cache.fill(3, rows, {{5}, {6}}, 2));
    EXPECT_TRUE(cache.owns(0));
    EXPECT_FALSE(cache.owns(2));
    EXPECT_EQ(cache.held_bytes(), 7 * shape.row_bytes());
    EXPECT_EQ(cache.allocated_bytes(), (7 + 4 * 2) * shape.row_bytes());
    EXPECT_EQ(cache.room(), 2);
    EXPECT_EQ(cache.head(2, 1).keys, cache.head(0, 1).keys);
    EXPECT_EQ(cache.positions(1, 0).size(), 3U);
    cache.append(10, 1);
    EXPECT_EQ(cache.room(), 1);
    EXPECT_EQ(cache.positions(2, 1).back(), 10);
    EXPECT_EQ(cache.held_bytes(), (7 + 4) * shape.row_bytes());
    ASSERT_TRUE(cache.grow(5));
    EXPECT_EQ(cache.room(), 5);
    const auto twin = cache.copy();
    EXPECT_FALSE(twin.owns(1));
    EXPECT_EQ(twin.held_bytes(), cache.held_bytes());
    EXPECT_EQ(twin.head(1, 0).keys, twin.head(0, 0).keys);
    EXPECT_NE(twin.head(1, 0).keys, cache.head(0, 0).keys);
}

TEST(SequenceCache, RowsComeBackOfAnotherCacheWithinTheErrorOfItsType) {
    Random random(41);
    const std::int64_t dim = 64, tokens = 37;
    const auto keys = random_values(2 * tokens * dim, random);
    const auto values = random_values(2 * tokens * dim, random);
    const auto half_keys = halves(keys), half_values = halves(values);
    std::vector<std::int32_t> every(at(tokens));
    std::iota(every.begin(), every.end(), 0);
    const KeepLists chosen = {{0, 3, 4, 36}, {35}};
    for (const auto& [type, most] :
         {std::pair{RowType::f16, 0.0}, {RowType::q8_0, 0.01}, {RowType::q4_0, 0.15}}) {
        SequenceCache archive({1, 2, dim, dim, type, type});
        ASSERT_TRUE(archive.fill(0, {half_keys, half_values, tokens}, {every, every}, 1));
        for (const auto to : {RowType::f16, type}) {
            SequenceCache cache({1, 2, dim, dim, to, to});
            ASSERT_TRUE(cache.fill(0, archive, chosen, 5));
            EXPECT_EQ(cache.room(), 5);
            std::vector<float> key(at(dim)), value(at(dim));
            for (std::int64_t head = 0; head < 2; ++head) {
                const auto& list = chosen[at(head)];
                const auto held = cache.positions(0, head);
                ASSERT_TRUE(std::equal(held.begin(), held.end(), list.begin(), list.end()));
                for (std::size_t i = 0; i < list.size(); ++i) {
                    cache.load(0, head, static_cast<std::int64_t>(i), key.data(), value.data());
                    double error = 0, norm = 0;
                    for (std::int64_t d = 0; d < dim; ++d) {
                        const auto from = at((head * tokens + list[i]) * dim + d);
                        error += std::pow(key[at(d)] - keys[from], 2) +
                                 std::pow(value[at(d)] - values[from], 2);
                        norm += std::pow(keys[from], 2) + std::pow(values[from], 2);
                    }
                    EXPECT_LE(std::sqrt(error / norm), most) << static_cast<int>(type);
                }
            }
        }
    }
}

TEST(SequenceCache, ValuesAreAveragedAndKeysStay) {
    for (const RowType type : {RowType::f16, RowType::q8_0}) {
        const CacheShape shape{1, 2, 32, 32, type, type};
        Random random(5);
        const auto keys = random_values(2 * 9 * 32, random),
                   values = random_values(2 * 9 * 32, random);
        const auto half_keys = halves(keys), half_values = halves(values);
        const LayerRows from{half_keys, half_values, 7, 9};  // two rows that belong to nobody
        SequenceCache cache(shape), plain(shape);
        const KeepLists keep = {{1, 3, 6}, {0, 2}};
        ASSERT_TRUE(cache.fill(0, from, keep, 2));
        ASSERT_TRUE(plain.fill(0, from, keep, 2));
        const std::vector<std::int32_t> others = {4, 5};
        cache.average_value(0, 1, 1, from, others);
        std::vector<float> mean(32);
        for (const std::int64_t row : {2, 4, 5}) {
            for (std::int64_t d = 0; d < 32; ++d) {
                mean[at(d)] += values[at((9 + row) * 32 + d)] / 3;
            }
        }
        std::vector<float> key(32), value(32), plain_key(32), plain_value(32);
        for (std::int64_t head = 0; head < 2; ++head) {
            for (std::int64_t row = 0; row < std::ssize(keep[at(head)]); ++row) {
                cache.load(0, head, row, key.data(), value.data());
                plain.load(0, head, row, plain_key.data(), plain_value.data());
                EXPECT_EQ(key, plain_key);
                if (head == 1 && row == 1) {
                    for (std::size_t d = 0; d < 32; ++d) EXPECT_NEAR(value[d], mean[d], 0.3);
                    EXPECT_NE(value, plain_value);
                } else {
                    EXPECT_EQ(value, plain_value);
                }
            }
        }
        cache.store_key(0, 0, 2, keys.data());
        cache.load(0, 0, 2, key.data(), value.data());
        for (std::size_t d = 0; d < 32; ++d) EXPECT_NEAR(key[d], keys[d], 0.3);
        EXPECT_EQ(cache.held_bytes(), plain.held_bytes());
    }
}

}  // namespace
}  // namespace headkv
