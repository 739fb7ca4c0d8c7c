#include "cache/sequence_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// No rows may be at no address: a layer that was never written to has none.
void copy_rows(std::byte* to, const std::byte* from, std::int64_t rows, std::int64_t bytes) {
    std::copy_n(from, rows * bytes, to);
}

// Copies rows[keep[i]] of `bytes` each to row i. Runs of neighbours (windows, sinks, whole prompts)
// move as one.
void gather(std::byte* to, const std::byte* from, std::span<const std::int32_t> keep,
            std::int64_t bytes) {
    std::size_t i = 0;
    while (i < keep.size()) {
        std::size_t end = i + 1;
        while (end < keep.size() && keep[end] == keep[end - 1] + 1) ++end;
        std::memmove(to + i * size(bytes), from + keep[i] * bytes, (end - i) * size(bytes));
        i = end;
    }
}

// The same out of f16 rows of a prefill, [tokens][dim], into rows of `type`.
void store_rotated(kernels::RowType type, const float* from, std::int64_t dim, std::byte* to) {
    thread_local std::vector<float> row;
    if (kernels::rotated(type)) {
        row.assign(from, from + dim);
        kernels::rotate(row.data(), dim);
        from = row.data();
    }
    kernels::store_row(type, from, dim, to);
}

void gather_stored(kernels::RowType type, std::byte* to, const Half* from,
                   std::span<const std::int32_t> keep, std::int64_t dim) {
    const auto bytes = kernels::row_bytes(type, dim);
    if (type == kernels::RowType::f16) {
        gather(to, reinterpret_cast<const std::byte*>(from), keep, bytes);
        return;
    }
    const auto& kernel = kernels::best();
    std::vector<float> row(size(dim));
    for (const auto position : keep) {
        kernel.to_float(from + position * dim, row.data(), dim);
        store_rotated(type, row.data(), dim, to);
        to += bytes;
    }
}

[[maybe_unused]] bool divides(kernels::RowType type, std::int64_t dim) {
    return type == kernels::RowType::f16 || dim % kernels::kQuantBlock == 0;
}

}  // namespace

SequenceCache::SequenceCache(const CacheShape& shape, std::vector<std::int64_t> owner)
    : shape_(shape), owner_(std::move(owner)), layers_(size(shape.layers)) {
    assert(owner_.empty() || std::ssize(owner_) == shape.layers);
    assert(divides(shape.type_k, shape.dim_k) && divides(shape.type_v, shape.dim_v));
    for (auto& layer : layers_) {
        layer.start.assign(size(shape.heads) + 1, 0);
        layer.positions.resize(size(shape.heads));
    }
}

// Memory for the rows of `lists` and `reserve` more a head; its positions are empty, with room for
// as many, so that appending while decoding does not allocate.
Result<SequenceCache::Layer> SequenceCache::allocate(
    const std::vector<std::vector<std::int32_t>>& lists, std::int64_t reserve) const {
    Layer layer;
    layer.start.push_back(0);
    layer.positions.resize(size(shape_.heads));
    for (std::size_t head = 0; head < lists.size(); ++head) {
        const auto capacity = std::ssize(lists[head]) + reserve;
        layer.start.push_back(layer.start.back() + capacity);
        layer.positions[head].reserve(size(capacity));
    }
    const auto rows = layer.start.back();
    layer.keys.reset(new (std::nothrow) std::byte[size(rows * shape_.key_bytes())]);
    layer.values.reset(new (std::nothrow) std::byte[size(rows * shape_.value_bytes())]);
    if (!layer.keys || !layer.values) {
        return failure("not enough memory for {} cache rows of {} bytes; use a smaller --rows",
                       rows, shape_.row_bytes());
    }
    return layer;
}

Result<void> SequenceCache::fill(std::int64_t index, const LayerRows& from,
                                 const std::vector<std::vector<std::int32_t>>& keep,
                                 std::int64_t reserve) {
    assert(keep.size() == size(shape_.heads) && owns(index));
    auto layer = allocate(keep, reserve);
    if (!layer) return tl::unexpected(layer.error());
    for (std::int64_t head = 0; head < shape_.heads; ++head) {
        const auto& list = keep[size(head)];
        const auto start = layer->start[size(head)];
        gather_stored(shape_.type_k, layer->keys.get() + start * shape_.key_bytes(),
                      from.keys.data() + head * from.head_rows() * shape_.dim_k, list,
                      shape_.dim_k);
        gather_stored(shape_.type_v, layer->values.get() + start * shape_.value_bytes(),
                      from.values.data() + head * from.head_rows() * shape_.dim_v, list,
                      shape_.dim_v);
        layer->positions[size(head)].assign(list.begin(), list.end());
    }
    layers_[size(index)] = std::move(*layer);
    return {};
}

Result<void> SequenceCache::fill(std::int64_t index, const SequenceCache& from,
                                 const std::vector<std::vector<std::int32_t>>& keep,
                                 std::int64_t reserve) {
    assert(keep.size() == size(shape_.heads) && owns(index) && &from != this);
    auto fresh = allocate(keep, reserve);
    if (!fresh) return tl::unexpected(fresh.error());
    layers_[size(index)] = std::move(*fresh);
    for (std::int64_t head = 0; head < shape_.heads; ++head) {
        refill(index, head, from, keep[size(head)]);
    }
    return {};
}

void SequenceCache::refill(std::int64_t layer, std::int64_t head, const SequenceCache& from,
                           std::span<const std::int32_t> keep) {
    const auto to = this->head(layer, head), rows = from.head(layer, head);
    assert(std::ssize(keep) <= to.capacity && &from != this);
    const bool same = shape_.type_k == from.shape_.type_k && shape_.type_v == from.shape_.type_v;
    if (same) {
        gather(to.keys, rows.keys, keep, shape_.key_bytes());
        gather(to.values, rows.values, keep, shape_.value_bytes());
    }
    std::vector<float> key(size(shape_.dim_k)), value(size(shape_.dim_v));
    auto& positions = layers_[size(layer)].positions[size(head)];
    positions.clear();
    for (const auto row : keep) {
        if (!same) {
            from.load(layer, head, row, key.data(), value.data());
            store(layer, head, std::ssize(positions), key.data(), value.data());
        }
        positions.push_back(from.positions(layer, head)[size(row)]);
    }
}

Result<void> SequenceCache::grow(std::int64_t reserve) {
    // Layer by layer, so that no more than one layer is held twice.
    for (std::int64_t layer = 0; layer < shape_.layers; ++layer) {
        if (auto done = fit(layer, reserve); !done) return done;
    }
    return {};
}

Result<void> SequenceCache::fit(std::int64_t index, std::int64_t reserve) {
    if (!owns(index)) return {};
    auto& old = layers_[size(index)];
    auto layer = allocate(old.positions, reserve);
    if (!layer) return tl::unexpected(layer.error());
    const auto key = shape_.key_bytes(), value = shape_.value_bytes();
    for (std::size_t head = 0; head < old.positions.size(); ++head) {
        const auto rows = std::ssize(old.positions[head]);
        copy_rows(layer->keys.get() + layer->start[head] * key,
                  old.keys.get() + old.start[head] * key, rows, key);
        copy_rows(layer->values.get() + layer->start[head] * value,
                  old.values.get() + old.start[head] * value, rows, value);
        auto& positions = layer->positions[head];
        positions.assign(old.positions[head].begin(), old.positions[head].end());
    }
    old = std::move(*layer);
    return {};
}

void SequenceCache::keep(std::int64_t layer, std::int64_t head,
                         std::span<const std::int32_t> keep) {
    assert(owns(layer));
    auto& part = layers_[size(layer)];
    auto& positions = part.positions[size(head)];
    const auto start = part.start[size(head)];
    auto* keys = part.keys.get() + start * shape_.key_bytes();
    auto* values = part.values.get() + start * shape_.value_bytes();
    gather(keys, keys, keep, shape_.key_bytes());
    gather(values, values, keep, shape_.value_bytes());
    for (std::size_t i = 0; i < keep.size(); ++i) positions[i] = positions[size(keep[i])];
    positions.resize(keep.size());
}

std::int64_t SequenceCache::room() const {
    auto least = std::numeric_limits<std::int64_t>::max();
    for (std::size_t index = 0; index < layers_.size(); ++index) {
        if (!owns(static_cast<std::int64_t>(index))) continue;
        const auto& layer = layers_[index];
        for (std::size_t head = 0; head < layer.positions.size(); ++head) {
            const auto capacity = layer.start[head + 1] - layer.start[head];
            least =
                std::min(least, capacity - static_cast<std::int64_t>(layer.positions[head].size()));
        }
    }
    return least;
}

SequenceCache::Head SequenceCache::head(std::int64_t layer, std::int64_t head) const {
    const auto& part = layers_[place(layer)];
    const auto start = part.start[size(head)];
    return {part.keys.get() + start * shape_.key_bytes(),
            part.values.get() + start * shape_.value_bytes(),
            static_cast<std::int64_t>(part.positions[size(head)].size()),
            part.start[size(head) + 1] - start};
}

kernels::Rows SequenceCache::rows(std::int64_t layer, std::int64_t head, std::int64_t begin,
                                  std::int64_t end) const {
    const auto place = this->head(layer, head);
    assert(begin <= end && end <= place.capacity);
    return {shape_.type_k, place.keys + begin * shape_.key_bytes(), shape_.type_v,
            place.values + begin * shape_.value_bytes(), end - begin};
}

void SequenceCache::store(std::int64_t layer, std::int64_t head, std::int64_t index,
                          const float* key, const float* value) {
    store_key(layer, head, index, key);
    store_value(layer, head, index, value);
}

void SequenceCache::store_key(std::int64_t layer, std::int64_t head, std::int64_t index,
                              const float* key) {
    const auto place = this->head(layer, head);
    assert(index < place.capacity);
    store_rotated(shape_.type_k, key, shape_.dim_k, place.keys + index * shape_.key_bytes());
}

void SequenceCache::store_value(std::int64_t layer, std::int64_t head, std::int64_t index,
                                const float* value) {
    const auto place = this->head(layer, head);
    assert(index < place.capacity);
    store_rotated(shape_.type_v, value, shape_.dim_v, place.values + index * shape_.value_bytes());
}

void SequenceCache::average_value(std::int64_t layer, std::int64_t head, std::int64_t index,
                                  const LayerRows& from, std::span<const std::int32_t> others) {
    const auto dim = shape_.dim_v;
    const auto* rows = from.values.data() + head * from.head_rows() * dim;
    std::vector<float> mean(size(dim)), row(size(dim));
    const auto add = [&](std::int32_t position) {
        kernels::best().to_float(rows + position * dim, row.data(), dim);
        for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += row[d];
    };
    add(positions(layer, head)[size(index)]);
    for (const auto position : others) add(position);
    for (float& value : mean) value /= static_cast<float>(others.size() + 1);
    store_value(layer, head, index, mean.data());
}

void SequenceCache::load(std::int64_t layer, std::int64_t head, std::int64_t index, float* key,
                         float* value) const {
    const auto place = this->head(layer, head);
    assert(index < place.capacity);
    const auto read = [index](kernels::RowType type, const std::byte* rows, std::int64_t dim,
                              float* to) {
        kernels::load_row(type, rows + index * kernels::row_bytes(type, dim), dim, to);
        if (kernels::rotated(type)) kernels::rotate(to, dim);
    };
    read(shape_.type_k, place.keys, shape_.dim_k, key);
    read(shape_.type_v, place.values, shape_.dim_v, value);
}

void SequenceCache::append(std::int64_t first_position, std::int64_t count) {
    for (std::size_t index = 0; index < layers_.size(); ++index) {
        if (!owns(static_cast<std::int64_t>(index))) continue;
        for (auto& positions : layers_[index].positions) {
            for (std::int64_t i = 0; i < count; ++i) {
                positions.push_back(static_cast<std::int32_t>(first_position + i));
            }
        }
    }
}

std::span<const std::int32_t> SequenceCache::positions(std::int64_t layer,
                                                       std::int64_t head) const {
    return layers_[place(layer)].positions[size(head)];
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
    SequenceCache twin(shape_, owner_);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const auto& from = layers_[i];
        auto& to = twin.layers_[i];
        const auto rows = from.start.back();
        to.start = from.start;
        to.positions = from.positions;
        const auto key = shape_.key_bytes(), value = shape_.value_bytes();
        to.keys = std::make_unique_for_overwrite<std::byte[]>(size(rows * key));
        to.values = std::make_unique_for_overwrite<std::byte[]>(size(rows * value));
        for (std::size_t head = 0; head < from.positions.size(); ++head) {
            const auto count = static_cast<std::int64_t>(from.positions[head].size());
            const auto start = from.start[head];
            copy_rows(to.keys.get() + start * key, from.keys.get() + start * key, count, key);
            copy_rows(to.values.get() + start * value, from.values.get() + start * value, count,
                      value);
            to.positions[head].reserve(size(from.start[head + 1] - start));
        }
    }
    return twin;
}

}  // namespace headkv
