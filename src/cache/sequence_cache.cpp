#include "cache/sequence_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <new>

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

void copy_rows(Half* to, const Half* from, std::int64_t rows, std::int64_t dim) {
    std::memcpy(to, from, size(rows * dim) * sizeof(Half));
}

// Copies rows[keep[i]] to row i. Runs of neighbours (windows, sinks, whole prompts) move as one.
void gather(Half* to, const Half* from, std::span<const std::int32_t> keep, std::int64_t dim) {
    std::size_t i = 0;
    while (i < keep.size()) {
        std::size_t end = i + 1;
        while (end < keep.size() && keep[end] == keep[end - 1] + 1) ++end;
        std::memmove(to + i * size(dim), from + keep[i] * dim,
                     (end - i) * size(dim) * sizeof(Half));
        i = end;
    }
}

}  // namespace

SequenceCache::SequenceCache(const CacheShape& shape) : shape_(shape), layers_(size(shape.layers)) {
    for (auto& layer : layers_) {
        layer.start.assign(size(shape.heads) + 1, 0);
        layer.positions.resize(size(shape.heads));
    }
}

Result<SequenceCache::Layer> SequenceCache::allocate(std::span<const std::int64_t> capacity) const {
    Layer layer;
    layer.start.push_back(0);
    for (const auto rows : capacity) layer.start.push_back(layer.start.back() + rows);
    layer.positions.resize(size(shape_.heads));
    const auto rows = layer.start.back();
    layer.keys.reset(new (std::nothrow) Half[size(rows * shape_.dim_k)]);
    layer.values.reset(new (std::nothrow) Half[size(rows * shape_.dim_v)]);
    if (!layer.keys || !layer.values) {
        return failure("not enough memory for {} cache rows of {} bytes; use a smaller --rows",
                       rows, shape_.row_bytes());
    }
    return layer;
}

Result<void> SequenceCache::fill(std::int64_t index, const LayerRows& from,
                                 const std::vector<std::vector<std::int32_t>>& keep,
                                 std::int64_t reserve) {
    assert(keep.size() == size(shape_.heads));
    std::vector<std::int64_t> capacity;
    capacity.reserve(keep.size());
    for (const auto& list : keep) {
        capacity.push_back(static_cast<std::int64_t>(list.size()) + reserve);
    }
    auto layer = allocate(capacity);
    if (!layer) return tl::unexpected(layer.error());
    for (std::int64_t head = 0; head < shape_.heads; ++head) {
        const auto& list = keep[size(head)];
        const auto start = layer->start[size(head)];
        gather(layer->keys.get() + start * shape_.dim_k,
               from.keys.data() + head * from.tokens * shape_.dim_k, list, shape_.dim_k);
        gather(layer->values.get() + start * shape_.dim_v,
               from.values.data() + head * from.tokens * shape_.dim_v, list, shape_.dim_v);
        layer->positions[size(head)] = list;
        // so that appending while decoding does not allocate
        layer->positions[size(head)].reserve(size(capacity[size(head)]));
    }
    layers_[size(index)] = std::move(*layer);
    return {};
}

Result<void> SequenceCache::grow(std::int64_t reserve) {
    // Layer by layer, so that no more than one layer is held twice.
    for (auto& old : layers_) {
        std::vector<std::int64_t> capacity;
        capacity.reserve(old.positions.size());
        for (const auto& list : old.positions) {
            capacity.push_back(static_cast<std::int64_t>(list.size()) + reserve);
        }
        auto layer = allocate(capacity);
        if (!layer) return tl::unexpected(layer.error());
        for (std::size_t head = 0; head < old.positions.size(); ++head) {
            const auto rows = static_cast<std::int64_t>(old.positions[head].size());
            copy_rows(layer->keys.get() + layer->start[head] * shape_.dim_k,
                      old.keys.get() + old.start[head] * shape_.dim_k, rows, shape_.dim_k);
            copy_rows(layer->values.get() + layer->start[head] * shape_.dim_v,
                      old.values.get() + old.start[head] * shape_.dim_v, rows, shape_.dim_v);
            layer->positions[head] = std::move(old.positions[head]);
            layer->positions[head].reserve(size(capacity[head]));
        }
        old = std::move(*layer);
    }
    return {};
}

void SequenceCache::keep(std::int64_t layer, std::int64_t head,
                         std::span<const std::int32_t> keep) {
    auto& part = layers_[size(layer)];
    auto& positions = part.positions[size(head)];
    const auto start = part.start[size(head)];
    auto* keys = part.keys.get() + start * shape_.dim_k;
    auto* values = part.values.get() + start * shape_.dim_v;
    gather(keys, keys, keep, shape_.dim_k);
    gather(values, values, keep, shape_.dim_v);
    for (std::size_t i = 0; i < keep.size(); ++i) positions[i] = positions[size(keep[i])];
    positions.resize(keep.size());
}

std::int64_t SequenceCache::room() const {
    auto least = std::numeric_limits<std::int64_t>::max();
    for (const auto& layer : layers_) {
        for (std::size_t head = 0; head < layer.positions.size(); ++head) {
            const auto capacity = layer.start[head + 1] - layer.start[head];
            least =
                std::min(least, capacity - static_cast<std::int64_t>(layer.positions[head].size()));
        }
    }
    return least;
}

SequenceCache::Head SequenceCache::head(std::int64_t layer, std::int64_t head) const {
    const auto& part = layers_[size(layer)];
    const auto start = part.start[size(head)];
    return {part.keys.get() + start * shape_.dim_k, part.values.get() + start * shape_.dim_v,
            static_cast<std::int64_t>(part.positions[size(head)].size()),
            part.start[size(head) + 1] - start};
}

void SequenceCache::append(std::int64_t first_position, std::int64_t count) {
    for (auto& layer : layers_) {
        for (auto& positions : layer.positions) {
            for (std::int64_t i = 0; i < count; ++i) {
                positions.push_back(static_cast<std::int32_t>(first_position + i));
            }
        }
    }
}

std::span<const std::int32_t> SequenceCache::positions(std::int64_t layer,
                                                       std::int64_t head) const {
    return layers_[size(layer)].positions[size(head)];
}

std::int64_t SequenceCache::held_bytes() const {
    std::int64_t rows = 0;
    for (const auto& layer : layers_) {
        for (const auto& positions : layer.positions)
            rows += static_cast<std::int64_t>(positions.size());
    }
    return rows * shape_.row_bytes();
}

std::int64_t SequenceCache::allocated_bytes() const {
    std::int64_t rows = 0;
    for (const auto& layer : layers_) rows += layer.start.back();
    return rows * shape_.row_bytes();
}

SequenceCache SequenceCache::copy() const {
    SequenceCache twin(shape_);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const auto& from = layers_[i];
        auto& to = twin.layers_[i];
        const auto rows = from.start.back();
        to.start = from.start;
        to.positions = from.positions;
        to.keys = std::make_unique<Half[]>(size(rows * shape_.dim_k));
        to.values = std::make_unique<Half[]>(size(rows * shape_.dim_v));
        for (std::size_t head = 0; head < from.positions.size(); ++head) {
            const auto count = static_cast<std::int64_t>(from.positions[head].size());
            const auto start = from.start[head];
            copy_rows(to.keys.get() + start * shape_.dim_k, from.keys.get() + start * shape_.dim_k,
                      count, shape_.dim_k);
            copy_rows(to.values.get() + start * shape_.dim_v,
                      from.values.get() + start * shape_.dim_v, count, shape_.dim_v);
            to.positions[head].reserve(size(from.start[head + 1] - start));
        }
    }
    return twin;
}

}  // namespace headkv
