#include "engine/turn_keys.h"

#include "engine/graph.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kMostNodes = 8;

}  // namespace

void close_gaps(std::int64_t head, std::span<const std::int32_t> keep, std::int64_t held,
                std::vector<KeyTurn>& turns) {
    const auto kept = std::ssize(keep);
    for (std::int64_t i = 0; i < kept; ++i) {
        const auto by = (held - kept) - (keep[size(i)] - i);
        if (by != 0) turns.push_back({head, i, static_cast<std::int32_t>(by)});
    }
}

Result<void> turn_keys(const Compute& compute, const Model::Impl& model, std::int64_t layer,
                       std::span<const KeyTurn> turns, SequenceCache& cache) {
    if (turns.empty()) return {};
    const auto dim = cache.shape().dim_k;
    const auto count = std::ssize(turns);
    // Behind the keys a unit vector that stays where it is: some kinds of RoPE scale, too, which a
    // key stored has behind it.
    std::vector<float> keys(size((count + 1) * dim)), value(size(cache.shape().dim_v));
    std::vector<std::int32_t> by;
    for (std::int64_t i = 0; i < count; ++i) {
        const auto& turn = turns[size(i)];
        cache.load(layer, turn.head, turn.row, keys.data() + i * dim, value.data());
        by.push_back(turn.by);
    }
    keys[size(count * dim)] = 1;
    by.push_back(0);
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    auto* stored = ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, 1, count + 1);
    auto* positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, count + 1);
    ggml_set_input(stored);
    ggml_set_input(positions);
    const GraphBuilder build{c, model.hyper, model.weights};
    auto* turned = build.rotate(model.weights.layers.at(size(layer)), stored, positions);
    ggml_set_output(turned);
    auto* graph = ggml_new_graph_custom(c, size(kMostNodes), false);
    ggml_build_forward_expand(graph, turned);
    WorkMemory work(compute.backend());
    if (!work.place(graph)) return failure("not enough memory to turn {} keys", count);
    ggml_backend_tensor_set(stored, keys.data(), 0, ggml_nbytes(stored));
    ggml_backend_tensor_set(positions, by.data(), 0, ggml_nbytes(positions));
    if (auto done = compute.run(graph); !done) return done;
    ggml_backend_tensor_get(turned, keys.data(), 0, ggml_nbytes(turned));
    const float scale = keys[size(count * dim)];
    for (std::int64_t i = 0; i < count; ++i) {
        float* key = keys.data() + i * dim;
        for (std::int64_t d = 0; d < dim; ++d) key[d] /= scale;
        cache.store_key(layer, turns[size(i)].head, turns[size(i)].row, key);
    }
    return {};
}

}  // namespace headkv
