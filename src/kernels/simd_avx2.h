// Vector type of attention_impl.h for AVX2 + FMA + F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace headkv::kernels {
namespace {

struct V {
    using reg = __m256;
    static constexpr std::int64_t width = 8;
    static reg zero() { return _mm256_setzero_ps(); }
    static reg set1(float x) { return _mm256_set1_ps(x); }
    static reg load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, reg x) { _mm256_storeu_ps(p, x); }
    static reg load_half(const std::uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static reg set1_half(std::uint16_t x) {
        return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(x)));
    }
    static float widen(std::uint16_t x) { return _cvtsh_ss(x); }
    static reg load_int8(const std::byte* p) {
        return _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static reg load_low(const std::byte* p) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(load_bytes(p), _mm256_set1_epi32(15)));
    }
    static reg load_high(const std::byte* p) {
        return _mm256_cvtepi32_ps(_mm256_srli_epi32(load_bytes(p), 4));
    }
    static void store_half(std::uint16_t* p, reg x) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                         _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
    static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
    static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
    static reg max(reg a, reg b) { return _mm256_max_ps(a, b); }
    // adds in the order of reduce_add4, to the same last bit
    static float reduce_add(reg x) {
        const reg pairs = _mm256_add_ps(x, _mm256_permute_ps(x, _MM_SHUFFLE(1, 0, 3, 2)));
        const reg sums = _mm256_add_ps(pairs, _mm256_permute_ps(pairs, _MM_SHUFFLE(2, 3, 0, 1)));
        return _mm_cvtss_f32(add_lanes(sums));
    }
    // to[i] = sum of x[i], four at once
    static void reduce_add4(const reg (&x)[4], float* to) {
        const reg ab =
            _mm256_add_ps(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
        const reg cd =
            _mm256_add_ps(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
        const reg sums = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                       _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
        _mm_storeu_ps(to, add_lanes(sums));
    }
    static float reduce_max(reg x) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
    // 2^n * e^r with |r| <= ln(2)/2 and the Taylor series of e^r to the 7th power.
    static reg exp(reg x) {
        const reg low = _mm256_set1_ps(-87.0F);
        const reg tiny = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
        x = _mm256_max_ps(x, low);
        const reg n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504F)),
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        // ln 2 in two parts, so that the remainder keeps its last bits
        reg r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
        r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
        reg sum = _mm256_set1_ps(1.0F / 5040);
        for (const float c : {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F}) {
            sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(c));
        }
        const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
        const __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(sum), power);
        return _mm256_andnot_ps(tiny, _mm256_castsi256_ps(scaled));
    }

private:
    static __m128 add_lanes(reg x) {
        return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    }
    static __m256i load_bytes(const std::byte* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
};

}  // namespace
}  // namespace headkv::kernels
