#include "engine/attention_ops.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

#include "headkv/method.h"

namespace headkv {

namespace {

using kernels::HeadDims;
using kernels::Rows;
using kernels::SoftmaxState;

constexpr std::int64_t kRowBlock = 512;         // cached rows of one decode unit
constexpr std::int64_t kTileQueries = 24;       // from here on, tiles beat row-by-row
constexpr std::int64_t kObservedTogether = 32;  // queries whose weights are held at once

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

float* floats(ggml_tensor* tensor) { return static_cast<float*>(tensor->data); }

// Scratch of one thread; grows to what its largest unit needs and stays.
float* scratch(std::size_t count) {
    thread_local std::vector<float> memory;
    if (memory.size() < count) memory.resize(count);
    return memory.data();
}

// The scaled queries of `count` tokens from `first` for one KV head: [count * group][dim_k].
void gather_queries(const AttentionShape& shape, const float* q, std::int64_t first,
                    std::int64_t count, std::int64_t head, float* to) {
    const auto width = shape.heads.group() * shape.dim_k;
    for (std::int64_t token = 0; token < count; ++token) {
        const float* from =
            q + ((first + token) * shape.heads.query_heads * shape.dim_k) + head * width;
        for (std::int64_t i = 0; i < width; ++i) to[token * width + i] = from[i] * shape.scale;
    }
}

void start_state(SoftmaxState state, std::int64_t queries, std::int64_t stride) {
    std::fill_n(state.max, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(state.sum, queries, 0.0F);
    std::fill_n(state.out, queries * stride, 0.0F);
}

// Sums over values that are stored rotated, as they would be over the values themselves.
void turn_back(const SequenceCache& cache, const SoftmaxState& state, std::int64_t queries,
               std::int64_t stride) {
    if (!kernels::rotated(cache.shape().type_v)) return;
    for (std::int64_t i = 0; i < queries; ++i) {
        kernels::rotate(state.out + i * stride, cache.shape().dim_v);
    }
}

// Divides and writes the heads of one group where the output wants them.
void write_output(const AttentionShape& shape, const SoftmaxState& state, std::int64_t stride,
                  std::int64_t first, std::int64_t count, std::int64_t head, float* out) {
    const auto group = shape.heads.group();
    for (std::int64_t token = 0; token < count; ++token) {
        for (std::int64_t g = 0; g < group; ++g) {
            const auto query = token * group + g;
            const float factor = 1 / state.sum[query];
            const float* from = state.out + query * stride;
            float* to =
                out + ((first + token) * shape.heads.query_heads + head * group + g) * shape.dim_v;
            for (std::int64_t i = 0; i < shape.dim_v; ++i) to[i] = from[i] * factor;
        }
    }
}

}  // namespace

// --- prefill
// ---------------------------------------------------------------------------------------

bool PackedLayerRows::fits(const AttentionShape& shape) {
    return std::max(shape.dim_k, shape.dim_v) <= kernels::kWidestPackedHead;
}

PackedLayerRows::PackedLayerRows(const kernels::TileKernels& unit, const AttentionShape& shape,
                                 std::int64_t tokens)
    : unit_(&unit),
      shape_(shape),
      blocks_((tokens + kernels::kPackedRows - 1) / kernels::kPackedRows),
      keys_(shape.heads.kv_heads * blocks_ * kernels::kPackedRows *
            kernels::packed_key_dim(shape.dim_k)),
      values_(shape.heads.kv_heads * blocks_ * kernels::kPackedRows *
              kernels::packed_value_dim(shape.dim_v)) {}

kernels::PackedRows PackedLayerRows::head(std::int64_t head) const {
    const auto rows = head * blocks_ * kernels::kPackedRows;
    return {keys_.data() + rows * kernels::packed_key_dim(shape_.dim_k),
            values_.data() + rows * kernels::packed_value_dim(shape_.dim_v)};
}

void PackedLayerRows::pack(const LayerRows& rows, std::int64_t head, std::int64_t block,
                           std::int64_t end) {
    const auto first = block * kernels::kPackedRows;
    const auto count = std::min(kernels::kPackedRows, end - first);
    const auto from = head * rows.head_rows() + first;
    const auto to = head * blocks_ * kernels::kPackedRows + first;
    unit_->pack_keys(rows.keys.data() + from * shape_.dim_k, count, shape_.dim_k,
                     keys_.data() + to * kernels::packed_key_dim(shape_.dim_k));
    unit_->pack_values(rows.values.data() + from * shape_.dim_v, count, shape_.dim_v,
                       values_.data() + to * kernels::packed_value_dim(shape_.dim_v));
}

namespace {

// Tokens of a unit of prefill attention: as many as a tile has queries for.
std::int64_t tokens_of_block(const AttentionShape& shape) {
    return std::max<std::int64_t>(1, kernels::kMostQueries / shape.heads.group());
}

// Takes units, a block of tokens and a KV head each, until there are none: gathers the block's
// queries into `queries` [block * group][dim_k], then calls begin(count), attend(head, query, some,
// visible) for every kMostQueries queries from `query` on (more than one call where a group has
// more heads than that), and end(head, first, count). visible[i]: rows that query + i sees.
template <class Begin, class Attend, class End>
void each_block(PrefillAttention& plan, ggml_tensor* q, float* queries, const Begin& begin,
                const Attend& attend, const End& end) {
    const auto& shape = plan.shape;
    const auto group = shape.heads.group();
    const auto block = tokens_of_block(shape);
    const auto tokens = q->ne[2];
    const auto blocks = (tokens + block - 1) / block;
    const auto units = blocks * shape.heads.kv_heads;
    std::vector<std::int64_t> visible(size(block * group));
    // The last tokens see the most keys: they go first, so that no thread is left with a long unit.
    for (auto unit = plan.next.fetch_add(1); unit < units; unit = plan.next.fetch_add(1)) {
        const auto first = (blocks - 1 - unit / shape.heads.kv_heads) * block;
        const auto head = unit % shape.heads.kv_heads;
        const auto count = std::min(block, tokens - first);
        gather_queries(shape, floats(q), first, count, head, queries);
        for (std::int64_t i = 0; i < count * group; ++i) {
            visible[size(i)] = plan.position + first + i / group + 1;
        }
        begin(count);
        for (std::int64_t part = 0; part < count * group; part += kernels::kMostQueries) {
            attend(head, part, std::min(kernels::kMostQueries, count * group - part),
                   visible.data() + part);
        }
        end(head, first, count);
    }
}

void compute_prefill(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<PrefillAttention*>(data);
    const auto& shape = plan.shape;
    const auto& kernel = kernels::best();
    const HeadDims dims{shape.dim_k, shape.dim_v};
    const auto group = shape.heads.group();
    const auto stride = kernel.padded_dim(shape.dim_v);
    const auto most = tokens_of_block(shape) * group;
    float* queries =
        scratch(size(most * (shape.dim_k + 2 + stride) + kernel.tile_work_floats(dims)));
    const SoftmaxState state{queries + most * shape.dim_k, queries + most * (shape.dim_k + 1),
                             queries + most * (shape.dim_k + 2)};
    float* work = state.out + most * stride;
    each_block(
        plan, out->src[0], queries,
        [&](std::int64_t count) { start_state(state, count * group, stride); },
        [&](std::int64_t head, std::int64_t q, std::int64_t some, const std::int64_t* visible) {
            const auto held = plan.rows.head_rows();
            const Rows rows{plan.rows.keys.data() + head * held * shape.dim_k,
                            plan.rows.values.data() + head * held * shape.dim_v, held};
            kernel.attend_tiles(queries + q * shape.dim_k, some, visible, rows, dims,
                                {state.max + q, state.sum + q, state.out + q * stride}, work);
        },
        [&](std::int64_t head, std::int64_t first, std::int64_t count) {
            write_output(shape, state, stride, first, count, head, floats(out));
        });
}

// Packs the blocks that have been written to. They are few, and every unit of the attention needs
// them, so this is a node of its own in front of it.
void compute_packing(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<PrefillAttention*>(data);
    const auto end = plan.position + out->src[0]->ne[2];
    const auto first = plan.unpacked / kernels::kPackedRows;
    const auto blocks = (end + kernels::kPackedRows - 1) / kernels::kPackedRows - first;
    const auto units = blocks * plan.shape.heads.kv_heads;
    for (auto unit = plan.next_packed.fetch_add(1); unit < units;
         unit = plan.next_packed.fetch_add(1)) {
        plan.packed->pack(plan.rows, unit / blocks, first + unit % blocks, end);
    }
}

void compute_prefill_packed(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<PrefillAttention*>(data);
    const auto& shape = plan.shape;
    const auto& unit = plan.packed->unit();
    const HeadDims dims{shape.dim_k, shape.dim_v};
    const auto width = shape.heads.group() * shape.dim_v;
    const auto most = tokens_of_block(shape) * shape.heads.group();
    constexpr std::int64_t kLine = 16;  // floats of a cache line
    const auto work_size = (unit.attend_work_floats(dims) + kLine - 1) / kLine * kLine;
    float* memory = scratch(size(work_size + kLine + most * (shape.dim_k + shape.dim_v)));
    const auto past = reinterpret_cast<std::uintptr_t>(memory) / sizeof(float) % kLine;
    float* work = memory + (past == 0 ? 0 : kLine - static_cast<std::int64_t>(past));
    float* queries = work + work_size;
    float* answers = queries + most * shape.dim_k;
    each_block(
        plan, out->src[0], queries, [](std::int64_t) {},
        [&](std::int64_t head, std::int64_t q, std::int64_t some, const std::int64_t* visible) {
            unit.attend(queries + q * shape.dim_k, some, visible, plan.packed->head(head), dims,
                        answers + q * shape.dim_v, work);
        },
        [&](std::int64_t head, std::int64_t first, std::int64_t count) {
            for (std::int64_t token = 0; token < count; ++token) {
                std::copy_n(answers + token * width, width,
                            floats(out) + (first + token) * shape.heads.query_heads * shape.dim_v +
                                head * width);
            }
        });
}

// Adds the attention of queries [begin, end) of the plan's, times what they count, to `sums`
// [tokens]. `memory`: (end - begin) * (dim_k + tokens) floats.
void add_attention(const Observation& plan, const QueryWeights& counts, std::int64_t head,
                   std::int64_t begin, std::int64_t end, float* memory, float* sums) {
    const auto& shape = plan.shape;
    const auto& kernel = kernels::best();
    const auto tokens = plan.rows.tokens;
    const auto width = shape.heads.query_heads * shape.dim_k;
    float* scores = memory + (end - begin) * shape.dim_k;
    for (auto i = begin; i < end; ++i) {
        const float* from = plan.queries + i * width + head * shape.dim_k;
        float* query = memory + (i - begin) * shape.dim_k;
        for (std::int64_t d = 0; d < shape.dim_k; ++d) query[d] = from[d] * shape.scale;
    }
    const auto* keys =
        plan.rows.keys.data() + head / shape.heads.group() * plan.rows.head_rows() * shape.dim_k;
    const auto before = tokens - plan.skip - plan.count;  // tokens in front of the first query
    const auto most = before + end;                       // rows that the last of them sees
    kernel.dot_rows(memory, end - begin, keys, most, shape.dim_k, scores, tokens);
    for (auto i = begin; i < end; ++i) {
        float* weights = scores + (i - begin) * tokens;
        const auto seen = before + i + 1;
        kernel.softmax(weights, seen);
        const float counted = counts.each[size(i)];
        if (plan.squared) {
            for (std::int64_t j = 0; j < seen; ++j) sums[j] += counted * weights[j] * weights[j];
        } else {
            for (std::int64_t j = 0; j < seen; ++j) sums[j] += counted * weights[j];
        }
    }
}

// Queries are taken in blocks, so that the attention of all of a prompt needs no matrix of
// tokens x tokens.
void compute_observation(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<Observation*>(data);
    const auto tokens = plan.rows.tokens;
    const auto block = std::min(plan.count, kObservedTogether);
    const auto counts = query_weights(plan.count, plan.decay, plan.alike);
    float* memory = scratch(size(block * (plan.shape.dim_k + tokens)));
    for (auto head = plan.next.fetch_add(1); head < plan.shape.heads.query_heads;
         head = plan.next.fetch_add(1)) {
        float* mean = floats(out) + head * tokens;
        std::fill_n(mean, tokens, 0.0F);
        for (std::int64_t begin = 0; begin < plan.count; begin += block) {
            add_attention(plan, counts, head, begin, std::min(begin + block, plan.count), memory,
                          mean);
        }
        const float factor = 1.0F / counts.sum;
        for (std::int64_t j = 0; j < tokens; ++j) mean[j] *= factor;
    }
}

}  // namespace

ggml_tensor* prefill_attention(ggml_context* context, ggml_tensor* q, std::span<ggml_tensor*> after,
                               PrefillAttention& plan) {
    std::array<ggml_tensor*, 4> sources{q};
    assert(after.size() < sources.size());
    std::copy(after.begin(), after.end(), sources.begin() + 1);
    auto count = static_cast<int>(1 + after.size());
    if (plan.packed != nullptr) {
        sources[1] = ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, sources.data(), count,
                                    compute_packing, GGML_N_TASKS_MAX, &plan);
        count = 2;
    }
    return ggml_custom_4d(context, GGML_TYPE_F32, plan.shape.dim_v * plan.shape.heads.query_heads,
                          q->ne[2], 1, 1, sources.data(), count,
                          plan.packed != nullptr ? compute_prefill_packed : compute_prefill,
                          GGML_N_TASKS_MAX, &plan);
}

ggml_tensor* observe(ggml_context* context, Observation& plan) {
    return ggml_custom_4d(context, GGML_TYPE_F32, plan.rows.tokens, plan.shape.heads.query_heads, 1,
                          1, nullptr, 0, compute_observation, GGML_N_TASKS_MAX, &plan);
}

// --- decode
// ----------------------------------------------------------------------------------------

QueryLog::QueryLog(std::int64_t layer_count, std::int64_t query_width, std::int64_t tokens)
    : capacity(tokens),
      layers(layer_count),
      width(query_width),
      data(size(tokens * layer_count * query_width)) {}

float* QueryLog::at(std::int64_t token, std::int64_t layer) {
    return data.data() + (token % capacity * layers + layer) * width;
}

const float* QueryLog::at(std::int64_t token, std::int64_t layer) const {
    return data.data() + (token % capacity * layers + layer) * width;
}

void QueryLog::resize(std::int64_t tokens) {
    QueryLog other(layers, width, tokens);
    const auto kept = std::min(recorded(), tokens);
    for (std::int64_t i = 0; i < kept; ++i) {
        std::memcpy(other.at(i, 0), at(written - kept + i, 0),
                    size(layers * width) * sizeof(float));
    }
    other.written = kept;
    *this = std::move(other);
}

namespace {

bool holds_f16(const SequenceCache& cache) {
    return cache.shape().type_k == kernels::RowType::f16 &&
           cache.shape().type_v == kernels::RowType::f16;
}

// Width of an output row in partial results that are joined: the tiles' where they may be used.
// They read f16 rows only; rows of other types are attended to one by one.
std::int64_t part_stride(const SequenceCache& cache, std::int64_t dim_v) {
    return holds_f16(cache) ? kernels::best().padded_dim(dim_v) : dim_v;
}

}  // namespace

void DecodeAttention::prepare(std::span<const Slot> slots, std::int64_t layers) {
    slots_.assign(slots.begin(), slots.end());
    while (layers_.size() < size(layers)) layers_.push_back(std::make_unique<Layer>());
    const auto joins = slots.size() * size(shape_.heads.kv_heads * layers);
    if (joins > joins_) {
        left_ = std::make_unique<std::atomic<std::int64_t>[]>(joins);
        joins_ = joins;
    }
    const auto stride = kernels::best().padded_dim(shape_.dim_v) + 2;  // out, max, sum
    std::int64_t most_states = 0;
    std::int64_t join = 0;
    for (std::int64_t index = 0; index < layers; ++index) {
        auto& layer = *layers_[size(index)];
        layer.next.store(0, std::memory_order_relaxed);
        layer.units.clear();
        std::int64_t states = 0;  // layers run one after the other and share the memory
        for (std::size_t slot = 0; slot < slots.size(); ++slot) {
            const auto queries = slots[slot].count * shape_.heads.group();
            for (std::int64_t head = 0; head < shape_.heads.kv_heads; ++head) {
                const auto rows = slots[slot].cache->head(index, head).count;
                const auto parts = std::max<std::int64_t>(1, (rows + kRowBlock - 1) / kRowBlock);
                left_[size(join)].store(parts, std::memory_order_relaxed);
                for (std::int64_t part = 0; part < parts; ++part) {
                    layer.units.push_back({static_cast<std::int64_t>(slot), head, part * kRowBlock,
                                           std::min(rows, (part + 1) * kRowBlock),
                                           part + 1 == parts, parts, join,
                                           parts == 1 ? -1 : states});
                    if (parts > 1) states += queries * stride;
                }
                ++join;
            }
        }
        most_states = std::max(most_states, states);
    }
    if (states_.size() < size(most_states)) states_.resize(size(most_states));
}

ggml_tensor* DecodeAttention::attend(ggml_context* context, ggml_tensor* q, ggml_tensor* k,
                                     ggml_tensor* v, std::int64_t layer, ggml_tensor* after) {
    // One node a layer serves every graph of this engine.
    while (nodes_.size() <= size(layer)) {
        nodes_.push_back(
            std::make_unique<Node>(Node{this, static_cast<std::int64_t>(nodes_.size())}));
    }
    std::array<ggml_tensor*, 4> sources{q, k, v, after};
    if (k == nullptr) sources = {q, after, nullptr, nullptr};
    const auto count = std::count_if(sources.begin(), sources.end(),
                                     [](const ggml_tensor* source) { return source != nullptr; });
    return ggml_custom_4d(context, GGML_TYPE_F32, shape_.dim_v * shape_.heads.query_heads, q->ne[2],
                          1, 1, sources.data(), static_cast<int>(count), compute, GGML_N_TASKS_MAX,
                          nodes_[size(layer)].get());
}

void DecodeAttention::compute(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    const auto& node = *static_cast<Node*>(data);
    auto& layer = *node.plan->layers_[size(node.layer)];
    const auto units = static_cast<std::int64_t>(layer.units.size());
    for (auto i = layer.next.fetch_add(1); i < units; i = layer.next.fetch_add(1)) {
        node.plan->run_unit(layer.units[size(i)], node.layer, out);
    }
}

void DecodeAttention::run_unit(const Unit& unit, std::int64_t layer, ggml_tensor* out) {
    const auto& slot = slots_[size(unit.slot)];
    const auto& kernel = kernels::best();
    const HeadDims dims{shape_.dim_k, shape_.dim_v};
    const auto group = shape_.heads.group();
    const auto queries = slot.count * group;
    const auto& cache = *slot.cache;
    const bool tiles = queries >= kTileQueries && holds_f16(cache);
    // Row-by-row and tiled results must have one stride to be joined.
    const auto padded = kernel.padded_dim(shape_.dim_v);
    const auto stride = unit.state >= 0 || tiles ? part_stride(cache, shape_.dim_v) : shape_.dim_v;
    const bool use_tiles = tiles || stride != shape_.dim_v;
    const auto work_size = kernel.tile_work_floats(dims);
    float* memory = scratch(size(queries * (shape_.dim_k + padded + 2) + work_size));
    float* q = memory;
    float* work = q + queries * shape_.dim_k;
    float* own = work + work_size;
    float* base = unit.state >= 0 ? states_.data() + unit.state : own;
    const SoftmaxState state{base, base + queries, base + 2 * queries};
    gather_queries(shape_, floats(out->src[0]), slot.first, slot.count, unit.head, q);
    if (kernels::rotated(cache.shape().type_k)) {
        for (std::int64_t i = 0; i < queries; ++i) {
            kernels::rotate(q + i * shape_.dim_k, shape_.dim_k);
        }
    }
    start_state(state, queries, stride);

    thread_local std::vector<std::int64_t> visible;
    visible.resize(size(queries));
    const auto attend = [&](Rows part, bool causal) {
        if (part.count == 0) return;
        if (!use_tiles) {
            for (std::int64_t token = 0; token < (causal ? slot.count : 1); ++token) {
                const auto seen = causal ? token + 1 : part.count;
                const auto first = causal ? token * group : 0;
                kernel.attend_rows(
                    q + first * shape_.dim_k, causal ? group : queries, part.slice(0, seen, dims),
                    dims, {state.max + first, state.sum + first, state.out + first * stride});
            }
            return;
        }
        for (std::int64_t i = 0; i < queries; ++i) {
            visible[size(i)] = causal ? i / group + 1 : part.count;
        }
        for (std::int64_t i = 0; i < queries; i += kernels::kMostQueries) {
            kernel.attend_tiles(q + i * shape_.dim_k, std::min(kernels::kMostQueries, queries - i),
                                visible.data() + i, part, dims,
                                {state.max + i, state.sum + i, state.out + i * stride}, work);
        }
    };
    attend(cache.rows(layer, unit.head, unit.begin, unit.end), false);
    if (unit.tail) {
        const auto held = cache.head(layer, unit.head).count;
        for (std::int64_t t = 0; cache.owns(layer) && t < slot.count; ++t) {
            const auto row = (slot.first + t) * shape_.heads.kv_heads + unit.head;
            slot.cache->store(layer, unit.head, held + t, floats(out->src[1]) + row * shape_.dim_k,
                              floats(out->src[2]) + row * shape_.dim_v);
        }
        attend(cache.rows(layer, unit.head, held, held + slot.count), true);
        if (slot.log != nullptr) {
            const auto width = group * shape_.dim_k;
            const auto skip = std::max<std::int64_t>(0, slot.count - slot.log->capacity);
            for (std::int64_t t = skip; t < slot.count; ++t) {
                std::memcpy(slot.log->at(slot.log->written + t, layer) + unit.head * width,
                            floats(out->src[0]) +
                                (slot.first + t) * shape_.heads.query_heads * shape_.dim_k +
                                unit.head * width,
                            size(width) * sizeof(float));
            }
        }
    }
    if (unit.state < 0) {
        turn_back(cache, state, queries, stride);
        write_output(shape_, state, stride, slot.first, slot.count, unit.head, floats(out));
    } else if (left_[size(unit.join)].fetch_sub(1, std::memory_order_acq_rel) == 1) {
        join(unit, layer, out);
    }
}

// Joins the partial results of one (slot, head): the parts lie one after the other.
void DecodeAttention::join(const Unit& last, std::int64_t layer, ggml_tensor* out) {
    const auto& slot = slots_[size(last.slot)];
    const auto stride = part_stride(*slot.cache, shape_.dim_v);
    const auto queries = slot.count * shape_.heads.group();
    // as prepare() laid them out
    const auto part_size = queries * (kernels::best().padded_dim(shape_.dim_v) + 2);
    const auto& units = layers_[size(layer)]->units;
    const auto first = std::find_if(units.begin(), units.end(),
                                    [&](const Unit& unit) { return unit.join == last.join; });
    float* base = states_.data() + first->state;
    const SoftmaxState total{base, base + queries, base + 2 * queries};
    for (std::int64_t part = 1; part < last.parts; ++part) {
        const float* other = base + part * part_size;
        for (std::int64_t q = 0; q < queries; ++q) {
            const float top = std::max(total.max[q], other[q]);
            const float mine = std::exp(total.max[q] - top);
            const float theirs = std::exp(other[q] - top);
            total.max[q] = top;
            total.sum[q] = total.sum[q] * mine + other[queries + q] * theirs;
            const float* values = other + 2 * queries + q * stride;
            float* sum = total.out + q * stride;
            for (std::int64_t i = 0; i < stride; ++i) sum[i] = sum[i] * mine + values[i] * theirs;
        }
    }
    turn_back(*slot.cache, total, queries, stride);
    write_output(shape_, total, stride, slot.first, slot.count, last.head, floats(out));
}

}  // namespace headkv
