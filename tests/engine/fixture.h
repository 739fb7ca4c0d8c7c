// What the engine's tests share: a model, its reference, and how to compare the two.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "headkv/engine.h"
#include "headkv/method.h"
#include "headkv/model.h"
#include "support/random.h"
#include "support/reference.h"
#include "support/reference_methods.h"
#include "support/tiny_model.h"

namespace headkv::test {

inline std::shared_ptr<const Model> load_model(const std::filesystem::path& file) {
    auto model = Model::load(file, {.device = "cpu", .threads = 2});
    EXPECT_TRUE(model) << (model ? "" : model.error().message);
    return model ? *model : nullptr;
}

inline std::unique_ptr<Engine> make_engine(std::shared_ptr<const Model> model,
                                           std::int64_t chunk = 64) {
    if (!model) return nullptr;
    auto engine = Engine::create(std::move(model), {.chunk = chunk});
    EXPECT_TRUE(engine) << (engine ? "" : engine.error().message);
    return engine ? std::move(*engine) : nullptr;
}

// A tiny model on disk, in the engine and in the reference.
struct TinyPair {
    explicit TinyPair(const TinyModel& options, std::int64_t chunk = 64) {
        write_tiny_model(options, folder / "tiny.gguf");
        model = load_model(folder / "tiny.gguf");
        engine = make_engine(model, chunk);
        reference = std::make_unique<Reference>(folder / "tiny.gguf");
    }

    TempFolder folder;
    std::shared_ptr<const Model> model;
    std::unique_ptr<Engine> engine;
    std::unique_ptr<Reference> reference;
};

// One step of one sequence; its logits, empty where it fails.
inline std::vector<float> step(Engine& engine, SequenceId sequence, Token token) {
    const DecodeInput input{.sequence = sequence, .token = token};
    const auto done = engine.decode({&input, 1});
    EXPECT_TRUE(done) << (done ? "" : done.error().message);
    if (!done) return {};
    return {engine.logits(0).begin(), engine.logits(0).end()};
}

// Root mean square of the difference, in standard deviations of `right`.
inline double logit_error(std::span<const float> ours, std::span<const float> right) {
    EXPECT_EQ(ours.size(), right.size());
    if (ours.size() != right.size() || right.empty()) return INFINITY;
    double mean = 0, variance = 0, squares = 0;
    for (const float value : right) mean += static_cast<double>(value);
    mean /= static_cast<double>(right.size());
    for (std::size_t i = 0; i < right.size(); ++i) {
        variance += std::pow(static_cast<double>(right[i]) - mean, 2);
        squares += std::pow(static_cast<double>(ours[i]) - static_cast<double>(right[i]), 2);
    }
    return std::sqrt(squares / variance);
}

inline std::span<const float> row(const std::vector<float>& logits, std::int64_t index,
                                  std::int64_t vocabulary) {
    return std::span(logits).subspan(static_cast<std::size_t>(index * vocabulary),
                                     static_cast<std::size_t>(vocabulary));
}

// Head scores of which a few heads have most, as measured ones do.
inline std::shared_ptr<HeadScores> uneven_scores(const HeadShape& shape, std::string kind,
                                                 std::uint64_t seed = 7) {
    auto scores = std::make_shared<HeadScores>();
    scores->kind = std::move(kind);
    scores->shape = shape;
    Random random(seed);
    for (std::int64_t i = 0; i < shape.layers * shape.query_heads; ++i) {
        scores->mean.push_back(std::exp(1.5 * static_cast<double>(random.normal())));
    }
    return scores;
}

inline MethodConfig method_config(const std::string& name, double rows, const HeadShape& shape) {
    MethodConfig config;
    config.method = name;
    config.budget = {.unit = Budget::Unit::rows, .value = rows};
    const auto recipe = find_recipe(name);  // some tests want an unknown one
    if (recipe) config.options.reserve = default_options(**recipe).reserve;
    const std::string kind(recipe ? (*recipe)->score_kind : "");
    if (!kind.empty()) config.scores = uneven_scores(shape, kind);
    if (recipe && (*recipe)->shares) {  // the last layer reads the first one's rows
        LayerMap map;
        map.shape = shape;
        for (std::int64_t layer = 0; layer < shape.layers; ++layer) map.owner.push_back(layer);
        map.owner.back() = 0;
        config.share = std::make_shared<const LayerMap>(std::move(map));
    }
    if (recipe && (*recipe)->latent) {  // as if the model had been trained with its own rows
        LayerMap map;
        map.shape = shape;
        for (std::int64_t layer = 0; layer < shape.layers; ++layer) map.owner.push_back(layer);
        map.trained = true;
        config.share = std::make_shared<const LayerMap>(std::move(map));
    }
    return config;
}

// The same method for the reference.
inline ReferenceMethod reference_method(const MethodConfig& config) {
    ReferenceMethod method;
    method.name = config.method;
    method.rows = config.budget.value;
    method.window = config.options.window;
    method.kernel = config.options.kernel;
    method.average_pool = config.options.pool == Pool::avg;
    method.beta = importance_beta(config.options, config.budget.value, config.scores.get());
    method.pyramid_beta = config.options.pyramid_beta;
    method.floor = config.options.floor;
    method.sinks = config.options.sinks;
    method.query_decay = config.options.query_decay;
    if (config.scores) method.scores = config.scores->mean;
    return method;
}

// `slack`: rows by which a head may differ.
inline void expect_same_sizes(const KeepLists& ours, const KeepLists& right, double slack = 0) {
    ASSERT_EQ(ours.size(), right.size());
    for (std::size_t layer = 0; layer < ours.size(); ++layer) {
        ASSERT_EQ(ours[layer].size(), right[layer].size());
        for (std::size_t head = 0; head < ours[layer].size(); ++head) {
            EXPECT_NEAR(static_cast<double>(ours[layer][head].size()),
                        static_cast<double>(right[layer][head].size()), slack)
                << "layer " << layer << ", head " << head;
        }
    }
}

}  // namespace headkv::test
