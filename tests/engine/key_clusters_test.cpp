// ClusterKV: clusters of keys against a naive k-means, and the rows that they bring back.
#include "engine/key_clusters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

using kernels::Half;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

std::vector<Half> halves(const std::vector<float>& values) {
    std::vector<Half> made(values.size());
    kernels::best().to_half(values.data(), made.data(), std::ssize(values));
    return made;
}

std::vector<float> floats(const std::vector<Half>& values) {
    std::vector<float> made(values.size());
    kernels::best().to_float(values.data(), made.data(), std::ssize(values));
    return made;
}

std::vector<float> random_values(std::int64_t count, std::uint64_t seed) {
    Random random(seed);
    std::vector<float> values(at(count));
    for (float& value : values) value = static_cast<float>(random.normal());
    return values;
}

double dot(const float* a, const float* b, std::int64_t dim) {
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += static_cast<double>(a[d]) * b[d];
    return sum;
}

struct Naive {
    std::vector<float> means;
    std::vector<std::int32_t> cluster_of;
};

// Straight from the definition, in double.
Naive naive_clusters(const std::vector<float>& keys, std::int64_t dim, std::int64_t clusters,
                     std::int64_t iterations) {
    const auto count = std::ssize(keys) / dim;
    Naive made;
    for (std::int64_t c = 0; c < clusters; ++c) {
        const auto row =
            static_cast<std::int64_t>((static_cast<double>(c) + 0.5) * static_cast<double>(count) /
                                      static_cast<double>(clusters));
        made.means.insert(made.means.end(), keys.begin() + row * dim,
                          keys.begin() + (row + 1) * dim);
    }
    for (std::int64_t round = 0; round < iterations; ++round) {
        made.cluster_of.clear();
        for (std::int64_t i = 0; i < count; ++i) {
            double best = -2;
            std::int32_t nearest = 0;
            for (std::int64_t c = 0; c < clusters; ++c) {
                const float* key = keys.data() + i * dim;
                const float* mean = made.means.data() + c * dim;
                const double cosine =
                    dot(key, mean, dim) / std::sqrt(dot(key, key, dim) * dot(mean, mean, dim));
                if (cosine <= best) continue;
                best = cosine;
                nearest = static_cast<std::int32_t>(c);
            }
            made.cluster_of.push_back(nearest);
        }
        for (std::int64_t c = 0; c < clusters; ++c) {
            std::vector<double> sum(at(dim), 0.0);
            double members = 0;
            for (std::int64_t i = 0; i < count; ++i) {
                if (made.cluster_of[at(i)] != c) continue;
                ++members;
                for (std::int64_t d = 0; d < dim; ++d) {
                    sum[at(d)] += static_cast<double>(keys[at(i * dim + d)]);
                }
            }
            for (std::int64_t d = 0; members > 0 && d < dim; ++d) {
                made.means[at(c * dim + d)] = static_cast<float>(sum[at(d)] / members);
            }
        }
    }
    return made;
}

// Six keys of two dimensions: three to the right, three upwards, of different lengths.
TEST(KeyClusters, AnExampleByHand) {
    const auto keys = halves({4, 0, 1, 0.25F, 2, -0.25F, 0, 1, 0.5F, 4, -0.5F, 1});
    // The seeds are keys 1 and 4; each is nearest to what points its way, whatever its length.
    const auto made = cluster_keys(keys, 2, 2);
    EXPECT_EQ(made.cluster_of, (std::vector<std::int32_t>{0, 0, 0, 1, 1, 1}));
    EXPECT_EQ(made.means, (std::vector<float>{7.0F / 3, 0, 0, 2}));  // not of length one
    // Rows 0 and 1 are in no cluster. Queries (1, 1) and (0, 1) are (1, 2) together.
    KeyClusters clusters({3, 2});
    EXPECT_EQ(clusters.rows(), 2);
    clusters.add(keys, 2);
    EXPECT_EQ(clusters.rows(), 8);
    const std::vector<float> queries = {1, 1, 0, 1};
    const float right = 7.0F / 3, up = 4;
    EXPECT_EQ(clusters.products(queries, 2),
              (std::vector<float>{0, 0, right, right, right, up, up, up}));
    // Later rows: twice as many clusters as rows over the size, here two of three rows.
    clusters.add(halves({1, 0, 1, 0, 0, 3}), 2);
    EXPECT_EQ(clusters.rows(), 11);
    const auto values = clusters.products(queries, 2);
    EXPECT_EQ(std::vector<float>(values.begin() + 8, values.end()), (std::vector<float>{1, 1, 6}));
    EXPECT_EQ(values[2], right);
}

TEST(KeyClusters, AreThoseOfANaiveKMeans) {
    for (const std::int64_t clusters : {1, 7, 200}) {  // 200: more than one call multiplies
        constexpr std::int64_t kDim = 24, kCount = 700;
        const auto keys = halves(random_values(kCount * kDim, 3));
        for (const std::int64_t iterations : {1, 3, 20}) {
            const auto made = cluster_keys(keys, kDim, clusters, iterations);
            const auto right = naive_clusters(floats(keys), kDim, clusters, iterations);
            std::int64_t same = 0;
            for (std::int64_t i = 0; i < kCount; ++i) {
                same += made.cluster_of[at(i)] == right.cluster_of[at(i)] ? 1 : 0;
            }
            EXPECT_GE(same, kCount * 99 / 100) << clusters << ' ' << iterations;  // near ties
            if (same < kCount) continue;
            for (std::size_t i = 0; i < right.means.size(); ++i) {
                ASSERT_NEAR(made.means[i], right.means[i], 1e-5);
            }
        }
    }
}

TEST(KeyClusters, OfEqualOrMissingOrBrokenKeys) {
    const std::vector<float> equal(64 * 8, 0.5F), zero(64 * 8, 0.0F);
    for (const auto& keys : {equal, zero}) {
        const auto made = cluster_keys(halves(keys), 8, 5);
        EXPECT_EQ(made.cluster_of, std::vector<std::int32_t>(64, 0));  // ties: the lower one
    }
    EXPECT_TRUE(cluster_keys({}, 8, 5).cluster_of.empty());
    EXPECT_EQ(cluster_keys(halves(random_values(16, 1)), 8, 5).means.size(), 16U);
    auto broken = random_values(64 * 8, 2);
    broken[77] = std::numeric_limits<float>::quiet_NaN();
    for (const auto cluster : cluster_keys(halves(broken), 8, 5).cluster_of) {
        EXPECT_GE(cluster, 0);
        EXPECT_LT(cluster, 5);
    }
    KeyClusters none({80, 16});
    none.add({}, 8);
    EXPECT_EQ(none.products(std::vector<float>(16, 1.0F), 8), std::vector<float>(16, 0.0F));
}

// --- in the engine

class ClusterKv : public testing::Test {
protected:
    static void SetUpTestSuite() {
        TinyModel wide;
        wide.head_dim = 32;  // so that rows can be quantised
        pair_ = new TinyPair(wide);
        ASSERT_TRUE(pair_->engine);
    }
    static void TearDownTestSuite() {
        delete pair_;
        pair_ = nullptr;
    }
    static Engine& engine() { return *pair_->engine; }
    static HeadShape shape() { return pair_->model->info().shape; }
    static MethodConfig config(double rows, std::int64_t reserve = 1, std::int64_t size = 10) {
        auto made = method_config("clusterkv", rows, shape());
        made.options.reserve = reserve;
        made.options.cluster_size = size;
        return made;
    }
    static SequenceId sequence(std::span<const Token> prompt, const MethodConfig& config) {
        auto result = engine().prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? result->sequences.at(0) : -1;
    }
    static std::vector<float> step(SequenceId id, Token token) {
        return test::step(engine(), id, token);
    }
    static TinyPair* pair_;
};
TinyPair* ClusterKv::pair_ = nullptr;

// The prompt's rows as the definition chooses them for the last query, of every layer.
TEST_F(ClusterKv, KeepsWhatItsDefinitionKeeps) {
    const auto prompt = random_tokens(230, 1);
    const auto run = pair_->reference->run(prompt, {.queries = 1});
    const auto heads = shape();
    const auto id = sequence(prompt, config(60));
    const auto ours = engine().positions(id);
    std::size_t same = 0, all = 0;
    for (std::int64_t layer = 0; layer < heads.layers; ++layer) {
        const auto& rows = run.layers[at(layer)];
        constexpr std::int64_t kDim = 32;
        for (std::int64_t head = 0; head < heads.kv_heads; ++head) {
            const auto first = rows.keys.begin() + (head * 230 + 16) * kDim;
            const std::vector<float> keys(first, first + 214 * kDim);
            const auto made = naive_clusters(keys, kDim, 22, 20);  // 214 rows by tens
            std::vector<std::pair<double, std::int32_t>> order;
            for (std::int64_t i = 0; i < 213; ++i) {
                double product = 0;
                for (std::int64_t g = 0; g < heads.group(); ++g) {
                    product += dot(rows.queries.data() + (head * heads.group() + g) * kDim,
                                   made.means.data() + made.cluster_of[at(i)] * kDim, kDim);
                }
                order.emplace_back(-product, static_cast<std::int32_t>(16 + i));
            }
            std::sort(order.begin(), order.end());
            std::vector<std::int32_t> right(16);
            std::iota(right.begin(), right.end(), 0);
            for (std::size_t i = 0; i < 43; ++i) right.push_back(order[i].second);
            right.push_back(229);
            std::sort(right.begin(), right.end());
            const auto& kept = ours[at(layer)][at(head)];
            EXPECT_EQ(kept.size(), 60U);
            std::vector<std::int32_t> both;
            std::set_intersection(kept.begin(), kept.end(), right.begin(), right.end(),
                                  std::back_inserter(both));
            same += both.size();
            all += right.size();
        }
    }
    // A key between two clusters may go to another where keys are rounded to f16.
    EXPECT_GE(static_cast<double>(same), 0.9 * static_cast<double>(all));
    engine().release(id);
}

TEST_F(ClusterKv, EveryTokenHoldsTheBudgetExactly) {
    const auto row = pair_->model->info().row_bytes * shape().layers * shape().kv_heads;
    for (const std::int64_t every : {1, 4}) {
        const auto id = sequence(random_tokens(200, 2), config(40, every));
        EXPECT_EQ(engine().info(id).held_bytes, 40 * row);
        EXPECT_EQ(engine().info(id).archive_bytes, 200 * row);
        std::int64_t done = 0;
        for (const Token token : random_tokens(33, 3)) {
            step(id, token);
            ++done;
            const auto since = done < every ? done : done % every;
            EXPECT_EQ(engine().info(id).held_bytes, (40 + since) * row) << every << ' ' << done;
            for (const auto& layer : engine().positions(id)) {
                for (const auto& head : layer) {
                    ASSERT_TRUE(std::is_sorted(head.begin(), head.end(), std::less_equal<>()));
                    EXPECT_EQ(head[15], 15);
                    EXPECT_EQ(head.back(), 199 + done);
                }
            }
        }
        EXPECT_EQ(engine().info(id).archive_bytes, 233 * row);
        ASSERT_TRUE(engine().extend(id, random_tokens(60, 4)));
        EXPECT_EQ(engine().info(id).held_bytes, 40 * row);
        engine().release(id);
        EXPECT_EQ(engine().info(id).held_bytes, 0);
    }
}

TEST_F(ClusterKv, RowsThatWereDroppedComeBack) {
    const auto id = sequence(random_tokens(300, 5), config(40));
    auto before = engine().positions(id);
    std::size_t back = 0;
    for (const Token token : random_tokens(8, 6)) {
        step(id, token);
        auto after = engine().positions(id);
        for (std::size_t layer = 0; layer < after.size(); ++layer) {
            for (std::size_t head = 0; head < after[layer].size(); ++head) {
                const auto& held = before[layer][head];
                for (const auto position : after[layer][head]) {
                    back +=
                        position < 300 && !std::binary_search(held.begin(), held.end(), position);
                }
            }
        }
        before = std::move(after);
    }
    EXPECT_GT(back, 0U);
    engine().release(id);
}

// With all rows but a few at every step, the answer is nearly that of the full cache.
TEST_F(ClusterKv, ComesNearTheFullCache) {
    const auto prompt = random_tokens(200, 7);
    const auto whole = method_config("full", 0, shape());
    const auto full = sequence(prompt, whole), id = sequence(prompt, config(195));
    const auto narrow = sequence(prompt, config(40));
    double wide_error = 0, narrow_error = 0;
    for (const Token token : random_tokens(6, 8)) {
        const auto right = step(full, token);
        wide_error += logit_error(step(id, token), right);
        narrow_error += logit_error(step(narrow, token), right);
    }
    EXPECT_LT(wide_error, 6 * 0.25);
    EXPECT_LT(wide_error, narrow_error);
    for (const auto one : {full, id, narrow}) engine().release(one);
}

TEST_F(ClusterKv, IsTheSameAgainAloneAndAmongSixteen) {
    std::vector<SequenceId> alone, together, again;
    for (std::uint64_t i = 0; i < 16; ++i) {
        const auto asked = config(30.0 + static_cast<double>(i), 1 + static_cast<int>(i % 3));
        const auto prompt = random_tokens(90 + 9 * static_cast<std::int64_t>(i), 40 + i);
        alone.push_back(sequence(prompt, asked));
        together.push_back(engine().copy(alone.back()).value());
        again.push_back(sequence(prompt, asked));
        EXPECT_EQ(engine().positions(alone.back()), engine().positions(again.back()));
    }
    for (const Token token : random_tokens(9, 9)) {
        std::vector<DecodeInput> inputs;
        for (const auto id : together) inputs.push_back({.sequence = id, .token = token});
        ASSERT_TRUE(engine().decode(inputs));
        std::vector<std::vector<float>> logits;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            logits.emplace_back(engine().logits(i).begin(), engine().logits(i).end());
        }
        for (std::size_t i = 0; i < alone.size(); ++i) {
            const auto right = step(alone[i], token);
            EXPECT_EQ(step(again[i], token), right);
            EXPECT_LT(logit_error(right, logits[i]), 1e-3) << i;
            EXPECT_EQ(engine().positions(alone[i]), engine().positions(together[i])) << i;
        }
    }
    for (const auto* ids : {&alone, &together, &again}) {
        for (const auto id : *ids) engine().release(id);
    }
}

// A prompt below the budget has no clusters; they are made when the answer has outgrown it.
TEST_F(ClusterKv, AShortPromptGrowsBeyondTheBudget) {
    const auto row = pair_->model->info().row_bytes * shape().layers * shape().kv_heads;
    for (const auto type : {StoreStep::f16, StoreStep::q8_0}) {
        auto asked = config(60);
        asked.recall = type;
        const auto id = sequence(random_tokens(30, 10), asked);
        EXPECT_TRUE(engine().info(id).runs_as_full);
        std::int64_t tokens = 30;
        for (const Token token : random_tokens(70, 11)) {
            for (const float value : step(id, token)) ASSERT_TRUE(std::isfinite(value));
            ++tokens;
            EXPECT_EQ(engine().info(id).held_bytes, std::min<std::int64_t>(tokens, 60) * row);
        }
        engine().release(id);
    }
}

TEST_F(ClusterKv, IsRefusedOffTheCpusOwnKernels) {
    auto other = Engine::create(pair_->model, {.stock_operations = true}).value();
    const auto prompt = random_tokens(100, 12);
    const auto asked = config(30);
    const auto refused = other->prefill(prompt, {&asked, 1});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
    EXPECT_NE(refused.error().message.find("--device cpu"), std::string::npos);
    EXPECT_FALSE(other->check(prompt, asked));
}

}  // namespace
}  // namespace headkv::test
