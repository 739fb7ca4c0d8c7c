// Methods as recipes of four steps: score x allocate x select x store (docs/methods.md).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"
#include "headkv/layer_map.h"
#include "headkv/scores.h"

namespace headkv {

enum class ScoreStep {
    none,
    position,
    window_attention,       // mean attention of the last queries, pooled over positions
    accumulated_attention,  // mean attention of all queries (2306.14048)
    last_query,             // attention of the last query, mean over the layer (2401.06104)
    layer_attention,        // window attention, mean over the layer (2502.00299)
    squared_attention,      // mean squared attention of the last queries, pooled (2410.00161)
    prefix_mass,         // attention of all queries, mean over the layer, that no better row holds
                         // (2412.03409): 1 - the share of the rows ranked above
    output_attention,    // window attention, then times |W_o v| (2502.03805)
    expected_attention,  // of queries yet to come, times |v| (2510.00636)
    token_classes,       // attention that cheaper classes of rows leave out (2310.01801)
    aligned_attention,   // attention of all queries and of the last ones, of one mean (2412.08521)
    reconstruction,      // the most attention while the model reads its prompt again (2505.23416)
    key_norm,            // -|k|
    key_difference,      // -cos(k, mean direction of the keys) (2504.15364)
    key_clusters,        // last query times the mean key of a row's cluster (2412.03213)
    random,
};
enum class AllocateStep {
    all,
    uniform,
    pyramid,
    adaptive,
    head_importance,
    binary_heads,
    global,  // the rows of all layers and heads compete (2410.00161, 2412.03409)
};
enum class SelectStep {
    all,
    sinks_recent,
    top_k_window,  // the window and the best rows before it
    heavy_recent,  // half of a head's rows are its last ones, half the best before them
    top_k,         // the last row and the best before it
};
enum class StoreStep { f16, q8_0, q4_0 };  // types of cached rows; the latter two are ggml's
enum class Pool { max, avg };
enum class GroupReduce { mean, max };

// Names as `headkv methods` and the command line write them ("window-attention", "mean", ...).
std::string_view name_of(ScoreStep step);
std::string_view name_of(AllocateStep step);
std::string_view name_of(SelectStep step);
std::string_view name_of(StoreStep step);
std::string_view name_of(Pool pool);
std::string_view name_of(GroupReduce reduce);

// One line of the method table.
struct Recipe {
    std::string_view name;  // "snapkv", as on the command line
    ScoreStep score;
    AllocateStep allocate;
    SelectStep select;
    StoreStep store;              // where MethodConfig does not say another
    std::string_view score_kind;  // kind of head scores that allocate needs ("r", "r2"), or empty
    std::string_view paper;       // arXiv number
    std::string_view summary;     // one sentence
    std::int64_t chunk = 1;       // positions kept together where MethodOptions do not say
    std::int64_t protect = 0;     // first rows that every head keeps whatever MethodOptions say
    double merge = 0;             // share of MergeRows where MethodOptions do not say
    // What it cannot do without: every row beside the cache, stored so where MethodConfig::recall
    // does not say another type.
    std::optional<StoreStep> recall = {};
    bool shares = false;  // needs MethodConfig::share, which others may have
    bool latent = false;  // of models that were trained to share latent rows, see check_latent()
};

// The table, in display order.
std::span<const Recipe> recipes();
// The recipe with another allocator: its head scores change with it. Errors (bad_input): its rows
// cannot be allocated so; says why, and which ways there are.
Result<Recipe> with_allocator(const Recipe& recipe, AllocateStep allocate);
// The allocators that it takes and that a name can be given for.
std::vector<AllocateStep> allocators_of(const Recipe& recipe);
// Error (bad_input): lists the names.
Result<AllocateStep> parse_allocator(std::string_view name);
// Whether it scores by the mean attention of its last queries, which MethodOptions::query_decay
// weighs.
bool weighs_queries(const Recipe& recipe);
// The options that a recipe's steps read, by their names on the command line ("window", "kernel").
std::vector<std::string_view> option_names(const Recipe& recipe);
// Error (bad_input): the recipe is of models that were trained to share latent rows, and the map is
// none of theirs (LayerMap::trained; null: no map).
Result<void> check_latent(const Recipe& recipe, const LayerMap* share);
// Error (bad_input): unknown name; suggests the nearest one and lists all.
Result<const Recipe*> find_recipe(std::string_view name);

struct Budget {
    enum class Unit { rows, bytes, share };
    Unit unit = Unit::rows;
    double value =
        128;  // rows per head (window included, mean over heads) | bytes | 0..1 of the prompt
    bool operator==(const Budget&) const = default;
};

// Rows of a head, dropped but next in rank, that join the row kept whose key is most like theirs:
// as many as `amount`, or that share of the rows kept. 0: none.
struct MergeRows {
    double amount = 0;
    bool share = false;
    bool operator==(const MergeRows&) const = default;
};
// "64" rows, "50%" or "0.5" of the rows kept. Error (bad_input): says the form.
Result<MergeRows> parse_merge_rows(std::string_view text);
std::string name_of(const MergeRows& rows);
constexpr double kByBudget = -1;          // of MethodOptions::shrink
constexpr std::int64_t kDraftRows = 256;  // mean rows a head that a draft is made from, at least

// Defaults are this project's; default_options() has those that a recipe does best with,
// preset_paper() the paper's.
struct MethodOptions {
    std::optional<AllocateStep> allocate = {};  // instead of the recipe's, see with_allocator()
    std::int64_t window = 16;                   // last prompt rows, always kept
    std::int64_t protect = 0;    // first prompt rows, always kept; in front of the window
    std::int64_t observe = 0;    // last prompt queries that score; 0: as many as `window`
    std::int64_t skip_tail = 0;  // last prompt tokens whose queries do not: those before them score
    // What a query that scores counts beside the next one, above 0 and at most 1: the last one
    // counts 1, the one before it this much, then its square, ... Those of a draft count 1.
    double query_decay = 1;
    // The queries of the question score, whatever stands behind it. Where MethodConfig does not say
    // where it lies, those of `observe` and `skip_tail`.
    bool observe_question = false;
    // Tokens of a drafted answer, the queries of which score beside those of the prompt
    // (2505.20334); 0: none. The prompt is read once to draft from kDraftRows rows and once to
    // select.
    std::int64_t draft = 0;
    std::int64_t kernel = 21;  // odd width of the 1-D pooling over positions, stride 1
    Pool pool = Pool::avg;
    double beta =
        0;  // head_importance: pool = (b - w) / beta (2410.19258); 0: by importance_beta()
    double pyramid_beta = 20.0;  // pyramid: min = (b - w) / pyramid_beta (2406.02069)
    double floor = 0.2;          // adaptive: share of the rows that is uniform (2407.11550)
    bool normalize = true;       // adaptive: scale a head's scores by the mass its top rows hold
    GroupReduce group_reduce = GroupReduce::mean;
    double temperature = 1;  // shares of heads by their scores: taken to this power, 0 to 100
    // The same: 0..1, how far they are moved to equal ones; kByBudget: by importance_shrink().
    double shrink = 0;
    double mix = 0;          // head_importance: 0..1 of a layer's rows that its heads compete for,
                             // as in ada-kv; the rest follows the scores
    std::int64_t chunk = 0;  // positions that stay or go together; 0: the recipe's own
    // The rows of a sentence do, in place of a chunk's, and nothing is pooled; where sentences are
    // not known (a further turn, rows chosen while answering), as without.
    bool sentences = false;
    std::int64_t seed = 1;           // random: another choice
    std::int64_t cluster_size = 80;  // key_clusters: rows a cluster, on average (2412.03213)
    std::int64_t sinks = 4;          // sinks_recent: first rows kept (2309.17453)
    // sinks_recent: keys are turned to where they lie among the rows kept, as if nothing stood
    // between them (2309.17453). CPU engine only.
    bool in_cache_positions = false;
    // token_classes (2310.01801): shares of the prompt that are frequent, and recent; no class has
    // more rows than `class_rows` (0: the mean rows of the budget); a head needs no more rows once
    // its class holds `recovery` of its attention (1: the budget alone decides).
    double frequent = 0.3, local = 0.3;
    std::int64_t class_rows = 0;
    double recovery = 1;
    // What becomes of dropped rows (2412.08521); nothing: the recipe's own. A row whose key has no
    // cosine above `similarity` with any that is kept is gone. CPU engine only.
    std::optional<MergeRows> merge = {};
    double similarity = 0.6;
    std::int64_t reserve = 128;  // rows that each head may hold above its plan while decoding
    bool operator==(const MethodOptions&) const = default;
};
// The share of all importance that the most important tenth of the query heads (at least one) has.
double importance_concentration(const HeadScores& scores);
// The beta of head importance at a mean of `rows` a head: the one of the options, or rows / 100
// held within 1.2 and 5. Where rows are few, the important heads must have most of them; the more
// there are, the less is gained by starving the others. 5 for `scores` of which a tenth of the
// heads has more than three quarters (importance_concentration): the others would have next to
// nothing of the pool, and starve with a smaller one (docs/studies.md). `scores`: those that
// allocate; null where none do.
double importance_beta(const MethodOptions& options, double rows, const HeadScores* scores);
// The shrink of the shares of heads at a mean of `rows` a head: the one of the options, or
// 1 - 64 / rows, 0 up to 64 rows. Where all heads have many rows, there is little to be won by
// differences and an unusual prompt to be lost.
double importance_shrink(const MethodOptions& options, double rows);
// The options that a recipe does best with (docs/studies.md): those above, but where head
// importance allocates a window of 8 rows that 16 queries look from, the first row protected in
// every head (few rows starve heads of the one they look at when there is nothing to look at),
// whole sentences in place of pooling, and the maximum over the query heads of a group; where
// clusters of keys are ranked, every token of an answer ranks them anew (reserve 1).
MethodOptions default_options(const Recipe& recipe);
MethodOptions preset_paper();  // window 8, kernel 7, max pooling, beta 1.2 floor 0.2

// How a cache stores its rows. The prompt is always read, scored and selected with f16 rows; what
// is kept of it, and every row of the answer, is then rounded to these types.
struct StoreTypes {
    StoreStep keys = StoreStep::f16, values = StoreStep::f16;
    bool operator==(const StoreTypes&) const = default;
};
// "q8_0" for both, "q8_0:q4_0" for keys and values, as the command line has it.
std::string name_of(const StoreTypes& types);
// Error (bad_input): lists the names.
Result<StoreTypes> parse_store_types(std::string_view text);
// Bytes of one row of one KV head, key and value. Error (bad_input): a quantised type, which comes
// in blocks of 32 values, and a head dim that is no multiple of that.
Result<std::int64_t> row_bytes(const StoreTypes& types, std::int64_t dim_k, std::int64_t dim_v);

// How a device stores the heads of a layer: in at most `groups` groups of equal capacity, each a
// multiple of `multiple` rows. Plans are made for it, so that padding is used and not wasted.
struct RowLayout {
    std::int64_t multiple = 1;
    std::int64_t groups = 0;  // 0: every head has its own capacity
    bool operator==(const RowLayout&) const = default;
};
// "256x2": blocks of 256 rows, at most 2 groups a layer. Error (bad_input): says the form.
Result<RowLayout> parse_row_layout(std::string_view text);

// Positions [begin, end) of a prompt.
struct PositionSpan {
    std::int64_t begin = 0, end = 0;
    bool operator==(const PositionSpan&) const = default;
};
// Where a prompt's question lies, counted from the prompt's end, so that it does not move when the
// text before it is cut.
struct QuestionPart {
    std::int64_t tokens = 0;  // of the question; 0: not known
    std::int64_t tail = 0;    // behind it: the end of a chat template, or "Answer:"
    bool operator==(const QuestionPart&) const = default;
};

struct MethodConfig {
    std::string method = "headkv-r2";
    Budget budget;
    MethodOptions options;
    std::shared_ptr<const HeadScores> scores;  // for head_importance; null otherwise
    StoreTypes store = {};
    RowLayout layout = {};
    // Every row of the sequence stays beside the cache, stored as this; each further turn selects
    // anew from them (docs/methods.md). Methods that do not score select by position: they have no
    // use for it and keep none; some do not go without (Recipe::recall). CPU engine only.
    std::optional<StoreStep> recall = {};
    // Layers that read the rows of earlier ones and own none: what they do not take goes to the
    // others, at the same bytes. An owner's rows are selected for all who read them. CPU engine
    // only; what is read with one map is another computation than with another or without. Engines
    // put the map of a model that was trained with one here (ModelInfo::share).
    std::shared_ptr<const LayerMap> share = {};
    // Parts of the prompt that every head keeps, within the budget, as long as the sequence lives.
    std::vector<PositionSpan> keep = {};
    QuestionPart question = {};  // of the prompt at hand, for MethodOptions::observe_question
    bool operator==(const MethodConfig&) const = default;  // the same scores and map, not alike
};
// How a sequence of that recipe keeps all its rows, if it does.
std::optional<StoreStep> recall_of(const MethodConfig& config, const Recipe& recipe);

// What a token is, for methods that class rows by it.
enum class TokenKind : std::uint8_t { text, punctuation, special };

// Rows per (layer, KV head): exact, clamped to the prompt, the surplus handed on.
struct Plan {
    std::int64_t layers = 0, heads = 0;
    std::vector<std::int64_t> rows;  // [layers][heads], window included
    std::int64_t at(std::int64_t layer, std::int64_t head) const {
        return rows[static_cast<std::size_t>(layer * heads + head)];
    }
    std::int64_t total() const;
};

// Clusters of keys that a score ranks (2412.03213); size 0: none.
struct ClusterNeeds {
    std::int64_t size = 0;   // rows a cluster, on average
    std::int64_t first = 0;  // row from which on rows are in clusters
    bool operator==(const ClusterNeeds&) const = default;
};

// What a selection looks at in each layer of a prompt. An engine computes what some method asks
// for, once a layer for all of them.
struct LayerNeeds {
    std::int64_t queries = 0;  // prompt queries whose attention is observed; 0: none
    std::int64_t skip = 0;     // tokens behind the last of them
    bool squares = false;      // the squares of that attention
    // Queries of a text behind the prompt look, too, where one was read: those of the prompt's end
    // and all of the text's then count alike.
    bool draft = false;
    std::int64_t recent_queries = 0;  // the last ones, a shorter window: LayerView::recent
    // What a query counts beside the next one, see query_weights(): of `recent_queries` where there
    // are some, else of `queries`.
    double query_decay = 1;
    bool token_kinds = false;
    bool keys = false, values = false;
    bool future_queries = false;  // query_mean and query_covariance
    bool output_norms = false;
    bool reconstruction = false;  // the prompt is read again behind itself: twice the work
    bool sentences = false;
    ClusterNeeds clusters = {};
    bool operator==(const LayerNeeds&) const = default;
};

constexpr std::int64_t kSinkQueries = 4;  // first tokens of a prompt, unlike all others
constexpr std::int64_t kFuturePositions = 512;

// What was seen in one layer of a prompt of n tokens, f32. What needs() does not ask for may be
// empty.
struct LayerView {
    // [query_heads][n]: attention of LayerNeeds::queries queries, behind which LayerNeeds::skip
    // more tokens stand (softmax over all keys up to the query's own), or its squares, mean over
    // those queries as LayerNeeds::query_decay weighs them.
    std::span<const float> observed = {};
    std::span<const float> keys = {};    // [kv_heads][n][dim_k], after RoPE
    std::span<const float> values = {};  // [kv_heads][n][dim_v]
    // Of the prompt's queries but the first kSinkQueries, before RoPE, then turned by the mean of
    // the rotations of the kFuturePositions positions behind the prompt:
    std::span<const float> query_mean = {};        // [query_heads][dim_k]
    std::span<const float> query_covariance = {};  // [query_heads][dim_k][dim_k]
    // [query_heads][n]: sum of the absolute values of W_o v, W_o being the query head's columns of
    // the output projection.
    std::span<const float> output_norms = {};
    // [kv_heads][n]: the highest weight that a row gets from any query of the group while the model
    // reads the prompt again; 0 for the first kSinkQueries rows.
    std::span<const float> reconstruction = {};
    std::span<const float> recent = {};     // as `observed`, of the last recent_queries
    std::span<const TokenKind> kinds = {};  // [n], the same in every layer
    // Where the prompt's sentences begin, ascending from 0; nothing where they are not known.
    std::span<const std::int32_t> sentences = {};
    // [kv_heads][n]: products of the last query with the mean key of a row's cluster, sum over the
    // group; of rows outside of clusters, which are kept, any number.
    std::span<const float> cluster_products = {};
};

// Row `from` of a head, which is dropped, joins row `into`, which stays: positions of the prompt.
struct MergedRow {
    std::int32_t from = 0, into = 0;
    bool operator==(const MergedRow&) const = default;
};

// The last of the classes of score_token_classes(): rows of no other.
constexpr std::uint8_t kAnyRow = 4;

// What a head whose rows have classes goes on with while it answers.
struct HeadClasses {
    // The last class of which it keeps rows; kAnyRow: none of them decides.
    std::uint8_t last = kAnyRow;
    // Attention of all queries so far, their sum, to each row held when rows were last selected.
    std::vector<float> attention = {};
};

// What a selection makes of one layer: [kv_heads] sorted positions, and what joins them (empty
// where nothing merges), in order of `into`, then `from`.
struct LayerChoice {
    std::vector<std::vector<std::int32_t>> kept;
    std::vector<std::vector<MergedRow>> merged;
};

// A recipe bound to a model shape and a prompt length: the pure function that the engine calls once
// per layer. Holds no device state; all buffers are host f32.
class Method {
public:
    // `row_bytes`: bytes of one row (K and V) as stored; converts byte budgets. `prompt_tokens`
    // >= 1. Errors (bad_input): unknown method, budget below the rows always kept (window and
    // protected rows, or sinks, and MethodConfig::keep), options that do not go together, even
    // kernel, missing scores, scores of another shape or of the kind of another recipe ("r" for
    // headkv-r2), options out of range. A budget above the prompt is no error: runs_as_full() is
    // then true.
    static Result<Method> create(const MethodConfig& config, const HeadShape& shape,
                                 std::int64_t prompt_tokens, std::int64_t row_bytes);

    const Recipe& recipe() const { return recipe_; }  // with the options' allocator
    const MethodConfig& config() const { return config_; }
    // Rows per head of this prompt; for adaptive allocation only the sums of its layers matter.
    // Layers that read another's rows have 0.
    const Plan& plan() const { return plan_; }
    bool owns(std::int64_t layer) const { return !config_.share || config_.share->owns(layer); }
    bool runs_as_full() const { return full_; }   // every head keeps the whole prompt
    double rows_budget() const { return rows_; }  // mean rows per head asked for, any unit
    // What keep_layer() looks at; nothing where runs_as_full(). Accumulated attention needs the
    // queries of the whole prompt.
    LayerNeeds needs() const;
    // Queries for a re-selection while decoding, which a prompt below the budget may need, too:
    // methods that do not look at attention in the prompt look at the window's then.
    std::int64_t observe_answer() const;
    // What each of those counts beside the next one, see query_weights().
    double query_decay() const { return weighs_queries(recipe_) ? config_.options.query_decay : 1; }
    // The clusters of keys that it ranks, in a prompt and while decoding; none for most.
    ClusterNeeds clusters() const;
    // Newest rows that may be outside of clusters, where a head keeps `rows`: they stay. With more,
    // all of them become clusters.
    std::int64_t most_unclustered(std::int64_t rows) const;
    // Whether the rows of a head are only known once a prompt has been read.
    bool rows_follow_prompt() const;
    // Whether rows are classed by what their tokens are, in a prompt and while decoding.
    bool rows_have_classes() const { return !full_ && recipe_.score == ScoreStep::token_classes; }
    // Whether dropped rows join others, which changes values that are kept.
    bool merges() const;
    // Whether keys are to be turned to their places among the rows kept.
    bool in_cache_positions() const { return config_.options.in_cache_positions; }

    // Keep lists of one layer after prefill: [kv_heads] sorted positions.
    // Global allocation: the heads of this layer compete for its share of the budget alone;
    // PromptSelection has all layers compete.
    std::vector<std::vector<std::int32_t>> keep_layer(std::int64_t layer,
                                                      const LayerView& view) const;
    // The same, with the rows that join them where merges().
    LayerChoice choose_layer(std::int64_t layer, const LayerView& view) const;

    // Rows that a head may hold after a re-selection while decoding, however long the answer.
    // keep_layer never exceeds it and, over all heads, it sums to the budget exactly: the plan of
    // the prompt, or, if the prompt is below the budget, the prompt plus what the plan for an
    // unbounded prompt has above it. Adaptive allocation: `kept` are the rows that the head kept
    // of the prompt. `full`: no bound (the largest std::int64_t).
    std::int64_t bound(std::int64_t layer, std::int64_t head, std::int64_t kept) const;

    // Re-selection while decoding: which of the head's `n` held rows (in position order) stay,
    // sorted indices, exactly min(rows, n). `observed` [group][n]: attention of the last queries.
    // `positions` [n]: of the rows held; empty: every row since the beginning is.
    std::vector<std::int32_t> keep_head(std::span<const float> observed, std::int64_t n,
                                        std::int64_t rows,
                                        std::span<const std::int32_t> positions = {}) const;
    // The same where rows_have_classes(): the classes of the rows held decide as far as the head
    // has some, the cheapest first; of the class that is cut stay those with the most attention, of
    // recent rows the newest. `head`: what the head brings along; then of the rows that stay.
    // `positions` [n]; `kinds` of all tokens of the sequence.
    std::vector<std::int32_t> keep_classed(HeadClasses& head, std::span<const float> observed,
                                           std::span<const std::int32_t> positions,
                                           std::span<const TokenKind> kinds,
                                           std::int64_t rows) const;
    // The same by a value for each row [n] instead of attention.
    std::vector<std::int32_t> keep_valued(std::span<const float> values, std::int64_t n,
                                          std::int64_t rows) const;

private:
    friend class PromptSelection;
    std::vector<float> values_of(std::int64_t layer, const LayerView& view) const;
    // What decides between equal values before the position does; empty: nothing.
    std::vector<float> second_values_of(const LayerView& view) const;
    // Rows of a class that is a share of the prompt.
    std::int64_t class_rows(double share) const;
    bool marked(std::int64_t position) const;
    // Rows of a head that no score decides about: the last of `rows` in all, and the first.
    std::int64_t recent_rows(std::int64_t rows) const;
    std::int64_t protected_rows() const;
    std::vector<std::int64_t> rows_of_layer(std::int64_t layer,
                                            const std::vector<float>& values) const;
    std::vector<MergedRow> merged_rows(std::span<const float> keys, std::span<const float> values,
                                       std::int64_t rows,
                                       const std::vector<std::int32_t>& kept) const;

    Recipe recipe_ = {};
    MethodConfig config_;
    HeadShape shape_;
    std::int64_t prompt_ = 0;
    double rows_ = 0;
    bool full_ = false;
    // Positions of MethodConfig::keep that nothing else keeps, and all the others: sorted.
    std::vector<std::int32_t> marked_, unmarked_;
    Plan plan_;   // for this prompt length (static allocators; adaptive: per-layer totals)
    Plan bound_;  // while decoding, see bound()
};

// The selection of one prompt, once for each layer; a layer whose rows others read comes when its
// last reader has been seen, and layers that own no rows need not come. Where the rows of all
// layers compete, a layer takes rows back from those that came before it: what ranks below the best
// so far, as many as the budget has in all, cannot be among the best of all layers. So the result
// is exact, and no more rows are held on the way than the budget allows.
class PromptSelection {
public:
    explicit PromptSelection(Method method);

    // Keep lists of a layer, as Method::keep_layer() takes and gives them.
    std::vector<std::vector<std::int32_t>> next(std::int64_t layer, const LayerView& view);
    // What joins the rows that next() has just kept, [kv_heads]; empty where nothing merges.
    const std::vector<std::vector<MergedRow>>& merged() const { return merged_; }

    // Rows that next() has taken back in a layer that came before, [kv_heads]: sorted indices of
    // those that stay, into the rows held so far.
    struct Cut {
        std::int64_t layer = 0;
        std::vector<std::vector<std::int32_t>> stay;
    };
    const std::vector<Cut>& cuts() const { return cuts_; }
    // After the last layer: what the heads begin to answer with, [layers * kv_heads]. Nothing
    // unless Method::rows_have_classes().
    std::vector<HeadClasses> classes() const;

private:
    struct Rival {
        float value = 0, second = 0;
        std::int32_t position = 0;
        std::uint8_t token_class = 0;
    };
    using Head = std::vector<Rival>;  // still in, by position
    void keep_best(std::int64_t count, std::size_t newest);

    Method method_;
    std::int64_t recent_, protect_;          // last and first rows of a head, which do not compete
    std::vector<std::vector<Head>> layers_;  // [layers][kv_heads], without heads until it came
    std::vector<std::vector<float>> recent_seconds_;  // [layers][kv_heads * recent_], as layers_
    std::vector<Cut> cuts_;
    std::vector<std::vector<MergedRow>> merged_;
};

// --- the steps, for tests, `headkv plan` and researchers
// ------------------------------------------

// Importance of KV heads: sum of query-head scores over the group, then shares that sum to 1.
// All-zero scores give equal shares.
std::vector<double> kv_head_shares(const HeadScores& scores, const HeadShape& shape);
// Shares to the power `temperature`, then moved towards equal ones by `shrink` (0..1); sum to 1.
std::vector<double> reshaped_shares(std::vector<double> shares, double temperature, double shrink);

// Splits `total` over weights by largest remainder (ties: lower index); the result sums to `total`.
std::vector<std::int64_t> largest_remainder(std::span<const double> weights, std::int64_t total);

// head_importance at KV-head grain (2410.19258, eq. 5-6): every head gets window + floor, the pool
// (b - w)/beta per head is shared by importance; clamped to `limit` rows, surplus water-filled;
// sums to round(rows * layers * heads) exactly unless every head is at the limit. Surplus goes by
// importance; once every important head is at the limit, evenly. Needs rows >= window, beta >= 1.
Plan allocate_head_importance(const HeadShape& shape, std::span<const double> shares, double rows,
                              std::int64_t window, double beta, std::int64_t limit);
Plan allocate_uniform(const HeadShape& shape, double rows, std::int64_t limit);
// 2406.02069: a straight line over the layers, from 2b' - b'/beta rows beyond the window down to
// b'/beta (b' = rows - window); a top above the limit flattens it. Exact total by largest
// remainder.
Plan allocate_pyramid(const HeadShape& shape, double rows, std::int64_t window, double beta,
                      std::int64_t limit);
// DuoAttention (2410.10819) at KV-head grain and under a budget: as many heads as it pays for, the
// most important first, get `limit` rows; the others share the rest evenly, `least` rows or (at
// budgets below that) all the same.
Plan allocate_binary_heads(const HeadShape& shape, std::span<const double> shares, double rows,
                           std::int64_t least, std::int64_t limit);
// One layer of Ada-KV (2407.11550) at KV-head grain. `values` [heads][positions before the window].
// Returns rows per head, window included, summing to `total`.
std::vector<std::int64_t> allocate_adaptive(std::span<const float> values, std::int64_t heads,
                                            std::int64_t total, std::int64_t window, double floor,
                                            bool normalize);

// The allocation as the published HeadKV code computes it, bit for bit (data/README "allocation"):
// query heads, window excluded, no clamping, rounding half to even.
std::vector<std::int64_t> allocate_as_published(const HeadScores& scores, std::int64_t kv_size,
                                                std::int64_t window, double beta);

// What queries count in the mean of their attention.
struct QueryWeights {
    std::vector<float> each;  // the oldest query first
    float sum = 0;
};
// The last `alike` queries and the one before them count 1, the one before that `decay`, then
// decay^2, ...: `count` in all.
QueryWeights query_weights(std::int64_t count, double decay, std::int64_t alike = 0);

// Observation -> value per (KV head, position before the window): mean or max over the group, then
// 1-D pooling (zero padding for avg, as PyTorch's avg_pool1d counts it; -inf for max).
std::vector<float> score_window(std::span<const float> observed, const HeadShape& shape,
                                std::int64_t n, std::int64_t window, std::int64_t kernel, Pool pool,
                                GroupReduce reduce);

// Scores that look at no attention, per (KV head, position): [kv_heads][n] from keys
// [kv_heads][n][dim] f32. A key without direction counts as unlike all others.
std::vector<float> score_key_norm(std::span<const float> keys, std::int64_t heads, std::int64_t n);
std::vector<float> score_key_difference(std::span<const float> keys, std::int64_t heads,
                                        std::int64_t n);
// From keys, values and the moments of the queries: [kv_heads][n], mean over the group; `epsilon`
// is added to what attention a row may expect. The first kSinkQueries get 0 (2510.00636).
std::vector<float> score_expected_attention(const LayerView& view, const HeadShape& shape,
                                            std::int64_t n, double epsilon);
// In place, values [kv_heads][positions]: behind the first `protect` positions, the better half of
// the `competing_rows` of each head stay above all others; the others are ranked by (value + 1e-4)
// times the group's mean of `norms` [query_heads][n] (2502.03805).
void rank_by_output(std::span<float> values, std::span<const float> norms, const HeadShape& shape,
                    std::int64_t n, std::int64_t protect,
                    std::span<const std::int64_t> competing_rows);
// FastGen's classes (2310.01801) as values, [kv_heads][n]. Rows of special tokens, the first
// `protect` and the last one are class 0, punctuation 1, of the rest the `frequent` ones with the
// most attention 2, the last `local` rows 3, the others 4. A row's value is the share of the
// attention that the classes below its own leave out, in the query head of the group that they
// serve worst: a threshold of 1 - T keeps in every head the cheapest class that holds T for all of
// them.
std::vector<float> score_token_classes(const LayerView& view, const HeadShape& shape,
                                       std::int64_t n, std::int64_t protect, std::int64_t frequent,
                                       std::int64_t local, GroupReduce reduce);
// The classes themselves, [kv_heads][n]; the arguments are the same.
std::vector<std::uint8_t> token_classes(const LayerView& view, const HeadShape& shape,
                                        std::int64_t n, std::int64_t protect, std::int64_t frequent,
                                        std::int64_t local, GroupReduce reduce);
// The classes of the rows that one head holds, [n], by their `positions` in a text: the last
// `local` tokens are recent. `kinds` [tokens], `attention` [n].
std::vector<std::uint8_t> held_classes(std::span<const std::int32_t> positions,
                                       std::span<const TokenKind> kinds,
                                       std::span<const float> attention, std::int64_t protect,
                                       std::int64_t frequent, std::int64_t local);
// EMS (2412.08521): attention of all queries, each row's divided by the queries that can see it,
// and that of the last ones, scaled to the same mean before the last `window` rows, and added:
// [query_heads][n].
std::vector<float> align_attention(const LayerView& view, const HeadShape& shape, std::int64_t n,
                                   std::int64_t window);
// Each of `candidates` (positions, sorted, none in `kept`) with the row kept whose key has the
// highest cosine with its own (ties: lower position), where that is above `similarity`. `keys`
// [n][dim] of one head, dim = keys.size() / n. In order of `into`, then `from`.
std::vector<MergedRow> merge_into_nearest(std::span<const float> keys, std::int64_t n,
                                          std::span<const std::int32_t> kept,
                                          std::span<const std::int32_t> candidates,
                                          double similarity);
// Numbers in [0, 1) that only depend on seed, layer, head and position: [heads][n].
std::vector<float> score_random(std::int64_t seed, std::int64_t layer, std::int64_t heads,
                                std::int64_t n);
// In place, values [heads][n]: every head gets the mean over the heads, so that all keep the same.
void share_values(std::span<float> values, std::int64_t heads);
// In place, values [heads][n]: each becomes 1 - the share that the head's better ones (ties: lower
// position) have of all its values, so that a threshold t keeps in every head the fewest rows that
// hold more than 1 - t of its mass.
void rank_by_prefix_mass(std::span<float> values, std::int64_t heads);
// In place, values [heads][n]: every position gets the mean of its chunk of `chunk` positions, so
// that chunks stay or go as a whole (but for one that the budget cuts).
void join_chunks(std::span<float> values, std::int64_t heads, std::int64_t chunk);
// The same with chunks that begin at `starts`, ascending from 0.
void join_sentences(std::span<float> values, std::int64_t heads,
                    std::span<const std::int32_t> starts);

// The first `protect` rows, the window, and the best positions between them (ties: lower position)
// up to `rows` in all, sorted. Fewer rows than those always kept: the window goes first.
std::vector<std::int32_t> select_top_k_window(std::span<const float> values, std::int64_t n,
                                              std::int64_t window, std::int64_t rows,
                                              std::int64_t protect = 0);
std::vector<std::int32_t> select_sinks_recent(std::int64_t n, std::int64_t sinks,
                                              std::int64_t rows);

}  // namespace headkv
