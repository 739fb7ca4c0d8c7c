// The products with few columns, written once over a vector type `V` that each few_columns_*.cpp
// defines. Everything lives in an anonymous namespace: see attention_impl.h.
//
// A lane of V is a row of the matrix, of V::width rows at once. V::bytes holds four neighbouring
// values of each row in a dword, V::reg a float of each. So a column's four values, broadcast, are
// multiplied with those of all rows in one instruction, and no sum crosses lanes. Rows lie in the
// file one after the other; V::turned makes lanes of them, in pieces of 16 bytes.
//
// V: width; columns, of which the sums stay in registers;
//    reg: load, store, set1, mul, fma(a, b, c) = a * b + c;
//    bytes: load_bytes, store_bytes; mask(x, dword), either(x, y), left<n>, right<n> (bits of a
//    dword); turned(from, stride): dword i of the 16 bytes of each row; low_half, high_half (f16 of
//    a dword) and byte_of, signed_byte_of (of a dword) as reg; fifth_bits(x, i): bits 4i to 4i + 3
//    of a dword as the fifth bits of its bytes; centre<bits>(u), applied to all u that are centred;
//    products<bits, n, centred>(u, q, bias) as reg: sums of u - 2^(bits - 1), or u itself, times q,
//    over n dwords, u being unsigned numbers of so many bits (of 8 bits: signed ones, as in the
//    file), bias -128 times the sum of the q;
//    round(x, q, sums): 32 values to 8 bits; their scale, and the sums of either 16 of the q.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/few_columns.h"

namespace headkv::kernels {
namespace {

constexpr std::int64_t kRows = V::width;
// Of 32 values: unpacked at a time, so that they and the columns stay in the L1 cache.
constexpr std::int64_t kMostBlocks = 16;
constexpr std::int64_t kMostColumns = 64;  // whose sums are kept at a time

// What a block of 32 unsigned values u stands for:
enum class Kind : std::uint8_t {
    centred,  // (u - offset) * scale
    shifted,  // u * scale + low
    halves,   // (u - offset) * a scale for each 16 of them
};

// kRows rows of up to kMostBlocks blocks. u are as wide as `bits` say in the type's traits.
struct Panel {
    alignas(64) std::uint8_t u[kMostBlocks][8][4 * kRows];  // [..][i]: values 4i to 4i + 3
    alignas(64) float scale[kMostBlocks][kRows];
    alignas(64) float other[kMostBlocks][kRows];  // shifted: low; halves: the second 16's scale
};

template <WeightType type>
struct Traits {
    static constexpr Kind kind =
        type == WeightType::q6_K ? Kind::halves
        : type == WeightType::q4_0 || type == WeightType::q5_0 || type == WeightType::q8_0
            ? Kind::centred
            : Kind::shifted;
    static constexpr int bits =
        type == WeightType::q8_0                                                           ? 8
        : type == WeightType::q6_K                                                         ? 6
        : type == WeightType::q4_0 || type == WeightType::q4_1 || type == WeightType::q4_K ? 4
                                                                                           : 5;
};

struct Turned {
    V::bytes at[4];
    const V::bytes& operator[](std::int64_t i) const { return at[i]; }
};

Turned turned(const std::byte* from, std::int64_t stride) {
    Turned to;
    V::turned(from, stride, to.at);
    return to;
}

// The dwords at from + row * stride + block * bytes. They lie where a vector's loads of 16 bytes
// would waste most; scalars read them beside the vectors' work.
struct Dwords {
    alignas(64) std::uint32_t at[kMostBlocks][kRows];
    Dwords(const std::byte* from, std::int64_t stride, std::int64_t bytes, std::int64_t blocks) {
        for (std::int64_t row = 0; row < kRows; ++row) {
            for (std::int64_t block = 0; block < blocks; ++block) {
                std::memcpy(&at[block][row], from + row * stride + block * bytes, 4);
            }
        }
    }
    V::bytes operator[](std::int64_t block) const { return V::load_bytes(at[block]); }
};

// Asks the L2 cache for the next panel, for as many of its bytes with each block as kRows blocks
// have. (Into the L1 cache it was slower: that is full of columns and what is unpacked.)
struct Ahead {
    const std::byte* from;  // null: nothing follows
    void ask(std::int64_t block, std::int64_t bytes) const {
        if (from == nullptr) return;
        const auto* first = from + block * kRows * bytes;
        for (std::int64_t i = 0; i < kRows * bytes; i += 64) __builtin_prefetch(first + i, 0, 2);
    }
};

template <int bits>
void put(Panel& to, std::int64_t block, std::int64_t i, V::bytes u, Kind kind) {
    V::store_bytes(to.u[block][i], kind == Kind::shifted ? u : V::centre<bits>(u));
}

// 4 and 5 bits in blocks of 32: [scale f16] [low f16] [fifth bits] 16 bytes, whose low halves are
// the first 16 values.
template <WeightType type>
void unpack_nibbles(const std::byte* from, std::int64_t stride, std::int64_t blocks, Ahead ahead,
                    Panel& to) {
    constexpr auto bytes = block_bytes(type);
    constexpr auto kind = Traits<type>::kind;
    constexpr int bits = Traits<type>::bits;
    const Dwords scales(from, stride, bytes, blocks);
    const auto fifths = [&] {
        if constexpr (bits == 5) {
            return Dwords(from + bytes - 20, stride, bytes, blocks);
        } else {
            return 0;
        }
    }();
    for (std::int64_t block = 0; block < blocks; ++block) {
        ahead.ask(block, bytes);
        V::store(to.scale[block], V::low_half(scales[block]));
        if (kind == Kind::shifted) V::store(to.other[block], V::high_half(scales[block]));
        const auto packed = turned(from + block * bytes + bytes - 16, stride);
        for (std::int64_t i = 0; i < 4; ++i) {
            auto low = V::mask(packed[i], 0x0F0F0F0F);
            auto high = V::mask(V::right<4>(packed[i]), 0x0F0F0F0F);
            if constexpr (bits == 5) {
                low = V::either(low, V::fifth_bits(fifths[block], i));
                high = V::either(high, V::fifth_bits(fifths[block], i + 4));
            }
            put<bits>(to, block, i, low, kind);
            put<bits>(to, block, i + 4, high, kind);
        }
    }
}

// [scale f16] 32 signed bytes
void unpack_bytes(const std::byte* from, std::int64_t stride, std::int64_t blocks, Ahead ahead,
                  Panel& to) {
    constexpr auto bytes = block_bytes(WeightType::q8_0);
    const Dwords scales(from, stride, bytes, blocks);
    for (std::int64_t block = 0; block < blocks; ++block) {
        ahead.ask(block, bytes);
        V::store(to.scale[block], V::low_half(scales[block]));
        for (std::int64_t half = 0; half < 2; ++half) {
            const auto packed = turned(from + block * bytes + 2 + 16 * half, stride);
            for (std::int64_t i = 0; i < 4; ++i) {
                put<8>(to, block, 4 * half + i, packed[i], Kind::centred);
            }
        }
    }
}

// Scales and lows of the eight blocks of 32 of a block of 256 of q4_K and q5_K: both halves f16,
// which they share, then 12 bytes that pack eight scales and eight lows of 6 bits each.
void unpack_scales(const Turned& head, Panel& to, std::int64_t block) {
    const auto shared = V::low_half(head[0]);
    const auto shared_low = V::mul(V::set1(-1), V::high_half(head[0]));
    const auto upper = [](V::bytes x) { return V::mask(V::right<2>(x), 0x30303030); };
    const V::bytes scales[2] = {V::mask(head[1], 0x3F3F3F3F),
                                V::either(V::mask(head[3], 0x0F0F0F0F), upper(head[1]))};
    const V::bytes lows[2] = {V::mask(head[2], 0x3F3F3F3F),
                              V::either(V::mask(V::right<4>(head[3]), 0x0F0F0F0F), upper(head[2]))};
    for (std::int64_t i = 0; i < 8; ++i) {
        V::store(to.scale[block + i], V::mul(shared, V::byte_of(scales[i / 4], i % 4)));
        V::store(to.other[block + i], V::mul(shared_low, V::byte_of(lows[i / 4], i % 4)));
    }
}

// 16 bytes of scales, [32 bytes of fifth bits], 128 bytes: of each 32 the low halves are one block
// of 32 values, the high halves the next. Fifth bits of block i are bits i of the 32 bytes.
template <WeightType type>
void unpack_k(const std::byte* from, std::int64_t stride, std::int64_t blocks, Ahead ahead,
              Panel& to) {
    constexpr int bits = Traits<type>::bits;
    for (std::int64_t block = 0; block < blocks; block += 8, from += block_bytes(type)) {
        ahead.ask(block / 8, block_bytes(type));
        unpack_scales(turned(from, stride), to, block);
        for (std::int64_t half = 0; half < 2; ++half) {
            Turned fifths;
            if constexpr (bits == 5) fifths = turned(from + 16 + 16 * half, stride);
            for (std::int64_t pair = 0; pair < 4; ++pair) {
                const auto packed =
                    turned(from + block_bytes(type) - 128 + 32 * pair + 16 * half, stride);
                for (std::int64_t i = 0; i < 4; ++i) {
                    auto low = V::mask(packed[i], 0x0F0F0F0F);
                    auto high = V::mask(V::right<4>(packed[i]), 0x0F0F0F0F);
                    if constexpr (bits == 5) {
                        const auto bit = [&](std::int64_t at) {
                            const auto one = V::mask(V::right_by(fifths[i], at), 0x01010101);
                            return V::left<4>(one);
                        };
                        low = V::either(low, bit(2 * pair));
                        high = V::either(high, bit(2 * pair + 1));
                    }
                    V::store_bytes(to.u[block + 2 * pair][4 * half + i], low);
                    V::store_bytes(to.u[block + 2 * pair + 1][4 * half + i], high);
                }
            }
        }
    }
}

// 128 bytes of low halves, 64 bytes of upper pairs of bits, 16 signed scales, their shared f16. Of
// each 128 values 64 bytes hold the low halves: of values l (low) and l + 64 (high), l < 64; 32
// bytes hold the upper pairs: of l, l + 32, l + 64, l + 96, l < 32.
void unpack_q6_k(const std::byte* from, std::int64_t stride, std::int64_t blocks, Ahead ahead,
                 Panel& to) {
    constexpr int bits = 6;
    for (std::int64_t block = 0; block < blocks;
         block += 8, from += block_bytes(WeightType::q6_K)) {
        ahead.ask(block / 8, block_bytes(WeightType::q6_K));
        const Dwords last(from + 206, stride, 0, 1);
        const auto shared = V::high_half(last[0]);
        const auto scales = turned(from + 192, stride);
        for (std::int64_t i = 0; i < 8; ++i) {
            const auto both = scales[i / 2];
            V::store(to.scale[block + i], V::mul(shared, V::signed_byte_of(both, i % 2 * 2)));
            V::store(to.other[block + i], V::mul(shared, V::signed_byte_of(both, i % 2 * 2 + 1)));
        }
        for (std::int64_t part = 0; part < 4; ++part) {  // half of 128, then of its 32
            const auto half = part / 2, quarter = part % 2;
            const auto* lows = from + 64 * half + 16 * quarter;
            const auto first = turned(lows, stride), second = turned(lows + 32, stride);
            const auto upper = turned(from + 128 + 32 * half + 16 * quarter, stride);
            for (std::int64_t i = 0; i < 4; ++i) {
                const auto at = [&](std::int64_t of, V::bytes low, V::bytes pair) {
                    const auto u = V::either(V::mask(low, 0x0F0F0F0F), V::mask(pair, 0x30303030));
                    put<bits>(to, block + 4 * half + of, 4 * quarter + i, u, Kind::halves);
                };
                at(0, first[i], V::left<4>(upper[i]));
                at(1, second[i], V::left<2>(upper[i]));
                at(2, V::right<4>(first[i]), upper[i]);
                at(3, V::right<4>(second[i]), V::right<2>(upper[i]));
            }
        }
    }
}

template <WeightType type>
void unpack(const std::byte* from, std::int64_t stride, std::int64_t blocks, Ahead ahead,
            Panel& to) {
    if constexpr (type == WeightType::q8_0) {
        unpack_bytes(from, stride, blocks, ahead, to);
    } else if constexpr (type == WeightType::q6_K) {
        unpack_q6_k(from, stride, blocks, ahead, to);
    } else if constexpr (block_values(type) == 256) {
        unpack_k<type>(from, stride, blocks, ahead, to);
    } else {
        unpack_nibbles<type>(from, stride, blocks, ahead, to);
    }
}

// Adds the panel's products with columns [column, column + kColumns) to sums [kColumns][kRows];
// its first block is x's block `first`.
template <Kind kind, int bits, int kColumns>
void add_products(const Panel& panel, std::int64_t first, std::int64_t blocks,
                  const RoundedColumns& x, std::int64_t column, float* sums) {
    V::reg total[kColumns];
    for (int c = 0; c < kColumns; ++c) total[c] = V::load(sums + c * kRows);
    for (std::int64_t block = 0; block < blocks; ++block) {
        V::bytes u[8];
        for (int i = 0; i < 8; ++i) u[i] = V::load_bytes(panel.u[block][i]);
        const auto scale = V::load(panel.scale[block]);
        const auto at = (first + block) * x.columns + column;
        const auto* q = x.q + at * RoundedColumns::kBlock;
#pragma GCC unroll 16
        for (int c = 0; c < kColumns; ++c, q += RoundedColumns::kBlock) {
            V::reg product;
            if constexpr (kind == Kind::halves) {
                const auto* bias = x.bias + 3 * (at + c);
                const auto half = V::products<bits, 4, true>(u, q, bias + 1);
                const auto other = V::products<bits, 4, true>(u + 4, q + 16, bias + 2);
                product = V::fma(half, scale, V::mul(other, V::load(panel.other[block])));
            } else if constexpr (kind == Kind::centred) {
                product = V::mul(V::products<bits, 8, true>(u, q, x.bias + 3 * (at + c)), scale);
            } else {
                product = V::mul(V::products<bits, 8, false>(u, q, nullptr), scale);
                total[c] = V::fma(V::load(panel.other[block]), V::set1(x.sum[at + c]), total[c]);
            }
            total[c] = V::fma(product, V::set1(x.scale[at + c]), total[c]);
        }
    }
    for (int c = 0; c < kColumns; ++c) V::store(sums + c * kRows, total[c]);
}

using AddProducts = void (*)(const Panel&, std::int64_t, std::int64_t, const RoundedColumns&,
                             std::int64_t, float*);

// [i]: for i + 1 columns
template <Kind kind, int bits>
constexpr auto kAddProducts = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<AddProducts, sizeof...(i)>{add_products<kind, bits, i + 1>...};
}(std::make_integer_sequence<int, V::columns>{});

// kRows rows, `stride` bytes apart, with up to kMostColumns columns from `column` on.
template <WeightType type>
void multiply_panel(const std::byte* weights, std::int64_t stride, const RoundedColumns& x,
                    std::int64_t column, std::int64_t columns, bool more,
                    float (&sums)[kMostColumns][kRows]) {
    constexpr auto per_block = block_values(type) / RoundedColumns::kBlock;
    constexpr auto& add = kAddProducts<Traits<type>::kind, Traits<type>::bits>;
    std::memset(sums, 0, static_cast<std::size_t>(columns * kRows) * sizeof(float));
    Panel panel;
    const auto blocks = x.in / block_values(type);
    const auto chunks = (blocks * per_block + kMostBlocks - 1) / kMostBlocks;
    const auto tiles = (columns + V::columns - 1) / V::columns;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        const auto begin = blocks * chunk / chunks, end = blocks * (chunk + 1) / chunks;
        const auto* from = weights + begin * block_bytes(type);
        const Ahead ahead{more ? weights + kRows * stride + begin * kRows * block_bytes(type)
                               : nullptr};
        unpack<type>(from, stride, (end - begin) * per_block, ahead, panel);
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            const auto first = columns * tile / tiles, last = columns * (tile + 1) / tiles;
            add[static_cast<std::size_t>(last - first - 1)](panel, begin * per_block,
                                                            (end - begin) * per_block, x,
                                                            column + first, sums[first]);
        }
    }
}

template <WeightType type>
void multiply_rows(const std::byte* weights, std::int64_t rows, const RoundedColumns& x, float* out,
                   std::int64_t out_stride) {
    const auto stride = x.in / block_values(type) * block_bytes(type);
    alignas(64) float sums[kMostColumns][kRows];
    const auto parts = (x.columns + kMostColumns - 1) / kMostColumns;
    for (std::int64_t row = 0; row < rows; row += kRows) {
        const auto count = std::min(kRows, rows - row);
        const auto* from = weights + row * stride;
        const bool more = row + 2 * kRows <= rows;  // the next panel is whole
        if (count < kRows) {                        // as many as a panel has, the rest zeros
            thread_local std::vector<std::byte> padded;
            padded.assign(static_cast<std::size_t>(kRows * stride), std::byte{0});
            std::copy_n(from, count * stride, padded.data());
            from = padded.data();
        }
        for (std::int64_t part = 0; part < parts; ++part) {
            const auto first = x.columns * part / parts, last = x.columns * (part + 1) / parts;
            multiply_panel<type>(from, stride, x, first, last - first, more && part == 0, sums);
            for (std::int64_t c = first; c < last; ++c) {
                std::copy_n(sums[c - first], count, out + c * out_stride + row);
            }
        }
    }
}

void multiply(WeightType type, const std::byte* weights, std::int64_t rows, const RoundedColumns& x,
              float* out, std::int64_t out_stride) {
    constexpr decltype(&multiply_rows<WeightType::q4_0>) kOf[] = {
        multiply_rows<WeightType::q4_0>, multiply_rows<WeightType::q4_1>,
        multiply_rows<WeightType::q5_0>, multiply_rows<WeightType::q5_1>,
        multiply_rows<WeightType::q8_0>, multiply_rows<WeightType::q4_K>,
        multiply_rows<WeightType::q5_K>, multiply_rows<WeightType::q6_K>};
    kOf[static_cast<int>(type)](weights, rows, x, out, out_stride);
}

void round(const float* x, std::int64_t first, std::int64_t last, std::int64_t column,
           const RoundedColumns& to) {
    for (auto block = first; block < last; ++block) {
        const auto at = block * to.columns + column;
        std::int32_t halves[2];
        to.scale[at] = V::round(x + block * RoundedColumns::kBlock,
                                to.q + at * RoundedColumns::kBlock, halves);
        to.sum[at] = to.scale[at] * static_cast<float>(halves[0] + halves[1]);
        to.bias[3 * at] = -128 * (halves[0] + halves[1]);
        to.bias[3 * at + 1] = -128 * halves[0];
        to.bias[3 * at + 2] = -128 * halves[1];
    }
}

constexpr FewColumns few_columns_table(std::string_view name) { return {name, round, multiply}; }

}  // namespace
}  // namespace headkv::kernels
