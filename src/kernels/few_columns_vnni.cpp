// g++ 12 takes the undefined pass-through operands inside its own AVX-512 header for a mistake.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace headkv::kernels {
namespace {

struct V {
    using reg = __m512;
    using bytes = __m512i;
    static constexpr std::int64_t width = 16;
    static constexpr int columns = 16;
    static reg load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, reg x) { _mm512_storeu_ps(p, x); }
    static reg set1(float x) { return _mm512_set1_ps(x); }
    static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
    static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }

    static bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
    static void store_bytes(void* p, bytes x) { _mm512_storeu_si512(p, x); }
    static bytes mask(bytes x, std::uint32_t dword) {
        return _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(dword)));
    }
    static bytes either(bytes x, bytes y) { return _mm512_or_si512(x, y); }
    template <unsigned n>
    static bytes left(bytes x) {
        return _mm512_slli_epi32(x, n);
    }
    template <unsigned n>
    static bytes right(bytes x) {
        return _mm512_srli_epi32(x, n);
    }
    static bytes right_by(bytes x, std::int64_t n) {
        return _mm512_srl_epi32(x, _mm_cvtsi64_si128(n));
    }

    static void turned(const std::byte* from, std::int64_t stride, bytes (&to)[4]) {
        // rows i, i + 4, i + 8, i + 12 in the quarters of piece i
        bytes piece[4];
        for (std::int64_t i = 0; i < 4; ++i) {
            const auto* p = from + i * stride;
            const auto quarter = [&](std::int64_t at) {
                return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at * stride));
            };
            piece[i] = _mm512_castsi128_si512(quarter(0));
            piece[i] = _mm512_mask_broadcast_i32x4(piece[i], 0x00F0, quarter(4));
            piece[i] = _mm512_mask_broadcast_i32x4(piece[i], 0x0F00, quarter(8));
            piece[i] = _mm512_mask_broadcast_i32x4(piece[i], 0xF000, quarter(12));
        }
        const auto a = _mm512_unpacklo_epi32(piece[0], piece[1]);
        const auto b = _mm512_unpackhi_epi32(piece[0], piece[1]);
        const auto c = _mm512_unpacklo_epi32(piece[2], piece[3]);
        const auto d = _mm512_unpackhi_epi32(piece[2], piece[3]);
        to[0] = _mm512_unpacklo_epi64(a, c);
        to[1] = _mm512_unpackhi_epi64(a, c);
        to[2] = _mm512_unpacklo_epi64(b, d);
        to[3] = _mm512_unpackhi_epi64(b, d);
    }

    static reg low_half(bytes x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
    static reg high_half(bytes x) { return low_half(right<16>(x)); }
    static reg byte_of(bytes x, std::int64_t i) {
        return _mm512_cvtepi32_ps(mask(right_by(x, 8 * i), 0xFF));
    }
    static reg signed_byte_of(bytes x, std::int64_t i) {
        const auto top = _mm512_sll_epi32(x, _mm_cvtsi64_si128(24 - 8 * i));
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
    }
    static bytes fifth_bits(bytes x, std::int64_t i) {
        const auto byte = _mm512_set1_epi8(static_cast<char>(i / 2));
        const auto own = _mm512_set_epi8(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0,  //
                                         12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0,  //
                                         12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0,  //
                                         12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
        const auto four = _mm512_shuffle_epi8(x, _mm512_add_epi8(own, byte));
        const auto bits = _mm512_set1_epi32(i % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010));
        return _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(four, bits), 16);
    }
    // All centred numbers are u - 128 in products().
    template <int bits>
    static bytes centre(bytes u) {
        if constexpr (bits == 8) return _mm512_xor_si512(u, _mm512_set1_epi8(-128));
        return _mm512_add_epi8(u, _mm512_set1_epi8(static_cast<char>(128 - (1 << (bits - 1)))));
    }
    template <int bits, int n, bool centred>
    static reg products(const bytes* u, const std::int8_t* q, const std::int32_t* bias) {
        bytes sum = centred ? _mm512_set1_epi32(*bias) : _mm512_setzero_si512();
        for (std::int64_t i = 0; i < n; ++i) {
            std::int32_t four = 0;
            std::memcpy(&four, q + 4 * i, sizeof(four));
            sum = _mm512_dpbusd_epi32(sum, u[i], _mm512_set1_epi32(four));
        }
        return _mm512_cvtepi32_ps(sum);
    }

    static float round(const float* x, std::int8_t* q, std::int32_t (&sums)[2]) {
        const reg first = load(x), second = load(x + 16);
        const reg magnitude = _mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second));
        const float most = _mm512_reduce_max_ps(magnitude);
        const reg inverse = set1(most > 0 ? 127 / most : 0);
        const auto put = [&](reg values, std::int8_t* to) {
            const auto rounded = _mm512_cvtps_epi32(mul(values, inverse));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(rounded));
            return _mm512_reduce_add_epi32(rounded);
        };
        sums[0] = put(first, q);
        sums[1] = put(second, q + 16);
        return most / 127;
    }
};

}  // namespace
}  // namespace headkv::kernels

// after the vector type
#include "kernels/few_columns_impl.h"

namespace headkv::kernels {
extern const FewColumns* const kFewColumnsVnni;
namespace {
constexpr FewColumns kTable = few_columns_table("vnni");
}
const FewColumns* const kFewColumnsVnni = &kTable;
}  // namespace headkv::kernels
#else
#include "kernels/few_columns.h"
namespace headkv::kernels {
extern const FewColumns* const kFewColumnsVnni;
const FewColumns* const kFewColumnsVnni = nullptr;  // built for a CPU without AVX-512 VNNI
}  // namespace headkv::kernels
#endif
