// The kernels, written once over a small vector type `V` that each instruction set provides
// (simd_avx2.h, simd_avx512.h, simd_portable.h). Included by attention_*.cpp only; everything lives
// in an anonymous namespace, so no code of one instruction set leaks into another's functions.
//
// V: reg, width, zero, set1, load, store, load_half, add, mul, fma(a, b, c) = a * b + c, max,
//    reduce_add, reduce_max, exp (relative error below 2e-7 on [-87, 0]; smaller arguments give 0).

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention.h"

namespace headkv::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kBlock = 64;  // rows that attend_rows scores before it touches values
constexpr std::int64_t kColumns = 2 * V::width;  // columns of one micro tile

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

float half_to_float(Half half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    const std::uint32_t exponent = (half >> 10) & 0x1FU;
    const std::uint32_t mantissa = half & 0x3FFU;
    std::uint32_t bits = 0;
    if (exponent == 0x1F) {
        bits = sign | 0x7F800000U | (mantissa << 13);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else {
        const float tiny = static_cast<float>(mantissa) * 0x1p-24F;
        return sign != 0 ? -tiny : tiny;
    }
    float value = 0;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

// Round to nearest even; overflow to infinity.
Half float_to_half_scalar(float value) {
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    const auto sign = static_cast<Half>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) return static_cast<Half>(sign | 0x7E00U);
    if (magnitude >= 0x477FF000U) return static_cast<Half>(sign | 0x7C00U);
    if (magnitude < 0x38800000U) {  // subnormal halves: let the FPU round at 2^-24
        float positive = 0;
        __builtin_memcpy(&positive, &magnitude, sizeof(positive));
        return static_cast<Half>(sign | static_cast<Half>(std::nearbyint(positive * 0x1p24F)));
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    return static_cast<Half>(sign | static_cast<Half>((rounded - 0x38000000U) >> 13));
}

template <std::int64_t Count>
void dot_block(const float* q, const Half* keys, std::int64_t dim, float* scores) {
    typename V::reg sums[Count];
    for (auto& sum : sums) sum = V::zero();
    std::int64_t i = 0;
    for (; i + V::width <= dim; i += V::width) {
        const auto query = V::load(q + i);
        for (std::int64_t r = 0; r < Count; ++r) {
            sums[r] = V::fma(query, V::load_half(keys + r * dim + i), sums[r]);
        }
    }
    for (std::int64_t r = 0; r < Count; ++r) {
        float sum = V::reduce_add(sums[r]);
        for (std::int64_t rest = i; rest < dim; ++rest) {
            sum += q[rest] * half_to_float(keys[r * dim + rest]);
        }
        scores[r] = sum;
    }
}

// Scores of up to 3 queries against 4 keys at once: each key is converted once for all of them.
template <std::int64_t Queries>
void dot_group(const float* q, std::int64_t dim, const Half* keys, float* scores,
               std::int64_t stride) {
    constexpr std::int64_t kKeys = 4;
    typename V::reg sums[Queries][kKeys];
    for (auto& row : sums) {
        for (auto& sum : row) sum = V::zero();
    }
    std::int64_t i = 0;
    for (; i + V::width <= dim; i += V::width) {
        typename V::reg key[kKeys];
        for (std::int64_t r = 0; r < kKeys; ++r) key[r] = V::load_half(keys + r * dim + i);
        for (std::int64_t g = 0; g < Queries; ++g) {
            const auto query = V::load(q + g * dim + i);
            for (std::int64_t r = 0; r < kKeys; ++r) sums[g][r] = V::fma(query, key[r], sums[g][r]);
        }
    }
    for (std::int64_t g = 0; g < Queries; ++g) {
        for (std::int64_t r = 0; r < kKeys; ++r) {
            float sum = V::reduce_add(sums[g][r]);
            for (std::int64_t rest = i; rest < dim; ++rest) {
                sum += q[g * dim + rest] * half_to_float(keys[r * dim + rest]);
            }
            scores[g * stride + r] = sum;
        }
    }
}

void dot_rows(const float* q, std::int64_t queries, const Half* keys, std::int64_t count,
              std::int64_t dim, float* scores, std::int64_t stride) {
    std::int64_t row = 0;
    for (; row + 4 <= count; row += 4) {
        std::int64_t g = 0;
        for (; g + 3 <= queries; g += 3) {
            dot_group<3>(q + g * dim, dim, keys + row * dim, scores + g * stride + row, stride);
        }
        for (; g < queries; ++g) {
            dot_group<1>(q + g * dim, dim, keys + row * dim, scores + g * stride + row, stride);
        }
    }
    for (; row < count; ++row) {
        for (std::int64_t g = 0; g < queries; ++g) {
            dot_block<1>(q + g * dim, keys + row * dim, dim, scores + g * stride + row);
        }
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

void softmax(float* scores, std::int64_t count) {
    if (count <= 0) return;
    const float sum = exp_and_sum(scores, count, max_of(scores, count));
    scale_row(scores, count, 1 / sum);
}

// out[g][0, dim) += sum_r weights[g][r] * values[r][0, dim), for up to `Queries` queries, with a
// strip of the output held in registers so that each value is loaded once for all of them.
template <std::int64_t Queries, std::int64_t Registers>
void weigh_strip(const float* weights, std::int64_t stride, const Half* values, std::int64_t count,
                 std::int64_t dim, float* out, std::int64_t out_stride) {
    typename V::reg sums[Queries][Registers];
    for (std::int64_t g = 0; g < Queries; ++g) {
        for (std::int64_t c = 0; c < Registers; ++c) {
            sums[g][c] = V::load(out + g * out_stride + c * V::width);
        }
    }
    for (std::int64_t r = 0; r < count; ++r) {
        typename V::reg value[Registers];
        for (std::int64_t c = 0; c < Registers; ++c) {
            value[c] = V::load_half(values + r * dim + c * V::width);
        }
        for (std::int64_t g = 0; g < Queries; ++g) {
            const auto weight = V::set1(weights[g * stride + r]);
            for (std::int64_t c = 0; c < Registers; ++c) {
                sums[g][c] = V::fma(weight, value[c], sums[g][c]);
            }
        }
    }
    for (std::int64_t g = 0; g < Queries; ++g) {
        for (std::int64_t c = 0; c < Registers; ++c) {
            V::store(out + g * out_stride + c * V::width, sums[g][c]);
        }
    }
}

template <std::int64_t Queries>
void weigh_group(const float* weights, std::int64_t stride, const Half* values, std::int64_t count,
                 std::int64_t dim, float* out, std::int64_t out_stride) {
    std::int64_t i = 0;
    for (; i + 2 * V::width <= dim; i += 2 * V::width) {
        weigh_strip<Queries, 2>(weights, stride, values + i, count, dim, out + i, out_stride);
    }
    for (; i + V::width <= dim; i += V::width) {
        weigh_strip<Queries, 1>(weights, stride, values + i, count, dim, out + i, out_stride);
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

void weigh_rows(const float* weights, std::int64_t queries, std::int64_t stride, const Half* values,
                std::int64_t count, std::int64_t dim, float* out, std::int64_t out_stride) {
    std::int64_t g = 0;
    for (; g + 4 <= queries; g += 4) {
        weigh_group<4>(weights + g * stride, stride, values, count, dim, out + g * out_stride,
                       out_stride);
    }
    switch (queries - g) {
        case 3:
            weigh_group<3>(weights + g * stride, stride, values, count, dim, out + g * out_stride,
                           out_stride);
            break;
        case 2:
            weigh_group<2>(weights + g * stride, stride, values, count, dim, out + g * out_stride,
                           out_stride);
            break;
        case 1:
            weigh_group<1>(weights + g * stride, stride, values, count, dim, out + g * out_stride,
                           out_stride);
            break;
        default:
            break;
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

void attend_rows(const float* q, std::int64_t queries, Rows rows, HeadDims dims,
                 SoftmaxState state) {
    alignas(64) float scores[16 * kBlock];
    for (std::int64_t row = 0; row < rows.count; row += kBlock) {
        const auto count = std::min(kBlock, rows.count - row);
        for (std::int64_t first = 0; first < queries; first += 16) {
            const auto some = std::min<std::int64_t>(16, queries - first);
            dot_rows(q + first * dims.k, some, rows.keys + row * dims.k, count, dims.k, scores,
                     kBlock);
            for (std::int64_t g = 0; g < some; ++g) {
                absorb(scores + g * kBlock, count, state.max + first + g, state.sum + first + g,
                       state.out + (first + g) * dims.v, dims.v);
            }
            weigh_rows(scores, some, kBlock, rows.values + row * dims.v, count, dims.v,
                       state.out + first * dims.v, dims.v);
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
    const auto padded = padded_dim(dims.v);
    float* keys = work;
    float* values = keys + dims.k * kTileKeys;
    float* scores = values + padded * kTileKeys;
    std::int64_t most = 0;
    for (std::int64_t i = 0; i < queries; ++i) most = std::max(most, visible[i]);
    most = std::min(most, rows.count);
    for (std::int64_t first = 0; first < most; first += kTileKeys) {
        const auto count = std::min(kTileKeys, most - first);
        unpack_keys(rows.keys + first * dims.k, count, dims.k, keys);
        unpack_values(rows.values + first * dims.v, count, dims.v, padded, values);
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

constexpr Kernels table(std::string_view name) {
    return {name,     attend_rows, attend_tiles, padded_dim, tile_work_floats,
            dot_rows, softmax,     to_half};
}

}  // namespace
}  // namespace headkv::kernels
