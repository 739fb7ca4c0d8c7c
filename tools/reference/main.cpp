// headkv-reference: the engine beside the tests' float32 reference, on a real model.
//   headkv-reference kept MODEL TEXT [ROWS [TOKENS]]   overlap of kept sets per method and pooling,
//                                                      and with seeded mistakes (JSON on stdout)
//   headkv-reference greedy MODEL N                    reads token ids on stdin, prints N greedy
//                                                      ones and the gap of the two best logits
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "headkv/engine.h"
#include "headkv/model.h"
#include "support/random.h"
#include "support/reference.h"
#include "support/reference_methods.h"

namespace {

using namespace headkv;
using Json = nlohmann::ordered_json;

template <class T>
T value_of(Result<T> result) {
    if (!result) throw std::runtime_error(result.error().message);
    return std::move(*result);
}

struct Loaded {
    std::shared_ptr<const Model> model;
    std::unique_ptr<Engine> engine;
};

Loaded load(const std::string& file) {
    Loaded loaded;
    loaded.model = value_of(Model::load(file));
    loaded.engine = value_of(Engine::create(loaded.model));
    return loaded;
}

std::string read_text(const std::string& file) {
    std::ifstream in(file);
    if (!in) throw std::runtime_error(file + ": not readable");
    return {std::istreambuf_iterator<char>(in), {}};
}

// Head scores of which a few heads have most; any will do to compare two implementations.
std::shared_ptr<HeadScores> uneven_scores(const HeadShape& shape, const std::string& kind) {
    auto scores = std::make_shared<HeadScores>();
    scores->kind = kind;
    scores->shape = shape;
    test::Random random(7);
    for (std::int64_t i = 0; i < shape.layers * shape.query_heads; ++i) {
        scores->mean.push_back(std::exp(1.5 * static_cast<double>(random.normal())));
    }
    return scores;
}

struct Comparison {
    MethodConfig ours;
    test::ReferenceMethod right;
};

std::vector<Comparison> comparisons(const HeadShape& shape, double rows) {
    std::vector<Comparison> result;
    for (const std::string name :
         {"streaming-llm", "snapkv", "pyramidkv", "ada-kv", "headkv-r", "headkv-r2"}) {
        for (const Pool pool : {Pool::max, Pool::avg}) {
            Comparison& c = result.emplace_back();
            c.ours.method = c.right.name = name;
            c.ours.budget.value = c.right.rows = rows;
            c.ours.options.kernel = c.right.kernel;
            c.ours.options.pool = pool;
            c.right.average_pool = pool == Pool::avg;
            if (!name.starts_with("headkv")) continue;
            c.ours.scores = uneven_scores(shape, name == "headkv-r" ? "r" : "r2");
            c.right.scores = c.ours.scores->mean;
            c.right.beta = importance_beta(c.ours.options, rows, c.ours.scores.get());
        }
    }
    return result;
}

bool same_sizes(const test::KeepLists& a, const test::KeepLists& b) {
    return std::ranges::equal(a, b, [](const auto& x, const auto& y) {
        return std::ranges::equal(x, y, {}, &std::vector<std::int32_t>::size,
                                  &std::vector<std::int32_t>::size);
    });
}

Json compare(const Comparison& c, const test::KeepLists& ours, const test::Reference& reference,
             const test::ReferenceRun& run) {
    const test::KeepLists right = naive_keep(reference, run, c.right);
    Json json = {{"method", c.right.name},
                 {"pool", c.right.average_pool ? "avg" : "max"},
                 {"jaccard", test::mean_jaccard(ours, right)},
                 {"same_rows", test::rows_in(ours) == test::rows_in(right)},
                 {"same_sizes", same_sizes(ours, right)}};
    if (c.right.name == "streaming-llm") return json;
    const std::pair<const char*, test::Mistake> mistakes[] = {
        {"pool_before_group", test::Mistake::pool_before_group},
        {"window_keys_left_out", test::Mistake::window_keys_left_out},
        {"one_window_row_fewer", test::Mistake::one_window_row_fewer}};
    for (const auto& [name, mistake] : mistakes) {
        test::ReferenceMethod wrong = c.right;
        wrong.mistake = mistake;
        json["mistakes"][name] = test::mean_jaccard(ours, naive_keep(reference, run, wrong));
    }
    return json;
}

void kept(const std::string& file, const std::string& text, double rows, std::size_t limit) {
    const Loaded loaded = load(file);
    std::vector<Token> tokens = loaded.model->tokenizer().encode(read_text(text));
    if (tokens.size() > limit) tokens.resize(limit);
    const std::vector<Comparison> all = comparisons(loaded.model->info().shape, rows);
    std::vector<MethodConfig> configs;
    configs.reserve(all.size());
    for (const Comparison& c : all) configs.push_back(c.ours);
    const PrefillResult prefill = value_of(loaded.engine->prefill(tokens, configs));
    const test::Reference reference(file);
    const test::ReferenceRun run = reference.run(tokens);
    Json json = {{"model", loaded.model->info().name},
                 {"tokens", tokens.size()},
                 {"rows", rows},
                 {"methods", Json::array()}};
    for (std::size_t i = 0; i < all.size(); ++i) {
        json["methods"].push_back(
            compare(all[i], loaded.engine->positions(prefill.sequences[i]), reference, run));
    }
    std::cout << json.dump(2) << "\n";
}

void greedy(const std::string& file, int count) {
    const Loaded loaded = load(file);
    const std::vector<Token> prompt{std::istream_iterator<Token>(std::cin), {}};
    MethodConfig full;
    full.method = "full";
    const PrefillResult prefill = value_of(loaded.engine->prefill(prompt, {&full, 1}));
    std::vector<float> logits = prefill.logits;
    Json json = {{"tokens", Json::array()}, {"gaps", Json::array()}};
    for (int i = 0; i < count; ++i) {
        const auto best = std::ranges::max_element(logits);
        const auto token = static_cast<Token>(best - logits.begin());
        const float top = *best;
        *best = -std::numeric_limits<float>::infinity();
        json["tokens"].push_back(token);
        json["gaps"].push_back(top - *std::ranges::max_element(logits));
        logits = value_of(loaded.engine->extend(prefill.sequences.at(0), {&token, 1}));
    }
    std::cout << json.dump() << "\n";
}

int usage() {
    std::cerr << "usage: headkv-reference kept MODEL TEXT [ROWS [TOKENS]]\n"
                 "       headkv-reference greedy MODEL N   (token ids on stdin)\n";
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const std::size_t n = arguments.size();
    try {
        if (n == 3 && arguments[0] == "greedy") {
            greedy(arguments[1], std::atoi(arguments[2].c_str()));
            return 0;
        }
        if (n >= 3 && n <= 5 && arguments[0] == "kept") {
            kept(arguments[1], arguments[2], n > 3 ? std::stod(arguments[3]) : 128,
                 n > 4 ? std::stoul(arguments[4]) : 1000);
            return 0;
        }
    } catch (const std::exception& error) {
        std::cerr << "headkv-reference: " << error.what() << "\n";
        return 1;
    }
    return usage();
}
