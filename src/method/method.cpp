// A recipe bound to a model shape, a prompt length and a budget.
#include "headkv/method.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

#include "method/allocate.h"
#include "method/layout.h"
#include "method/select.h"

namespace headkv {
namespace {

constexpr std::int64_t kWidestKernel = 1023;
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
    if (!(options.shrink >= 0 && options.shrink <= 1)) {
        return bad_input("shrink is {}: it must lie between 0 and 1", options.shrink);
    }
    if (!(options.mix >= 0 && options.mix <= 1)) {
        return bad_input("mix is {}: it must lie between 0 and 1", options.mix);
    }
    if (options.chunk < 0 || options.chunk > kWidestKernel) {
        return bad_input("chunk is {}: it must be 0 (the method's own) to {} positions",
                         options.chunk, kWidestKernel);
    }
    if (options.cluster_size < 1) {
        return bad_input("cluster size is {}: it must be at least 1 row", options.cluster_size);
    }
    if (options.sinks < 0) return bad_input("sinks is {}: it must be 0 or more", options.sinks);
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

std::string_view minimum_is(const Recipe& recipe, const MethodOptions& options) {
    if (recipe.select == SelectStep::sinks_recent) return "the sinks and one recent row";
    if (recipe.select != SelectStep::top_k_window) return "the fewest rows";
    return std::max(options.protect, recipe.protect) > 0 ? "the window and the protected rows"
                                                         : "the window";
}

// What allocators see: the layers that own rows.
HeadShape owned_shape(const MethodConfig& config, const HeadShape& shape) {
    HeadShape owned = shape;
    if (config.share) owned.layers = config.share->owners();
    return owned;
}

// Mean rows a head, over all layers, of a budget in any unit, checked against what the recipe must
// keep in those that own some.
Result<double> rows_of(const MethodConfig& config, const Recipe& recipe, const HeadShape& shape,
                       std::int64_t prompt, std::int64_t row_bytes) {
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
    const std::int64_t fewest = fewest_rows(recipe, options);
    if (!std::isfinite(budget.value) || budget.value <= 0) {
        return bad_input("the budget is {}: it must be above 0", budget.value);
    }
    switch (budget.unit) {
        case Budget::Unit::rows: {
            // Whole rows in total, so compare those: 15.9999 rows of 16 may round to enough.
            if (total_rows(budget.value, shape) < fewest * owners) {
                return bad_input("a budget of {} rows is below {} of {}: give at least {} rows",
                                 budget.value, minimum_is(recipe, options), recipe.name,
                                 mean_of(fewest));
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
                    budget.value, minimum_is(recipe, options), recipe.name,
                    needed * owners * row_bytes, needed, owners);
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
                    budget.value * 100, prompt, minimum_is(recipe, options), recipe.name,
                    std::ceil(1e5 * static_cast<double>(needed * owners) / heads / tokens) / 1e3,
                    mean_of(needed));
            }
            return total / heads;
        }
    }
    return bad_input("unknown unit of the budget");
}

// Importance of the heads that own rows: theirs, and that of all who read them.
std::vector<double> shares_of(const MethodConfig& config, const HeadShape& shape) {
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
    return reshaped_shares(std::move(shares), config.options.temperature, config.options.shrink);
}

// `mean`: rows a head over all layers. The plan is of the layers that own rows, see spread().
Plan allocate(const Recipe& recipe, const MethodConfig& config, const HeadShape& all, double mean,
              std::int64_t limit) {
    const MethodOptions& options = config.options;
    const HeadShape shape = owned_shape(config, all);
    const double rows = mean * static_cast<double>(all.layers) / static_cast<double>(shape.layers);
    switch (recipe.allocate) {
        case AllocateStep::all:
            break;
        case AllocateStep::uniform:
        case AllocateStep::adaptive:  // its layers' totals; the heads are split in keep_layer
        case AllocateStep::global:    // the sum of all
            return allocate_uniform(shape, rows, limit);
        case AllocateStep::pyramid:
            return allocate_pyramid(shape, rows, fewest_rows(recipe, options), options.pyramid_beta,
                                    limit);
        case AllocateStep::head_importance:
            return allocate_head_importance(shape, shares_of(config, all), rows,
                                            fewest_rows(recipe, options),
                                            importance_beta(options, rows), limit);
        case AllocateStep::binary_heads:
            return allocate_binary_heads(shape, shares_of(config, all), rows,
                                         options.sinks + options.window, limit);
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
    if (!config.share) {
        if (!recipe.shares) return {};
        return bad_input(
            "{} needs a map of shared layers: name a file with --share, or make one with 'headkv "
            "calibrate --kind share'",
            recipe.name);
    }
    if (auto fits = check_layer_map(*config.share, shape, "", true); !fits) return fits;
    if (recall_of(config, recipe)) {
        return bad_input(
            "{} with --recall cannot share rows between layers: leave --share or --recall out",
            recipe.name);
    }
    if (recipe.score == ScoreStep::output_attention ||
        recipe.score == ScoreStep::expected_attention ||
        recipe.score == ScoreStep::reconstruction) {
        return bad_input(
            "{} looks at more of a layer than attention and keys, which it cannot for several "
            "layers at once: leave --share out",
            recipe.name);
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

std::vector<std::int32_t> all_positions(std::int64_t n) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(n));
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
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

    Method method;
    method.recipe_ = recipe;
    method.config_ = config;
    method.shape_ = shape;
    method.prompt_ = prompt_tokens;
    if (recipe.allocate == AllocateStep::all) {
        method.rows_ = static_cast<double>(prompt_tokens);
        method.full_ = true;
        method.plan_ =
            spread(allocate(recipe, config, shape, method.rows_, prompt_tokens), config, shape);
        method.bound_ =
            spread(allocate(recipe, config, shape, method.rows_, kUnbounded), config, shape);
        return method;
    }
    const auto rows = rows_of(config, recipe, shape, prompt_tokens, row_bytes);
    if (!rows) return tl::unexpected(rows.error());
    method.rows_ = *rows;
    method.full_ = total_rows(*rows, shape) >=
                   prompt_tokens * owned_shape(config, shape).layers * shape.kv_heads;
    method.plan_ = allocate(recipe, config, shape, *rows, prompt_tokens);
    if (!method.full_) method.plan_ = fit_to_layout(method.plan_, config.layout, prompt_tokens);
    method.bound_ =
        method.full_
            ? extend_to_budget(method.plan_, allocate(recipe, config, shape, *rows, kUnbounded))
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
            needs.queries =
                std::min(options.observe > 0 ? options.observe : options.window, prompt_);
            break;
        case ScoreStep::accumulated_attention:
        case ScoreStep::prefix_mass:
            needs.queries = prompt_;
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
    return needs;
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
    return std::clamp<std::int64_t>((rows - protected_rows()) / 4, 1, kMost);
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
            values = score_window(view.observed, shape_, prompt_, without, options.kernel,
                                  options.pool, options.group_reduce);
    }
    if (recipe_.score == ScoreStep::last_query || recipe_.score == ScoreStep::layer_attention ||
        recipe_.score == ScoreStep::prefix_mass) {
        share_values(values, shape_.kv_heads);
    }
    if (recipe_.score == ScoreStep::key_clusters) return values;  // stay together as they are
    join_chunks(values, shape_.kv_heads, chunk_of(recipe_, options));
    if (recipe_.score == ScoreStep::prefix_mass) rank_by_prefix_mass(values, shape_.kv_heads);
    return values;
}

// Rows of the layer's heads, given their values: the plan's, or what the heads compete for.
std::vector<std::int64_t> Method::rows_of_layer(std::int64_t layer,
                                                const std::vector<float>& values) const {
    const MethodOptions& options = config_.options;
    const auto first = plan_.rows.begin() + layer * shape_.kv_heads;
    std::vector<std::int64_t> rows(first, first + shape_.kv_heads);
    if (!rows_follow_prompt()) return rows;
    const auto total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    const auto protect = protected_rows();
    const auto recent = std::max<std::int64_t>(1, recent_rows(0));
    // Without Ada-KV's floor and scaling where all layers would compete as they are.
    const bool as_they_are = recipe_.allocate == AllocateStep::global;
    const auto rivals = prompt_ - recent;  // the values of `top_k` go on to the last row
    auto wanted = allocate_adaptive(
        competing(values, shape_.kv_heads, protect, rivals), shape_.kv_heads, total,
        recent + protect, as_they_are ? 0 : options.floor, !as_they_are && options.normalize);
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
    const auto heads = static_cast<std::size_t>(shape_.kv_heads);
    if (!owns(layer)) return std::vector<std::vector<std::int32_t>>(heads);
    if (full_) return {heads, all_positions(prompt_)};

    const MethodOptions& options = config_.options;
    std::vector<std::vector<std::int32_t>> kept(heads);
    if (recipe_.select == SelectStep::sinks_recent) {
        for (std::size_t head = 0; head < heads; ++head) {
            kept[head] = select_sinks_recent(prompt_, options.sinks,
                                             plan_.at(layer, static_cast<std::int64_t>(head)));
        }
        return kept;
    }

    auto values = values_of(layer, view);
    const auto rows = rows_of_layer(layer, values);
    if (recipe_.score == ScoreStep::output_attention) {
        std::vector<std::int64_t> competing_rows(heads);
        std::transform(rows.begin(), rows.end(), competing_rows.begin(), [&](std::int64_t count) {
            return std::max<std::int64_t>(0, count - recent_rows(count) - protected_rows());
        });
        rank_by_output(values, view.output_norms, shape_, prompt_, protected_rows(),
                       competing_rows);
    }
    const std::size_t positions = values.size() / heads;
    std::vector<float> scratch;
    for (std::size_t head = 0; head < heads; ++head) {
        kept[head] =
            select_top_k_window(std::span(values).subspan(head * positions, positions), prompt_,
                                recent_rows(rows[head]), rows[head], protected_rows(), scratch);
    }
    return kept;
}

std::int64_t Method::bound(std::int64_t layer, std::int64_t head, std::int64_t kept) const {
    if (rows_follow_prompt() && !full_) return kept;
    return bound_.at(layer, head);
}

std::vector<std::int32_t> Method::keep_head(std::span<const float> observed, std::int64_t n,
                                            std::int64_t rows) const {
    if (rows >= n || recipe_.select == SelectStep::all) return all_positions(n);
    const MethodOptions& options = config_.options;
    if (recipe_.select == SelectStep::sinks_recent) {
        return select_sinks_recent(n, options.sinks, rows);
    }
    const HeadShape one_head{1, shape_.group(), 1};
    const bool pooled = recipe_.select == SelectStep::top_k_window;
    auto values = score_window(observed, one_head, n, unscored(recipe_, options),
                               pooled ? options.kernel : 1, options.pool, options.group_reduce);
    join_chunks(values, 1, chunk_of(recipe_, options));
    return select_top_k_window(values, n, recent_rows(rows), rows, protected_rows());
}

std::vector<std::int32_t> Method::keep_valued(std::span<const float> values, std::int64_t n,
                                              std::int64_t rows) const {
    if (rows >= n) return all_positions(n);
    return select_top_k_window(values, n, recent_rows(rows), rows, protected_rows());
}

}  // namespace headkv
