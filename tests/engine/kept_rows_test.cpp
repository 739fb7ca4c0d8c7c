// What is done to rows that are kept: values that others join, keys turned to where they lie in the
// cache, and marked rows that outlive every selection; against naive float32.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/fixture.h"
#include "engine/token_kinds.h"
#include "engine/turn_keys.h"

namespace headkv::test {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Case {
    const char* name;
    TinyModel model;
};

class KeptRows : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(
    Families, KeptRows,
    testing::Values(Case{"llama", {}},
                    Case{"llama_partial", {.head_dim = 24, .rope_dimensions = 10}},
                    Case{"qwen2", {.architecture = "qwen2"}},
                    Case{"qwen2_yarn",
                         {.architecture = "qwen2", .rope_scaling = RopeScaling::yarn}}),
    [](const auto& info) { return std::string(info.param.name); });

SequenceId read(Engine& engine, std::span<const Token> prompt, const MethodConfig& config) {
    auto result = engine.prefill(prompt, {&config, 1});
    EXPECT_TRUE(result) << (result ? "" : result.error().message);
    return result ? result->sequences[0] : -1;
}

TEST_P(KeptRows, MergedValuesAreMeansOfTheRowsThatJoined) {
    const TinyPair pair(GetParam().model, 37);
    const auto& shape = pair.reference->shape();
    const auto prompt = random_tokens(143, 4);
    const auto run = pair.reference->run(prompt);
    auto config = method_config("snapkv", 30, shape.heads);
    config.options.window = 9;
    config.options.kernel = 1;
    config.options.merge = MergeRows{1, true};
    config.options.similarity = 0.1;
    const auto sequence = read(*pair.engine, prompt, config);
    auto without = config;
    without.options.merge = MergeRows{};
    const auto plain = read(*pair.engine, prompt, without);
    const auto kept = pair.engine->positions(sequence);
    ASSERT_EQ(kept, pair.engine->positions(plain));
    EXPECT_EQ(pair.engine->info(sequence).held_bytes, pair.engine->info(plain).held_bytes);

    const auto method = Method::create(config, shape.heads, 143, 1).value();
    auto right = pair.reference->cache(run, kept);
    auto wrong = pair.reference->cache(run, kept);
    std::size_t merged = 0;
    for (std::int64_t layer = 0; layer < shape.heads.layers; ++layer) {
        std::vector<float> observed;
        for (const auto& row : observe(*pair.reference, run, layer, 9)) {
            observed.insert(observed.end(), row.begin(), row.end());
        }
        const auto& rows = run.layers[at(layer)];
        const auto choice = method.choose_layer(layer, {.observed = observed, .keys = rows.keys});
        for (std::int64_t head = 0; head < shape.heads.kv_heads; ++head) {
            auto& cached = right.heads[at(layer)][at(head)];
            for (std::size_t i = 0; i < cached.positions.size(); ++i) {
                double joined = 1;
                float* value = cached.values.data() + i * at(shape.head_dim_v);
                for (const auto& row : choice.merged[at(head)]) {
                    if (row.into != cached.positions[i]) continue;
                    const float* other =
                        rows.values.data() + (head * 143 + row.from) * shape.head_dim_v;
                    for (std::int64_t d = 0; d < shape.head_dim_v; ++d) value[d] += other[d];
                    joined += 1;
                    ++merged;
                }
                for (std::int64_t d = 0; d < shape.head_dim_v; ++d) {
                    value[d] /= static_cast<float>(joined);
                }
            }
        }
    }
    EXPECT_GT(merged, 20U);
    double error = 0, error_without = 0;
    for (const Token token : random_tokens(5, 9)) {
        const auto ours = step(*pair.engine, sequence, token);
        error += logit_error(ours, pair.reference->decode(right, token)) / 5;
        error_without += logit_error(ours, pair.reference->decode(wrong, token)) / 5;
    }
    EXPECT_LT(error, 0.08);  // f16 keys: a row may find another of two that are as near
    EXPECT_LT(2 * error, error_without);
}

// The rows of a head of which the first `sinks` and the last stay, and lie at 0, 1, 2, ... then;
// the recent ones move back, where the engine moves the sinks on.
void close_up(const Reference& reference, ReferenceCache& cache, std::int64_t sinks,
              std::int64_t rows) {
    const auto dim = reference.shape().head_dim_k;
    std::vector<float> unit(at(dim));
    unit[0] = 1;
    const float scale = reference.turned(unit, 0)[0];
    for (auto& layer : cache.heads) {
        for (auto& head : layer) {
            const auto gone = std::ssize(head.positions) - rows;
            const auto erase = [&](std::vector<float>& values, std::int64_t width) {
                values.erase(values.begin() + sinks * width,
                             values.begin() + (sinks + gone) * width);
            };
            erase(head.keys, dim);
            erase(head.values, reference.shape().head_dim_v);
            head.positions.erase(head.positions.begin() + sinks,
                                 head.positions.begin() + sinks + gone);
            for (std::int64_t i = sinks; i < rows; ++i) {
                float* key = head.keys.data() + i * dim;
                const auto turned = reference.turned({key, at(dim)}, -gone);
                for (std::int64_t d = 0; d < dim; ++d) key[d] = turned[at(d)] / scale;
            }
        }
    }
    cache.tokens = rows;
}

TEST_P(KeptRows, PositionsInTheCacheAreThoseOfAPromptWithoutGaps) {
    const TinyPair pair(GetParam().model, 37);
    const auto& shape = pair.reference->shape();
    const auto prompt = random_tokens(143, 4);
    auto config = method_config("streaming-llm", 20, shape.heads);
    config.options.reserve = 6;
    const auto in_text = read(*pair.engine, prompt, config);
    config.options.in_cache_positions = true;
    const auto in_cache = read(*pair.engine, prompt, config);
    ASSERT_EQ(pair.engine->positions(in_cache), pair.engine->positions(in_text));
    auto right = pair.reference->full_cache(pair.reference->run(prompt));
    close_up(*pair.reference, right, 4, 20);
    double error = 0, error_of_text = 0;
    for (const Token token : random_tokens(25, 9)) {
        // The reserve is full: rows are dropped before the next token attends.
        if (right.tokens == 26) close_up(*pair.reference, right, 4, 20);
        const auto logits = pair.reference->decode(right, token);
        error += logit_error(step(*pair.engine, in_cache, token), logits) / 25;
        error_of_text += logit_error(step(*pair.engine, in_text, token), logits) / 25;
    }
    EXPECT_LT(error, 0.05);
    EXPECT_LT(2 * error, error_of_text);
    EXPECT_EQ(pair.engine->positions(in_cache), pair.engine->positions(in_text));
}

TEST(TurnKeys, OnlyRowsBeforeTheLastGapMove) {
    std::vector<KeyTurn> turns;
    const std::vector<std::int32_t> keep = {0, 1, 5, 8, 9};
    close_gaps(3, keep, 10, turns);
    // To 5, 6, 7, 8, 9.
    ASSERT_EQ(turns.size(), 3U);
    EXPECT_EQ(turns[0].by, 5);
    EXPECT_EQ(turns[1].by, 5);
    EXPECT_EQ(turns[2].by, 2);
    EXPECT_EQ(turns[2].row, 2);
    EXPECT_EQ(turns[2].head, 3);
    std::vector<std::int32_t> all(10);
    std::iota(all.begin(), all.end(), 0);
    turns.clear();
    close_gaps(0, all, 10, turns);
    EXPECT_TRUE(turns.empty());
}

TEST(MarkedRows, StayHoweverLongTheAnswerGets) {
    const TinyPair pair({});
    const auto prompt = random_tokens(143, 4);
    for (const char* name : {"snapkv", "streaming-llm", "ada-kv", "kv-compress", "h2o"}) {
        SCOPED_TRACE(name);
        auto config = method_config(name, 30, pair.reference->shape().heads);
        config.options.window = 8;
        config.options.reserve = 7;
        config.keep = {{40, 52}};
        const auto sequence = read(*pair.engine, prompt, config);
        const auto bytes = pair.engine->info(sequence).held_bytes;
        for (const Token token : random_tokens(20, 9)) step(*pair.engine, sequence, token);
        const auto twin = pair.engine->copy(sequence).value();
        for (const auto& layer : pair.engine->positions(twin)) {
            for (const auto& head : layer) {
                const auto first = std::lower_bound(head.begin(), head.end(), 40);
                ASSERT_GE(head.end() - first, 12);
                EXPECT_EQ(*(first + 11), 51);
            }
        }
        EXPECT_LE(pair.engine->info(sequence).held_bytes, bytes + 7 * bytes / 30);
        pair.engine->release(twin);
        pair.engine->release(sequence);
    }
}

// Heads that keep special rows only keep those of the answer, too, and nothing else of it but the
// newest row; a copy goes on alike.
TEST(RowsWithClasses, DecideHoweverLongTheAnswerGets) {
    const TinyPair pair({});
    const auto& tokenizer = pair.model->tokenizer();
    const auto token_of = [&](const auto& wanted) {
        Token token = 0;
        while (!wanted(token)) ++token;
        return token;
    };
    const Token text = token_of([&](Token token) { return tokenizer.piece(token) == "e"; });
    const Token special = token_of([&](Token token) { return tokenizer.is_control(token); });
    std::vector<Token> prompt(60, text);
    prompt[20] = special;
    auto config = method_config("fastgen", 30, pair.reference->shape().heads);
    config.options.recovery = 0.01;
    config.options.reserve = 8;
    const auto sequence = read(*pair.engine, prompt, config);
    const auto expect_all = [&](SequenceId id, const auto& right) {
        for (const auto& layer : pair.engine->positions(id)) {
            for (const auto& head : layer) {
                EXPECT_TRUE(right(head)) << testing::PrintToString(head);
            }
        }
    };
    using Held = std::vector<std::int32_t>;
    expect_all(sequence, [](const Held& held) { return held == Held{0, 1, 2, 3, 20, 59}; });
    for (int i = 0; i < 9; ++i) step(*pair.engine, sequence, i == 4 ? special : text);
    const auto right = [](const Held& held, std::int32_t newest) {
        return held.size() == 7 && (held[4] == 20 || held[4] == 64) && held[3] == 3 &&
               held[5] == newest - 1 && held[6] == newest;
    };
    expect_all(sequence, [&](const Held& held) { return right(held, 68); });
    const auto twin = pair.engine->copy(sequence).value();
    for (int i = 0; i < 16; ++i) step(*pair.engine, sequence, text);
    for (int i = 0; i < 16; ++i) step(*pair.engine, twin, text);
    expect_all(sequence, [&](const Held& held) { return right(held, 84); });
    EXPECT_EQ(pair.engine->positions(twin), pair.engine->positions(sequence));
    EXPECT_EQ(step(*pair.engine, twin, text), step(*pair.engine, sequence, text));
}

TEST(TokenKinds, TellMarksFromText) {
    const TinyPair pair({});
    const auto& tokenizer = pair.model->tokenizer();
    std::int64_t marks = 0, special = 0;
    std::vector<Token> all(at(tokenizer.size()));
    std::iota(all.begin(), all.end(), 0);
    const auto kinds = token_kinds(tokenizer, all);
    for (const Token token : all) {
        const auto piece = tokenizer.piece(token);
        const auto kind = kinds[at(token)];
        if (tokenizer.is_control(token)) {
            EXPECT_EQ(kind, TokenKind::special);
        }
        if (kind == TokenKind::special) ++special;
        if (kind == TokenKind::punctuation) {
            ++marks;
            EXPECT_EQ(piece.find_first_of("abcdefghijklmnopqrstuvwxyz0123456789"),
                      std::string::npos)
                << piece;
        }
        if (piece == "." || piece == ",") {
            EXPECT_EQ(kind, TokenKind::punctuation);
        }
        if (piece == "e" || piece == " " || piece == "\n") {
            EXPECT_EQ(kind, TokenKind::text);
        }
    }
    EXPECT_GT(marks, 0);
    EXPECT_GT(special, 0);
}

}  // namespace
}  // namespace headkv::test
