// The table of methods. A new method is one line here, plus a file for a step that is new.
#include <algorithm>
#include <array>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <numeric>

#include "headkv/method.h"
#include "method/edit_distance.h"

namespace headkv {
namespace {

using A = AllocateStep;
using S = SelectStep;

constexpr auto kWindow = ScoreStep::window_attention;
constexpr auto kF16 = StoreStep::f16;

constexpr std::array kRecipes = {
    Recipe{"full", ScoreStep::none, A::all, S::all, kF16, "", "",
           "Keeps every row: the reference that the others are measured against."},
    Recipe{"streaming-llm", ScoreStep::position, A::uniform, S::sinks_recent, kF16, "",
           "2309.17453", "Keeps the first few rows and the most recent ones, whatever they hold."},
    Recipe{"snapkv", kWindow, A::uniform, S::top_k_window, kF16, "", "2404.14469",
           "Keeps the rows that the prompt's last queries attend to, equally many in every head."},
    Recipe{"pyramidkv", kWindow, A::pyramid, S::top_k_window, kF16, "", "2406.02069",
           "As snapkv, with more rows in the lower layers than in the upper ones."},
    Recipe{"ada-kv", kWindow, A::adaptive, S::top_k_window, kF16, "", "2407.11550",
           "As snapkv, with the heads of a layer competing for the layer's rows."},
    Recipe{"headkv-r", kWindow, A::head_importance, S::top_k_window, kF16, "r", "2410.19258",
           "As snapkv, with more rows in heads that copy the sought text (retrieval scores)."},
    Recipe{"headkv-r2", kWindow, A::head_importance, S::top_k_window, kF16, "r2", "2410.19258",
           "As snapkv, with more rows in heads that look at the sought text while answering "
           "(retrieval-reasoning scores)."},
    Recipe{"headkv-task", kWindow, A::head_importance, S::top_k_window, kF16, "task", "2410.19258",
           "As headkv-r2, with scores measured on your own examples (calibrate --kind task)."},
    Recipe{"headkv-icl", kWindow, A::head_importance, S::top_k_window, kF16, "icl", "2410.19258",
           "As headkv-r2, with scores of looking up in-context examples (calibrate --kind icl)."},
    Recipe{"headkv-causal", kWindow, A::head_importance, S::top_k_window, kF16, "causal",
           "2410.19258",
           "As headkv-r2, with scores of what a head's rows gain (calibrate --kind causal)."},
    Recipe{"h2o", ScoreStep::accumulated_attention, A::uniform, S::heavy_recent, kF16, "",
           "2306.14048",
           "Keeps the rows that all queries attended to most, and as many recent ones."},
    Recipe{"tova", ScoreStep::last_query, A::uniform, S::top_k, kF16, "", "2401.06104",
           "Keeps the rows that the last query attends to, the same in all heads of a layer."},
    Recipe{"kv-compress", ScoreStep::squared_attention, A::global, S::top_k_window, kF16, "",
           "2410.00161",
           "Keeps the best rows of all layers and heads together, by squared window attention."},
    Recipe{"prefixkv", ScoreStep::prefix_mass, A::global, S::top_k, kF16, "", "2412.03409",
           "Keeps in every layer the fewest rows that hold the same share of the attention.", 1, 1},
    Recipe{"fastgen", ScoreStep::token_classes, A::global, S::top_k, kF16, "", "2310.01801",
           "Keeps in every head the cheapest class of rows (special tokens, punctuation, frequent, "
           "recent, all) that holds enough of its attention.",
           1, 4},
    Recipe{"ems", ScoreStep::aligned_attention, A::uniform, S::top_k_window, kF16, "", "2412.08521",
           "Keeps the rows that all queries and the last ones attend to; the next in rank join the "
           "kept row most like them.",
           1, 0, 1.0},
    Recipe{"chunkkv", ScoreStep::layer_attention, A::uniform, S::top_k_window, kF16, "",
           "2502.00299",
           "As snapkv, with whole chunks of the text, the same in all heads of a layer.", 10},
    Recipe{"criticalkv", ScoreStep::output_attention, A::uniform, S::top_k_window, kF16, "",
           "2502.03805",
           "As snapkv, with half of the rows chosen by what they add to the layer's output."},
    Recipe{"ada-criticalkv", ScoreStep::output_attention, A::adaptive, S::top_k_window, kF16, "",
           "2502.03805", "As criticalkv, with the heads of a layer competing as in ada-kv."},
    Recipe{"expected-attention", ScoreStep::expected_attention, A::uniform, S::top_k, kF16, "",
           "2510.00636",
           "Keeps the rows that queries like those of the prompt would look at further on.", 1, 4},
    Recipe{"kvzip", ScoreStep::reconstruction, A::global, S::top_k_window, kF16, "", "2505.23416",
           "Keeps the rows that the model looks at while it reads the prompt again, of all layers "
           "and heads together.",
           1, 4},
    Recipe{"duo-attention", ScoreStep::position, A::binary_heads, S::sinks_recent, kF16, "r",
           "2410.10819",
           "Keeps everything in the heads that retrieve, first and recent rows in the others."},
    Recipe{"baklava", ScoreStep::position, A::head_importance, S::sinks_recent, kF16, "baklava",
           "2502.13176",
           "As streaming-llm, with more rows in heads whose attention changes the values most."},
    Recipe{"keydiff", ScoreStep::key_difference, A::uniform, S::top_k, kF16, "", "2504.15364",
           "Keeps the keys that point away from the mean of all keys; looks at no attention."},
    Recipe{"knorm", ScoreStep::key_norm, A::uniform, S::top_k, kF16, "", "2406.11430",
           "Keeps the shortest keys; looks at no attention."},
    Recipe{
        "clusterkv", ScoreStep::key_clusters, A::uniform, S::top_k, kF16, "", "2412.03213",
        "Brings back the clusters of keys that the newest query points to, for every token anew; "
        "all rows stay in host memory.",
        1, 16, 0, kF16},
    Recipe{"kvsharer",
           kWindow,
           A::uniform,
           S::top_k_window,
           kF16,
           "",
           "2410.18517",
           "As snapkv, with layers that own no rows: they read those of an earlier layer, and the "
           "others keep more.",
           1,
           0,
           0,
           {},
           true},
    Recipe{"clla",
           ScoreStep::none,
           A::all,
           S::all,
           StoreStep::q4_0,
           "",
           "2410.15252",
           "Keeps every latent row of a model that was trained to share them between layers, in 4 "
           "bits.",
           1,
           0,
           0,
           {},
           false,
           true},
    Recipe{"random", ScoreStep::random, A::uniform, S::top_k, kF16, "", "",
           "Keeps rows drawn by lot: what a method must beat."},
};

std::string all_names() {
    std::string names;
    for (const Recipe& recipe : kRecipes) {
        if (!names.empty()) names += ", ";
        names += recipe.name;
    }
    return names;
}

}  // namespace

std::span<const Recipe> recipes() { return kRecipes; }

Result<void> check_latent(const Recipe& recipe, const LayerMap* share) {
    if (!recipe.latent || (share != nullptr && share->trained)) return {};
    return bad_input(
        "{} needs a model that was trained with it (family clla: latent rows that layers share), "
        "and no weights are public; of its parts other models can have shared layers (--share) and "
        "4-bit rows (--kv-type q4_0), together as full:share=FILE:kv-type=q4_0",
        recipe.name);
}

Result<const Recipe*> find_recipe(std::string_view name) {
    for (const Recipe& recipe : kRecipes) {
        if (recipe.name == name) return &recipe;
    }
    // A name of any length may come in; comparing its start is enough for a suggestion.
    const std::string_view start = name.substr(0, 64);
    const auto* nearest =
        std::min_element(kRecipes.begin(), kRecipes.end(), [&](const Recipe& a, const Recipe& b) {
            return edit_distance(start, a.name) < edit_distance(start, b.name);
        });
    return bad_input("unknown method '{}': did you mean '{}'? There are {}", start, nearest->name,
                     all_names());
}

namespace {

// Why a recipe's rows cannot be allocated so; empty if they can.
std::string_view obstacle(const Recipe& recipe, AllocateStep allocate) {
    const bool competes = allocate == AllocateStep::adaptive || allocate == AllocateStep::global;
    if (allocate == recipe.allocate) return {};
    if (recipe.select == S::all) return "it keeps every row";
    if (allocate == A::all || allocate == A::binary_heads) return "no other method can be made so";
    if (competes && recipe.select == S::sinks_recent) return "it has no scores to compete with";
    switch (recipe.score) {
        case ScoreStep::last_query:
        case ScoreStep::layer_attention:
        case ScoreStep::prefix_mass:
            if (allocate == A::adaptive) {
                return "all heads of a layer have the same scores, so none would win";
            }
            break;
        case ScoreStep::key_norm:
        case ScoreStep::key_difference:
        case ScoreStep::key_clusters:
            if (competes) return "its scores compare keys of one head only";
            break;
        case ScoreStep::token_classes:
            return "its classes decide how many rows a head has";
        case ScoreStep::output_attention:
            if (allocate == A::global) return "a head must know its rows to choose half of them";
            break;
        default:
            break;
    }
    if (allocate == A::global && recipe.merge > 0) {
        return "a row that others have joined could not be taken back";
    }
    if (allocate == A::global && recipe.select == S::heavy_recent) {
        return "a head must know its rows, half of which are recent";
    }
    return {};
}

constexpr std::array kAllocators = {A::uniform, A::pyramid, A::adaptive, A::head_importance,
                                    A::global};

}  // namespace

std::vector<AllocateStep> allocators_of(const Recipe& recipe) {
    std::vector<AllocateStep> possible;
    std::copy_if(kAllocators.begin(), kAllocators.end(), std::back_inserter(possible),
                 [&](AllocateStep step) { return obstacle(recipe, step).empty(); });
    return possible;
}

Result<Recipe> with_allocator(const Recipe& recipe, AllocateStep allocate) {
    if (const auto reason = obstacle(recipe, allocate); !reason.empty()) {
        std::string ways;
        for (const AllocateStep step : allocators_of(recipe)) {
            ways += ways.empty() ? "" : ", ";
            ways += name_of(step);
        }
        return bad_input("{} cannot allocate its rows as {}: {}; {}", recipe.name,
                         name_of(allocate), reason,
                         ways.empty() ? "leave allocate out" : "there is " + ways);
    }
    Recipe made = recipe;
    made.allocate = allocate;
    const bool scored = allocate == A::head_importance || allocate == A::binary_heads;
    if (!scored) made.score_kind = "";
    if (scored && made.score_kind.empty()) made.score_kind = "r2";  // any other kind is taken, too
    return made;
}

Result<AllocateStep> parse_allocator(std::string_view name) {
    std::string names;
    for (const AllocateStep step : kAllocators) {
        if (name_of(step) == name) return step;
        names += names.empty() ? "" : ", ";
        names += name_of(step);
    }
    return bad_input("there is no allocation {}: give one of {}", name, names);
}

namespace {

// Whether the attention of the prompt's last queries scores.
bool looks_from_the_end(ScoreStep score) {
    return score == ScoreStep::window_attention || score == ScoreStep::layer_attention ||
           score == ScoreStep::squared_attention || score == ScoreStep::output_attention;
}

}  // namespace

bool weighs_queries(const Recipe& recipe) {
    return looks_from_the_end(recipe.score) || recipe.score == ScoreStep::aligned_attention;
}

std::vector<std::string_view> option_names(const Recipe& recipe) {
    if (recipe.select == SelectStep::all) return {};
    std::vector<std::string_view> names;
    const auto add = [&](bool used, std::initializer_list<std::string_view> more) {
        for (const auto name : more) {
            if (used) names.push_back(name);
        }
    };
    const bool windowed = recipe.select == SelectStep::top_k_window;
    const bool ranked = recipe.select != SelectStep::sinks_recent;
    const bool clusters = recipe.score == ScoreStep::key_clusters;  // no attention decides
    add(true, {"allocate"});
    add(!ranked, {"sinks", "positions"});
    add(ranked, {"protect"});
    add(windowed, {"window", "observe", "kernel", "pool"});
    add(weighs_queries(recipe), {"query-decay"});
    add(looks_from_the_end(recipe.score), {"skip-tail", "draft"});
    // The others rank rows by the window's attention once the answer outgrows its reserve;
    // streaming heads beside full ones have at least the window.
    add(!windowed && !clusters && (ranked || recipe.allocate == AllocateStep::binary_heads),
        {"window"});
    add(ranked && !clusters, {"group-reduce", "chunk-size", "unit"});
    add(clusters, {"cluster-size"});
    add(recipe.allocate == AllocateStep::head_importance, {"beta"});
    add(recipe.allocate == AllocateStep::head_importance && ranked, {"mix"});
    add(!recipe.score_kind.empty(), {"temperature", "shrink"});
    add(recipe.allocate == AllocateStep::pyramid, {"beta", "pyramid-beta"});
    add(recipe.allocate == AllocateStep::adaptive ||
            (recipe.allocate == AllocateStep::head_importance && ranked),
        {"floor", "normalize"});
    add(recipe.score == ScoreStep::random, {"choice"});
    add(recipe.score == ScoreStep::token_classes, {"frequent", "local", "class-rows", "recovery"});
    add(ranked && !recipe.recall && !recipe.shares && recipe.allocate != AllocateStep::global,
        {"merge", "similarity"});
    add(true, {"reserve"});
    return names;
}

double importance_concentration(const HeadScores& scores) {
    auto falling = scores.mean;
    const double sum = std::accumulate(falling.begin(), falling.end(), 0.0);
    if (!(sum > 0)) return 0;
    const auto tenth = std::max<std::ptrdiff_t>(1, std::ssize(falling) / 10);
    std::nth_element(falling.begin(), falling.begin() + (tenth - 1), falling.end(),
                     std::greater<>());
    return std::accumulate(falling.begin(), falling.begin() + tenth, 0.0) / sum;
}

std::optional<StoreStep> recall_of(const MethodConfig& config, const Recipe& recipe) {
    return config.recall ? config.recall : recipe.recall;
}

double importance_beta(const MethodOptions& options, double rows, const HeadScores* scores) {
    constexpr double kConcentrated = 0.75, kLeast = 1.2, kMost = 5, kRows = 100;
    if (options.beta != 0) return options.beta;
    if (scores != nullptr && importance_concentration(*scores) > kConcentrated) return kMost;
    return std::clamp(rows / kRows, kLeast, kMost);
}

double importance_shrink(const MethodOptions& options, double rows) {
    constexpr double kFew = 64;
    return options.shrink != kByBudget ? options.shrink : std::max(0.0, 1 - kFew / rows);
}

MethodOptions default_options(const Recipe& recipe) {
    MethodOptions options;
    if (recipe.score == ScoreStep::key_clusters) options.reserve = 1;
    if (recipe.allocate != A::head_importance) return options;
    if (recipe.score_kind == "baklava") {
        options.beta = 1;  // its scores differ little from head to head: all rows follow them
        return options;
    }
    options.window = 8;
    options.observe = 16;
    options.protect = 1;
    // In place of what they would pool; other scores keep their own way.
    options.sentences = recipe.chunk == 1 && looks_from_the_end(recipe.score);
    options.group_reduce = GroupReduce::max;
    return options;
}

MethodOptions preset_paper() {
    MethodOptions options;
    options.window = 8;
    options.observe = 0;
    options.kernel = 7;
    options.pool = Pool::max;
    options.beta = 1.2;
    options.floor = 0.2;
    return options;
}

std::string_view name_of(ScoreStep step) {
    switch (step) {
        case ScoreStep::none:
            return "none";
        case ScoreStep::position:
            return "position";
        case ScoreStep::window_attention:
            return "window-attention";
        case ScoreStep::accumulated_attention:
            return "accumulated";
        case ScoreStep::last_query:
            return "last-query";
        case ScoreStep::layer_attention:
            return "layer-attention";
        case ScoreStep::squared_attention:
            return "squared-attention";
        case ScoreStep::prefix_mass:
            return "prefix-mass";
        case ScoreStep::output_attention:
            return "output-attention";
        case ScoreStep::expected_attention:
            return "expected-attention";
        case ScoreStep::token_classes:
            return "token-classes";
        case ScoreStep::aligned_attention:
            return "aligned-attention";
        case ScoreStep::reconstruction:
            return "reconstruction";
        case ScoreStep::key_norm:
            return "key-norm";
        case ScoreStep::key_difference:
            return "key-difference";
        case ScoreStep::key_clusters:
            return "key-clusters";
        case ScoreStep::random:
            return "random";
    }
    return "?";
}

std::string_view name_of(AllocateStep step) {
    switch (step) {
        case AllocateStep::all:
            return "all";
        case AllocateStep::uniform:
            return "uniform";
        case AllocateStep::pyramid:
            return "pyramid";
        case AllocateStep::adaptive:
            return "adaptive";
        case AllocateStep::head_importance:
            return "head-importance";
        case AllocateStep::binary_heads:
            return "binary-heads";
        case AllocateStep::global:
            return "global";
    }
    return "?";
}

std::string_view name_of(SelectStep step) {
    switch (step) {
        case SelectStep::all:
            return "all";
        case SelectStep::sinks_recent:
            return "sinks-recent";
        case SelectStep::top_k_window:
            return "top-k-window";
        case SelectStep::heavy_recent:
            return "heavy-recent";
        case SelectStep::top_k:
            return "top-k";
    }
    return "?";
}

std::string_view name_of(Pool pool) { return pool == Pool::max ? "max" : "avg"; }

std::string_view name_of(GroupReduce reduce) {
    return reduce == GroupReduce::mean ? "mean" : "max";
}

}  // namespace headkv
