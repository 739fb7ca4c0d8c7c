// Attention over cached rows on the CPU: plain functions on host memory, no threads, no ggml.
// One implementation per instruction set, chosen at run time; all are tested against naive loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace headkv::kernels {

using Half = std::uint16_t;  // IEEE binary16, as ggml_fp16_t

// Running softmax state of a set of query rows: out = sum_j exp(s_j - max) v_j, sum = sum_j
// exp(...). Starts as max = -inf, sum = 0, out = 0; the answer is out / sum.
struct SoftmaxState {
    float* max;  // [queries]
    float* sum;  // [queries]
    float* out;  // [queries][out_stride]
};

struct HeadDims {
    std::int64_t k, v;
};

// How a cached row is stored. The quantised types are ggml's blocks of 32 values, so their rows
// need a dim that is a multiple of kQuantBlock:
//   q8_0: f16 scale, 32 signed bytes; value i = byte i * scale
//   q4_0: f16 scale, 16 bytes; value i = (low nibble of byte i - 8) * scale, value i + 16 the same
//         of the high nibble
enum class RowType : std::uint8_t { f16, q8_0, q4_0 };
inline constexpr std::int64_t kQuantBlock = 32;

// Bytes of one row of `dim` values.
constexpr std::int64_t row_bytes(RowType type, std::int64_t dim) {
    if (type == RowType::f16) return dim * static_cast<std::int64_t>(sizeof(Half));
    return dim / kQuantBlock * (2 + (type == RowType::q8_0 ? kQuantBlock : kQuantBlock / 2));
}

// Rows of one KV head, contiguous: keys [rows][head_dim_k], values [rows][head_dim_v], each of its
// own type.
struct Rows {
    const std::byte* keys;
    const std::byte* values;
    std::int64_t count;
    RowType key_type = RowType::f16, value_type = RowType::f16;

    Rows(const Half* f16_keys, const Half* f16_values, std::int64_t rows)
        : keys(reinterpret_cast<const std::byte*>(f16_keys)),
          values(reinterpret_cast<const std::byte*>(f16_values)),
          count(rows) {}
    Rows(RowType type_k, const std::byte* k, RowType type_v, const std::byte* v, std::int64_t rows)
        : keys(k), values(v), count(rows), key_type(type_k), value_type(type_v) {}

    // Rows [begin, end) of these.
    Rows slice(std::int64_t begin, std::int64_t end, HeadDims dims) const {
        return {key_type, keys + begin * row_bytes(key_type, dims.k), value_type,
                values + begin * row_bytes(value_type, dims.v), end - begin};
    }
};

// Writes one row of `dim` finite values as `type`, to row_bytes(type, dim) bytes. Rounds exactly as
// ggml's reference quantisers do; f16 as Kernels::to_half does.
void store_row(RowType type, const float* from, std::int64_t dim, std::byte* to);

// Reads such a row back as it is stored (rotated where it was), to [dim].
void load_row(RowType type, const std::byte* from, std::int64_t dim, float* to);

// Rows of quantised types are stored rotated: products of keys and queries stay what they are when
// both are, and what stands out in a few dimensions, which would take a block's whole range, is
// spread over all of them (arXiv 2404.00456 does it to weights and caches). In place, its own
// inverse: the Walsh-Hadamard transform over sqrt(n), in blocks of n = the largest power of two
// that divides `dim`.
void rotate(float* row, std::int64_t dim);
constexpr bool rotated(RowType type) { return type != RowType::f16; }

// Most queries that one call of the functions below takes.
inline constexpr std::int64_t kMostQueries = 192;
// Keys of one tile of the prefill kernel.
inline constexpr std::int64_t kTileKeys = 64;

struct Kernels {
    std::string_view name;  // "avx512", "avx2", "portable"

    // Adds `rows` to the state of `queries` rows q [queries][dims.k] (already scaled), all visible.
    // out_stride = dims.v. Reads every key and value once for all queries (in blocks). Rows of any
    // types.
    void (*attend_rows)(const float* q, std::int64_t queries, Rows rows, HeadDims dims,
                        SoftmaxState state);

    // The same with a causal limit: query i sees rows [0, visible[i]). For many queries and rows:
    // tiles of keys are unpacked once and multiplied as matrices. q [queries][dims.k] scaled;
    // out_stride = padded_dim(dims.v). `work` as long as tile_work_floats() says. f16 rows only.
    void (*attend_tiles)(const float* q, std::int64_t queries, const std::int64_t* visible,
                         Rows rows, HeadDims dims, SoftmaxState state, float* work);
    // Width to which attend_tiles pads a head's output rows, and the scratch that it needs.
    std::int64_t (*padded_dim)(std::int64_t dim);
    std::int64_t (*tile_work_floats)(HeadDims dims);

    // scores [queries][stride]: q . k for all rows; f16 keys, or the keys of `rows`, of any type.
    void (*dot_rows)(const float* q, std::int64_t queries, const Half* keys, std::int64_t count,
                     std::int64_t dim, float* scores, std::int64_t stride);
    void (*dot_keys)(const float* q, std::int64_t queries, Rows rows, std::int64_t dim,
                     float* scores, std::int64_t stride);
    // In place: softmax of scores[0, count), f32.
    void (*softmax)(float* scores, std::int64_t count);

    void (*to_half)(const float* from, Half* to, std::int64_t count);
    void (*to_float)(const Half* from, float* to, std::int64_t count);
};

// The best implementation that this CPU runs. `forced` ("portable", "avx2", ...) for tests; an
// unknown or unsupported name gives nullptr.
const Kernels& best();
const Kernels* by_name(std::string_view name);

}  // namespace headkv::kernels
