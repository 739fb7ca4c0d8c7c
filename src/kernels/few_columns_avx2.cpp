#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace headkv::kernels {
namespace {

struct V {
    using reg = __m256;
    using bytes = __m256i;
    static constexpr std::int64_t width = 8;
    static constexpr int columns = 4;
    static reg load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, reg x) { _mm256_storeu_ps(p, x); }
    static reg set1(float x) { return _mm256_set1_ps(x); }
    static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
    static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }

    static bytes load_bytes(const void* p) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(p));
    }
    static void store_bytes(void* p, bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
    static bytes mask(bytes x, std::uint32_t dword) {
        return _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(dword)));
    }
    static bytes either(bytes x, bytes y) { return _mm256_or_si256(x, y); }
    template <int n>
    static bytes left(bytes x) {
        return _mm256_slli_epi32(x, n);
    }
    template <int n>
    static bytes right(bytes x) {
        return _mm256_srli_epi32(x, n);
    }
    static bytes right_by(bytes x, std::int64_t n) {
        return _mm256_srl_epi32(x, _mm_cvtsi64_si128(n));
    }

    static void turned(const std::byte* from, std::int64_t stride, bytes (&to)[4]) {
        bytes piece[4];  // rows i and i + 4
        for (std::int64_t i = 0; i < 4; ++i) {
            const auto half = [&](std::int64_t at) {
                return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (i + at) * stride));
            };
            piece[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(half(0)), half(4), 1);
        }
        const auto a = _mm256_unpacklo_epi32(piece[0], piece[1]);
        const auto b = _mm256_unpackhi_epi32(piece[0], piece[1]);
        const auto c = _mm256_unpacklo_epi32(piece[2], piece[3]);
        const auto d = _mm256_unpackhi_epi32(piece[2], piece[3]);
        to[0] = _mm256_unpacklo_epi64(a, c);
        to[1] = _mm256_unpackhi_epi64(a, c);
        to[2] = _mm256_unpacklo_epi64(b, d);
        to[3] = _mm256_unpackhi_epi64(b, d);
    }

    static reg low_half(bytes x) { return halves(mask(x, 0xFFFF)); }
    static reg high_half(bytes x) { return halves(right<16>(x)); }
    static reg byte_of(bytes x, std::int64_t i) {
        return _mm256_cvtepi32_ps(mask(right_by(x, 8 * i), 0xFF));
    }
    static reg signed_byte_of(bytes x, std::int64_t i) {
        const auto top = _mm256_sll_epi32(x, _mm_cvtsi64_si128(24 - 8 * i));
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24));
    }
    static bytes fifth_bits(bytes x, std::int64_t i) {
        const auto byte = _mm256_set1_epi8(static_cast<char>(i / 2));
        const auto own = _mm256_set_epi8(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0,  //
                                         12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
        const auto four = _mm256_shuffle_epi8(x, _mm256_add_epi8(own, byte));
        const auto bits = _mm256_set1_epi32(i % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010));
        return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(four, bits), bits),
                                _mm256_set1_epi8(16));
    }
    // Numbers stay small, so that sums of their products fit into 16 bits.
    template <int bits>
    static bytes centre(bytes u) {
        return u;
    }
    template <int bits, int n, bool centred>
    static reg products(const bytes* u, const std::int8_t* q, const std::int32_t* bias) {
        const auto four = [&](std::int64_t i) {
            std::int32_t value = 0;
            std::memcpy(&value, q + 4 * i, sizeof(value));
            return _mm256_set1_epi32(value);
        };
        const auto pairs = [](bytes x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); };
        bytes sum = _mm256_setzero_si256();
        if constexpr (bits == 8) {  // |u| times q with the sign of u
            for (std::int64_t i = 0; i < n; ++i) {
                sum = _mm256_add_epi32(
                    sum, pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(u[i]),
                                                    _mm256_sign_epi8(four(i), u[i]))));
            }
            return _mm256_cvtepi32_ps(sum);
        }
        // products of two numbers each that a sum of 16 bits holds
        constexpr std::int64_t kHeld = std::min(n, 32767 / (2 * ((1 << bits) - 1) * 127));
        for (std::int64_t first = 0; first < n; first += kHeld) {
            bytes some = _mm256_maddubs_epi16(u[first], four(first));
            for (std::int64_t i = first + 1; i < std::min<std::int64_t>(n, first + kHeld); ++i) {
                some = _mm256_add_epi16(some, _mm256_maddubs_epi16(u[i], four(i)));
            }
            sum = first == 0 ? pairs(some) : _mm256_add_epi32(sum, pairs(some));
        }
        if (centred) {  // -128 times the sum of the q to -2^(bits - 1) times it
            sum = _mm256_add_epi32(sum, _mm256_set1_epi32(*bias >> (8 - bits)));
        }
        return _mm256_cvtepi32_ps(sum);
    }

    static float round(const float* x, std::int8_t* q, std::int32_t (&sums)[2]) {
        reg magnitude = _mm256_setzero_ps();
        for (std::int64_t i = 0; i < 4; ++i) {
            magnitude =
                _mm256_max_ps(magnitude, _mm256_andnot_ps(_mm256_set1_ps(-0.0F), load(x + 8 * i)));
        }
        alignas(32) float lanes[8];
        store(lanes, magnitude);
        const float most = *std::max_element(lanes, lanes + 8);
        const reg inverse = set1(most > 0 ? 127 / most : 0);
        for (std::int64_t half = 0; half < 2; ++half) {
            const auto rounded = [&](std::int64_t i) {
                return _mm256_cvtps_epi32(mul(load(x + 16 * half + 8 * i), inverse));
            };
            const auto first = rounded(0), second = rounded(1);
            const auto words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
            _mm_storeu_si128(
                reinterpret_cast<__m128i*>(q + 16 * half),
                _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
            alignas(32) std::int32_t sum[8];
            store_bytes(sum, _mm256_add_epi32(first, second));
            sums[half] =
                (sum[0] + sum[1]) + (sum[2] + sum[3]) + (sum[4] + sum[5]) + (sum[6] + sum[7]);
        }
        return most / 127;
    }

private:
    static reg halves(bytes low) {
        const auto words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0xD8);
        return _mm256_cvtph_ps(_mm256_castsi256_si128(words));
    }
};

}  // namespace
}  // namespace headkv::kernels

// after the vector type
#include "kernels/few_columns_impl.h"

namespace headkv::kernels {
extern const FewColumns* const kFewColumnsAvx2;
namespace {
constexpr FewColumns kTable = few_columns_table("avx2");
}
const FewColumns* const kFewColumnsAvx2 = &kTable;
}  // namespace headkv::kernels
#else
#include "kernels/few_columns.h"
namespace headkv::kernels {
extern const FewColumns* const kFewColumnsAvx2;
const FewColumns* const kFewColumnsAvx2 = nullptr;  // built for a CPU without AVX2
}  // namespace headkv::kernels
#endif
