// Vector type of attention_impl.h for any CPU: four floats that the compiler vectorises as it can.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace headkv::kernels {
namespace {

struct V {
    typedef float reg __attribute__((vector_size(16)));
    static constexpr std::int64_t width = 4;
    static reg zero() { return reg{0, 0, 0, 0}; }
    static reg set1(float x) { return reg{x, x, x, x}; }
    static reg load(const float* p) {
        reg x;
        __builtin_memcpy(&x, p, sizeof(x));
        return x;
    }
    static void store(float* p, reg x) { __builtin_memcpy(p, &x, sizeof(x)); }
    static reg load_half(const std::uint16_t* p) {
        return reg{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]),
                   half_to_float(p[3])};
    }
    static reg set1_half(std::uint16_t x) { return set1(half_to_float(x)); }
    static float widen(std::uint16_t x) { return half_to_float(x); }
    static reg load_int8(const std::byte* p) {
        const auto at = [&](int i) { return static_cast<float>(static_cast<std::int8_t>(p[i])); };
        return reg{at(0), at(1), at(2), at(3)};
    }
    static reg load_low(const std::byte* p) {
        const auto at = [&](int i) { return static_cast<float>(p[i] & std::byte{15}); };
        return reg{at(0), at(1), at(2), at(3)};
    }
    static reg load_high(const std::byte* p) {
        const auto at = [&](int i) { return static_cast<float>(p[i] >> 4); };
        return reg{at(0), at(1), at(2), at(3)};
    }
    static void store_half(std::uint16_t* p, reg x) {
        for (int i = 0; i < 4; ++i) p[i] = float_to_half_scalar(x[i]);
    }
    static reg add(reg a, reg b) { return a + b; }
    static reg mul(reg a, reg b) { return a * b; }
    static reg fma(reg a, reg b, reg c) { return a * b + c; }
    static reg max(reg a, reg b) { return a > b ? a : b; }
    static float reduce_add(reg x) { return (x[0] + x[2]) + (x[1] + x[3]); }
    static void reduce_add4(const reg (&x)[4], float* to) {
        for (int i = 0; i < 4; ++i) to[i] = reduce_add(x[i]);
    }
    static float reduce_max(reg x) {
        return std::fmax(std::fmax(x[0], x[1]), std::fmax(x[2], x[3]));
    }
    static reg exp(reg x) {
        return reg{std::exp(x[0]), std::exp(x[1]), std::exp(x[2]), std::exp(x[3])};
    }
};

}  // namespace
}  // namespace headkv::kernels
