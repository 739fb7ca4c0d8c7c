// The unit as plain loops: what the tests run on where there is none. Slow.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace headkv::kernels {
namespace {

float widened(std::uint16_t bf16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(bf16) << 16;
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

struct V {
    struct reg {
        std::array<float, 16> at;
    };
    static constexpr std::int64_t width = 16;

    template <class Function>
    static reg each(const Function& function) {
        reg x;
        for (std::size_t i = 0; i < x.at.size(); ++i) x.at[i] = function(i);
        return x;
    }
    static reg set1(float value) {
        return each([&](std::size_t) { return value; });
    }
    static reg zero() { return set1(0); }
    static reg load(const float* p) {
        return each([&](std::size_t i) { return p[i]; });
    }
    static void store(float* p, const reg& x) { std::memcpy(p, x.at.data(), sizeof(x.at)); }
    static reg load_half(const std::uint16_t* p) {
        return each([&](std::size_t i) {
            const int exponent = (p[i] >> 10) & 31, mantissa = p[i] & 1023;
            const float value =
                exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
            return p[i] >> 15 != 0 ? -value : value;
        });
    }
    static reg add(const reg& a, const reg& b) {
        return each([&](std::size_t i) { return a.at[i] + b.at[i]; });
    }
    static reg mul(const reg& a, const reg& b) {
        return each([&](std::size_t i) { return a.at[i] * b.at[i]; });
    }
    static reg max(const reg& a, const reg& b) {
        return each([&](std::size_t i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
    }
    static float reduce_add(const reg& x) {
        float sum = 0;
        for (const float value : x.at) sum += value;
        return sum;
    }
    static float reduce_max(const reg& x) {
        float best = x.at[0];
        for (const float value : x.at) best = value > best ? value : best;
        return best;
    }
};

struct Unit {
    using Tile = std::array<std::uint8_t, 1024>;
    static Tile& tile(int index) {
        thread_local std::array<Tile, 8> tiles;
        return tiles[static_cast<std::size_t>(index)];
    }
    static void begin() {}
    static void end() {}
    template <int T>
    static void zero() {
        tile(T).fill(0);
    }
    template <int T>
    static void load(const void* from, std::int64_t stride) {
        for (std::int64_t row = 0; row < 16; ++row) {
            std::memcpy(tile(T).data() + row * 64,
                        static_cast<const std::uint8_t*>(from) + row * stride, 64);
        }
    }
    template <int T>
    static void store(void* to, std::int64_t stride) {
        for (std::int64_t row = 0; row < 16; ++row) {
            std::memcpy(static_cast<std::uint8_t*>(to) + row * stride, tile(T).data() + row * 64,
                        64);
        }
    }
    template <int C, int A, int B>
    static void multiply() {
        std::array<float, 256> c;
        std::array<std::uint16_t, 512> a, b;
        std::memcpy(c.data(), tile(C).data(), 1024);
        std::memcpy(a.data(), tile(A).data(), 1024);
        std::memcpy(b.data(), tile(B).data(), 1024);
        for (std::size_t row = 0; row < 16; ++row) {
            for (std::size_t pair = 0; pair < 16; ++pair) {
                for (std::size_t column = 0; column < 16; ++column) {
                    for (std::size_t odd = 0; odd < 2; ++odd) {
                        c[row * 16 + column] += widened(a[row * 32 + 2 * pair + odd]) *
                                                widened(b[(pair * 16 + column) * 2 + odd]);
                    }
                }
            }
        }
        std::memcpy(tile(C).data(), c.data(), 1024);
    }
    static void store_bf16(std::uint16_t* to, const V::reg& x) {
        for (const float value : x.at) {
            std::uint32_t bits = 0;
            std::memcpy(&bits, &value, sizeof(bits));
            *to++ = static_cast<std::uint16_t>(std::isnan(value)
                                                   ? (bits >> 16) | 0x40U
                                                   : (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
        }
    }
    static void store_bf16(std::uint16_t* to, const V::reg& x, const V::reg& next) {
        store_bf16(to, x);
        store_bf16(to + V::width, next);
    }
    static V::reg silu(const V::reg& x) {
        return V::each([&](std::size_t i) { return x.at[i] / (1 + std::exp(-x.at[i])); });
    }
    static bool any_above(const V::reg& x, float bar) { return V::reduce_max(x) > bar; }
    static V::reg exp2(const V::reg& x, const V::reg& factor, const V::reg& shift) {
        return V::each(
            [&](std::size_t i) { return std::exp2(x.at[i] * factor.at[i] + shift.at[i]); });
    }
};

}  // namespace
}  // namespace headkv::kernels

// after what it works with
#include "kernels/tiles_impl.h"

namespace headkv::kernels {

const TileKernels& imitated_unit() {
    static constexpr TileKernels kTable = tile_table("imitated");
    return kTable;
}

}  // namespace headkv::kernels
