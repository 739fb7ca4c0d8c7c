// Products of a quantised matrix with few columns on the CPU (decoding many sequences at once): a
// block of weights is unpacked once for all columns and multiplied in 8-bit integers. Plain
// functions on the file's bytes, no threads, no ggml. One implementation per instruction set,
// chosen at run time; all are tested against naive loops.
//
// A column is rounded to 8 bits in blocks of 32 values, as ggml rounds it for the types with blocks
// of 32: the largest magnitude of a block becomes 127. Products of a block are exact, sums over
// blocks are f32. What a column gives does not depend on the columns beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/attention.h"

namespace headkv::kernels {

// GGUF's types of these names, and their layouts.
enum class WeightType : std::uint8_t { q4_0, q4_1, q5_0, q5_1, q8_0, q4_K, q5_K, q6_K };

// Values of a block, and the bytes that it takes.
constexpr std::int64_t block_values(WeightType type) { return type < WeightType::q4_K ? 32 : 256; }
constexpr std::int64_t block_bytes(WeightType type) {
    constexpr std::int64_t kBytes[] = {18, 20, 22, 24, 34, 144, 176, 210};
    return kBytes[static_cast<int>(type)];
}

// Columns in 8 bits: value i of column c is q[i / 32][c][i % 32] * scale[i / 32][c]. It only
// points: one piece of memory, bytes() long and on a boundary of 4 bytes, holds all.
struct RoundedColumns {
    static constexpr std::int64_t kBlock = 32;
    static constexpr std::int64_t bytes(std::int64_t in, std::int64_t columns) {
        return in / kBlock * columns * (kBlock + 5 * static_cast<std::int64_t>(sizeof(float)));
    }
    RoundedColumns(std::byte* memory, std::int64_t values, std::int64_t count)
        : in(values),
          columns(count),
          q(reinterpret_cast<std::int8_t*>(memory)),
          scale(reinterpret_cast<float*>(memory + in * columns)),
          sum(scale + in / kBlock * columns),
          bias(reinterpret_cast<std::int32_t*>(sum + in / kBlock * columns)) {}

    std::int64_t in, columns;  // in: a multiple of 32
    std::int8_t* q;            // [in / 32][columns][32]
    float* scale;              // [in / 32][columns]
    float* sum;                // [in / 32][columns] of a block's rounded values, times scale
    std::int32_t* bias;        // [in / 32][columns][3] -128 times the sum of the q: of a block,
                               // its first 16, its last 16
};

struct FewColumns {
    std::string_view name;  // "vnni" (AVX-512), "avx2", "portable"

    // Rounds blocks [first, last) of a column: x [in] are its finite values.
    void (*round)(const float* x, std::int64_t first, std::int64_t last, std::int64_t column,
                  const RoundedColumns& to);

    // out [x.columns][out_stride], the first `rows` of each, = x times the matrix's rows. `weights`
    // [rows] of x.in / block_values(type) blocks each, without gaps; x.in must be a multiple of
    // block_values(type).
    void (*multiply)(WeightType type, const std::byte* weights, std::int64_t rows,
                     const RoundedColumns& x, float* out, std::int64_t out_stride);
};

// Rows that multiply() takes at a time, a multiple of what every implementation does.
inline constexpr std::int64_t kFewColumnsRows = 16;

// As best() and by_name() of attention.h.
const FewColumns& best_few_columns();
const FewColumns* few_columns_by_name(std::string_view name);

}  // namespace headkv::kernels
