// Products and attention on a unit of tiles, written once. Included by tiles_*.cpp only, behind
// definitions of
//   V     the vector type of simd_*.h
//   Unit  tiles of 16 rows x 64 bytes, eight of them:
//     begin() / end()                    around every use, in each thread
//     zero<T>()                          f32 tile
//     load<T>(p, stride_bytes), store<T>(p, stride_bytes)
//     multiply<C, A, B>()                C [16][16] f32 += A [16][32] bf16 x B, where
//                                        B [16][16][2] bf16 holds rows 2i and 2i + 1 side by side
//     store_bf16(p, V::reg)              V::width rounded values
//     store_bf16(p, V::reg, V::reg)      twice as many
//     any_above(V::reg, float)
//     silu(V::reg)                       x / (1 + e^-x), to the precision of bf16
//     exp2(x, factor, shift)             2^(x * factor + shift), to the precision of bf16; 0 for
//                                        x = -inf

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/tiles.h"

namespace headkv::kernels {
namespace {

constexpr std::int64_t kTile = 16;         // rows and f32 columns of a tile
constexpr std::int64_t kDepth = 32;        // bf16 columns of a tile
constexpr std::int64_t kStep = 2 * kTile;  // queries that are worked on together
constexpr std::int64_t kTileElements = kTile * kDepth;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Scratch of one thread; grows to what is asked for and stays.
class PackedScratch {
public:
    Bf16* at_least(std::int64_t elements) {
        if (elements > size_) {
            buffer_ = PackedBuffer(elements);
            size_ = elements;
        }
        return buffer_.data();
    }

private:
    std::int64_t size_ = 0;
    PackedBuffer buffer_{0};
};

constexpr std::int64_t padded_to(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// to[i] = bf16 of function(i), where function gives V::width values from index i on; the tail is
// computed from `tail`, which has it in front and zeros behind.
template <class Whole, class Tail>
void round_each(std::int64_t count, Bf16* to, const Whole& whole, const Tail& tail) {
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) Unit::store_bf16(to + i, whole(i));
    if (i == count) return;
    alignas(64) Bf16 rounded[V::width];
    Unit::store_bf16(rounded, tail(i));
    std::copy_n(rounded, count - i, to + i);
}

// The last count - i values, zeros behind them.
typename V::reg load_tail(const float* from, std::int64_t i, std::int64_t count) {
    float rest[V::width] = {};
    std::copy_n(from + i, count - i, rest);
    return V::load(rest);
}

void round_row(const float* from, std::int64_t count, Bf16* to) {
    round_each(
        count, to, [&](std::int64_t i) { return V::load(from + i); },
        [&](std::int64_t i) { return load_tail(from, i, count); });
}

void round_norm(const float* x, const float* weight, std::int64_t count, float epsilon, Bf16* to) {
    auto squares = V::zero();
    std::int64_t i = 0;
    for (; i + V::width <= count; i += V::width) {
        const auto value = V::load(x + i);
        squares = V::add(squares, V::mul(value, value));
    }
    if (i < count) {
        const auto value = load_tail(x, i, count);
        squares = V::add(squares, V::mul(value, value));
    }
    const float mean = V::reduce_add(squares) / static_cast<float>(count);
    const auto factor = V::set1(1 / std::sqrt(mean + epsilon));
    round_each(
        count, to,
        [&](std::int64_t j) { return V::mul(V::mul(V::load(x + j), factor), V::load(weight + j)); },
        [&](std::int64_t j) {
            return V::mul(V::mul(load_tail(x, j, count), factor), load_tail(weight, j, count));
        });
}

void round_swiglu(const float* gate, const float* up, std::int64_t count, Bf16* to) {
    round_each(
        count, to,
        [&](std::int64_t j) { return V::mul(Unit::silu(V::load(gate + j)), V::load(up + j)); },
        [&](std::int64_t j) {
            return V::mul(Unit::silu(load_tail(gate, j, count)), load_tail(up, j, count));
        });
}

// Turns 16 rows of 32 values into the tile whose row i holds values 2i, 2i + 1 of every row.
void pack_pairs(const Bf16* rows, std::int64_t stride, Bf16* tile) {
    for (std::int64_t row = 0; row < kTile; ++row) {
        for (std::int64_t pair = 0; pair < kTile; ++pair) {
            std::memcpy(tile + (pair * kTile + row) * 2, rows + row * stride + 2 * pair,
                        2 * sizeof(Bf16));
        }
    }
}

// --- products: for each 16 rows of the weights and each 32 of their depth a tile

void pack_weights(const float* weights, std::int64_t rows, std::int64_t depth, Bf16* to) {
    const auto padded = padded_to(depth, kDepth);
    thread_local PackedScratch scratch;
    Bf16* strip = scratch.at_least(kTile * padded);  // 16 rows, rounded
    for (std::int64_t first = 0; first < padded_to(rows, kStep); first += kTile) {
        std::fill_n(strip, kTile * padded, Bf16{0});
        for (std::int64_t row = first; row < std::min(rows, first + kTile); ++row) {
            round_row(weights + row * depth, depth, strip + (row - first) * padded);
        }
        for (std::int64_t d = 0; d < padded; d += kDepth, to += kTileElements) {
            pack_pairs(strip + d, padded, to);
        }
    }
}

// Where the sums of four tiles start.
enum class Sums { zero, stored };

// out [kStep][stride] = (or, stored, +=) x [kStep][x_stride] times 32 packed rows: `depths` tiles
// of each, the second sixteen at `other`.
template <Sums kSums>
void multiply_step(const Bf16* weights, const Bf16* other, std::int64_t depths, const Bf16* x,
                   std::int64_t x_stride, float* out, std::int64_t stride) {
    const auto x_bytes = x_stride * static_cast<std::int64_t>(sizeof(Bf16));
    const auto out_bytes = stride * static_cast<std::int64_t>(sizeof(float));
    if constexpr (kSums == Sums::stored) {
        Unit::template load<0>(out, out_bytes);
        Unit::template load<1>(out + kTile, out_bytes);
        Unit::template load<2>(out + kTile * stride, out_bytes);
        Unit::template load<3>(out + kTile * stride + kTile, out_bytes);
    } else {
        Unit::template zero<0>();
        Unit::template zero<1>();
        Unit::template zero<2>();
        Unit::template zero<3>();
    }
    for (std::int64_t d = 0; d < depths; ++d) {
        Unit::template load<4>(x + d * kDepth, x_bytes);
        Unit::template load<6>(weights + d * kTileElements, 64);
        Unit::template multiply<0, 4, 6>();
        Unit::template load<7>(other + d * kTileElements, 64);
        Unit::template multiply<1, 4, 7>();
        Unit::template load<5>(x + kTile * x_stride + d * kDepth, x_bytes);
        Unit::template multiply<2, 5, 6>();
        Unit::template multiply<3, 5, 7>();
    }
    Unit::template store<0>(out, out_bytes);
    Unit::template store<1>(out + kTile, out_bytes);
    Unit::template store<2>(out + kTile * stride, out_bytes);
    Unit::template store<3>(out + kTile * stride + kTile, out_bytes);
}

void multiply(const Bf16* weights, std::int64_t rows, std::int64_t depth, const Bf16* x,
              std::int64_t x_stride, std::int64_t columns, float* out, std::int64_t out_stride) {
    const auto padded = padded_to(depth, kDepth);
    const auto depths = padded / kDepth;
    alignas(64) float edge[kStep * kStep];
    thread_local PackedScratch scratch;
    Unit::begin();
    for (std::int64_t column = 0; column < columns; column += kStep) {
        const auto some = std::min(kStep, columns - column);
        const Bf16* block = x + column * x_stride;
        auto stride = x_stride;
        if (some < kStep || padded != depth) {  // a copy with zeros around it
            Bf16* copy = scratch.at_least(kStep * padded);
            std::fill_n(copy, kStep * padded, Bf16{0});
            for (std::int64_t i = 0; i < some; ++i) {
                std::copy_n(block + i * x_stride, depth, copy + i * padded);
            }
            block = copy;
            stride = padded;
        }
        for (std::int64_t row = 0; row < rows; row += kStep) {
            const Bf16* tiles = weights + row * padded;
            float* to = out + column * out_stride + row;
            const auto wide = std::min(kStep, rows - row);
            if (some == kStep && wide == kStep) {
                multiply_step<Sums::zero>(tiles, tiles + depths * kTileElements, depths, block,
                                          stride, to, out_stride);
                continue;
            }
            multiply_step<Sums::zero>(tiles, tiles + depths * kTileElements, depths, block, stride,
                                      edge, kStep);
            for (std::int64_t i = 0; i < some; ++i) {
                std::copy_n(edge + i * kStep, wide, to + i * out_stride);
            }
        }
    }
    Unit::end();
}

// --- attention

// f16 rows [count][dim] -> bf16 [kPackedRows][padded], zeros where there is nothing.
void round_block(const Half* rows, std::int64_t count, std::int64_t dim, std::int64_t padded,
                 Bf16* to) {
    std::fill_n(to, kPackedRows * padded, Bf16{0});
    for (std::int64_t row = 0; row < count; ++row) {
        const Half* from = rows + row * dim;
        round_each(
            dim, to + row * padded, [&](std::int64_t i) { return V::load_half(from + i); },
            [&](std::int64_t i) {
                Half rest[V::width] = {};
                std::copy_n(from + i, dim - i, rest);
                return V::load_half(rest);
            });
    }
}

// Keys: for each 16 of them and each 32 dimensions a tile whose row i holds dimensions 2i, 2i + 1
// of every key.
void pack_keys(const Half* rows, std::int64_t count, std::int64_t dim, Bf16* to) {
    const auto padded = packed_key_dim(dim);
    alignas(64) Bf16 plain[kPackedRows * kWidestPackedHead];
    round_block(rows, count, dim, padded, plain);
    for (std::int64_t group = 0; group < kPackedRows; group += kTile) {
        for (std::int64_t depth = 0; depth < padded; depth += kDepth, to += kTileElements) {
            pack_pairs(plain + group * padded + depth, padded, to);
        }
    }
}

// Values: for each 32 rows and each 16 dimensions a tile whose row i holds rows 2i, 2i + 1.
void pack_values(const Half* rows, std::int64_t count, std::int64_t dim, Bf16* to) {
    const auto padded = packed_value_dim(dim);
    alignas(64) Bf16 plain[kPackedRows * kWidestPackedHead];
    round_block(rows, count, dim, padded, plain);
    for (std::int64_t group = 0; group < kPackedRows; group += kDepth) {
        for (std::int64_t first = 0; first < padded; first += kTile, to += kTileElements) {
            for (std::int64_t pair = 0; pair < kTile; ++pair) {
                const Bf16* even = plain + (group + 2 * pair) * padded + first;
                const Bf16* odd = even + padded;
                for (std::int64_t i = 0; i < kTile; ++i) {
                    to[(pair * kTile + i) * 2] = even[i];
                    to[(pair * kTile + i) * 2 + 1] = odd[i];
                }
            }
        }
    }
}

// Rows that a step of the attention looks at: what it costs to fetch and store sums is paid once
// for all of them.
constexpr std::int64_t kBlocks = 2;
constexpr std::int64_t kSpan = kBlocks * kPackedRows;

// scores [kStep][kSpan] = q [kStep][padded] x some blocks of keys.
void score_blocks(const Bf16* q, const Bf16* keys, std::int64_t blocks, std::int64_t padded,
                  float* scores) {
    const auto depths = padded / kDepth;
    for (std::int64_t row = 0; row < blocks * kPackedRows; row += kStep) {
        const Bf16* tiles = keys + row * padded;
        multiply_step<Sums::zero>(tiles, tiles + depths * kTileElements, depths, q, padded,
                                  scores + row, kSpan);
    }
}

// out [kStep][padded] += weights [kStep][kSpan] x some blocks of values.
void weigh_blocks(const Bf16* weights, const Bf16* values, std::int64_t blocks, std::int64_t padded,
                  float* out) {
    const auto strips = padded / kTile;
    const auto depths = blocks * kPackedRows / kDepth;
    const auto out_stride = padded * static_cast<std::int64_t>(sizeof(float));
    constexpr auto kWeightStride = kSpan * static_cast<std::int64_t>(sizeof(Bf16));
    std::int64_t strip = 0;
    for (; strip + 2 <= strips; strip += 2) {
        float* to = out + strip * kTile;
        Unit::template load<0>(to, out_stride);
        Unit::template load<1>(to + kTile, out_stride);
        Unit::template load<2>(to + kTile * padded, out_stride);
        Unit::template load<3>(to + kTile * padded + kTile, out_stride);
        for (std::int64_t d = 0; d < depths; ++d) {
            const Bf16* tile = values + (d * strips + strip) * kTileElements;
            Unit::template load<4>(weights + d * kDepth, kWeightStride);
            Unit::template load<6>(tile, 64);
            Unit::template multiply<0, 4, 6>();
            Unit::template load<7>(tile + kTileElements, 64);
            Unit::template multiply<1, 4, 7>();
            Unit::template load<5>(weights + kTile * kSpan + d * kDepth, kWeightStride);
            Unit::template multiply<2, 5, 6>();
            Unit::template multiply<3, 5, 7>();
        }
        Unit::template store<0>(to, out_stride);
        Unit::template store<1>(to + kTile, out_stride);
        Unit::template store<2>(to + kTile * padded, out_stride);
        Unit::template store<3>(to + kTile * padded + kTile, out_stride);
    }
    if (strip == strips) return;
    float* to = out + strip * kTile;
    Unit::template load<0>(to, out_stride);
    Unit::template load<2>(to + kTile * padded, out_stride);
    for (std::int64_t d = 0; d < depths; ++d) {
        Unit::template load<4>(weights + d * kDepth, kWeightStride);
        Unit::template load<5>(weights + kTile * kSpan + d * kDepth, kWeightStride);
        Unit::template load<6>(values + (d * strips + strip) * kTileElements, 64);
        Unit::template multiply<0, 4, 6>();
        Unit::template multiply<2, 5, 6>();
    }
    Unit::template store<0>(to, out_stride);
    Unit::template store<2>(to + kTile * padded, out_stride);
}

// What is known of one query: the sum of its weights, in as many parts as a vector has, relative to
// the largest score.
struct alignas(64) QueryState {
    float sum[V::width];
    float max;
};

// Turns one query's scores of a span into weights relative to its running maximum.
void absorb_span(float* scores, std::int64_t seen, QueryState& state, float* out,
                 std::int64_t out_dim, Bf16* weights) {
    constexpr float kLog2E = 1.44269504F;
    constexpr std::int64_t kVectors = kSpan / V::width;
    if (seen < kSpan) {
        std::fill(scores + std::max<std::int64_t>(seen, 0), scores + kSpan, kLowest);
        if (seen <= 0) {
            std::fill_n(weights, kSpan, Bf16{0});
            return;
        }
    }
    typename V::reg row[kVectors];
    auto best = row[0] = V::load(scores);
    for (std::int64_t i = 1; i < kVectors; ++i) {
        row[i] = V::load(scores + i * V::width);
        best = V::max(best, row[i]);
    }
    auto sum = V::load(state.sum);
    if (Unit::any_above(best, state.max)) {  // seldom, once a few spans have been seen
        const float top = V::reduce_max(best);
        const auto keep = V::set1(state.max == kLowest ? 0.0F : std::exp(state.max - top));
        sum = V::mul(sum, keep);
        for (std::int64_t i = 0; i < out_dim; i += V::width) {
            V::store(out + i, V::mul(V::load(out + i), keep));
        }
        state.max = top;
    }
    const auto factor = V::set1(kLog2E);
    const auto shift = V::set1(-state.max * kLog2E);
    for (std::int64_t i = 0; i < kVectors; i += 2) {
        const auto weight = Unit::exp2(row[i], factor, shift);
        const auto next = Unit::exp2(row[i + 1], factor, shift);
        sum = V::add(sum, V::add(weight, next));
        Unit::store_bf16(weights + i * V::width, weight, next);
    }
    V::store(state.sum, sum);
}

constexpr std::int64_t kStateFloats = sizeof(QueryState) / sizeof(float);
constexpr std::int64_t kScores = kStep * kSpan;

std::int64_t attend_work_floats(HeadDims dims) {
    constexpr auto kMost = padded_to(kMostQueries, kStep);
    return kMost * packed_value_dim(dims.v)       // sums
           + kMost * kStateFloats                 // their states
           + 2 * kScores + 2 * kScores / 2        // scores and bf16 weights of two steps
           + kMost * packed_key_dim(dims.k) / 2;  // queries in bf16
}

void attend(const float* q, std::int64_t queries, const std::int64_t* visible, PackedRows rows,
            HeadDims dims, float* out, float* work) {
    const auto key_dim = packed_key_dim(dims.k);
    const auto value_dim = packed_value_dim(dims.v);
    const auto padded = padded_to(queries, kStep);
    float* sums = work;  // [padded][value_dim]
    auto* states = reinterpret_cast<QueryState*>(sums + padded * value_dim);
    float* scores = sums + padded * (value_dim + kStateFloats);
    auto* weights = reinterpret_cast<Bf16*>(scores + 2 * kScores);
    Bf16* rounded = weights + 2 * kScores;  // [padded][key_dim]

    std::fill_n(rounded, padded * key_dim, Bf16{0});
    for (std::int64_t i = 0; i < queries; ++i) {
        round_row(q + i * dims.k, dims.k, rounded + i * key_dim);
    }
    std::fill_n(sums, padded * value_dim, 0.0F);
    for (std::int64_t i = 0; i < padded; ++i) states[i] = {{}, kLowest};

    // Groups of kStep queries stop at the last row that any of them sees.
    const auto groups = padded / kStep;
    std::int64_t last[padded_to(kMostQueries, kStep) / kStep];
    for (std::int64_t group = 0; group < groups; ++group) {
        const auto* from = visible + group * kStep;
        last[group] = *std::max_element(from, std::min(from + kStep, visible + queries));
    }
    const auto longest = *std::max_element(last, last + groups);

    // A group's scores are asked for before the former group's are looked at, and its weights meet
    // the values behind the next group's: the unit works on both while the vector part is busy with
    // exponentials, and neither waits for what the other has just written.
    struct Weighing {
        std::int64_t group = -1, blocks = 0;
        const Bf16 *weights = nullptr, *values = nullptr;
    } pending;
    const auto weigh = [&] {
        if (pending.group < 0) return;
        weigh_blocks(pending.weights, pending.values, pending.blocks, value_dim,
                     sums + pending.group * kStep * value_dim);
        pending.group = -1;
    };
    Bf16* mine = weights;  // one of the two steps'
    Unit::begin();
    for (std::int64_t first = 0; first < longest; first += kSpan) {
        const Bf16* keys = rows.keys + first * key_dim;
        const auto blocks_of = [&](std::int64_t group) {
            return std::min(kBlocks, (last[group] - first + kPackedRows - 1) / kPackedRows);
        };
        const auto score = [&](std::int64_t group) {
            if (group < groups && first < last[group]) {
                score_blocks(rounded + group * kStep * key_dim, keys, blocks_of(group), key_dim,
                             scores + group % 2 * kScores);
            }
        };
        score(0);
        for (std::int64_t group = 0; group < groups; ++group) {
            score(group + 1);
            if (first >= last[group]) continue;
            if (pending.group == group) weigh();
            for (std::int64_t i = 0; i < kStep; ++i) {
                const auto query = group * kStep + i;
                absorb_span(scores + group % 2 * kScores + i * kSpan,
                            query < queries ? visible[query] - first : 0, states[query],
                            sums + query * value_dim, value_dim, mine + i * kSpan);
            }
            weigh();
            pending = {group, blocks_of(group), mine, rows.values + first * value_dim};
            mine = mine == weights ? weights + kScores : weights;
        }
    }
    weigh();
    Unit::end();
    for (std::int64_t i = 0; i < queries; ++i) {
        const float factor = 1 / V::reduce_add(V::load(states[i].sum));
        const float* from = sums + i * value_dim;
        for (std::int64_t d = 0; d < dims.v; ++d) out[i * dims.v + d] = from[d] * factor;
    }
}

constexpr TileKernels tile_table(std::string_view name) {
    return {name,     round_row, round_norm,  round_swiglu, pack_weights,
            multiply, pack_keys, pack_values, attend,       attend_work_floats};
}

}  // namespace
}  // namespace headkv::kernels
