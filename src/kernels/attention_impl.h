// The kernels, written once over a small vector type `V` that each instruction set provides
// (simd_avx2.h, simd_avx512.h, simd_portable.h). Included by attention_*.cpp only; everything lives
// in an anonymous namespace, so no code of one instruction set leaks into another's functions.
//
// V: reg, width, zero, set1, load, store, load_half, add, mul, fma(a, b, c) = a * b + c, max,
//    reduce_add, reduce_add4, reduce_max, exp (relative error below 2e-7 on [-87, 0]; smaller
//    arguments give 0); for quantised rows set1_half and widen (of one half), load_int8 (signed
//    bytes), load_low and load_high (nibbles of `width` bytes, less 8).

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/half.h"

namespace headkv::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kBlock = 64;     // rows that attend_rows scores before it touches values
constexpr std::int64_t kTogether = 16;  // queries that it takes at a time
constexpr std::int64_t kStride = 16;    // f16 rows between two requests for what comes next
constexpr std::int64_t kColumns = 2 * V::width;  // columns of one micro tile

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Calls `some` with an integral constant, 4 for every four queries and 1 to 3 for the rest, and the
// first of them.
template <typename Call>
void in_fours(std::int64_t queries, Call some) {
    std::int64_t g = 0;
    for (; g + 4 <= queries; g += 4) some(std::integral_constant<std::int64_t, 4>{}, g);
    switch (queries - g) {
        case 3:
            return some(std::integral_constant<std::int64_t, 3>{}, g);
        case 2:
            return some(std::integral_constant<std::int64_t, 2>{}, g);
        case 1:
            return some(std::integral_constant<std::int64_t, 1>{}, g);
        default:
            break;
    }
}

// to[i] = sum of sums[i]
template <std::int64_t Count>
void add_up(const typename V::reg (&sums)[Count], float* to) {
    if constexpr (Count == 4) {
        V::reduce_add4(sums, to);
    } else {
        for (std::int64_t i = 0; i < Count; ++i) to[i] = V::reduce_add(sums[i]);
    }
}

// Scores of up to 3 queries against 4 keys at once (or 1): each key is converted once for all.
template <std::int64_t Queries, std::int64_t Keys>
void dot_group(const float* q, std::int64_t dim, const Half* keys, float* scores,
               std::int64_t stride) {
    typename V::reg sums[Queries][Keys];
    for (auto& row : sums) {
        for (auto& sum : row) sum = V::zero();
    }
    std::int64_t i = 0;
    for (; i + V::width <= dim; i += V::width) {
        typename V::reg key[Keys];
        for (std::int64_t r = 0; r < Keys; ++r) key[r] = V::load_half(keys + r * dim + i);
        for (std::int64_t g = 0; g < Queries; ++g) {
            const auto query = V::load(q + g * dim + i);
            for (std::int64_t r = 0; r < Keys; ++r) sums[g][r] = V::fma(query, key[r], sums[g][r]);
        }
    }
    for (std::int64_t g = 0; g < Queries; ++g) {
        float* to = scores + g * stride;
        add_up(sums[g], to);
        for (std::int64_t rest = i; rest < dim; ++rest) {
            for (std::int64_t r = 0; r < Keys; ++r) {
                to[r] += q[g * dim + rest] * half_to_float(keys[r * dim + rest]);
            }
        }
    }
}

void dot_rows(const float* q, std::int64_t queries, const Half* keys, std::int64_t count,
              std::int64_t dim, float* scores, std::int64_t stride) {
    std::int64_t row = 0;
    for (; row + 4 <= count; row += 4) {
        std::int64_t g = 0;
        for (; g + 3 <= queries; g += 3) {
            dot_group<3, 4>(q + g * dim, dim, keys + row * dim, scores + g * stride + row, stride);
        }
        for (; g < queries; ++g) {
            dot_group<1, 4>(q + g * dim, dim, keys + row * dim, scores + g * stride + row, stride);
        }
    }
    for (; row < count; ++row) {
        for (std::int64_t g = 0; g < queries; ++g) {
            dot_group<1, 1>(q + g * dim, dim, keys + row * dim, scores + g * stride + row, stride);
        }
    }
}

// What a quantised block holds: value = (number - kOffset) * scale. `load` gives V::width numbers
// from column `i`; scale and offset are applied where that is cheapest.
struct Q8Block {
    static constexpr std::int64_t kBytes = row_bytes(RowType::q8_0, kQuantBlock);
    static constexpr float kOffset = 0;
    static typename V::reg load(const std::byte* block, std::int64_t i) {
        return V::load_int8(block + sizeof(Half) + i);
    }
};

struct Q4Block {
    static constexpr std::int64_t kBytes = row_bytes(RowType::q4_0, kQuantBlock);
    static constexpr float kOffset = 8;
    static typename V::reg load(const std::byte* block, std::int64_t i) {
        constexpr auto kHalf = kQuantBlock / 2;
        const std::byte* nibbles = block + sizeof(Half);
        return i < kHalf ? V::load_low(nibbles + i) : V::load_high(nibbles + i - kHalf);
    }
};

Half scale_of(const std::byte* block) {
    Half scale = 0;
    __builtin_memcpy(&scale, block, sizeof(scale));
    return scale;
}

// sums[r] += (one query's columns of a block) . (that block of Keys rows, `bytes` apart). The scale
// and the offset meet the sum over the block, not every value.
template <typename Block, std::int64_t Keys>
void dot_one_block(const float* q, const std::byte* blocks, std::int64_t bytes,
                   typename V::reg* sums) {
    auto start = V::zero();
    if constexpr (Block::kOffset != 0) {
        for (std::int64_t i = 0; i < kQuantBlock; i += V::width)
            start = V::add(start, V::load(q + i));
        start = V::mul(start, V::set1(-Block::kOffset));
    }
    typename V::reg products[Keys];
    for (auto& product : products) product = start;
    for (std::int64_t i = 0; i < kQuantBlock; i += V::width) {
        const auto query = V::load(q + i);
        for (std::int64_t r = 0; r < Keys; ++r) {
            products[r] = V::fma(query, Block::load(blocks + r * bytes, i), products[r]);
        }
    }
    for (std::int64_t r = 0; r < Keys; ++r) {
        sums[r] = V::fma(products[r], V::set1_half(scale_of(blocks + r * bytes)), sums[r]);
    }
}

// The same for several queries, [Queries][dim] and sums [Queries][Keys]: values are made once for
// all of them.
template <typename Block, std::int64_t Queries, std::int64_t Keys>
void dot_some_blocks(const float* q, std::int64_t dim, const std::byte* blocks, std::int64_t bytes,
                     typename V::reg (&sums)[Queries][Keys]) {
    typename V::reg scale[Keys], shift[Keys];
    for (std::int64_t r = 0; r < Keys; ++r) {
        scale[r] = V::set1_half(scale_of(blocks + r * bytes));
        shift[r] = V::mul(scale[r], V::set1(-Block::kOffset));
    }
    for (std::int64_t i = 0; i < kQuantBlock; i += V::width) {
        typename V::reg key[Keys];
        for (std::int64_t r = 0; r < Keys; ++r) {
            const auto numbers = Block::load(blocks + r * bytes, i);
            key[r] = Block::kOffset != 0 ? V::fma(numbers, scale[r], shift[r])
                                         : V::mul(numbers, scale[r]);
        }
        for (std::int64_t g = 0; g < Queries; ++g) {
            const auto query = V::load(q + g * dim + i);
            for (std::int64_t r = 0; r < Keys; ++r) sums[g][r] = V::fma(query, key[r], sums[g][r]);
        }
    }
}

template <typename Block, std::int64_t Queries, std::int64_t Keys>
void dot_quantised_group(const float* q, std::int64_t dim, const std::byte* keys, float* scores,
                         std::int64_t stride) {
    const auto bytes = dim / kQuantBlock * Block::kBytes;
    typename V::reg sums[Queries][Keys];
    for (auto& row : sums) {
        for (auto& sum : row) sum = V::zero();
    }
    for (std::int64_t i = 0; i < dim; i += kQuantBlock, keys += Block::kBytes) {
        if constexpr (Queries == 1) {
            dot_one_block<Block, Keys>(q + i, keys, bytes, sums[0]);
        } else {
            dot_some_blocks<Block>(q + i, dim, keys, bytes, sums);
        }
    }
    for (std::int64_t g = 0; g < Queries; ++g) add_up(sums[g], scores + g * stride);
}

template <typename Block>
void dot_quantised(const float* q, std::int64_t queries, const std::byte* keys, std::int64_t count,
                   std::int64_t dim, float* scores, std::int64_t stride) {
    const auto bytes = dim / kQuantBlock * Block::kBytes;
    std::int64_t row = 0;
    for (; row + 4 <= count; row += 4, keys += 4 * bytes) {
        in_fours(queries, [&](auto some, std::int64_t g) {
            // As many sums as fit into 16 registers beside the keys with their scales and offsets.
            constexpr std::int64_t kKeys = some() == 1 ? 4 : 2;
            for (std::int64_t r = 0; r < 4; r += kKeys) {
                dot_quantised_group<Block, some(), kKeys>(q + g * dim, dim, keys + r * bytes,
                                                          scores + g * stride + row + r, stride);
            }
        });
    }
    for (; row < count; ++row, keys += bytes) {
        for (std::int64_t g = 0; g < queries; ++g) {
            dot_quantised_group<Block, 1, 1>(q + g * dim, dim, keys, scores + g * stride + row,
                                             stride);
        }
    }
}

void dot_keys(const float* q, std::int64_t queries, Rows rows, std::int64_t dim, float* scores,
              std::int64_t stride) {
    assert(rows.key_type == RowType::f16 || dim % kQuantBlock == 0);
    switch (rows.key_type) {
        case RowType::f16:
            return dot_rows(q, queries, reinterpret_cast<const Half*>(rows.keys), rows.count, dim,
                            scores, stride);
        case RowType::q8_0:
            return dot_quantised<Q8Block>(q, queries, rows.keys, rows.count, dim, scores, stride);
        case RowType::q4_0:
            return dot_quantised<Q4Block>(q, queries, rows.keys, rows.count, dim, scores, stride);
    }
}

float max_of(const float* values, std::int64_t count) {
    auto best = V::set1(kMinusInfinity);
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) best = V::max(best, V::load(values + i));
    float result = V::reduce_max(best);
    for (; i < count; ++i) result = std::max(result, values[i]);
    return result;
}

// values[i] = exp(values[i] - shift); returns their sum.
float exp_and_sum(float* values, std::int64_t count, float shift) {
    const auto minus = V::set1(-shift);
    auto sums = V::zero();
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) {
        const auto value = V::exp(V::add(V::load(values + i), minus));
        V::store(values + i, value);
        sums = V::add(sums, value);
    }
    float sum = V::reduce_add(sums);
    for (; i < count; ++i) {
        values[i] = std::exp(values[i] - shift);
        sum += values[i];
    }
    return sum;
}

void scale_row(float* values, std::int64_t count, float factor) {
    const auto by = V::set1(factor);
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width)
        V::store(values + i, V::mul(V::load(values + i), by));
    for (; i < count; ++i) values[i] *= factor;
}

// product = a * b; returns its sum.
float multiply_and_sum(const float* a, const float* b, std::int64_t count, float* product) {
    auto sums = V::zero();
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) {
        const auto value = V::mul(V::load(a + i), V::load(b + i));
        V::store(product + i, value);
        sums = V::add(sums, value);
    }
    float sum = V::reduce_add(sums);
    for (; i < count; ++i) sum += product[i] = a[i] * b[i];
    return sum;
}

void softmax(float* scores, std::int64_t count) {
    if (count <= 0) return;
    const float sum = exp_and_sum(scores, count, max_of(scores, count));
    scale_row(scores, count, 1 / sum);
}

// out[g][column] += sum_r weights[g][r] * load(r, column), for `Queries` queries and the V::width
// columns from each of 0, Step, ... (Registers - 1) * Step. That strip of the output is held in
// registers, so that each value is loaded once for all queries.
template <std::int64_t Queries, std::int64_t Registers, std::int64_t Step, typename Load>
void weigh_strip(const float* weights, std::int64_t stride, std::int64_t count, float* out,
                 std::int64_t out_stride, Load load) {
    typename V::reg sums[Queries][Registers];
    for (std::int64_t g = 0; g < Queries; ++g) {
        for (std::int64_t c = 0; c < Registers; ++c) {
            sums[g][c] = V::load(out + g * out_stride + c * Step);
        }
    }
    for (std::int64_t r = 0; r < count; ++r) {
        typename V::reg value[Registers];
        for (std::int64_t c = 0; c < Registers; ++c) value[c] = load(r, c * Step);
        for (std::int64_t g = 0; g < Queries; ++g) {
            const auto weight = V::set1(weights[g * stride + r]);
            for (std::int64_t c = 0; c < Registers; ++c) {
                sums[g][c] = V::fma(weight, value[c], sums[g][c]);
            }
        }
    }
    for (std::int64_t g = 0; g < Queries; ++g) {
        for (std::int64_t c = 0; c < Registers; ++c) {
            V::store(out + g * out_stride + c * Step, sums[g][c]);
        }
    }
}

// out[g][0, dim) += sum_r weights[g][r] * values[r][0, dim), of f16 and any dim.
template <std::int64_t Queries>
void weigh_halves(const float* weights, std::int64_t stride, const Half* values, std::int64_t count,
                  std::int64_t dim, float* out, std::int64_t out_stride) {
    std::int64_t i = 0;
    const auto strip = [&](const Half* from) {
        return [=](std::int64_t r, std::int64_t c) { return V::load_half(from + r * dim + c); };
    };
    for (; i + 2 * V::width <= dim; i += 2 * V::width) {
        weigh_strip<Queries, 2, V::width>(weights, stride, count, out + i, out_stride,
                                          strip(values + i));
    }
    for (; i + V::width <= dim; i += V::width) {
        weigh_strip<Queries, 1, V::width>(weights, stride, count, out + i, out_stride,
                                          strip(values + i));
    }
    for (; i < dim; ++i) {
        for (std::int64_t g = 0; g < Queries; ++g) {
            float sum = out[g * out_stride + i];
            for (std::int64_t r = 0; r < count; ++r) {
                sum += weights[g * stride + r] * half_to_float(values[r * dim + i]);
            }
            out[g * out_stride + i] = sum;
        }
    }
}

// The same for one column of quantised blocks, `bytes` apart, without their scales and offset.
template <typename Block, std::int64_t Queries>
void weigh_blocks(const float* weights, std::int64_t stride, const std::byte* blocks,
                  std::int64_t bytes, std::int64_t count, float* out, std::int64_t out_stride) {
    // With one or two queries a strip needs more columns to hide how long a sum takes. Strips go
    // across the block: low and high nibbles come from the same bytes.
    constexpr auto kRegisters =
        std::min<std::int64_t>(kQuantBlock / V::width, Queries <= 2 ? 4 : 2);
    constexpr auto kStep = kQuantBlock / kRegisters;
    for (std::int64_t i = 0; i < kStep; i += V::width) {
        weigh_strip<Queries, kRegisters, kStep>(
            weights, stride, count, out + i, out_stride,
            [=](std::int64_t r, std::int64_t c) { return Block::load(blocks + r * bytes, i + c); });
    }
}

// At most kBlock rows and kTogether queries, weights [queries][kBlock]. A row's scale goes into its
// weights, one product a row and query instead of one a value; the offset is taken off the sums.
template <typename Block>
void weigh_quantised(const float* weights, std::int64_t queries, const std::byte* values,
                     std::int64_t count, std::int64_t dim, float* out) {
    const auto bytes = dim / kQuantBlock * Block::kBytes;
    alignas(64) float scales[kBlock];
    alignas(64) float scaled[kTogether * kBlock];
    for (std::int64_t i = 0; i < dim; i += kQuantBlock, values += Block::kBytes) {
        for (std::int64_t r = 0; r < count; ++r) scales[r] = V::widen(scale_of(values + r * bytes));
        for (std::int64_t g = 0; g < queries; ++g) {
            const float sum =
                multiply_and_sum(weights + g * kBlock, scales, count, scaled + g * kBlock);
            if constexpr (Block::kOffset != 0) {
                for (std::int64_t c = 0; c < kQuantBlock; ++c) {
                    out[g * dim + i + c] -= Block::kOffset * sum;
                }
            }
        }
        in_fours(queries, [&](auto some, std::int64_t g) {
            weigh_blocks<Block, some()>(scaled + g * kBlock, kBlock, values, bytes, count,
                                        out + g * dim + i, dim);
        });
    }
}

// out [queries][dim] += weights [queries][kBlock] x the values of `rows`.
void weigh_rows(const float* weights, std::int64_t queries, Rows rows, std::int64_t dim,
                float* out) {
    switch (rows.value_type) {
        case RowType::f16:
            return in_fours(queries, [&](auto some, std::int64_t g) {
                weigh_halves<some()>(weights + g * kBlock, kBlock,
                                     reinterpret_cast<const Half*>(rows.values), rows.count, dim,
                                     out + g * dim, dim);
            });
        case RowType::q8_0:
            return weigh_quantised<Q8Block>(weights, queries, rows.values, rows.count, dim, out);
        case RowType::q4_0:
            return weigh_quantised<Q4Block>(weights, queries, rows.values, rows.count, dim, out);
    }
}

// Turns fresh scores of one query into weights relative to its running maximum.
void absorb(float* scores, std::int64_t count, float* max, float* sum, float* out,
            std::int64_t dim) {
    const float top = max_of(scores, count);
    if (top > *max) {
        const float keep = *max == kMinusInfinity ? 0.0F : std::exp(*max - top);
        *sum *= keep;
        scale_row(out, dim, keep);
        *max = top;
    }
    *sum += exp_and_sum(scores, count, *max);
}

// Asks for what a loop will read soon, a few cache lines at each of its steps: rows lie in several
// streams (keys and values of many heads), which the hardware's own prefetching follows too late.
// Measured on Zen 4: 22 to 29 GB/s a core from memory, 37 to 32 from a cache (docs/performance.md).
class Ahead {
public:
    Ahead(const std::byte* begin, std::int64_t bytes) : next_(begin), end_(begin + bytes) {}
    void ask(std::int64_t bytes) {
        for (; bytes > 0 && next_ < end_; bytes -= kLine, next_ += kLine) __builtin_prefetch(next_);
    }

private:
    static constexpr std::int64_t kLine = 64;
    const std::byte* next_;
    const std::byte* end_;
};

// Up to kBlock rows and kTogether queries. While f16 keys are read, the block's values are asked
// for; while values are read, the keys of `next`. Quantised rows are worked on for longer than they
// take to come. Sums are the same whatever the size of a step.
void attend_block(const float* q, std::int64_t queries, Rows block, Rows next, HeadDims dims,
                  SoftmaxState state) {
    alignas(64) float scores[kTogether * kBlock];
    const bool halves = block.key_type == RowType::f16 && block.value_type == RowType::f16;
    const auto step = halves ? kStride : kBlock;
    const auto key_bytes = halves ? row_bytes(RowType::f16, dims.k) : 0;
    const auto value_bytes = halves ? row_bytes(RowType::f16, dims.v) : 0;
    Ahead values(block.values, block.count * value_bytes);
    Ahead keys(next.keys, next.count * key_bytes);
    for (std::int64_t row = 0; row < block.count; row += step) {
        values.ask(step * value_bytes);
        dot_keys(q, queries, block.slice(row, std::min(row + step, block.count), dims), dims.k,
                 scores + row, kBlock);
    }
    for (std::int64_t g = 0; g < queries; ++g) {
        absorb(scores + g * kBlock, block.count, state.max + g, state.sum + g,
               state.out + g * dims.v, dims.v);
    }
    for (std::int64_t row = 0; row < block.count; row += step) {
        keys.ask(step * key_bytes);
        weigh_rows(scores + row, queries, block.slice(row, std::min(row + step, block.count), dims),
                   dims.v, state.out);
    }
}

void attend_rows(const float* q, std::int64_t queries, Rows rows, HeadDims dims,
                 SoftmaxState state) {
    assert(rows.key_type == RowType::f16 || dims.k % kQuantBlock == 0);
    assert(rows.value_type == RowType::f16 || dims.v % kQuantBlock == 0);
    for (std::int64_t row = 0; row < rows.count; row += kBlock) {
        const auto end = std::min(row + kBlock, rows.count);
        const auto block = rows.slice(row, end, dims);
        const auto next = rows.slice(end, std::min(end + kBlock, rows.count), dims);
        for (std::int64_t first = 0; first < queries; first += kTogether) {
            attend_block(q + first * dims.k, std::min(kTogether, queries - first), block, next,
                         dims, {state.max + first, state.sum + first, state.out + first * dims.v});
        }
    }
}

// c [rows][c_stride] (+)= a [rows][a_stride] x b [depth][b_stride], for Rows rows and kColumns
// columns.
template <std::int64_t RowCount, bool Add>
void micro_tile(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                std::int64_t depth, float* c, std::int64_t c_stride) {
    typename V::reg sums[RowCount][2];
    for (std::int64_t r = 0; r < RowCount; ++r) {
        sums[r][0] = Add ? V::load(c + r * c_stride) : V::zero();
        sums[r][1] = Add ? V::load(c + r * c_stride + V::width) : V::zero();
    }
    for (std::int64_t k = 0; k < depth; ++k) {
        const auto left = V::load(b + k * b_stride);
        const auto right = V::load(b + k * b_stride + V::width);
        for (std::int64_t r = 0; r < RowCount; ++r) {
            const auto factor = V::set1(a[r * a_stride + k]);
            sums[r][0] = V::fma(factor, left, sums[r][0]);
            sums[r][1] = V::fma(factor, right, sums[r][1]);
        }
    }
    for (std::int64_t r = 0; r < RowCount; ++r) {
        V::store(c + r * c_stride, sums[r][0]);
        V::store(c + r * c_stride + V::width, sums[r][1]);
    }
}

template <bool Add>
void micro_rows(std::int64_t rows, const float* a, std::int64_t a_stride, const float* b,
                std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
    switch (rows) {
        case 1:
            return micro_tile<1, Add>(a, a_stride, b, b_stride, depth, c, c_stride);
        case 2:
            return micro_tile<2, Add>(a, a_stride, b, b_stride, depth, c, c_stride);
        case 3:
            return micro_tile<3, Add>(a, a_stride, b, b_stride, depth, c, c_stride);
        case 4:
            return micro_tile<4, Add>(a, a_stride, b, b_stride, depth, c, c_stride);
        case 5:
            return micro_tile<5, Add>(a, a_stride, b, b_stride, depth, c, c_stride);
        default:
            return micro_tile<6, Add>(a, a_stride, b, b_stride, depth, c, c_stride);
    }
}

// c [rows][columns] (+)= a x b; columns a multiple of kColumns. b's strips stay in the first-level
// cache while all rows pass over them.
template <bool Add>
void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, const float* a,
              std::int64_t a_stride, const float* b, std::int64_t b_stride, float* c,
              std::int64_t c_stride) {
    for (std::int64_t column = 0; column < columns; column += kColumns) {
        for (std::int64_t row = 0; row < rows; row += 6) {
            micro_rows<Add>(std::min<std::int64_t>(6, rows - row), a + row * a_stride, a_stride,
                            b + column, b_stride, depth, c + row * c_stride + column, c_stride);
        }
    }
}

std::int64_t padded_dim(std::int64_t dim) { return round_up(dim, kColumns); }

std::int64_t tile_work_floats(HeadDims dims) {
    return dims.k * kTileKeys + padded_dim(dims.v) * kTileKeys + kMostQueries * kTileKeys;
}

// Keys of a tile, transposed to [dim][kTileKeys] so that scores of many keys form in one register.
void unpack_keys(const Half* keys, std::int64_t count, std::int64_t dim, float* to) {
    if (count < kTileKeys) std::fill_n(to, dim * kTileKeys, 0.0F);
    alignas(64) float rows[8][V::width];
    for (std::int64_t first = 0; first < count; first += 8) {
        const auto some = std::min<std::int64_t>(8, count - first);
        std::int64_t i = 0;
        for (; i + V::width <= dim; i += V::width) {
            for (std::int64_t r = 0; r < some; ++r) {
                V::store(rows[r], V::load_half(keys + (first + r) * dim + i));
            }
            for (std::int64_t c = 0; c < V::width; ++c) {
                for (std::int64_t r = 0; r < some; ++r) {
                    to[(i + c) * kTileKeys + first + r] = rows[r][c];
                }
            }
        }
        for (; i < dim; ++i) {
            for (std::int64_t r = 0; r < some; ++r) {
                to[i * kTileKeys + first + r] = half_to_float(keys[(first + r) * dim + i]);
            }
        }
    }
}

// Values of a tile as [kTileKeys][padded]; missing rows and columns are zero.
void unpack_values(const Half* values, std::int64_t count, std::int64_t dim, std::int64_t padded,
                   float* to) {
    for (std::int64_t r = 0; r < kTileKeys; ++r) {
        float* row = to + r * padded;
        if (r >= count) {
            std::fill_n(row, padded, 0.0F);
            continue;
        }
        std::int64_t i = 0;
        for (; i + V::width <= dim; i += V::width)
            V::store(row + i, V::load_half(values + r * dim + i));
        for (; i < dim; ++i) row[i] = half_to_float(values[r * dim + i]);
        std::fill(row + dim, row + padded, 0.0F);
    }
}

void attend_tiles(const float* q, std::int64_t queries, const std::int64_t* visible, Rows rows,
                  HeadDims dims, SoftmaxState state, float* work) {
    assert(rows.key_type == RowType::f16 && rows.value_type == RowType::f16);
    const auto* row_keys = reinterpret_cast<const Half*>(rows.keys);
    const auto* row_values = reinterpret_cast<const Half*>(rows.values);
    const auto padded = padded_dim(dims.v);
    float* keys = work;
    float* values = keys + dims.k * kTileKeys;
    float* scores = values + padded * kTileKeys;
    std::int64_t most = 0;
    for (std::int64_t i = 0; i < queries; ++i) most = std::max(most, visible[i]);
    most = std::min(most, rows.count);
    for (std::int64_t first = 0; first < most; first += kTileKeys) {
        const auto count = std::min(kTileKeys, most - first);
        unpack_keys(row_keys + first * dims.k, count, dims.k, keys);
        unpack_values(row_values + first * dims.v, count, dims.v, padded, values);
        multiply<false>(queries, kTileKeys, dims.k, q, dims.k, keys, kTileKeys, scores, kTileKeys);
        for (std::int64_t i = 0; i < queries; ++i) {
            float* row = scores + i * kTileKeys;
            const auto seen = std::clamp<std::int64_t>(visible[i] - first, 0, count);
            if (seen > 0) {
                absorb(row, seen, state.max + i, state.sum + i, state.out + i * padded, padded);
            }
            std::fill(row + seen, row + kTileKeys, 0.0F);
        }
        multiply<true>(queries, padded, kTileKeys, scores, kTileKeys, values, padded, state.out,
                       padded);
    }
}

void to_half(const float* from, Half* to, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) V::store_half(to + i, V::load(from + i));
    for (; i < count; ++i) to[i] = float_to_half_scalar(from[i]);
}

void to_float(const Half* from, float* to, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) V::store(to + i, V::load_half(from + i));
    for (; i < count; ++i) to[i] = half_to_float(from[i]);
}

constexpr Kernels table(std::string_view name) {
    return {name,     attend_rows, attend_tiles, padded_dim, tile_work_floats,
            dot_rows, dot_keys,    softmax,      to_half,    to_float};
}

}  // namespace
}  // namespace headkv::kernels
