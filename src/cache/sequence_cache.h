// The rows of one sequence: per layer and KV head exactly the memory that its plan and reserve ask
// for. One group a head (DESIGN section 5, CPU): capacities are exact, nothing is padding. Keys and
// values are each stored as one of kernels::RowType, rotated where that is quantised: queries must
// be, too, and what attention gives must be turned back (kernels::rotate).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "headkv/error.h"
#include "kernels/attention.h"

namespace headkv {

using kernels::Half;  // IEEE binary16

// Full keys and values of one layer during prefill: [heads][tokens][dim], keys after RoPE.
struct LayerRows {
    std::span<const Half> keys, values;
    std::int64_t tokens = 0;
    std::int64_t stride = 0;  // rows from one head's first to the next one's; 0: tokens
    std::int64_t head_rows() const { return stride > 0 ? stride : tokens; }
};

struct CacheShape {
    std::int64_t layers = 0, heads = 0, dim_k = 0, dim_v = 0;
    // A quantised type needs a dim that is a multiple of kernels::kQuantBlock.
    kernels::RowType type_k = kernels::RowType::f16, type_v = kernels::RowType::f16;

    std::int64_t key_bytes() const { return kernels::row_bytes(type_k, dim_k); }
    std::int64_t value_bytes() const { return kernels::row_bytes(type_v, dim_v); }
    std::int64_t row_bytes() const { return key_bytes() + value_bytes(); }
};

class SequenceCache {
public:
    // `owner` [layers]: the layer whose rows a layer reads, itself or an earlier one; empty: every
    // layer owns its rows. Only layers that own rows are filled and cut; what reads a layer's rows
    // (head(), rows(), positions(), load()) reads its owner's.
    explicit SequenceCache(const CacheShape& shape, std::vector<std::int64_t> owner = {});

    const CacheShape& shape() const { return shape_; }
    bool owns(std::int64_t layer) const { return place(layer) == static_cast<std::size_t>(layer); }

    // Stores the rows of `keep` ([heads] sorted positions) of a layer's full rows in fresh memory
    // with `reserve` free rows a head. Rows of quantised types must be finite. Error (failure): out
    // of memory; the layer is unchanged.
    Result<void> fill(std::int64_t layer, const LayerRows& from,
                      const std::vector<std::vector<std::int32_t>>& keep, std::int64_t reserve);

    // The same with rows that another cache of the same heads and dims holds: `keep` are indices
    // into them, the rows take over their positions. Its types may be others.
    Result<void> fill(std::int64_t layer, const SequenceCache& from,
                      const std::vector<std::vector<std::int32_t>>& keep, std::int64_t reserve);

    // The same for one head in the memory that it has, which must be enough for them.
    void refill(std::int64_t layer, std::int64_t head, const SequenceCache& from,
                std::span<const std::int32_t> keep);

    // Fresh memory with exactly `reserve` free rows in every head, of all layers or of one; copies
    // what is held. Error (failure): out of memory; every row is still there.
    Result<void> grow(std::int64_t reserve);
    Result<void> fit(std::int64_t layer, std::int64_t reserve);

    // Keeps only the rows `keep` (sorted indices into the rows held) of one head, in place.
    void keep(std::int64_t layer, std::int64_t head, std::span<const std::int32_t> keep);

    // Free rows of the fullest head: tokens that can be appended without dropping any.
    std::int64_t room() const;

    // Rows of a head; the next appended row goes behind the last of `count`.
    struct Head {
        std::byte* keys = nullptr;    // [capacity][key_bytes]
        std::byte* values = nullptr;  // [capacity][value_bytes]
        std::int64_t count = 0;
        std::int64_t capacity = 0;
    };
    Head head(std::int64_t layer, std::int64_t head) const;
    // Rows [begin, end) of a head, for the kernels: those held, and those written behind them.
    kernels::Rows rows(std::int64_t layer, std::int64_t head, std::int64_t begin,
                       std::int64_t end) const;
    // Writes row `index` of a head from f32 values, not rotated, [dim_k], [dim_v]; index <
    // capacity.
    void store(std::int64_t layer, std::int64_t head, std::int64_t index, const float* key,
               const float* value);
    // Its key or its value alone.
    void store_key(std::int64_t layer, std::int64_t head, std::int64_t index, const float* key);
    void store_value(std::int64_t layer, std::int64_t head, std::int64_t index, const float* value);
    // Row `index` of a head, filled from `from`, takes the mean of its value and those of the
    // positions `others` there (2412.08521); its key stays.
    void average_value(std::int64_t layer, std::int64_t head, std::int64_t index,
                       const LayerRows& from, std::span<const std::int32_t> others);
    // Reads row `index` of a head back, not rotated, to [dim_k], [dim_v].
    void load(std::int64_t layer, std::int64_t head, std::int64_t index, float* key,
              float* value) const;
    // Declares `count` rows written behind the last one of every head, at these positions.
    void append(std::int64_t first_position, std::int64_t count);

    std::span<const std::int32_t> positions(std::int64_t layer, std::int64_t head) const;

    std::int64_t held_bytes() const;       // rows held x row bytes
    std::int64_t allocated_bytes() const;  // rows and reserve as allocated

    SequenceCache copy() const;  // copies every row

private:
    struct Layer {
        std::unique_ptr<std::byte[]> keys, values;         // heads one after the other
        std::vector<std::int64_t> start;                   // [heads + 1] first row of each head
        std::vector<std::vector<std::int32_t>> positions;  // [heads][rows held]
    };
    Result<Layer> allocate(const std::vector<std::vector<std::int32_t>>& lists,
                           std::int64_t reserve) const;
    // Where a layer's rows lie in layers_.
    std::size_t place(std::int64_t layer) const {
        const auto at = static_cast<std::size_t>(layer);
        return owner_.empty() ? at : static_cast<std::size_t>(owner_[at]);
    }

    CacheShape shape_;
    std::vector<std::int64_t> owner_;
    std::vector<Layer> layers_;
};

}  // namespace headkv
