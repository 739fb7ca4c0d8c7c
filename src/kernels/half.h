// Half precision in plain C++, for CPUs and remainders without an instruction for it. Everything
// lives in an anonymous namespace: see attention_impl.h.
#pragma once

#include <cmath>
#include <cstdint>

namespace headkv::kernels {
namespace {

inline float half_to_float(std::uint16_t half) {
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
inline std::uint16_t float_to_half_scalar(float value) {
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U);
    if (magnitude >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);
    if (magnitude < 0x38800000U) {  // subnormal halves: let the FPU round at 2^-24
        float positive = 0;
        __builtin_memcpy(&positive, &magnitude, sizeof(positive));
        return static_cast<std::uint16_t>(
            sign | static_cast<std::uint16_t>(std::nearbyint(positive * 0x1p24F)));
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    return static_cast<std::uint16_t>(sign |
                                      static_cast<std::uint16_t>((rounded - 0x38000000U) >> 13));
}

}  // namespace
}  // namespace headkv::kernels
