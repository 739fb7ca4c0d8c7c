#include "engine/device_cache.h"

#include <algorithm>
#include <cassert>
#include <limits>

#include "engine/compute.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// f16. The lowest number hides a row as well as -inf does: its weight is 0 beside any other's.
constexpr std::uint16_t kMinusInfinity = 0xFC00, kLowest = 0xFBFF;

}  // namespace

DeviceCache::DeviceCache(const Pipeline& pipeline, const Shape& shape)
    : pipeline_(pipeline),
      shape_(shape),
      layers_(size(shape.attention.heads.layers)),
      used_(size(shape.slots), false),
      places_(pipeline.size()) {}

const DeviceCache::Layer& DeviceCache::layer(std::int64_t layer) const {
    return layers_[size(layer)];
}

Result<void> DeviceCache::allocate(ggml_context_ptr context, std::size_t stage, Buffers& into) {
    auto* backend = pipeline_.compute(stage).backend();
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    if (!buffer) {
        return failure(
            "not enough memory on {} for the cache of {} sequences; use fewer --slots or a smaller "
            "--rows",
            ggml_backend_name(backend), shape_.slots);
    }
    // Rows that are masked out must still be numbers.
    ggml_backend_buffer_clear(buffer.get(), 0);
    places_[stage].bytes += static_cast<std::int64_t>(ggml_backend_buffer_get_size(buffer.get()));
    contexts_.push_back(std::move(context));
    into.push_back(std::move(buffer));
    return {};
}

std::size_t DeviceCache::find_class(std::size_t stage, HeadPlaces places) {
    for (std::size_t i = 0; i < classes_.size(); ++i) {
        const auto& other = classes_[i].places;
        const bool same = classes_[i].stage == stage && other.kept == places.kept &&
                          other.capacity == places.capacity && other.first == places.first &&
                          other.stride == places.stride;
        if (same && other.window == places.window) return i;
    }
    assert(places_[stage].masks == nullptr && "every layer is there once masks are one");
    Class made{stage, std::move(places), nullptr, 0, {}};
    made.count.assign(size(made.heads() * shape_.slots), 0);
    classes_.push_back(std::move(made));
    return classes_.size() - 1;
}

Result<void> DeviceCache::add_mask(Class& about) {
    if (about.mask != nullptr) return {};
    auto context = make_context(2);
    about.mask = ggml_new_tensor_4d(context.get(), GGML_TYPE_F16, about.places.window, 1, 1,
                                    about.heads() * shape_.slots);
    if (auto done = allocate(std::move(context), about.stage, places_[about.stage].mask_buffers);
        !done) {
        return done;
    }
    upload_mask(about, 0, shape_.slots);
    return {};
}

DeviceCache::Layer DeviceCache::describe(ggml_context* context, std::size_t stage,
                                         const std::vector<HeadPlaces>& groups) {
    Layer made;
    std::int64_t total = 0;
    for (const HeadPlaces& group : groups) {
        made.groups.push_back({group.heads, find_class(stage, group), nullptr, nullptr, total});
        total += group.rows(shape_.slots);
    }
    made.keys = ggml_new_tensor_2d(context, shape_.type_k, shape_.attention.dim_k, total);
    made.values = ggml_new_tensor_2d(context, shape_.type_v, shape_.attention.dim_v, total);
    for (Group& group : made.groups) {
        const auto& places = classes_[group.row_class].places;
        const auto part = [&](ggml_tensor* all) {
            // ggml holds a view for as large as its shape, which windows that overlap are not: the
            // last dimension is set by hand.
            const auto stride = size(places.stride) * all->nb[1];
            auto* view = ggml_view_4d(context, all, all->ne[0], places.window, 1, 1, all->nb[1],
                                      stride, stride, size(group.first_row) * all->nb[1]);
            view->ne[3] = std::ssize(places.heads) * shape_.slots;
            return view;
        };
        group.keys = part(made.keys);
        group.values = part(made.values);
    }
    return made;
}

void DeviceCache::put(std::int64_t layer, Layer made) {
    bytes_ += static_cast<std::int64_t>(ggml_nbytes(made.keys) + ggml_nbytes(made.values));
    layers_[size(layer)] = std::move(made);
}

Result<void> DeviceCache::add_layer(std::int64_t layer, std::span<const std::int64_t> rows) {
    if (!layers_[size(layer)].groups.empty()) return {};
    assert((shape_.layout.groups > 0 || shape_.slots == 1) && "windows reach beyond a slot");
    const auto stage = pipeline_.part_of(layer);
    const auto groups = place_heads(rows, shape_.layout, shape_.reserve);
    auto context = make_context(2 * std::ssize(groups) + 3);
    auto made = describe(context.get(), stage, groups);
    if (auto done = allocate(std::move(context), stage, places_[stage].buffers); !done) {
        return done;
    }
    for (const Group& group : made.groups) {
        if (auto done = add_mask(classes_[group.row_class]); !done) return done;
    }
    put(layer, std::move(made));
    return {};
}

Result<void> DeviceCache::add_layers(std::span<const std::int64_t> rows) {
    assert((shape_.layout.groups > 0 || shape_.slots == 1) && "windows reach beyond a slot");
    const auto heads = shape_.attention.heads.kv_heads;
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        const auto& part = pipeline_[stage];
        if (part.layers == 0) continue;
        std::vector<std::vector<HeadPlaces>> groups;  // [layers of the stage]
        std::int64_t tensors = 1;
        for (std::int64_t layer = part.first; layer < part.end(); ++layer) {
            groups.push_back(place_heads(rows.subspan(size(layer * heads), size(heads)),
                                         shape_.layout, shape_.reserve));
            tensors += 2 * std::ssize(groups.back()) + 2;
        }
        auto context = make_context(tensors);
        std::vector<Layer> made;
        made.reserve(groups.size());
        for (const auto& each : groups) made.push_back(describe(context.get(), stage, each));
        if (auto done = allocate(std::move(context), stage, places_[stage].buffers); !done) {
            return done;
        }
        for (std::int64_t layer = part.first; layer < part.end(); ++layer) {
            put(layer, std::move(made[size(layer - part.first)]));
        }
        if (auto joined = masks(stage); !joined) return tl::unexpected(joined.error());
    }
    return {};
}

std::vector<std::int64_t> DeviceCache::rows_kept(std::int64_t layer) const {
    std::vector<std::int64_t> rows(size(shape_.attention.heads.kv_heads));
    for (const Group& group : layers_[size(layer)].groups) {
        const auto& kept = classes_[group.row_class].places.kept;
        for (std::size_t i = 0; i < kept.size(); ++i) rows[size(group.heads[i])] = kept[i];
    }
    return rows;
}

Result<ggml_tensor*> DeviceCache::log(std::size_t stage) {
    auto& place = places_[stage];
    if (place.log != nullptr) return place.log;
    const auto& attention = shape_.attention;
    auto context = make_context(2);
    auto* made = ggml_new_tensor_3d(context.get(), GGML_TYPE_F16,
                                    attention.heads.query_heads * attention.dim_k,
                                    shape_.slots * shape_.observe + 1, pipeline_[stage].layers);
    if (auto done = allocate(std::move(context), stage, place.buffers); !done) {
        return tl::unexpected(done.error());
    }
    return place.log = made;
}

std::int64_t DeviceCache::take_slot() {
    const auto free = std::find(used_.begin(), used_.end(), false);
    if (free == used_.end()) return -1;
    *free = true;
    return free - used_.begin();
}

std::int64_t DeviceCache::span() const {
    return std::find(used_.rbegin(), used_.rend(), true).base() - used_.begin();
}

void DeviceCache::set_counts(std::size_t row_class, std::int64_t slot,
                             std::span<const std::int32_t> counts) {
    Class& about = classes_[row_class];
    assert(std::ssize(counts) == about.heads());
    for (std::int64_t head = 0; head < about.heads(); ++head) {
        const auto at = slot * about.heads() + head;
        about.count[size(at)] = counts[size(head)];
        assert(about.room(at) >= 0);
    }
    upload_mask(about, slot, 1);
}

void DeviceCache::upload_mask(const Class& about, std::int64_t first, std::int64_t slots) {
    const auto& places = about.places;
    const auto columns = slots * about.heads();
    std::vector<std::uint16_t> mask(size(places.window * columns), kMinusInfinity);
    for (std::int64_t column = 0; column < columns; ++column) {
        const auto begin = mask.begin() + column * places.window;
        const auto head = size(column % about.heads());
        // A slot that nobody has used yet sees its first row, which is 0: attention over nothing is
        // NaN, and NaN in a masked row still spoils a sum.
        const auto seen = std::max(1, about.count[size(first * about.heads() + column)]);
        std::fill_n(begin + places.first[head], seen, std::uint16_t{0});
        // ggml's CUDA backend looks for the last block with a number above -inf, from the end, one
        // block after the other: reading a few blocks in vain takes less time than finding out.
        if (places.first[head] + places.capacity[head] + kRowBlock <= places.window) {
            begin[places.window - 1] = kLowest;
        }
    }
    const auto bytes = size(places.window * about.heads()) * sizeof(std::uint16_t);
    ggml_backend_tensor_set(about.mask, mask.data(), size(first) * bytes, size(slots) * bytes);
}

Result<ggml_tensor*> DeviceCache::masks(std::size_t stage) {
    auto& place = places_[stage];
    if (place.masks != nullptr) return place.masks;
    std::vector<Class*> mine;
    for (Class& about : classes_) {
        if (about.stage == stage) mine.push_back(&about);
    }
    assert(!mine.empty());
    std::int64_t rows = 0;
    for (Class* each : mine) {
        auto& about = *each;
        about.first_mask = rows;
        rows += about.places.window * about.heads() * shape_.slots;
    }
    auto context = make_context(std::ssize(mine) + 2);
    auto* all = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 1, rows);
    std::vector<ggml_tensor*> parts;
    for (const Class* each : mine) {
        const auto& about = *each;
        const auto head_bytes = size(about.places.window) * sizeof(std::uint16_t);
        parts.push_back(ggml_view_4d(context.get(), all, about.places.window, 1, 1,
                                     about.heads() * shape_.slots, head_bytes, head_bytes,
                                     head_bytes, size(about.first_mask) * sizeof(std::uint16_t)));
    }
    Buffers joined;
    if (auto done = allocate(std::move(context), stage, joined); !done) {
        return tl::unexpected(done.error());
    }
    for (const auto& former : place.mask_buffers) {
        place.bytes -= static_cast<std::int64_t>(ggml_backend_buffer_get_size(former.get()));
    }
    place.mask_buffers = std::move(joined);
    for (std::size_t i = 0; i < mine.size(); ++i) {
        mine[i]->mask = parts[i];
        upload_mask(*mine[i], 0, shape_.slots);
    }
    return place.masks = all;
}

std::int64_t DeviceCache::room(std::int64_t slot) const {
    auto room = std::numeric_limits<std::int64_t>::max();
    for (const Class& about : classes_) {
        for (std::int64_t head = 0; head < about.heads(); ++head) {
            room = std::min(room, about.room(slot * about.heads() + head));
        }
    }
    return room;
}

std::int64_t DeviceCache::heads_of_classes(std::size_t stage) const {
    std::int64_t heads = 0;
    for (const Class& about : classes_) {
        if (about.stage == stage) heads += about.heads();
    }
    return heads;
}

bool DeviceCache::same_places(std::int64_t layer, std::int64_t other) const {
    const auto& mine = layers_[size(layer)].groups;
    const auto& theirs = layers_[size(other)].groups;
    return std::ranges::equal(mine, theirs, [](const Group& a, const Group& b) {
        return a.heads == b.heads && a.row_class == b.row_class && a.first_row == b.first_row;
    });
}

bool DeviceCache::holds(const std::vector<std::vector<std::int32_t>>& keep,
                        std::int64_t kv_heads) const {
    std::vector<std::vector<std::int64_t>> counts(classes_.size());
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
        for (const Group& group : layers_[layer].groups) {
            std::vector<std::int64_t> mine;
            const auto& capacity = classes_[group.row_class].places.capacity;
            for (std::size_t i = 0; i < group.heads.size(); ++i) {
                const auto& list = keep[layer * size(kv_heads) + size(group.heads[i])];
                mine.push_back(std::ssize(list));
                if (mine.back() >= capacity[i]) return false;
            }
            auto& known = counts[group.row_class];
            if (known.empty()) known = mine;
            if (known != mine) return false;
        }
    }
    return true;
}

std::int64_t DeviceCache::row_bytes() const {
    return static_cast<std::int64_t>(ggml_row_size(shape_.type_k, shape_.attention.dim_k) +
                                     ggml_row_size(shape_.type_v, shape_.attention.dim_v));
}

}  // namespace headkv
