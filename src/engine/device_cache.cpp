#include "engine/device_cache.h"

#include <algorithm>
#include <cassert>
#include <limits>

#include "engine/compute.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::uint16_t kMinusInfinity = 0xFC00;  // f16

}  // namespace

DeviceCache::DeviceCache(ggml_backend_t backend, const Shape& shape)
    : backend_(backend),
      shape_(shape),
      layers_(size(shape.attention.heads.layers)),
      used_(size(shape.slots), false) {}

const std::vector<DeviceCache::Group>& DeviceCache::layer(std::int64_t layer) const {
    return layers_[size(layer)];
}

Result<void> DeviceCache::allocate(ggml_context_ptr context) {
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend_));
    if (!buffer) {
        return failure(
            "not enough memory on {} for the cache of {} sequences; use fewer --slots or a smaller "
            "--rows",
            ggml_backend_name(backend_), shape_.slots);
    }
    // Rows that are masked out must still be numbers.
    ggml_backend_buffer_clear(buffer.get(), 0);
    contexts_.push_back(std::move(context));
    buffers_.push_back(std::move(buffer));
    return {};
}

Result<std::size_t> DeviceCache::find_class(const HeadGroup& group) {
    const auto capacity = whole_blocks(group.rows + shape_.reserve);
    const auto heads = static_cast<std::int64_t>(group.heads.size());
    for (std::size_t i = 0; group.even && i < classes_.size(); ++i) {
        const Class& other = classes_[i];
        if (other.even && other.heads == heads && other.kept == group.rows) return i;
    }
    Class made{heads, group.rows, capacity, group.even, nullptr, {}};
    auto context = make_context(2);
    made.mask =
        ggml_new_tensor_4d(context.get(), GGML_TYPE_F16, capacity, 1, 1, heads * shape_.slots);
    if (auto done = allocate(std::move(context)); !done) return tl::unexpected(done.error());
    // A slot that nobody has used yet sees its first row, which is 0: attention over nothing is
    // NaN, and NaN in a masked row still spoils a sum.
    std::vector<std::uint16_t> closed(size(ggml_nelements(made.mask)), kMinusInfinity);
    for (std::size_t row = 0; row < closed.size(); row += size(capacity)) closed[row] = 0;
    ggml_backend_tensor_set(made.mask, closed.data(), 0, ggml_nbytes(made.mask));
    made.count.assign(size(heads * shape_.slots), 0);
    classes_.push_back(std::move(made));
    return classes_.size() - 1;
}

Result<void> DeviceCache::add_layer(std::int64_t layer, std::span<const HeadGroup> groups) {
    auto& place = layers_[size(layer)];
    if (!place.empty()) return {};
    std::vector<Group> made;
    auto context = make_context(static_cast<std::int64_t>(2 * groups.size()) + 1);
    for (const HeadGroup& group : groups) {
        const auto row_class = find_class(group);
        if (!row_class) return tl::unexpected(row_class.error());
        const Class& about = classes_[*row_class];
        const auto tensor = [&](ggml_type type, std::int64_t dim) {
            return ggml_new_tensor_4d(context.get(), type, dim, about.capacity, 1,
                                      about.heads * shape_.slots);
        };
        auto* keys = tensor(shape_.type_k, shape_.attention.dim_k);
        auto* values = tensor(shape_.type_v, shape_.attention.dim_v);
        bytes_ += static_cast<std::int64_t>(ggml_nbytes(keys) + ggml_nbytes(values));
        made.push_back({group.heads, *row_class, keys, values});
    }
    if (auto done = allocate(std::move(context)); !done) return done;
    place = std::move(made);
    return {};
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
    assert(static_cast<std::int64_t>(counts.size()) == about.heads);
    std::vector<std::uint16_t> mask(size(about.capacity * about.heads), kMinusInfinity);
    for (std::int64_t head = 0; head < about.heads; ++head) {
        const auto count = counts[size(head)];
        assert(count <= about.capacity);
        about.count[size(slot * about.heads + head)] = count;
        std::fill_n(mask.begin() + head * about.capacity, count, std::uint16_t{0});
    }
    const auto bytes = mask.size() * sizeof(std::uint16_t);
    ggml_backend_tensor_set(about.mask, mask.data(), size(slot) * bytes, bytes);
}

std::int64_t DeviceCache::room(std::int64_t slot) const {
    auto room = std::numeric_limits<std::int64_t>::max();
    for (const Class& about : classes_) {
        for (std::int64_t head = 0; head < about.heads; ++head) {
            room = std::min(room, about.capacity - about.count[size(slot * about.heads + head)]);
        }
    }
    return room;
}

std::int64_t DeviceCache::row_bytes() const {
    return static_cast<std::int64_t>(ggml_row_size(shape_.type_k, shape_.attention.dim_k) +
                                     ggml_row_size(shape_.type_v, shape_.attention.dim_v));
}

}  // namespace headkv
