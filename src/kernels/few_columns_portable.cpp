#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace headkv::kernels {
namespace {

// Four rows that the compiler vectorises as it can.
struct V {
    typedef float reg __attribute__((vector_size(16)));
    typedef std::uint32_t bytes __attribute__((vector_size(16)));
    static constexpr std::int64_t width = 4;
    static constexpr int columns = 4;
    static reg load(const float* p) {
        reg x;
        std::memcpy(&x, p, sizeof(x));
        return x;
    }
    static void store(float* p, reg x) { std::memcpy(p, &x, sizeof(x)); }
    static reg set1(float x) { return reg{x, x, x, x}; }
    static reg mul(reg a, reg b) { return a * b; }
    static reg fma(reg a, reg b, reg c) { return a * b + c; }

    static bytes load_bytes(const void* p) {
        bytes x;
        std::memcpy(&x, p, sizeof(x));
        return x;
    }
    static void store_bytes(void* p, bytes x) { std::memcpy(p, &x, sizeof(x)); }
    static bytes mask(bytes x, std::uint32_t dword) { return x & dword; }
    static bytes either(bytes x, bytes y) { return x | y; }
    template <int n>
    static bytes left(bytes x) {
        return x << n;
    }
    template <int n>
    static bytes right(bytes x) {
        return x >> n;
    }
    static bytes right_by(bytes x, std::int64_t n) { return x >> n; }

    static void turned(const std::byte* from, std::int64_t stride, bytes (&to)[4]) {
        for (std::int64_t row = 0; row < 4; ++row) {
            std::uint32_t dwords[4];
            std::memcpy(dwords, from + row * stride, sizeof(dwords));
            for (std::int64_t i = 0; i < 4; ++i) to[i][row] = dwords[i];
        }
    }

    static reg low_half(bytes x) {
        return each(x, [](std::uint32_t lane) {
            return half_to_float(static_cast<std::uint16_t>(lane & 0xFFFFU));
        });
    }
    static reg high_half(bytes x) { return low_half(x >> 16); }
    static reg byte_of(bytes x, std::int64_t i) {
        return each(x >> (8 * i), [](std::uint32_t lane) {
            return static_cast<float>(static_cast<std::uint8_t>(lane & 0xFFU));
        });
    }
    static reg signed_byte_of(bytes x, std::int64_t i) {
        return each(x >> (8 * i), [](std::uint32_t lane) {
            return static_cast<float>(static_cast<std::int8_t>(lane & 0xFFU));
        });
    }
    static bytes fifth_bits(bytes x, std::int64_t i) {
        x = (x >> (4 * i)) & 15;
        return (x & 1) << 4 | (x & 2) << 11 | (x & 4) << 18 | (x & 8) << 25;
    }
    // All centred numbers are u - 128 in products().
    template <int bits>
    static bytes centre(bytes u) {
        if constexpr (bits == 8) return u ^ 0x80808080U;
        return u + 0x01010101U * (128U - (1U << (bits - 1)));
    }
    template <int bits, int n, bool centred>
    static reg products(const bytes* u, const std::int8_t* q, const std::int32_t* bias) {
        reg result;
        for (std::int64_t row = 0; row < 4; ++row) {
            std::int32_t sum = centred ? *bias : 0;
            for (std::int64_t i = 0; i < n; ++i) {
                for (std::int64_t byte = 0; byte < 4; ++byte) {
                    sum += static_cast<std::int32_t>(u[i][row] >> (8 * byte) & 0xFFU) *
                           q[4 * i + byte];
                }
            }
            result[row] = static_cast<float>(sum);
        }
        return result;
    }

    static float round(const float* x, std::int8_t* q, std::int32_t (&sums)[2]) {
        float most = 0;
        for (std::int64_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[i]));
        const float inverse = most > 0 ? 127 / most : 0;
        sums[0] = sums[1] = 0;
        for (std::int64_t i = 0; i < 32; ++i) {
            q[i] = static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
            sums[i / 16] += q[i];
        }
        return most / 127;
    }

private:
    template <typename Function>
    static reg each(bytes x, const Function& function) {
        return reg{function(x[0]), function(x[1]), function(x[2]), function(x[3])};
    }
};

}  // namespace
}  // namespace headkv::kernels

// after the vector type
#include "kernels/few_columns_impl.h"

namespace headkv::kernels {

extern const FewColumns* const kFewColumnsAvx2;
extern const FewColumns* const kFewColumnsVnni;

namespace {

constexpr FewColumns kTable = few_columns_table("portable");

bool runs_vnni() {
#if defined(__x86_64__)
    return by_name("avx512") != nullptr && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

}  // namespace

const FewColumns* few_columns_by_name(std::string_view name) {
    if (name == "vnni" && kFewColumnsVnni != nullptr && runs_vnni()) return kFewColumnsVnni;
    if (name == "avx2" && by_name("avx2") != nullptr) return kFewColumnsAvx2;
    return name == "portable" ? &kTable : nullptr;
}

const FewColumns& best_few_columns() {
    static const FewColumns* const chosen = [] {
        for (const char* name : {"vnni", "avx2"}) {
            if (const auto* found = few_columns_by_name(name)) return found;
        }
        return &kTable;
    }();
    return *chosen;
}

}  // namespace headkv::kernels
