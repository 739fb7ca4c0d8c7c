// Rows as a cache stores them. Plain C++ for the base instruction set, in a file of its own: where
// the compiler may fuse a product and a sum, it rounds once what ggml's reference rounds twice.
#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>

#include "kernels/attention.h"

namespace headkv::kernels {

namespace {

// Writes the scale and returns its inverse: 0 where all values are 0, or so small that they become
// 0 with a scale that f16 cannot hold.
float start_block(float scale, std::byte* to) {
    Half half = 0;
    best().to_half(&scale, &half, 1);
    std::memcpy(to, &half, sizeof(half));
    const float inverse = scale != 0 ? 1 / scale : 0.0F;
    return std::isfinite(inverse) ? inverse : 0.0F;
}

std::int32_t magnitude_bits(float value) { return std::bit_cast<std::int32_t>(value) & 0x7FFFFFFF; }

// The bits of the largest magnitude: bits compare as their floats do, and compilers make vectors of
// integer maxima without leave to reorder floats.
std::int32_t largest_bits(const float* from) {
    std::int32_t most = 0;
    for (std::int64_t i = 0; i < kQuantBlock; ++i) most = std::max(most, magnitude_bits(from[i]));
    return most;
}

void store_q8_block(const float* from, std::byte* to) {
    const float inverse = start_block(std::bit_cast<float>(largest_bits(from)) / 127, to);
    to += sizeof(Half);
    for (std::int64_t i = 0; i < kQuantBlock; ++i) {
        // Halves away from zero, as roundf, but in steps that the compiler makes vectors of.
        const float value = from[i] * inverse;
        const auto whole = static_cast<int>(value);
        const float rest = value - static_cast<float>(whole);
        const int rounded =
            whole + static_cast<int>(rest >= 0.5F) - static_cast<int>(rest <= -0.5F);
        to[i] = static_cast<std::byte>(rounded);
    }
}

void store_q4_block(const float* from, std::byte* to) {
    // The value of largest magnitude becomes -8, whatever its sign; of equals the first.
    const auto largest = largest_bits(from);
    // a block of zeros of either sign takes the scale of positive ones
    const float most =
        largest == 0 ? 0.0F : *std::find_if(from, from + kQuantBlock, [&](float value) {
            return magnitude_bits(value) == largest;
        });
    const float inverse = start_block(most / -8, to);
    to += sizeof(Half);
    const auto nibble = [&](float value) {
        return std::min(15, static_cast<int>(value * inverse + 8.5F));
    };
    for (std::int64_t i = 0; i < kQuantBlock / 2; ++i) {
        to[i] = static_cast<std::byte>(nibble(from[i]) | nibble(from[i + kQuantBlock / 2]) << 4);
    }
}

}  // namespace

void rotate(float* row, std::int64_t dim) {
    const auto block = dim & -dim;
    const float factor = 1 / std::sqrt(static_cast<float>(block));
    for (std::int64_t begin = 0; begin < dim; begin += block) {
        float* x = row + begin;
        for (std::int64_t half = 1; half < block; half *= 2) {
            for (std::int64_t first = 0; first < block; first += 2 * half) {
                for (std::int64_t i = first; i < first + half; ++i) {
                    const float sum = x[i] + x[i + half];
                    x[i + half] = x[i] - x[i + half];
                    x[i] = sum;
                }
            }
        }
        for (std::int64_t i = 0; i < block; ++i) x[i] *= factor;
    }
}

void store_row(RowType type, const float* from, std::int64_t dim, std::byte* to) {
    if (type == RowType::f16) {
        best().to_half(from, reinterpret_cast<Half*>(to), dim);
        return;
    }
    assert(dim % kQuantBlock == 0);
    const auto bytes = row_bytes(type, kQuantBlock);
    for (std::int64_t i = 0; i < dim; i += kQuantBlock, to += bytes) {
        type == RowType::q8_0 ? store_q8_block(from + i, to) : store_q4_block(from + i, to);
    }
}

void load_row(RowType type, const std::byte* from, std::int64_t dim, float* to) {
    if (type == RowType::f16) {
        best().to_float(reinterpret_cast<const Half*>(from), to, dim);
        return;
    }
    assert(dim % kQuantBlock == 0);
    for (std::int64_t block = 0; block < dim; block += kQuantBlock, to += kQuantBlock) {
        Half half = 0;
        std::memcpy(&half, from, sizeof(half));
        float scale = 0;
        best().to_float(&half, &scale, 1);
        from += sizeof(half);
        if (type == RowType::q8_0) {
            for (std::int64_t i = 0; i < kQuantBlock; ++i) {
                to[i] = scale * static_cast<float>(static_cast<std::int8_t>(from[i]));
            }
            from += kQuantBlock;
            continue;
        }
        for (std::int64_t i = 0; i < kQuantBlock / 2; ++i) {
            const auto both = std::to_integer<int>(from[i]);
            to[i] = scale * static_cast<float>((both & 15) - 8);
            to[i + kQuantBlock / 2] = scale * static_cast<float>((both >> 4) - 8);
        }
        from += kQuantBlock / 2;
    }
}

}  // namespace headkv::kernels
