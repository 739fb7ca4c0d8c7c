#include "engine/step_recall.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

const float* floats(const ggml_tensor* tensor) { return static_cast<const float*>(tensor->data); }

}  // namespace

void append_keys(const SequenceCache& cache, std::int64_t layer, std::int64_t head,
                 std::int64_t begin, std::int64_t end, std::vector<Half>& keys) {
    const auto& shape = cache.shape();
    const auto* from = cache.head(layer, head).keys + begin * shape.key_bytes();
    const auto before = std::ssize(keys);
    keys.resize(size(before + (end - begin) * shape.dim_k));
    auto* to = keys.data() + before;
    if (shape.type_k == kernels::RowType::f16) {
        std::memcpy(to, from, size((end - begin) * shape.key_bytes()));
        return;
    }
    std::vector<float> row(size(shape.dim_k));
    for (auto i = begin; i < end; ++i, from += shape.key_bytes(), to += shape.dim_k) {
        kernels::load_row(shape.type_k, from, shape.dim_k, row.data());
        kernels::rotate(row.data(), shape.dim_k);
        kernels::best().to_half(row.data(), to, shape.dim_k);
    }
}

std::vector<float> cluster_values(const Method& method, const SequenceCache& archive,
                                  std::int64_t layer, std::int64_t head, std::int64_t rows,
                                  std::int64_t kept, std::span<const float> queries,
                                  KeyClusters& clusters) {
    const auto dim = archive.shape().dim_k;
    if (rows - clusters.rows() > method.most_unclustered(kept)) {
        std::vector<Half> keys;
        append_keys(archive, layer, head, clusters.rows(), rows, keys);
        clusters.add(keys, dim);
    }
    auto values = clusters.products(queries, dim);
    values.resize(size(rows), std::numeric_limits<float>::infinity());
    return values;
}

std::vector<float> attention_to_archive(const AttentionShape& shape, kernels::Rows rows,
                                        std::span<const float> queries, const float* key,
                                        double decay) {
    const auto& kernel = kernels::best();
    const auto dim = shape.dim_k;
    const auto group = shape.heads.group();
    const auto tokens = std::ssize(queries) / (group * dim);
    const auto all = rows.count + 1;
    std::vector<float> q(queries.begin(), queries.end());
    for (float& value : q) value *= shape.scale;
    // Of each query with the newest key, before the queries are turned as stored rows are.
    std::vector<float> own(size(tokens * group));
    for (std::size_t i = 0; i < own.size(); ++i) {
        const auto* from = q.data() + i * size(dim);
        own[i] = std::inner_product(from, from + dim, key, 0.0F);
        if (kernels::rotated(rows.key_type)) kernels::rotate(q.data() + i * size(dim), dim);
    }
    std::vector<float> mean(size(group * all), 0.0F), scores(size(all));
    const auto counts = query_weights(tokens, decay);
    for (std::int64_t token = 0; token < tokens; ++token) {
        const auto seen = all - (tokens - 1 - token);
        const float counted = counts.each[size(token)];
        for (std::int64_t head = 0; head < group; ++head) {
            const auto query = token * group + head;
            kernel.dot_keys(q.data() + query * dim, 1, rows, dim, scores.data(), all);
            scores[size(rows.count)] = own[size(query)];
            kernel.softmax(scores.data(), seen);
            float* sum = mean.data() + head * all;
            for (std::int64_t i = 0; i < seen; ++i) sum[i] += counted * scores[size(i)];
        }
    }
    for (float& value : mean) value /= counts.sum;
    return mean;
}

namespace {

// `keep` ends with the token's own row, which the attention stores.
void refill(const StepSelection& selection, std::int64_t layer, std::int64_t head,
            std::vector<std::int32_t> keep) {
    assert(keep.back() == selection.archive->head(layer, head).count);
    keep.pop_back();
    selection.cache->refill(layer, head, *selection.archive, keep);
}

}  // namespace

void StepRecall::drop_rows(const StepSelection& selection) {
    auto& cache = *selection.cache;
    std::vector<std::int32_t> first;
    for (std::int64_t layer = 0; layer < cache.shape().layers; ++layer) {
        for (std::int64_t head = 0; head < cache.shape().heads; ++head) {
            const auto rows = selection.rows_of(layer, head);
            if (rows == 0) continue;
            assert(rows - 1 <= cache.head(layer, head).count);
            first.resize(size(rows - 1));
            std::iota(first.begin(), first.end(), 0);
            cache.keep(layer, head, first);
        }
    }
}

void StepRecall::prepare(std::vector<StepSelection> selections) {
    selections_ = std::move(selections);
    for (auto& layer : layers_) layer->next.store(0, std::memory_order_relaxed);
}

ggml_tensor* StepRecall::select(ggml_context* context, ggml_tensor* q, ggml_tensor* k,
                                std::int64_t layer) {
    while (std::ssize(layers_) <= layer) {  // one a layer serves every graph of this engine
        layers_.push_back(std::make_unique<Layer>());
        layers_.back()->plan = this;
        layers_.back()->layer = std::ssize(layers_) - 1;
    }
    std::array<ggml_tensor*, 2> sources{q, k};
    return ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, sources.data(), 2, compute,
                          GGML_N_TASKS_MAX, layers_[size(layer)].get());
}

void StepRecall::compute(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& layer = *static_cast<Layer*>(data);
    const auto& plan = *layer.plan;
    const auto heads = plan.shape_.heads.kv_heads;
    const auto units = std::ssize(plan.selections_) * heads;
    for (auto unit = layer.next.fetch_add(1); unit < units; unit = layer.next.fetch_add(1)) {
        const auto& selection = plan.selections_[size(unit / heads)];
        const auto head = unit % heads;
        if (selection.rows_of(layer.layer, head) == 0) continue;
        const auto q =
            selection.first * plan.shape_.heads.query_heads + head * plan.shape_.heads.group();
        const auto k = selection.first * heads + head;
        plan.select_head(selection, layer.layer, head, floats(out->src[0]) + q * plan.shape_.dim_k,
                         floats(out->src[1]) + k * plan.shape_.dim_k);
    }
}

// `queries` [group][dim_k] and `key` [dim_k] of the token that selects.
void StepRecall::select_head(const StepSelection& selection, std::int64_t layer, std::int64_t head,
                             const float* queries, const float* key) const {
    const auto& log = *selection.log;
    const auto width = shape_.heads.group() * shape_.dim_k;
    const auto held = selection.archive->head(layer, head).count;
    const auto kept = selection.rows_of(layer, head);
    if (selection.clusters != nullptr) {
        auto& clusters = (*selection.clusters)[size(layer * shape_.heads.kv_heads + head)];
        auto values = cluster_values(*selection.method, *selection.archive, layer, head, held, kept,
                                     {queries, size(width)}, clusters);
        values.push_back(0);  // the token's own row
        refill(selection, layer, head, selection.method->keep_valued(values, held + 1, kept));
        return;
    }
    const auto before = std::min({selection.queries - 1, log.recorded(), held});
    std::vector<float> all(size((before + 1) * width));  // [tokens][group][dim_k]
    for (std::int64_t i = 0; i < before; ++i) {
        std::copy_n(log.at(log.written - before + i, layer) + head * width, width,
                    all.data() + i * width);
    }
    std::copy_n(queries, width, all.data() + before * width);
    const auto rows = selection.archive->rows(layer, head, 0, held);
    refill(selection, layer, head,
           selection.method->keep_head(
               attention_to_archive(shape_, rows, all, key, selection.method->query_decay()),
               held + 1, kept));
}

}  // namespace headkv
