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

// Rows of one KV head, contiguous: keys [rows][head_dim_k], values [rows][head_dim_v].
struct Rows {
    const Half* keys;
    const Half* values;
    std::int64_t count;
};

struct HeadDims {
    std::int64_t k, v;
};

// Most queries that one call of the functions below takes.
inline constexpr std::int64_t kMostQueries = 192;
// Keys of one tile of the prefill kernel.
inline constexpr std::int64_t kTileKeys = 64;

struct Kernels {
    std::string_view name;  // "avx512", "avx2", "portable"

    // Adds `rows` to the state of `queries` rows q [queries][dims.k] (already scaled), all visible.
    // out_stride = dims.v. Reads every key and value once for all queries (in blocks).
    void (*attend_rows)(const float* q, std::int64_t queries, Rows rows, HeadDims dims,
                        SoftmaxState state);

    // The same with a causal limit: query i sees rows [0, visible[i]). For many queries and rows:
    // tiles of keys are unpacked once and multiplied as matrices. q [queries][dims.k] scaled;
    // out_stride = padded_dim(dims.v). `work` as long as tile_work_floats() says.
    void (*attend_tiles)(const float* q, std::int64_t queries, const std::int64_t* visible,
                         Rows rows, HeadDims dims, SoftmaxState state, float* work);
    // Width to which attend_tiles pads a head's output rows, and the scratch that it needs.
    std::int64_t (*padded_dim)(std::int64_t dim);
    std::int64_t (*tile_work_floats)(HeadDims dims);

    // scores [queries][stride]: q . k for all rows.
    void (*dot_rows)(const float* q, std::int64_t queries, const Half* keys, std::int64_t count,
                     std::int64_t dim, float* scores, std::int64_t stride);
    // In place: softmax of scores[0, count), f32.
    void (*softmax)(float* scores, std::int64_t count);

    void (*to_half)(const float* from, Half* to, std::int64_t count);
};

// The best implementation that this CPU runs. `forced` ("portable", "avx2", ...) for tests; an
// unknown or unsupported name gives nullptr.
const Kernels& best();
const Kernels* by_name(std::string_view name);

}  // namespace headkv::kernels
