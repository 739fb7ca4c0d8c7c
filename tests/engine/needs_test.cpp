// What methods ask of a layer besides attention, against naive float32: the queries to come, the
// output projection of values, and the prompt read again.
#include <algorithm>
#include <cmath>

#include "engine/fixture.h"
#include "engine/reconstruction.h"

namespace headkv::test {
namespace {

using Values = std::vector<std::vector<double>>;  // [kv_heads][tokens]

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

double dot(std::span<const double> a, std::span<const double> b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

std::vector<double> row_of(const std::vector<float>& from, std::int64_t index, std::int64_t dim) {
    return {from.begin() + index * dim, from.begin() + (index + 1) * dim};
}

void softmax(std::vector<double>& x) {
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& value : x) sum += value = std::exp(value - top);
    for (double& value : x) value /= sum;
}

KeepLists keep_of(const TinyPair& pair, std::span<const Token> prompt, const MethodConfig& config) {
    auto result = pair.engine->prefill(prompt, {&config, 1});
    EXPECT_TRUE(result) << (result ? "" : result.error().message);
    if (!result) return {};
    auto kept = pair.engine->positions(result->sequences[0]);
    pair.engine->release(result->sequences[0]);
    return kept;
}

// The sorted positions of the `count` best in [begin, end), with all others.
std::vector<std::int32_t> best_of(const std::vector<double>& values, std::int64_t begin,
                                  std::int64_t end, std::int64_t count) {
    std::vector<std::int32_t> order;
    for (auto i = begin; i < end; ++i) order.push_back(static_cast<std::int32_t>(i));
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return values[at(a)] > values[at(b)]; });
    order.resize(at(count));
    for (std::int64_t i = 0; i < std::ssize(values); ++i) {
        if (i < begin || i >= end) order.push_back(static_cast<std::int32_t>(i));
    }
    std::sort(order.begin(), order.end());
    return order;
}

struct Case {
    const char* name;
    TinyModel model;
};

class Needs : public testing::TestWithParam<Case> {};

// Every way to make queries and to rotate them: both pairings, partial and scaled rotations, biases
// and norms, and quantised weights.
INSTANTIATE_TEST_SUITE_P(
    Families, Needs,
    testing::Values(Case{"llama", {}},
                    Case{"llama_partial", {.head_dim = 24, .rope_dimensions = 10}},
                    Case{"qwen2", {.architecture = "qwen2", .weight_type = GGML_TYPE_Q8_0}},
                    Case{"qwen3", {.architecture = "qwen3", .head_dim = 20}},
                    Case{"qwen2_yarn",
                         {.architecture = "qwen2", .rope_scaling = RopeScaling::yarn}}),
    [](const auto& info) { return std::string(info.param.name); });

// Expected attention by its definition; the mean rotation is taken dimension by dimension.
Values expected_attention(const Reference& reference, const ReferenceRun& run, std::int64_t layer,
                          bool spread) {
    const auto& shape = reference.shape();
    const auto& rows = run.layers[at(layer)];
    const auto n = run.tokens, dim = shape.head_dim_k, group = shape.heads.group();
    Values turn(at(dim), std::vector<double>(at(dim)));  // [row][column]
    for (std::int64_t column = 0; column < dim; ++column) {
        std::vector<float> unit(at(dim));
        unit[at(column)] = 1;
        for (std::int64_t i = 0; i < 512; ++i) {
            const auto turned = reference.turned(unit, n + i);
            for (std::size_t row = 0; row < turned.size(); ++row) {
                turn[row][at(column)] += static_cast<double>(turned[row]) / 512;
            }
        }
    }
    Values result(at(shape.heads.kv_heads), std::vector<double>(at(n)));
    for (std::int64_t head = 0; head < shape.heads.query_heads; ++head) {
        // The mean and, for each key, the variance of its products with the queries.
        Values queries;
        std::vector<double> mean(at(dim));
        for (std::int64_t t = 4; t < n; ++t) {
            const auto plain = row_of(rows.plain_queries, head * n + t, dim);
            auto& query = queries.emplace_back();
            for (const auto& row : turn) query.push_back(dot(row, plain));
            for (std::size_t d = 0; d < mean.size(); ++d) {
                mean[d] += query[d] / static_cast<double>(n - 4);
            }
        }
        std::vector<double> weights;
        for (std::int64_t i = 4; i < n; ++i) {
            const auto key = row_of(rows.keys, head / group * n + i, dim);
            double variance = 0;
            for (const auto& query : queries) {
                variance += std::pow(dot(key, query) - dot(key, mean), 2) /
                            static_cast<double>(queries.size());
            }
            weights.push_back(dot(key, mean) / std::sqrt(static_cast<double>(dim)) +
                              (spread ? variance / static_cast<double>(2 * dim) : 0));
        }
        softmax(weights);
        for (std::int64_t i = 4; i < n; ++i) {
            const auto value = row_of(rows.values, head / group * n + i, shape.head_dim_v);
            result[at(head / group)][at(i)] += weights[at(i - 4)] * std::sqrt(dot(value, value));
        }
    }
    return result;
}

TEST_P(Needs, ExpectedAttentionKeepsWhatItsDefinitionKeeps) {
    const TinyPair pair(GetParam().model, 37);
    const auto prompt = random_tokens(143, 3);
    const auto run = pair.reference->run(prompt, {.queries = 143});
    const auto& heads = pair.reference->shape().heads;
    const auto ours = keep_of(pair, prompt, method_config("expected-attention", 45, heads));
    KeepLists right, wrong;
    for (std::int64_t layer = 0; layer < heads.layers; ++layer) {
        right.emplace_back();
        wrong.emplace_back();
        for (const auto& values : expected_attention(*pair.reference, run, layer, true)) {
            right.back().push_back(best_of(values, 4, 142, 40));
        }
        for (const auto& values : expected_attention(*pair.reference, run, layer, false)) {
            wrong.back().push_back(best_of(values, 4, 142, 40));
        }
    }
    EXPECT_GE(mean_jaccard(ours, right), 0.99);
    EXPECT_LT(mean_jaccard(ours, wrong), mean_jaccard(ours, right));
}

TEST_P(Needs, ValueCosinesFollowTheirDefinition) {
    const TinyPair pair(GetParam().model, 37);  // chunks of 37: the text is read in four
    const auto text = random_tokens(143, 6);
    const auto run = pair.reference->run(text, {.queries = 143});
    const auto& shape = pair.reference->shape();
    const auto cosines = pair.engine->value_cosines(text);
    ASSERT_TRUE(cosines) << cosines.error().message;
    ASSERT_EQ(std::ssize(*cosines), shape.heads.layers * shape.heads.query_heads);
    for (std::int64_t layer = 0; layer < shape.heads.layers; ++layer) {
        const auto& values = run.layers[at(layer)].values;
        for (std::int64_t head = 0; head < shape.heads.query_heads; ++head) {
            double mean = 0;
            for (std::int64_t t = 1; t < 143; ++t) {
                const auto weights = pair.reference->attention(run, layer, head, t);
                const auto row = [&](std::int64_t i) {
                    return row_of(values, head / shape.heads.group() * 143 + i, shape.head_dim_v);
                };
                std::vector<double> out(at(shape.head_dim_v));
                for (std::int64_t i = 0; i <= t; ++i) {
                    const auto value = row(i);
                    for (std::size_t d = 0; d < out.size(); ++d) {
                        out[d] += static_cast<double>(weights[at(i)]) * value[d];
                    }
                }
                const auto own = row(t);
                mean += dot(own, out) / std::sqrt(dot(own, own) * dot(out, out)) / 142;
            }
            EXPECT_NEAR((*cosines)[at(layer * shape.heads.query_heads + head)], mean, 0.01)
                << layer << " " << head;
        }
    }
    EXPECT_FALSE(pair.engine->value_cosines({}));
}

TEST_P(Needs, CriticalKvRanksByTheOutputProjection) {
    const TinyPair pair(GetParam().model);
    const auto prompt = random_tokens(143, 4);
    const auto run = pair.reference->run(prompt);
    const auto& shape = pair.reference->shape();
    auto config = method_config("criticalkv", 41, shape.heads);
    config.options.window = 9;
    config.options.kernel = 1;
    const auto ours = keep_of(pair, prompt, config);
    const std::int64_t before = 143 - 9;
    KeepLists right, wrong;  // wrong: attention alone
    for (std::int64_t layer = 0; layer < shape.heads.layers; ++layer) {
        const auto observed = observe(*pair.reference, run, layer, 9);
        right.emplace_back();
        wrong.emplace_back();
        for (std::int64_t head = 0; head < shape.heads.kv_heads; ++head) {
            std::vector<double> attention(143), critical(143);
            for (std::int64_t i = 0; i < before; ++i) {
                double norm = 0;
                const auto* value =
                    run.layers[at(layer)].values.data() + (head * 143 + i) * shape.head_dim_v;
                for (auto q = head * shape.heads.group(); q < (head + 1) * shape.heads.group();
                     ++q) {
                    attention[at(i)] +=
                        observed[at(q)][at(i)] / static_cast<double>(shape.heads.group());
                    for (const float x :
                         pair.reference->projected(layer, q, {value, at(shape.head_dim_v)})) {
                        norm += std::abs(static_cast<double>(x));
                    }
                }
                critical[at(i)] = (attention[at(i)] + 1e-4) * norm;
            }
            wrong.back().push_back(best_of(attention, 0, before, 32));
            std::vector<double> order = attention;
            std::sort(order.rbegin(), order.rend());
            for (std::int64_t i = 0; i < before; ++i) {
                if (attention[at(i)] >= order[15]) critical[at(i)] = INFINITY;
            }
            right.back().push_back(best_of(critical, 0, before, 32));
        }
    }
    EXPECT_GE(mean_jaccard(ours, right), 0.99);
    EXPECT_LT(mean_jaccard(ours, wrong), mean_jaccard(ours, right));
}

TEST_P(Needs, KvzipKeepsWhatThePromptReadAgainLooksAt) {
    TinyModel options = GetParam().model;
    options.context = 290;  // room for pieces of some tens of tokens only
    const TinyPair pair(options, 50);
    const auto prompt = random_tokens(121, 5);
    const auto& heads = pair.reference->shape().heads;
    const auto pieces = repeat_pieces(pair.model->tokenizer(), prompt, 290);
    ASSERT_TRUE(pieces) << pieces.error().message;
    ASSERT_GE(pieces->size(), 2U);
    // [layers][kv_heads][tokens]
    std::vector<Values> scores(at(heads.layers),
                               Values(at(heads.kv_heads), std::vector<double>(121)));
    std::int64_t covered = 4;
    for (const auto& piece : *pieces) {
        EXPECT_EQ(piece.begin, covered);
        covered += piece.count;
        EXPECT_LE(121 + piece.length(), 290);
        std::vector<Token> text = prompt;
        text.insert(text.end(), piece.tokens.begin(), piece.tokens.end());
        const auto run = pair.reference->run(text, {.queries = piece.length()});
        const auto dim = pair.reference->shape().head_dim_k;
        for (std::int64_t layer = 0; layer < heads.layers; ++layer) {
            const auto& rows = run.layers[at(layer)];
            for (std::int64_t head = 0; head < heads.query_heads; ++head) {
                const auto kv_head = head / heads.group();
                for (std::int64_t i = 0; i < piece.length(); ++i) {
                    const auto query = row_of(rows.queries, head * piece.length() + i, dim);
                    std::vector<double> weights;
                    const auto look = [&](std::int64_t begin, std::int64_t end) {
                        for (auto j = begin; j < end; ++j) {
                            const auto key = row_of(rows.keys, kv_head * run.tokens + j, dim);
                            weights.push_back(dot(query, key) /
                                              std::sqrt(static_cast<double>(dim)));
                        }
                    };
                    look(0, 4);
                    look(piece.begin, piece.begin + piece.count);
                    look(121, 121 + i + 1);
                    softmax(weights);
                    for (std::int64_t j = 0; j < piece.count; ++j) {
                        auto& best = scores[at(layer)][at(kv_head)][at(piece.begin + j)];
                        best = std::max(best, weights[at(4 + j)]);
                    }
                }
            }
        }
    }
    EXPECT_EQ(covered, 121);
    auto config = method_config("kvzip", 40, heads);
    config.options.window = 7;
    const auto ours = keep_of(pair, prompt, config);
    // All rows but the first four and the window compete for what is left of 40 a head.
    std::vector<double> all;
    for (const auto& layer : scores) {
        for (const auto& head : layer) all.insert(all.end(), head.begin() + 4, head.end() - 7);
    }
    const auto count = (40 - 11) * heads.layers * heads.kv_heads;
    std::nth_element(all.begin(), all.begin() + count - 1, all.end(), std::greater<>());
    KeepLists right;
    for (const auto& layer : scores) {
        right.emplace_back();
        for (const auto& head : layer) {
            const auto wins = std::count_if(head.begin() + 4, head.end() - 7, [&](double value) {
                return value >= all[at(count - 1)];
            });
            right.back().push_back(best_of(head, 4, 121 - 7, wins));
        }
    }
    EXPECT_GE(mean_jaccard(ours, right), 0.98);
    EXPECT_EQ(rows_in(ours), 40 * heads.layers * heads.kv_heads);
}

// Whatever the steps a prompt is read in, alone or beside other methods.
TEST(NeedsOfSteps, TheSameRowsHoweverThePromptIsCut) {
    const TinyPair pair({.architecture = "qwen2"}, 64);
    const auto prompt = random_tokens(220, 8);
    const auto& heads = pair.reference->shape().heads;
    std::vector<MethodConfig> configs;
    for (const char* name : {"expected-attention", "criticalkv", "ada-criticalkv", "kvzip"}) {
        configs.push_back(method_config(name, 50.5, heads));
    }
    std::vector<KeepLists> alone;
    for (const auto& config : configs) alone.push_back(keep_of(pair, prompt, config));
    auto job = pair.engine->start_prefill(prompt, configs);
    ASSERT_TRUE(job) << job.error().message;
    std::int64_t steps = 0;
    for (bool done = false; !done; ++steps) {
        const auto before = job->done();
        const auto step = job->step(20 + steps * 7 % 45);
        ASSERT_TRUE(step) << step.error().message;
        EXPECT_GT(job->done(), before);
        done = *step;
    }
    EXPECT_EQ(job->done(), job->total());
    const auto result = job->finish();
    ASSERT_TRUE(result);
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const auto id = result->sequences[i];
        EXPECT_GE(mean_jaccard(pair.engine->positions(id), alone[i]), 0.995) << configs[i].method;
        EXPECT_EQ(pair.engine->info(id).plan_bytes,
                  std::llround(50.5 * static_cast<double>(heads.layers * heads.kv_heads)) *
                      pair.model->info().row_bytes);
        pair.engine->release(id);
    }
}

// What is read again leaves no trace in what follows.
TEST(NeedsOfSteps, ThePromptReadAgainChangesNothingElse) {
    const TinyPair pair({}, 64);
    const auto prompt = random_tokens(120, 9);
    const auto& heads = pair.reference->shape().heads;
    const std::vector<MethodConfig> both = {method_config("kvzip", 40, heads),
                                            method_config("snapkv", 40, heads)};
    const auto together = pair.engine->prefill(prompt, both);
    ASSERT_TRUE(together) << together.error().message;
    const auto plain = pair.engine->prefill(prompt, {&both[1], 1});
    ASSERT_TRUE(plain);
    EXPECT_LT(logit_error(together->logits, plain->logits), 1e-5);
    EXPECT_EQ(pair.engine->positions(together->sequences[1]),
              pair.engine->positions(plain->sequences[0]));
    EXPECT_EQ(pair.engine->info(together->sequences[0]).tokens, 120);
}

TEST(NeedsOfSteps, APromptWithoutRoomBehindItIsRefused) {
    const TinyPair pair({.context = 300}, 64);
    const auto config = method_config("kvzip", 40, pair.reference->shape().heads);
    const auto prompt = random_tokens(290, 9);
    const auto refused = pair.engine->prefill(prompt, {&config, 1});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
    EXPECT_NE(refused.error().message.find("context of 300"), std::string::npos);
    EXPECT_FALSE(pair.engine->check(prompt, config));
}

TEST(NeedsOfSteps, DevicesRefuseWhatTheyDoNotCompute) {
    TempFolder folder;
    write_tiny_model({}, folder / "tiny.gguf");
    const auto model = load_model(folder / "tiny.gguf");
    const auto engine = Engine::create(model, {.stock_operations = true});
    ASSERT_TRUE(engine) << engine.error().message;
    for (const char* name : {"expected-attention", "criticalkv", "ada-criticalkv", "kvzip"}) {
        const auto config = method_config(name, 40, model->info().shape);
        const auto refused = (*engine)->prefill(random_tokens(900, 1), {&config, 1});
        ASSERT_FALSE(refused) << name;
        EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
        EXPECT_NE(refused.error().message.find("--device cpu"), std::string::npos) << name;
    }
}

}  // namespace
}  // namespace headkv::test
