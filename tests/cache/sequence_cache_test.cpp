// The cache against a naive one: the same operations on vectors of rows, at odd sizes.
#include "cache/sequence_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "support/random.h"

namespace headkv {
namespace {

using test::Random;
using KeepLists = std::vector<std::vector<std::int32_t>>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Rows as plain vectors; slow and obvious.
struct NaiveHead {
    std::vector<std::int32_t> positions;
    std::vector<std::vector<Half>> keys, values;  // [rows][dim]
};
using NaiveCache = std::vector<std::vector<NaiveHead>>;  // [layers][heads]

std::vector<Half> random_halves(std::int64_t count, Random& random) {
    std::vector<Half> values(at(count));
    for (Half& value : values) value = static_cast<Half>(random.next());
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
            const std::vector<Half> keys =
                random_halves(shape().heads * n * shape().dim_k, random_);
            const std::vector<Half> values =
                random_halves(shape().heads * n * shape().dim_v, random_);
            KeepLists keep;
            for (std::int64_t head = 0; head < shape().heads; ++head) {
                keep.push_back(random_positions(n, random_));
                naive[at(layer)].push_back(kept(keys, values, head, keep.back()));
            }
            const auto filled = cache.fill(layer, {keys, values, n}, keep, reserve);
            ASSERT_TRUE(filled) << filled.error().message;
        }
    }

    NaiveHead kept(const std::vector<Half>& keys, const std::vector<Half>& values,
                   std::int64_t head, const std::vector<std::int32_t>& keep) const {
        NaiveHead result{keep, {}, {}};
        for (const std::int32_t p : keep) {
            const std::int64_t row = head * GetParam().tokens + p;
            result.keys.push_back(row_of(keys, row, shape().dim_k));
            result.values.push_back(row_of(values, row, shape().dim_v));
        }
        return result;
    }
    static std::vector<Half> row_of(const std::vector<Half>& rows, std::int64_t row,
                                    std::int64_t dim) {
        return {rows.begin() + row * dim, rows.begin() + (row + 1) * dim};
    }

    // Writes `count` random rows behind the last ones of every head and declares them.
    void append(SequenceCache& cache, NaiveCache& naive, std::int64_t first, std::int64_t count) {
        for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
            for (std::int64_t head = 0; head < shape().heads; ++head) {
                NaiveHead& plain = naive[at(layer)][at(head)];
                const SequenceCache::Head place = cache.head(layer, head);
                for (std::int64_t i = 0; i < count; ++i) {
                    plain.positions.push_back(static_cast<std::int32_t>(first + i));
                    plain.keys.push_back(random_halves(shape().dim_k, random_));
                    plain.values.push_back(random_halves(shape().dim_v, random_));
                    std::copy(plain.keys.back().begin(), plain.keys.back().end(),
                              place.keys + (place.count + i) * shape().dim_k);
                    std::copy(plain.values.back().begin(), plain.values.back().end(),
                              place.values + (place.count + i) * shape().dim_v);
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
                    ASSERT_TRUE(std::equal(plain.keys[at(row)].begin(), plain.keys[at(row)].end(),
                                           ours.keys + row * shape().dim_k));
                    ASSERT_TRUE(std::equal(plain.values[at(row)].begin(),
                                           plain.values[at(row)].end(),
                                           ours.values + row * shape().dim_v));
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

}  // namespace
}  // namespace headkv
