// Vector type of attention_impl.h for AVX-512 F + DQ.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace headkv::kernels {
namespace {

struct V {
    using reg = __m512;
    static constexpr std::int64_t width = 16;
    static reg zero() { return _mm512_setzero_ps(); }
    static reg set1(float x) { return _mm512_set1_ps(x); }
    static reg load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, reg x) { _mm512_storeu_ps(p, x); }
    static reg load_half(const std::uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static reg set1_half(std::uint16_t x) {
        return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(x)));
    }
    static float widen(std::uint16_t x) { return _cvtsh_ss(x); }
    static reg load_int8(const std::byte* p) {
        return _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static reg load_low(const std::byte* p) {
        return _mm512_cvtepi32_ps(_mm512_and_epi32(load_bytes(p), _mm512_set1_epi32(15)));
    }
    static reg load_high(const std::byte* p) {
        return _mm512_cvtepi32_ps(_mm512_srli_epi32(load_bytes(p), 4));
    }
    static void store_half(std::uint16_t* p, reg x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_maskz_cvtps_ph(0xFFFF, x, _MM_FROUND_TO_NEAREST_INT));
    }
    static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
    static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
    static reg max(reg a, reg b) { return _mm512_max_ps(a, b); }
    // adds in the order of reduce_add4, to the same last bit
    static float reduce_add(reg x) {
        const reg pairs = _mm512_add_ps(x, _mm512_permute_ps(x, _MM_SHUFFLE(1, 0, 3, 2)));
        const reg sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, _MM_SHUFFLE(2, 3, 0, 1)));
        return _mm_cvtss_f32(add_lanes(sums));
    }
    // to[i] = sum of x[i], four at once
    static void reduce_add4(const reg (&x)[4], float* to) {
        const reg ab =
            _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
        const reg cd =
            _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
        const reg sums = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                       _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
        _mm_storeu_ps(to, add_lanes(sums));
    }
    static float reduce_max(reg x) { return _mm512_reduce_max_ps(x); }
    // 2^n * e^r with |r| <= ln(2)/2 and the Taylor series of e^r to the 7th power.
    static reg exp(reg x) {
        const reg low = _mm512_set1_ps(-87.0F);
        const __mmask16 normal = _mm512_cmp_ps_mask(x, low, _CMP_GE_OQ);
        x = _mm512_max_ps(x, low);
        const reg n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)),
                                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        // ln 2 in two parts, so that the remainder keeps its last bits
        reg r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
        r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
        reg sum = _mm512_set1_ps(1.0F / 5040);
        for (const float c : {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F}) {
            sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(c));
        }
        return _mm512_maskz_scalef_ps(normal, sum, n);
    }

private:
    static __m128 add_lanes(reg x) {
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
        return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    static __m512i load_bytes(const std::byte* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
};

}  // namespace
}  // namespace headkv::kernels
