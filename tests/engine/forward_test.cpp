// Every trait of the architecture table against the float32 reference: prefill, decode over full
// and compressed caches, log-probabilities.
#include <algorithm>
#include <ostream>

#include "engine/fixture.h"
#include "headkv/sampler.h"
#include "kernels/tiles.h"

namespace headkv::test {
namespace {

struct TraitCase {
    std::string name;
    TinyModel model;
    // Largest error allowed, in standard deviations of the logits. Rows are cached in f16 and
    // quantised weights are multiplied with quantised activations; the reference does neither.
    double tolerance = 0.01;
};

void PrintTo(const TraitCase& c, std::ostream* out) { *out << c.name; }

TraitCase variant(std::string name, void (*change)(TinyModel&), double tolerance = 0.01) {
    TraitCase result{std::move(name), {}, tolerance};
    change(result.model);
    return result;
}

std::vector<TraitCase> trait_cases() {
    std::vector<TraitCase> cases = {
        variant("llama", [](TinyModel&) {}),
        variant("llama_ungrouped", [](TinyModel& m) { m.kv_heads = m.query_heads; }),
        variant("llama_one_kv_head", [](TinyModel& m) { m.kv_heads = 1; }),
        variant("llama_untied", [](TinyModel& m) { m.tied = false; }),
        variant("llama_rope_factors", [](TinyModel& m) { m.rope_factors = true; }),
        variant("llama_linear_rope", [](TinyModel& m) { m.rope_scaling = RopeScaling::linear; }),
        variant("llama_yarn",
                [](TinyModel& m) {
                    m.rope_scaling = RopeScaling::yarn;
                    m.original_context = 64;
                    m.head_dim = 32;
                }),
        variant("llama_wide_heads", [](TinyModel& m) { m.head_dim = 40; }),
        variant("llama_odd_sizes",
                [](TinyModel& m) {
                    m.layers = 1;
                    m.embedding = 54;
                    m.query_heads = 9;
                    m.kv_heads = 3;
                    m.head_dim = 6;
                    m.feed_forward = 77;
                }),
        variant("qwen2", [](TinyModel& m) { m.architecture = "qwen2"; }),
        variant("qwen2_untied_yarn",
                [](TinyModel& m) {
                    m.architecture = "qwen2";
                    m.tied = false;
                    m.rope_scaling = RopeScaling::yarn;
                    m.original_context = 64;
                    m.rope_base = 1e6F;
                }),
        variant("qwen2_seven_to_one",
                [](TinyModel& m) {
                    m.architecture = "qwen2";
                    m.query_heads = 14;
                    m.kv_heads = 2;
                    m.head_dim = 8;
                    m.embedding = 112;
                }),
        variant("qwen3", [](TinyModel& m) { m.architecture = "qwen3"; }),
        variant("qwen3_wide_heads",
                [](TinyModel& m) {
                    m.architecture = "qwen3";
                    m.head_dim = 32;
                    m.tied = false;
                }),
        variant("big_heads",
                [](TinyModel& m) {
                    m.head_dim = 128;
                    m.layers = 2;
                    m.query_heads = 2;
                    m.kv_heads = 1;
                }),
    };
    const auto weights = [&](std::string name, ggml_type type, double tolerance) {
        TraitCase c{"weights_" + std::move(name), {}, tolerance};
        c.model.embedding = c.model.feed_forward = 256;  // a block of the k-quants
        c.model.query_heads = 4;
        c.model.head_dim = 64;
        c.model.layers = 2;
        c.model.weight_type = type;
        c.model.embedding_type = type;
        cases.push_back(std::move(c));
    };
    weights("f16", GGML_TYPE_F16, 0.01);
    weights("bf16", GGML_TYPE_BF16, 0.04);
    weights("q8_0", GGML_TYPE_Q8_0, 0.05);
    weights("q4_0", GGML_TYPE_Q4_0, 0.05);
    weights("q4_1", GGML_TYPE_Q4_1, 0.05);
    weights("q5_0", GGML_TYPE_Q5_0, 0.05);
    weights("q5_1", GGML_TYPE_Q5_1, 0.05);
    weights("q2_K", GGML_TYPE_Q2_K, 0.07);
    weights("q3_K", GGML_TYPE_Q3_K, 0.05);
    weights("q4_K", GGML_TYPE_Q4_K, 0.05);
    weights("q5_K", GGML_TYPE_Q5_K, 0.05);
    weights("q6_K", GGML_TYPE_Q6_K, 0.05);
    weights("iq4_nl", GGML_TYPE_IQ4_NL, 0.05);
    weights("iq4_xs", GGML_TYPE_IQ4_XS, 0.05);
    return cases;
}

class Forward : public testing::TestWithParam<TraitCase> {
protected:
    void SetUp() override {
        pair_ = std::make_unique<TinyPair>(GetParam().model);
        ASSERT_TRUE(pair_->engine);
    }

    Engine& engine() { return *pair_->engine; }
    const Reference& reference() { return *pair_->reference; }
    HeadShape shape() { return reference().shape().heads; }
    std::int64_t vocabulary() { return reference().shape().vocabulary; }
    double tolerance() { return GetParam().tolerance; }

    // Prefill of one configuration, which must work.
    PrefillResult prefill(std::span<const Token> tokens, const MethodConfig& config) {
        auto result = engine().prefill(tokens, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? *result : PrefillResult{};
    }
    MethodConfig full() { return method_config("full", 0, shape()); }

    std::unique_ptr<TinyPair> pair_;
};

TEST_P(Forward, PrefillGivesTheReferencesLogits) {
    for (const std::int64_t n : {1, 7, 64, 65, 201}) {  // chunks are 64 tokens
        const std::vector<Token> tokens = random_tokens(n, 10 + static_cast<std::uint64_t>(n));
        const PrefillResult result = prefill(tokens, full());
        EXPECT_LT(logit_error(result.logits, reference().run(tokens).logits), tolerance())
            << n << " tokens";
    }
}

TEST_P(Forward, DecodeOverTheFullCacheGivesTheReferencesLogits) {
    const std::vector<Token> tokens = random_tokens(90, 3);
    const std::span prompt = std::span(tokens).first(77);
    const ReferenceRun right = reference().run(tokens, {.all_logits = true});
    const PrefillResult result = prefill(prompt, full());
    ASSERT_EQ(result.sequences.size(), 1U);
    for (std::size_t i = prompt.size(); i < tokens.size(); ++i) {
        const DecodeInput input{.sequence = result.sequences[0], .token = tokens[i]};
        ASSERT_TRUE(engine().decode({&input, 1}));
        EXPECT_LT(logit_error(engine().logits(0),
                              row(right.logits, static_cast<std::int64_t>(i), vocabulary())),
                  tolerance())
            << "token " << i;
    }
}

TEST_P(Forward, DecodeOverACompressedCacheGivesTheReferencesLogits) {
    const std::vector<Token> tokens = random_tokens(150, 4);
    for (const char* name : {"snapkv", "headkv-r2", "streaming-llm"}) {
        const PrefillResult result = prefill(tokens, method_config(name, 30, shape()));
        ASSERT_EQ(result.sequences.size(), 1U);
        // The engine's own choice of rows: this test is about what is done with them.
        ReferenceCache cache =
            reference().cache(reference().run(tokens), engine().positions(result.sequences[0]));
        for (const Token token : random_tokens(10, 5)) {
            const DecodeInput input{.sequence = result.sequences[0], .token = token};
            ASSERT_TRUE(engine().decode({&input, 1}));
            EXPECT_LT(logit_error(engine().logits(0), reference().decode(cache, token)),
                      tolerance())
                << name;
        }
    }
}

TEST_P(Forward, ExtendEqualsPrefillOfTheWhole) {
    const std::vector<Token> tokens = random_tokens(171, 6);
    const PrefillResult whole = prefill(tokens, full());
    const PrefillResult part = prefill(std::span(tokens).first(20), full());
    ASSERT_EQ(part.sequences.size(), 1U);
    const auto logits = engine().extend(part.sequences[0], std::span(tokens).subspan(20));
    ASSERT_TRUE(logits) << logits.error().message;
    EXPECT_LT(logit_error(*logits, whole.logits), tolerance());
    EXPECT_EQ(engine().positions(part.sequences[0]), engine().positions(whole.sequences[0]));
}

TEST_P(Forward, LogProbabilitiesAreTheReferences) {
    const std::vector<Token> tokens = random_tokens(133, 8);
    const ReferenceRun right = reference().run(tokens, {.all_logits = true});
    const auto ours = engine().log_probabilities(tokens);
    ASSERT_TRUE(ours) << ours.error().message;
    ASSERT_EQ(ours->size(), tokens.size() - 1);
    double squares = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        const double log_p = log_probability(
            row(right.logits, static_cast<std::int64_t>(i), vocabulary()), tokens[i + 1]);
        squares += std::pow(static_cast<double>((*ours)[i]) - log_p, 2);
    }
    // Log-probabilities here have a standard deviation of 2 to 3.
    EXPECT_LT(std::sqrt(squares / static_cast<double>(ours->size())), 4 * tolerance());
}

TEST_P(Forward, AttentionOfTheNewestQueryIsTheReferences) {
    const std::vector<Token> tokens = random_tokens(100, 9);
    const PrefillResult result = prefill(tokens, method_config("snapkv", 24, shape()));
    ASSERT_EQ(result.sequences.size(), 1U);
    const SequenceId sequence = result.sequences[0];
    ReferenceCache cache = reference().cache(reference().run(tokens), engine().positions(sequence));
    const DecodeInput input{.sequence = sequence, .token = 17};
    ASSERT_TRUE(engine().decode({&input, 1}));
    reference().decode(cache, 17);
    for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
        const auto ours = engine().attention(sequence, layer);
        ASSERT_EQ(ours.size(), static_cast<std::size_t>(shape().query_heads));
        for (std::int64_t head = 0; head < shape().query_heads; ++head) {
            const std::vector<float> right = reference().attention(cache, layer, head);
            const std::vector<float>& mine = ours[static_cast<std::size_t>(head)];
            ASSERT_EQ(mine.size(), right.size());
            double distance = 0;  // total variation: 0 .. 2
            for (std::size_t i = 0; i < right.size(); ++i) {
                distance += std::abs(static_cast<double>(mine[i]) - static_cast<double>(right[i]));
            }
            EXPECT_LT(distance, 3 * tolerance()) << "layer " << layer << ", head " << head;
        }
    }
}

TEST_P(Forward, KeepsTheReferencesRows) {
    const std::vector<Token> tokens = random_tokens(180, 12);
    const ReferenceRun run = reference().run(tokens);
    for (const char* name : {"streaming-llm", "snapkv", "pyramidkv", "ada-kv", "headkv-r2"}) {
        const MethodConfig config = method_config(name, 40, shape());
        const KeepLists right = naive_keep(reference(), run, reference_method(config));
        const PrefillResult result = prefill(tokens, config);
        ASSERT_EQ(result.sequences.size(), 1U);
        const KeepLists ours = engine().positions(result.sequences[0]);
        EXPECT_EQ(rows_in(ours), rows_in(right)) << name;
        // ada-kv counts values over a threshold: rounding of the rows moves one at most.
        const bool adaptive = std::string_view(name) == "ada-kv";
        if (!adaptive || tolerance() <= 0.01) {
            SCOPED_TRACE(name);
            expect_same_sizes(ours, right, adaptive ? 1 : 0);
        }
        // Few rows of a random model: with quantised weights one row is already a step.
        EXPECT_GE(mean_jaccard(ours, right), tolerance() > 0.01 ? 0.85 : 0.97) << name;
    }
}

TEST_P(Forward, WeighsTheQueriesOfTheWindowAsTheReferenceDoes) {
    const std::vector<Token> tokens = random_tokens(180, 12);
    const ReferenceRun run = reference().run(tokens);
    for (const char* name : {"snapkv", "ada-kv", "headkv-r2"}) {
        MethodConfig config = method_config(name, 40, shape());
        config.options.query_decay = 0.6;
        ReferenceMethod right = reference_method(config), alike = right;
        alike.query_decay = 1;
        const PrefillResult result = prefill(tokens, config);
        ASSERT_EQ(result.sequences.size(), 1U);
        const KeepLists ours = engine().positions(result.sequences[0]);
        const double same = mean_jaccard(ours, naive_keep(reference(), run, right));
        EXPECT_GE(same, tolerance() > 0.01 ? 0.85 : 0.97) << name;
        EXPECT_LT(mean_jaccard(ours, naive_keep(reference(), run, alike)), same) << name;
    }
}

INSTANTIATE_TEST_SUITE_P(Traits, Forward, testing::ValuesIn(trait_cases()),
                         [](const auto& info) { return info.param.name; });

// Products and attention in bf16, chunks of several lengths included: near the exact ones, and not
// the same, or the test would not have met them. Without a matrix unit `fast` is `exact`.
TEST(Precision, FastRoundsToBf16AndNoMore) {
    TinyPair tiny({});
    const auto prompt = random_tokens(333, 5);
    const MethodConfig config = method_config("full", 0, tiny.model->info().shape);
    const auto logits = [&](const EngineOptions& options) {
        auto engine = Engine::create(tiny.model, options);
        auto result = (*engine)->prefill(prompt, {&config, 1});
        EXPECT_TRUE(result);
        return result->logits;
    };
    const auto exact = logits({.precision = Precision::exact, .chunk = 128});
    const auto bf16 = logits({.precision = Precision::fast, .bf16_anywhere = true, .chunk = 128});
    const auto fast = logits({.precision = Precision::fast, .chunk = 128});
    const double error = logit_error(bf16, exact);
    EXPECT_GT(error, 1e-5);
    EXPECT_LT(error, 0.05);
    EXPECT_EQ(fast, kernels::matrix_unit() != nullptr ? bf16 : exact);
}

}  // namespace
}  // namespace headkv::test
