// Rows of several sequences of the same plan in a device's memory, for ggml's own operations: the
// heads of a layer lie in few groups, each of which one attention call takes (head_places.h): K and
// V of a group are one tensor [head_dim, window, 1, heads x slots], slot by slot, and a layer's
// groups lie one behind the other: one call stores a token's rows of all of them. What is another
// head's or not filled yet is masked out. The rows of a layer, and the masks and logs that go with
// them, lie on the device of its stage.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/attention_ops.h"
#include "engine/head_places.h"
#include "engine/pipeline.h"
#include "headkv/error.h"
#include "headkv/method.h"

namespace headkv {

class DeviceCache {
public:
    // Heads whose rows are filled in step, in any number of layers of a stage: they share a mask.
    struct Class {
        std::size_t stage = 0;
        HeadPlaces places;                // `heads` are those of one of the layers
        ggml_tensor* mask = nullptr;      // f16 [window, 1, 1, heads x slots]: 0 or closed
        std::int64_t first_mask = 0;      // its place in its stage's masks()
        std::vector<std::int32_t> count;  // [slots][heads] rows held

        std::int64_t heads() const { return std::ssize(places.heads); }
        // Of [slots][heads]: where its rows begin in masks().
        std::int64_t mask_row(std::int64_t at) const {
            return first_mask + at * places.window +
                   places.first[static_cast<std::size_t>(at % heads())];
        }
        std::int64_t room(std::int64_t at) const {
            return places.capacity[static_cast<std::size_t>(at % heads())] -
                   count[static_cast<std::size_t>(at)];
        }
    };
    struct Group {
        std::vector<std::int32_t> heads;  // KV heads, sorted
        std::size_t row_class = 0;
        ggml_tensor *keys = nullptr, *values = nullptr;  // [dim, window, 1, heads x slots]
        std::int64_t first_row = 0;                      // its place in the layer's rows

        // Of a slot's head, counted within the group, in the layer's rows.
        std::int64_t row(const Class& about, std::int64_t slot, std::int64_t head) const {
            return first_row + (slot * about.heads() + head) * about.places.stride +
                   about.places.first[static_cast<std::size_t>(head)];
        }
    };
    struct Layer {
        std::vector<Group> groups;
        ggml_tensor *keys = nullptr, *values = nullptr;  // [dim, rows of all groups]
    };
    struct Shape {
        AttentionShape attention;
        ggml_type type_k = GGML_TYPE_F16, type_v = GGML_TYPE_F16;
        std::int64_t reserve = kRowBlock;  // rows that a head may hold beyond those of the prompt
        std::int64_t slots = 1;
        std::int64_t observe = 0;  // queries of a sequence that its log holds
        RowLayout layout = {};     // of place_heads(): without groups, one slot only
    };

    // `pipeline` must outlive the cache.
    DeviceCache(const Pipeline& pipeline, const Shape& shape);

    const Shape& shape() const { return shape_; }
    // The memory of a layer whose heads keep `rows` of the prompt. Nothing happens where the layer
    // is there already. Error (failure): out of memory.
    Result<void> add_layer(std::int64_t layer, std::span<const std::int64_t> rows);
    // All layers of a cache that has none, rows [layers x kv_heads]: one buffer a stage, as a
    // device may wait for all its work whenever one is taken. Errors as add_layer.
    Result<void> add_layers(std::span<const std::int64_t> rows);
    // The same rows again, for a cache with more room.
    std::vector<std::int64_t> rows_kept(std::int64_t layer) const;
    const Layer& layer(std::int64_t layer) const;
    // The masks of all classes of a stage (with layers) in one tensor, f16 [1, rows]: one call
    // opens a step's rows. Once every layer is there. Error (failure): out of memory.
    Result<ggml_tensor*> masks(std::size_t stage);
    // The last queries of every slot in a stage's layers, f16 [query_heads * dim_k, slots * observe
    // + 1, layers], made by the first call: a ring of `observe` for each slot; the last one is
    // nobody's. Error (failure): out of memory.
    Result<ggml_tensor*> log(std::size_t stage);
    Class& row_class(std::size_t index) { return classes_[index]; }
    const Class& row_class(std::size_t index) const { return classes_[index]; }
    std::size_t classes() const { return classes_.size(); }
    std::int64_t heads_of_classes(std::size_t stage) const;  // of all of them
    // Whether two layers' heads lie at the same rows and are filled in step.
    bool same_places(std::int64_t layer, std::int64_t other) const;
    // Whether every class can take what is to be kept, [layers x kv_heads] of any slot: its layers
    // keep the same number, and not all.
    bool holds(const std::vector<std::vector<std::int32_t>>& keep, std::int64_t kv_heads) const;

    // A free slot, or -1.
    std::int64_t take_slot();
    void free_slot(std::int64_t slot) { used_[static_cast<std::size_t>(slot)] = false; }
    // One more than the highest slot in use: what a step computes.
    std::int64_t span() const;

    // Rows of `slot` now held by each head of a class: sets its mask to them.
    void set_counts(std::size_t row_class, std::int64_t slot, std::span<const std::int32_t> counts);
    std::int64_t room(std::int64_t slot) const;    // rows that every head has left
    std::int64_t bytes() const { return bytes_; }  // of keys and values, all slots
    // On a stage's device, masks and alignment included.
    std::int64_t buffer_bytes(std::size_t stage) const { return places_[stage].bytes; }
    std::int64_t slot_bytes() const { return bytes_ / shape_.slots; }
    std::int64_t row_bytes() const;

private:
    std::size_t find_class(std::size_t stage, HeadPlaces places);  // a new one has no mask yet
    Result<void> add_mask(Class& about);                           // of its own, where it has none
    // A layer's groups, their tensors in `context`, which has no memory yet.
    Layer describe(ggml_context* context, std::size_t stage, const std::vector<HeadPlaces>& groups);
    void put(std::int64_t layer, Layer made);
    void upload_mask(const Class& about, std::int64_t first, std::int64_t slots);
    using Buffers = std::vector<ggml_backend_buffer_ptr>;
    struct Place {  // of a stage
        ggml_tensor *masks = nullptr, *log = nullptr;
        Buffers buffers, mask_buffers;
        std::int64_t bytes = 0;
    };
    Result<void> allocate(ggml_context_ptr context, std::size_t stage, Buffers& into);

    const Pipeline& pipeline_;
    Shape shape_;
    std::vector<Layer> layers_;
    std::vector<Class> classes_;
    std::vector<bool> used_;
    std::vector<ggml_context_ptr> contexts_;
    std::vector<Place> places_;  // [stages]
    std::int64_t bytes_ = 0;
};

}  // namespace headkv
