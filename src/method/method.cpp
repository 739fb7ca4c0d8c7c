// A recipe bound to a model shape, a prompt length and a budget.
#include "headkv/method.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <tuple>

#include "method/allocate.h"
#include "method/layout.h"
#include "method/select.h"

namespace headkv {
namespace {

constexpr std::int64_t kWidestKernel = 1023;
constexpr std::int64_t kLongestDraft = 1024;
constexpr double kHottest = 100;  // temperature of head scores

Result<void> check_options(const MethodOptions& options) {
    if (options.window < 1) {
        return bad_input("window is {}: it must be at least 1 row", options.window);
    }
    if (options.protect < 0) {
        return bad_input("protect is {}: it must be 0 or more rows", options.protect);
    }
    if (options.observe < 0) {
        return bad_input("observe is {}: it must be 0 (as many as the window) or more",
                         options.observe);
    }
    if (options.skip_tail < 0) {
        return bad_input("skip-tail is {}: it must be 0 or more tokens", options.skip_tail);
    }
    if (!(options.query_decay > 0 && options.query_decay <= 1)) {
        return bad_input("query-decay is {}: it must be above 0 and at most 1",
                         options.query_decay);
    }
    if (options.draft < 0 || options.draft > kLongestDraft) {
        return bad_input("draft is {}: it must be 0 (none) to {} tokens", options.draft,
                         kLongestDraft);
    }
    if (options.kernel < 1 || options.kernel > kWidestKernel || options.kernel % 2 == 0) {
        return bad_input("kernel is {}: it must be an odd number from 1 to {}", options.kernel,
                         kWidestKernel);
    }
    if (options.beta != 0 && (!(options.beta >= 1) || !std::isfinite(options.beta))) {
        return bad_input("beta is {}: it must be at least 1, or 0 for one by the budget",
                         options.beta);
    }
    if (!(options.pyramid_beta >= 1) || !std::isfinite(options.pyramid_beta)) {
        return bad_input("pyramid beta is {}: it must be at least 1", options.pyramid_beta);
    }
    if (!(options.floor >= 0 && options.floor <= 1)) {
        return bad_input("floor is {}: it must lie between 0 and 1", options.floor);
    }
    if (!(options.temperature >= 0 && options.temperature <= kHottest)) {
        return bad_input("temperature is {}: it must lie between 0 and {}", options.temperature,
                         kHottest);
    }
    if (!(options.shrink >= 0 && options.shrink <= 1) && options.shrink != kByBudget) {
        return bad_input("shrink is {}: it must lie between 0 and 1, or be auto", options.shrink);
    }
    if (!(options.mix >= 0 && options.mix <= 1)) {
        return bad_input("mix is {}: it must lie between 0 and 1", options.mix);
    }
    if (options.chunk < 0 || options.chunk > kWidestKernel) {
        return bad_input("chunk is {}: it must be 0 (the method's own) to {} positions",
                         options.chunk, kWidestKernel);
    }
    if (options.sentences && options.chunk > 1) {
        return bad_input(
            "chunks of {} positions and whole sentences are asked for: rows stay together by one "
            "of them",
            options.chunk);
    }
    if (options.cluster_size < 1) {
        return bad_input("cluster size is {}: it must be at least 1 row", options.cluster_size);
    }
    if (options.sinks < 0) return bad_input("sinks is {}: it must be 0 or more", options.sinks);
    for (const auto& [name, share] :
         {std::pair{"frequent", options.frequent}, std::pair{"local", options.local}}) {
        if (!(share >= 0 && share <= 1)) {
            return bad_input("{} is {}: it must lie between 0 and 1", name, share);
        }
    }
    if (options.class_rows < 0) {
        return bad_input("class rows is {}: it must be 0 (the budget's) or more",
                         options.class_rows);
    }
    if (!(options.recovery > 0 && options.recovery <= 1)) {
        return bad_input("recovery is {}: it must be above 0 and at most 1", options.recovery);
    }
    if (options.merge && !(options.merge->amount >= 0 && std::isfinite(options.merge->amount))) {
        return bad_input("merge is {}: it must be 0 or more", options.merge->amount);
    }
    if (!(options.similarity >= -1 && options.similarity <= 1)) {
        return bad_input("similarity is {}: a cosine lies between -1 and 1", options.similarity);
    }
    if (options.reserve < 1) {
        return bad_input("reserve is {}: it must be at least 1 row", options.reserve);
    }
    return {};
}

Result<void> check_shape(const HeadShape& shape, std::int64_t prompt, std::int64_t row_bytes) {
    if (shape.layers < 1 || shape.kv_heads < 1 || shape.query_heads < 1 ||
        shape.query_heads % shape.kv_heads != 0) {
        return bad_input("no attention has {} layers, {} query heads and {} KV heads", shape.layers,
                         shape.query_heads, shape.kv_heads);
    }
    if (prompt < 1) return bad_input("the prompt is empty");
    if (prompt > std::numeric_limits<std::int32_t>::max()) {
        return bad_input("a prompt of {} tokens is beyond what positions can count", prompt);
    }
    if (row_bytes < 1) return bad_input("a row of {} bytes cannot be stored", row_bytes);
    return {};
}

// `wrapped`: whether only the options have the recipe ask for scores, which may then be of any
// kind.
Result<void> check_scores(const Recipe& recipe, bool wrapped, const HeadScores* scores,
                          const HeadShape& shape) {
    if (recipe.score_kind.empty()) return {};
    if (scores == nullptr) {
        return bad_input(
            "{} needs head scores of kind {}: name a file with --heads, or measure them with "
            "'headkv calibrate --kind {}'",
            recipe.name, recipe.score_kind, recipe.score_kind);
    }
    // Kinds that no recipe is named after (a user's own) may be used with either.
    for (const Recipe& other : recipes()) {
        if (wrapped || other.score_kind.empty() || other.score_kind == recipe.score_kind) continue;
        if (scores->kind == other.score_kind) {
            return bad_input("the head scores are of kind {}, {} needs kind {}: use --method {}",
                             scores->kind, recipe.name, recipe.score_kind, other.name);
        }
    }
    return check_head_scores(*scores, shape, "", false);
}

MergeRows merge_of(const Recipe& recipe, const MethodOptions& options) {
    return options.merge.value_or(MergeRows{recipe.merge, true});
}

// What only some recipes can do, and what does not go together.
Result<void> check_together(const Recipe& recipe, const MethodConfig& config) {
    if (recipe.select == SelectStep::all) return {};  // nothing to turn, nothing to merge
    const bool by_position = recipe.select == SelectStep::sinks_recent;
    if (config.options.in_cache_positions && !by_position) {
        return bad_input(
            "{} chooses rows by what they hold, which may lie anywhere: positions in the cache are "
            "for methods that keep first and recent rows, as streaming-llm",
            recipe.name);
    }
    if (merge_of(recipe, config.options).amount == 0) return {};
    if (by_position) {
        return bad_input("{} does not rank rows, so none is next to merge: leave merge out",
                         recipe.name);
    }
    if (recipe.allocate == AllocateStep::global) {
        return bad_input(
            "{} takes rows back after their layer was read, so a row that others joined may go: "
            "leave merge out, or give another allocate",
            recipe.name);
    }
    if (recall_of(config, recipe)) {
        return bad_input(
            "{} cannot merge rows that recall brings back as they were: leave out merge, or recall",
            recipe.name);
    }
    return {};
}

// Rows of a head that no score decides about; what allocators call the window.
std::int64_t fewest_rows(const Recipe& recipe, const MethodOptions& options) {
    const std::int64_t protect = std::max(options.protect, recipe.protect);
    switch (recipe.select) {
        case SelectStep::all:
            return 0;
        case SelectStep::sinks_recent:
            return options.sinks + 1;
        case SelectStep::top_k_window:
            return options.window + protect;
        case SelectStep::heavy_recent:
            return std::max<std::int64_t>(2, 1 + protect);
        case SelectStep::top_k:
            return 1 + protect;
    }
    return 0;
}

// Positions that have no value of their own, because they are kept in any case.
std::int64_t unscored(const Recipe& recipe, const MethodOptions& options) {
    return recipe.select == SelectStep::top_k_window ? options.window : 0;
}

std::int64_t chunk_of(const Recipe& recipe, const MethodOptions& options) {
    return options.chunk > 0 ? options.chunk : recipe.chunk;
}

std::string minimum_is(const Recipe& recipe, const MethodOptions& options, std::size_t marked) {
    std::string text = "the window";
    if (recipe.select == SelectStep::sinks_recent) {
        text = "the sinks and one recent row";
    } else if (recipe.select != SelectStep::top_k_window) {
        text = "the fewest rows";
    } else if (std::max(options.protect, recipe.protect) > 0) {
        text = "the window and the protected rows";
    }
    if (marked > 0) text += fmt::format(" and the {} rows marked to be kept", marked);
    return text;
}

// Positions of the spans that are in no part of the prompt kept anyway: sorted, each once.
Result<std::vector<std::int32_t>> marked_positions(const MethodConfig& config, const Recipe& recipe,
                                                   std::int64_t prompt) {
    const MethodOptions& options = config.options;
    const bool windowed = recipe.select == SelectStep::top_k_window;
    const auto first = recipe.select == SelectStep::sinks_recent
                           ? options.sinks
                           : std::max(options.protect, recipe.protect);
    const auto end = prompt - (windowed ? options.window : 1);
    std::vector<std::int32_t> positions;
    for (const PositionSpan& span : config.keep) {
        if (span.begin < 0 || span.end < span.begin || span.end > prompt) {
            return bad_input("rows {} to {} are to be kept, the prompt has {}", span.begin,
                             span.end, prompt);
        }
        for (auto i = std::max(span.begin, first); i < std::min(span.end, end); ++i) {
            positions.push_back(static_cast<std::int32_t>(i));
        }
    }
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    return positions;
}

// What allocators see: the layers that own rows.
HeadShape owned_shape(const MethodConfig& config, const HeadShape& shape) {
    HeadShape owned = shape;
    if (config.share) owned.layers = config.share->owners();
    return owned;
}

// Mean rows a head, over all layers, of a budget in any unit, checked against what the recipe must
// keep in those that own some; `marked`: rows of every head besides those that it always keeps.
Result<double> rows_of(const MethodConfig& config, const Recipe& recipe, std::size_t marked,
                       const HeadShape& shape, std::int64_t prompt, std::int64_t row_bytes) {
    const Budget& budget = config.budget;
    const MethodOptions& options = config.options;
    const auto heads = static_cast<double>(shape.layers * shape.kv_heads);
    const std::int64_t owners = owned_shape(config, shape).layers * shape.kv_heads;
    // Of as many rows in the heads that own some.
    const auto mean_of = [&](std::int64_t rows) {
        return (rows * owners + shape.layers * shape.kv_heads - 1) /
               (shape.layers * shape.kv_heads);
    };
    const auto tokens = static_cast<double>(prompt);
    const auto fewest = fewest_rows(recipe, options) + static_cast<std::int64_t>(marked);
    const auto minimum = minimum_is(recipe, options, marked);
    if (!std::isfinite(budget.value) || budget.value <= 0) {
        return bad_input("the budget is {}: it must be above 0", budget.value);
    }
    switch (budget.unit) {
        case Budget::Unit::rows: {
            // Whole rows in total, so compare those: 15.9999 rows of 16 may round to enough.
            if (total_rows(budget.value, shape) < fewest * owners) {
                return bad_input("a budget of {} rows is below {} of {}: give at least {} rows",
                                 budget.value, minimum, recipe.name, mean_of(fewest));
            }
            return budget.value;
        }
        case Budget::Unit::bytes: {
            const double total = std::floor(budget.value / static_cast<double>(row_bytes));
            const std::int64_t needed = std::min(fewest, prompt);
            if (total < static_cast<double>(needed * owners)) {
                return bad_input(
                    "a budget of {} bytes is below {} of {}: give at least {} bytes ({} rows in "
                    "each of {} heads)",
                    budget.value, minimum, recipe.name, needed * owners * row_bytes, needed,
                    owners);
            }
            return total / heads;
        }
        case Budget::Unit::share: {
            if (budget.value > 1) {
                return bad_input("a share of {} of the prompt: it must lie between 0 and 1",
                                 budget.value);
            }
            const double total = std::round(budget.value * tokens * heads);
            const std::int64_t needed = std::min(fewest, prompt);
            if (total < static_cast<double>(needed * owners)) {
                return bad_input(
                    "{}% of a prompt of {} tokens is below {} of {}: give at least {:.3g}% ({} "
                    "rows)",
                    budget.value * 100, prompt, minimum, recipe.name,
                    std::ceil(1e5 * static_cast<double>(needed * owners) / heads / tokens) / 1e3,
                    mean_of(needed));
            }
            return total / heads;
        }
    }
    return bad_input("unknown unit of the budget");
}

// Importance of the heads that own rows: theirs, and that of all who read them. `rows`: the mean of
// those heads.
std::vector<double> shares_of(const MethodConfig& config, const HeadShape& shape, double rows) {
    auto shares = kv_head_shares(*config.scores, shape);
    if (config.share) {
        const auto heads = static_cast<std::size_t>(shape.kv_heads);
        std::vector<double> owned;
        for (std::int64_t layer = shape.layers - 1; layer >= 0; --layer) {
            const auto own = static_cast<std::size_t>(layer) * heads;
            const auto to = static_cast<std::size_t>(config.share->owner_of(layer)) * heads;
            for (std::size_t head = 0; own != to && head < heads; ++head) {
                shares[to + head] += shares[own + head];
            }
        }
        for (std::size_t i = 0; i < shares.size(); ++i) {
            if (config.share->owns(static_cast<std::int64_t>(i / heads))) {
                owned.push_back(shares[i]);
            }
        }
        shares = std::move(owned);
    }
    return reshaped_shares(std::move(shares), config.options.temperature,
                           importance_shrink(config.options, rows));
}

// `marked`: rows of every head besides those that the recipe always keeps. `mean`: rows a head over
// all layers. The plan is of the layers that own rows, see spread().
Plan allocate(const Recipe& recipe, const MethodConfig& config, std::size_t marked,
              const HeadShape& all, double mean, std::int64_t limit) {
    const MethodOptions& options = config.options;
    const HeadShape shape = owned_shape(config, all);
    const double rows = mean * static_cast<double>(all.layers) / static_cast<double>(shape.layers);
    const auto more = static_cast<std::int64_t>(marked);
    const auto fewest = fewest_rows(recipe, options) + more;
    switch (recipe.allocate) {
        case AllocateStep::all:
            break;
        case AllocateStep::uniform:
        case AllocateStep::adaptive:  // its layers' totals; the heads are split in keep_layer
        case AllocateStep::global:    // the sum of all
            return allocate_uniform(shape, rows, limit);
        case AllocateStep::pyramid:
            return allocate_pyramid(shape, rows, fewest, options.pyramid_beta, limit);
        case AllocateStep::head_importance:
            return allocate_head_importance(shape, shares_of(config, all, rows), rows, fewest,
                                            importance_beta(options, rows, config.scores.get()),
                                            limit);
        case AllocateStep::binary_heads:
            return allocate_binary_heads(shape, shares_of(config, all, rows), rows,
                                         options.sinks + options.window + more, limit);
    }
    const auto heads = static_cast<std::size_t>(shape.layers * shape.kv_heads);
    return {shape.layers, shape.kv_heads, std::vector<std::int64_t>(heads, limit)};
}

// The plan of the layers that own rows as one of all layers.
Plan spread(Plan plan, const MethodConfig& config, const HeadShape& shape) {
    if (!config.share) return plan;
    Plan all{shape.layers, shape.kv_heads, {}};
    auto next = plan.rows.begin();
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
        const bool owns = config.share->owns(layer);
        for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
            all.rows.push_back(owns ? *next++ : 0);
        }
    }
    return all;
}

// Whether the recipe can select rows that several layers read.
Result<void> check_share(const Recipe& recipe, const MethodConfig& config, const HeadShape& shape) {
    if (auto fits = check_latent(recipe, config.share.get()); !fits) return fits;
    if (!config.share) {
        if (!recipe.shares) return {};
        return bad_input(
            "{} needs a map of shared layers: name a file with --share, or make one with 'headkv "
            "calibrate --kind share'",
            recipe.name);
    }
    if (auto fits = check_layer_map(*config.share, shape, "", true); !fits) return fits;
    // A model that was trained to share has no --share to leave out.
    const bool trained = config.share->trained;
    if (recall_of(config, recipe)) {
        return bad_input("{} with --recall cannot share rows between layers: leave {} out",
                         recipe.name, trained ? "--recall" : "--share or --recall");
    }
    const bool selects = recipe.select != SelectStep::all;
    const bool by_position = recipe.select == SelectStep::sinks_recent;
    if (selects && merge_of(recipe, config.options).amount > 0) {
        return bad_input("{} cannot merge rows that several layers read: {}say --merge 0",
                         recipe.name, trained ? "" : "leave --share out, or ");
    }
    if (by_position && config.options.in_cache_positions) {
        return bad_input(
            "{} cannot turn keys that several layers read to places in the cache: {}say "
            "--positions text",
            recipe.name, trained ? "" : "leave --share out, or ");
    }
    if (selects && !config.keep.empty()) {
        return bad_input(
            "{} cannot keep marked parts of a prompt whose rows several layers read: leave {} out",
            recipe.name, trained ? "the marks" : "--share or the marks");
    }
    if (recipe.score == ScoreStep::output_attention ||
        recipe.score == ScoreStep::expected_attention ||
        recipe.score == ScoreStep::reconstruction) {
        return bad_input(
            "{} looks at more of a layer than attention and keys, which it cannot for several "
            "layers at once: {}",
            recipe.name,
            trained ? "the layers of this model share rows, take another method"
                    : "leave --share out");
    }
    return {};
}

// What decoding may fill when the whole prompt (`plan`) is below the budget: heads that an
// unbounded prompt would give more (`unbounded`) share what is left of the budget.
Plan extend_to_budget(Plan plan, const Plan& unbounded) {
    std::vector<double> wanted(plan.rows.size());
    std::transform(unbounded.rows.begin(), unbounded.rows.end(), plan.rows.begin(), wanted.begin(),
                   [](std::int64_t wish, std::int64_t kept) {
                       return static_cast<double>(std::max<std::int64_t>(wish - kept, 0));
                   });
    const auto extra = largest_remainder(wanted, unbounded.total() - plan.total());
    std::transform(plan.rows.begin(), plan.rows.end(), extra.begin(), plan.rows.begin(),
                   std::plus<>());
    return plan;
}

// The values [heads][positions] of the positions from `begin` to before `end`: the rows that heads
// compete for. A copy.
std::vector<float> competing(const std::vector<float>& values, std::int64_t heads,
                             std::int64_t begin, std::int64_t end) {
    const std::int64_t positions = static_cast<std::int64_t>(values.size()) / heads;
    const std::int64_t last = std::clamp<std::int64_t>(end, 0, positions);
    const std::int64_t first = std::min(begin, last);
    std::vector<float> rest;
    rest.reserve(static_cast<std::size_t>(heads * (last - first)));
    for (std::int64_t head = 0; head < heads; ++head) {
        const auto row = values.begin() + head * positions;
        rest.insert(rest.end(), row + first, row + last);
    }
    return rest;
}

// Of rows [..][n] the columns `chosen`.
std::vector<float> columns_of(std::span<const float> rows, std::int64_t n,
                              std::span<const std::int32_t> chosen) {
    std::vector<float> result;
    result.reserve(rows.size() / static_cast<std::size_t>(n) * chosen.size());
    for (auto row = rows; !row.empty(); row = row.subspan(static_cast<std::size_t>(n))) {
        for (const auto column : chosen) result.push_back(row[static_cast<std::size_t>(column)]);
    }
    return result;
}

// `indices` into `others`, as what they stand for, and `always` with them, sorted.
std::vector<std::int32_t> with_marked(const std::vector<std::int32_t>& indices,
                                      std::span<const std::int32_t> others,
                                      std::span<const std::int32_t> always) {
    std::vector<std::int32_t> chosen(indices.size()), result;
    std::transform(indices.begin(), indices.end(), chosen.begin(),
                   [&](std::int32_t i) { return others[static_cast<std::size_t>(i)]; });
    result.reserve(chosen.size() + always.size());
    std::merge(chosen.begin(), chosen.end(), always.begin(), always.end(),
               std::back_inserter(result));
    return result;
}

}  // namespace

Result<Method> Method::create(const MethodConfig& config, const HeadShape& shape,
                              std::int64_t prompt_tokens, std::int64_t row_bytes) {
    const auto found = find_recipe(config.method);
    if (!found) return tl::unexpected(found.error());
    const auto made = with_allocator(**found, config.options.allocate.value_or((*found)->allocate));
    if (!made) return tl::unexpected(made.error());
    const Recipe& recipe = *made;
    if (auto ok = check_shape(shape, prompt_tokens, row_bytes); !ok) {
        return tl::unexpected(ok.error());
    }
    if (auto ok = check_options(config.options); !ok) return tl::unexpected(ok.error());
    if (auto ok = check_scores(recipe, (*found)->score_kind.empty(), config.scores.get(), shape);
        !ok) {
        return tl::unexpected(ok.error());
    }

    if (auto ok = check_share(recipe, config, shape); !ok) return tl::unexpected(ok.error());
    if (recipe.allocate == AllocateStep::global && config.layout != RowLayout()) {
        return bad_input(
            "{} lets the rows of all layers compete, which no layout in blocks can follow: use "
            "--device cpu, without --layout",
            recipe.name);
    }

    if (auto ok = check_together(recipe, config); !ok) return tl::unexpected(ok.error());

    Method method;
    method.recipe_ = recipe;
    method.config_ = config;
    method.shape_ = shape;
    method.prompt_ = prompt_tokens;
    if (recipe.allocate == AllocateStep::all) {
        method.rows_ = static_cast<double>(prompt_tokens);
        method.full_ = true;
        method.plan_ =
            spread(allocate(recipe, config, 0, shape, method.rows_, prompt_tokens), config, shape);
        method.bound_ =
            spread(allocate(recipe, config, 0, shape, method.rows_, kUnbounded), config, shape);
        return method;
    }
    auto marked = marked_positions(config, recipe, prompt_tokens);
    if (!marked) return tl::unexpected(marked.error());
    method.marked_ = std::move(*marked);
    const auto always = method.marked_.size();
    if (always > 0) {
        const auto all = all_positions(prompt_tokens);
        std::set_difference(all.begin(), all.end(), method.marked_.begin(), method.marked_.end(),
                            std::back_inserter(method.unmarked_));
    }
    const auto rows = rows_of(config, recipe, always, shape, prompt_tokens, row_bytes);
    if (!rows) return tl::unexpected(rows.error());
    method.rows_ = *rows;
    method.full_ = total_rows(*rows, shape) >=
                   prompt_tokens * owned_shape(config, shape).layers * shape.kv_heads;
    method.plan_ = allocate(recipe, config, always, shape, *rows, prompt_tokens);
    if (!method.full_) method.plan_ = fit_to_layout(method.plan_, config.layout, prompt_tokens);
    method.bound_ =
        method.full_ ? extend_to_budget(method.plan_,
                                        allocate(recipe, config, always, shape, *rows, kUnbounded))
                     : method.plan_;
    method.plan_ = spread(std::move(method.plan_), config, shape);
    method.bound_ = spread(std::move(method.bound_), config, shape);
    return method;
}

LayerNeeds Method::needs() const {
    LayerNeeds needs;
    if (full_) return needs;
    const MethodOptions& options = config_.options;
    switch (recipe_.score) {
        case ScoreStep::squared_attention:
            needs.squares = true;
            [[fallthrough]];
        case ScoreStep::window_attention:
        case ScoreStep::layer_attention:
        case ScoreStep::output_attention:
            needs.output_norms = recipe_.score == ScoreStep::output_attention;
            needs.queries = options.observe > 0 ? options.observe : options.window;
            needs.skip = options.skip_tail;
            if (options.observe_question && config_.question.tokens > 0) {
                needs.queries = config_.question.tokens;
                needs.skip = config_.question.tail;
            }
            needs.draft = options.draft > 0;
            needs.skip = std::min(needs.skip, prompt_ - 1);  // some query looks in any case
            needs.queries = std::min(needs.queries, prompt_ - needs.skip);
            break;
        case ScoreStep::token_classes:
            needs.token_kinds = true;
            [[fallthrough]];
        case ScoreStep::accumulated_attention:
        case ScoreStep::prefix_mass:
            needs.queries = prompt_;
            break;
        case ScoreStep::aligned_attention:
            needs.queries = prompt_;
            needs.recent_queries =
                std::min(options.observe > 0 ? options.observe : options.window, prompt_);
            break;
        case ScoreStep::last_query:
            needs.queries = 1;
            break;
        case ScoreStep::expected_attention:
            needs.future_queries = needs.values = true;
            [[fallthrough]];
        case ScoreStep::key_norm:
        case ScoreStep::key_difference:
            needs.keys = true;
            break;
        case ScoreStep::reconstruction:
            needs.reconstruction = true;
            break;
        case ScoreStep::key_clusters:
            needs.clusters = clusters();
            break;
        default:
            break;
    }
    if (needs.queries > 0) needs.query_decay = query_decay();
    if (merges()) needs.keys = true;
    needs.sentences = options.sentences && recipe_.select != SelectStep::sinks_recent;
    return needs;
}

bool Method::merges() const { return !full_ && merge_of(recipe_, config_.options).amount > 0; }

bool Method::marked(std::int64_t position) const {
    return std::binary_search(marked_.begin(), marked_.end(), static_cast<std::int32_t>(position));
}

std::int64_t Method::observe_answer() const {
    if (recipe_.select == SelectStep::all || recipe_.select == SelectStep::sinks_recent) return 0;
    if (recipe_.score == ScoreStep::last_query || recipe_.score == ScoreStep::key_clusters) {
        return 1;
    }
    return config_.options.observe > 0 ? config_.options.observe : config_.options.window;
}

ClusterNeeds Method::clusters() const {
    if (recipe_.score != ScoreStep::key_clusters) return {};
    return {config_.options.cluster_size, protected_rows()};
}

std::int64_t Method::most_unclustered(std::int64_t rows) const {
    constexpr std::int64_t kMost = 320;  // as the paper's code; fewer where the budget is small
    const auto free = rows - protected_rows() - std::ssize(marked_);
    return std::clamp<std::int64_t>(free / 4, 1, kMost);
}

bool Method::rows_follow_prompt() const {
    return recipe_.allocate == AllocateStep::adaptive || recipe_.allocate == AllocateStep::global ||
           (recipe_.allocate == AllocateStep::head_importance && config_.options.mix > 0);
}

std::int64_t Method::recent_rows(std::int64_t rows) const {
    switch (recipe_.select) {
        case SelectStep::heavy_recent:
            return rows - rows / 2;
        case SelectStep::top_k:
            return 1;
        default:
            return config_.options.window;
    }
}

std::int64_t Method::protected_rows() const {
    return std::max(config_.options.protect, recipe_.protect);
}

// [kv_heads][positions], positions = prompt less unscored().
std::vector<float> Method::values_of(std::int64_t layer, const LayerView& view) const {
    const MethodOptions& options = config_.options;
    const auto without = unscored(recipe_, options);
    // Sentences take the place of what pooling does.
    const bool joined = options.sentences && !view.sentences.empty();
    const auto kernel = joined ? 1 : options.kernel;
    std::vector<float> values;
    switch (recipe_.score) {
        case ScoreStep::key_norm:
            values = score_key_norm(view.keys, shape_.kv_heads, prompt_);
            break;
        case ScoreStep::key_difference:
            values = score_key_difference(view.keys, shape_.kv_heads, prompt_);
            break;
        case ScoreStep::expected_attention: {
            // With Ada-KV's allocator, as its paper has it: heads of short values compete, too.
            constexpr double kEpsilon = 0.01;
            const bool adaptive = recipe_.allocate == AllocateStep::adaptive;
            values = score_expected_attention(view, shape_, prompt_, adaptive ? kEpsilon : 0);
            break;
        }
        case ScoreStep::reconstruction:
            values = competing({view.reconstruction.begin(), view.reconstruction.end()},
                               shape_.kv_heads, 0, prompt_ - without);
            break;
        case ScoreStep::token_classes:
            values = score_token_classes(view, shape_, prompt_, protected_rows(),
                                         class_rows(options.frequent), class_rows(options.local),
                                         options.group_reduce);
            break;
        case ScoreStep::aligned_attention:
            values = score_window(align_attention(view, shape_, prompt_, without), shape_, prompt_,
                                  without, kernel, options.pool, options.group_reduce);
            break;
        case ScoreStep::key_clusters:
            values.assign(view.cluster_products.begin(), view.cluster_products.end());
            break;
        case ScoreStep::random:
            values = score_random(options.seed, layer, shape_.kv_heads, prompt_);
            break;
        case ScoreStep::accumulated_attention:
        case ScoreStep::prefix_mass:
        case ScoreStep::last_query:
            values = score_window(view.observed, shape_, prompt_, without, 1, options.pool,
                                  options.group_reduce);
            break;
        default:
            values = score_window(view.observed, shape_, prompt_, without, kernel, options.pool,
                                  options.group_reduce);
    }
    if (recipe_.score == ScoreStep::last_query || recipe_.score == ScoreStep::layer_attention ||
        recipe_.score == ScoreStep::prefix_mass) {
        share_values(values, shape_.kv_heads);
    }
    if (recipe_.score == ScoreStep::key_clusters) return values;  // stay together as they are
    if (joined) {
        join_sentences(values, shape_.kv_heads, view.sentences);
    } else {
        join_chunks(values, shape_.kv_heads, chunk_of(recipe_, options));
    }
    if (recipe_.score == ScoreStep::prefix_mass) rank_by_prefix_mass(values, shape_.kv_heads);
    return values;
}

std::int64_t Method::class_rows(double share) const {
    const auto asked = config_.options.class_rows;
    const auto most = asked > 0 ? asked : std::llround(std::ceil(rows_));
    return std::min<std::int64_t>(most, std::llround(share * static_cast<double>(prompt_)));
}

std::vector<float> Method::second_values_of(const LayerView& view) const {
    if (recipe_.score != ScoreStep::token_classes) return {};
    return score_window(view.observed, shape_, prompt_, 0, 1, config_.options.pool,
                        config_.options.group_reduce);
}

// Rows of the layer's heads, given their values (of unmarked rows): the plan's, or what the heads
// compete for.
std::vector<std::int64_t> Method::rows_of_layer(std::int64_t layer,
                                                const std::vector<float>& values) const {
    const MethodOptions& options = config_.options;
    const auto first = plan_.rows.begin() + layer * shape_.kv_heads;
    std::vector<std::int64_t> rows(first, first + shape_.kv_heads);
    if (!rows_follow_prompt()) return rows;
    const auto total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    const auto protect = protected_rows();
    const auto recent = std::max<std::int64_t>(1, recent_rows(0));
    const auto marked = std::ssize(marked_);
    // Without Ada-KV's floor and scaling where all layers would compete as they are.
    const bool as_they_are = recipe_.allocate == AllocateStep::global;
    const auto rivals = prompt_ - marked - recent;  // the values of `top_k` go on to the last row
    auto wanted =
        allocate_adaptive(competing(values, shape_.kv_heads, protect, rivals), shape_.kv_heads,
                          total, recent + protect + marked, as_they_are ? 0 : options.floor,
                          !as_they_are && options.normalize);
    if (recipe_.allocate == AllocateStep::head_importance) {
        std::vector<double> amounts(rows.size());
        std::transform(rows.begin(), rows.end(), wanted.begin(), amounts.begin(),
                       [&](std::int64_t planned, std::int64_t competed) {
                           return static_cast<double>(planned) * (1 - options.mix) +
                                  static_cast<double>(competed) * options.mix;
                       });
        wanted = round_to_total(amounts, total, prompt_);
    }
    return fit_to_layout({1, shape_.kv_heads, std::move(wanted)}, config_.layout, prompt_).rows;
}

std::vector<std::vector<std::int32_t>> Method::keep_layer(std::int64_t layer,
                                                          const LayerView& view) const {
    return choose_layer(layer, view).kept;
}

// Marked rows are taken out, the others chosen as if there were no marked ones, and both put
// together: with fewer rows for the others, nothing else differs.
LayerChoice Method::choose_layer(std::int64_t layer, const LayerView& view) const {
    const auto heads = static_cast<std::size_t>(shape_.kv_heads);
    if (!owns(layer)) return {std::vector<std::vector<std::int32_t>>(heads), {}};
    if (full_) return {{heads, all_positions(prompt_)}, {}};

    const MethodOptions& options = config_.options;
    const auto marked = std::ssize(marked_);
    const auto n = prompt_ - marked;
    const auto positions_of = [&](std::vector<std::int32_t> chosen) {
        return marked == 0 ? std::move(chosen) : with_marked(chosen, unmarked_, marked_);
    };
    LayerChoice choice;
    auto& kept = choice.kept;
    kept.resize(heads);
    if (recipe_.select == SelectStep::sinks_recent) {
        for (std::size_t head = 0; head < heads; ++head) {
            const auto rows = plan_.at(layer, static_cast<std::int64_t>(head)) - marked;
            kept[head] = positions_of(select_sinks_recent(n, options.sinks, rows));
        }
        return choice;
    }

    auto values = values_of(layer, view);
    std::vector<float> norms;
    auto output_norms = view.output_norms;
    if (marked > 0) {
        const auto scored = std::ssize(values) / shape_.kv_heads;
        const auto end = std::lower_bound(unmarked_.begin(), unmarked_.end(), scored);
        values = columns_of(values, scored, {unmarked_.begin(), end});
        if (!output_norms.empty()) {
            output_norms = norms = columns_of(output_norms, prompt_, unmarked_);
        }
    }
    const auto rows = rows_of_layer(layer, values);
    if (recipe_.score == ScoreStep::output_attention) {
        std::vector<std::int64_t> competing_rows(heads);
        std::transform(rows.begin(), rows.end(), competing_rows.begin(), [&](std::int64_t count) {
            return std::max<std::int64_t>(
                0, count - marked - recent_rows(count - marked) - protected_rows());
        });
        rank_by_output(values, output_norms, shape_, n, protected_rows(), competing_rows);
    }
    const std::size_t positions = values.size() / heads;
    std::vector<float> scratch;
    for (std::size_t head = 0; head < heads; ++head) {
        const auto own = std::span(values).subspan(head * positions, positions);
        const auto others = rows[head] - marked;
        auto chosen =
            select_top_k_window(own, n, recent_rows(others), others, protected_rows(), scratch);
        if (merges()) {
            const auto keys = view.keys.size() / heads;
            choice.merged.push_back(
                merged_rows(view.keys.subspan(head * keys, keys), own, others, chosen));
        }
        kept[head] = positions_of(std::move(chosen));
    }
    return choice;
}

// Of one head: what joins the rows `kept`, which are indices into the unmarked ones, as the
// `values` are.
std::vector<MergedRow> Method::merged_rows(std::span<const float> keys,
                                           std::span<const float> values, std::int64_t rows,
                                           const std::vector<std::int32_t>& kept) const {
    const auto merge = merge_of(recipe_, config_.options);
    const auto n = prompt_ - std::ssize(marked_);
    const auto all_kept = static_cast<double>(rows + std::ssize(marked_));
    const auto count = std::min<std::int64_t>(
        n - rows, std::llround(merge.share ? merge.amount * all_kept : merge.amount));
    // The best rows and the next: what the best alone have is among them.
    const auto more =
        select_top_k_window(values, n, recent_rows(rows), rows + count, protected_rows());
    std::vector<std::int32_t> next;
    std::set_difference(more.begin(), more.end(), kept.begin(), kept.end(),
                        std::back_inserter(next));
    if (marked_.empty())
        return merge_into_nearest(keys, prompt_, kept, next, config_.options.similarity);
    const auto centres = with_marked(kept, unmarked_, marked_);
    return merge_into_nearest(keys, prompt_, centres, with_marked(next, unmarked_, {}),
                              config_.options.similarity);
}

std::int64_t Method::bound(std::int64_t layer, std::int64_t head, std::int64_t kept) const {
    if (rows_follow_prompt() && !full_) return kept;
    return bound_.at(layer, head);
}

std::vector<std::int32_t> Method::keep_head(std::span<const float> observed, std::int64_t n,
                                            std::int64_t rows,
                                            std::span<const std::int32_t> positions) const {
    if (rows >= n || recipe_.select == SelectStep::all) return all_positions(n);
    const MethodOptions& options = config_.options;
    std::vector<std::int32_t> always, others;  // indices: marked rows, and all others
    for (std::int64_t i = 0; i < n && !marked_.empty(); ++i) {
        const auto position = positions.empty() ? i : positions[static_cast<std::size_t>(i)];
        (marked(position) ? always : others).push_back(static_cast<std::int32_t>(i));
    }
    const auto competing_rows = rows - std::ssize(always), all = n - std::ssize(always);
    if (recipe_.select == SelectStep::sinks_recent) {
        auto kept = select_sinks_recent(all, options.sinks, competing_rows);
        return always.empty() ? kept : with_marked(kept, others, always);
    }
    const HeadShape one_head{1, shape_.group(), 1};
    const bool pooled = recipe_.select == SelectStep::top_k_window;
    auto values = score_window(observed, one_head, n, unscored(recipe_, options),
                               pooled ? options.kernel : 1, options.pool, options.group_reduce);
    join_chunks(values, 1, chunk_of(recipe_, options));
    if (always.empty()) {
        return select_top_k_window(values, n, recent_rows(rows), rows, protected_rows());
    }
    // Those of the window have no value, and none of them is marked but by an answer's growth.
    const auto scored = std::ssize(values);
    values.resize(static_cast<std::size_t>(n));
    values = columns_of(values, n, others);
    const auto window = n - scored;
    const auto kept =
        select_top_k_window(values, all, std::max(window, recent_rows(competing_rows)),
                            competing_rows, protected_rows());
    return with_marked(kept, others, always);
}

std::vector<std::int32_t> Method::keep_classed(HeadClasses& head, std::span<const float> observed,
                                               std::span<const std::int32_t> positions,
                                               std::span<const TokenKind> kinds,
                                               std::int64_t rows) const {
    const auto n = std::ssize(positions);
    if (head.last == kAnyRow) return keep_head(observed, n, rows, positions);
    const MethodOptions& options = config_.options;
    // Every token since the last selection has added a row. The last queries stand for all of them.
    const auto since = n - std::ssize(head.attention);
    assert(since >= 0);
    auto attention = std::move(head.attention);
    attention.resize(static_cast<std::size_t>(n));
    const auto mean =
        score_window(observed, {1, shape_.group(), 1}, n, 0, 1, options.pool, options.group_reduce);
    std::transform(attention.begin(), attention.end(), mean.begin(), attention.begin(),
                   [&](float sum, float more) {
                       return more > 0 ? sum + more * static_cast<float>(since) : sum;
                   });
    const auto classes = held_classes(positions, kinds, attention, protected_rows(),
                                      class_rows(options.frequent), class_rows(options.local));
    // Rows that no class decides about come first, those of classes that the head has not last.
    constexpr int kAlways = -1;
    const auto rank = [&](std::size_t i) {
        const auto position = positions[i];
        const bool always = position < protected_rows() || static_cast<std::int64_t>(i) + 1 == n ||
                            marked(position);
        const int own = always ? kAlways : classes[i] > head.last ? kAnyRow : classes[i];
        const auto by = own == 3 ? static_cast<float>(position) : attention[i];
        return std::tuple(own, -by, i);
    };
    std::vector<std::int32_t> order = all_positions(n), kept;
    std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return rank(static_cast<std::size_t>(a)) < rank(static_cast<std::size_t>(b));
    });
    kept.assign(order.begin(), order.begin() + std::min(rows, n));
    std::sort(kept.begin(), kept.end());
    for (const auto i : kept) head.attention.push_back(attention[static_cast<std::size_t>(i)]);
    return kept;
}

std::vector<std::int32_t> Method::keep_valued(std::span<const float> values, std::int64_t n,
                                              std::int64_t rows) const {
    if (rows >= n) return all_positions(n);
    if (marked_.empty()) {
        return select_top_k_window(values, n, recent_rows(rows), rows, protected_rows());
    }
    const auto all = all_positions(n);
    std::vector<std::int32_t> others;
    std::set_difference(all.begin(), all.end(), marked_.begin(), marked_.end(),
                        std::back_inserter(others));
    const auto competing_rows = rows - std::ssize(marked_);
    const auto kept =
        select_top_k_window(columns_of(values, n, others), std::ssize(others),
                            recent_rows(competing_rows), competing_rows, protected_rows());
    return with_marked(kept, others, marked_);
}

}  // namespace headkv
