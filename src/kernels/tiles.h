// Products and prefill attention in bf16 on a matrix unit (AMX), sums in f32: operands are packed
// once a layer in the order that the unit multiplies. Plain functions, no threads, no ggml. The
// same code runs on loops that imitate the unit, for tests on any CPU.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "kernels/attention.h"

namespace headkv::kernels {

using Bf16 = std::uint16_t;  // the upper half of a float

inline constexpr std::int64_t kPackedRows = 64;         // rows of one packed block
inline constexpr std::int64_t kWidestPackedHead = 512;  // dimensions that can be packed

// Elements of a packed head's row: dims are padded to what the unit takes in one step.
constexpr std::int64_t packed_key_dim(std::int64_t dim) { return (dim + 31) / 32 * 32; }
constexpr std::int64_t packed_value_dim(std::int64_t dim) { return (dim + 15) / 16 * 16; }
// Elements of packed weights [rows][depth].
constexpr std::int64_t packed_weights(std::int64_t rows, std::int64_t depth) {
    return (rows + 31) / 32 * 32 * ((depth + 31) / 32 * 32);
}

// Rows of one KV head, in blocks of kPackedRows; the last block is filled up with zeros.
struct PackedRows {
    const Bf16* keys;    // [blocks][kPackedRows * packed_key_dim(dims.k)]
    const Bf16* values;  // [blocks][kPackedRows * packed_value_dim(dims.v)]
};

// All packed operands and all scratch lie on a boundary of 64 bytes: see PackedBuffer.
struct TileKernels {
    std::string_view name;  // "amx", "imitated"

    // f32 to bf16, round to nearest even; NaN stays NaN.
    void (*round)(const float* from, std::int64_t count, Bf16* to);
    // What products are made of, rounded as it is computed: x / sqrt(mean(x^2) + epsilon) * weight,
    // and gate / (1 + e^-gate) * up.
    void (*round_norm)(const float* x, const float* weight, std::int64_t count, float epsilon,
                       Bf16* to);
    void (*round_swiglu)(const float* gate, const float* up, std::int64_t count, Bf16* to);

    // Packs weights [rows][depth] to packed_weights() elements.
    void (*pack_weights)(const float* weights, std::int64_t rows, std::int64_t depth, Bf16* to);
    // out [columns][out_stride], the first `rows` of each = x [columns][x_stride] times the
    // weights.
    void (*multiply)(const Bf16* weights, std::int64_t rows, std::int64_t depth, const Bf16* x,
                     std::int64_t x_stride, std::int64_t columns, float* out,
                     std::int64_t out_stride);

    // Packs one block of `count` <= kPackedRows rows [count][dim].
    void (*pack_keys)(const Half* rows, std::int64_t count, std::int64_t dim, Bf16* to);
    void (*pack_values)(const Half* rows, std::int64_t count, std::int64_t dim, Bf16* to);

    // out [queries][dims.v] = softmax attention of q [queries][dims.k] (already scaled) over rows
    // [0, visible[i]) of each, visible[i] >= 1. At most kMostQueries queries. `work` on a boundary
    // of 64 bytes, as long as attend_work_floats() says.
    void (*attend)(const float* q, std::int64_t queries, const std::int64_t* visible,
                   PackedRows rows, HeadDims dims, float* out, float* work);
    std::int64_t (*attend_work_floats)(HeadDims dims);
};

// The unit of this CPU, or nullptr: no AMX, a system that does not allow it, or a build without.
const TileKernels* matrix_unit();
const TileKernels& imitated_unit();

// Memory on a boundary of 64 bytes, not initialised. Throws std::bad_alloc.
class PackedBuffer {
public:
    explicit PackedBuffer(std::int64_t elements);
    Bf16* data() { return data_.get(); }
    const Bf16* data() const { return data_.get(); }

private:
    struct Free {
        void operator()(Bf16* data) const { std::free(data); }
    };
    std::unique_ptr<Bf16[], Free> data_;
};

}  // namespace headkv::kernels
