// g++ 12 takes the undefined pass-through operands inside its own AVX-512 header for a mistake.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "kernels/simd_avx512.h"

namespace headkv::kernels {
namespace {

// By hand rather than by the compilers' intrinsics: those of g++ 12 take only literal tile numbers
// and do not say that they touch memory.
struct Unit {
    struct alignas(64) Config {
        std::uint8_t palette = 0, start_row = 0, reserved[14] = {};
        std::uint16_t row_bytes[16] = {};
        std::uint8_t rows[16] = {};
    };
    static_assert(sizeof(Config) == 64);

    static void begin() {
        static constexpr Config kConfig = {
            1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
        asm volatile("sttilecfg %0" : "=m"(before) : : "memory");
        asm volatile("ldtilecfg %0" ::"m"(kConfig) : "memory");
    }
    // The shapes that were set before: ggml built for AMX sets its own once a thread, and its next
    // product would be an illegal instruction without them.
    static void end() {
        if (before.palette == 0) {
            asm volatile("tilerelease" ::: "memory");
        } else {
            asm volatile("ldtilecfg %0" ::"m"(before) : "memory");
        }
    }
    static thread_local Config before;
    template <int T>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(T) : "memory");
    }
    template <int T>
    static void load(const void* from, std::int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    static void store(void* to, std::int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
    }
    template <int C, int A, int B>
    static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
    }
    static void store_bf16(std::uint16_t* to, __m512 x) {
        const __m256bh rounded = _mm512_cvtneps_pbh(x);
        std::memcpy(to, &rounded, sizeof(rounded));
    }
    static void store_bf16(std::uint16_t* to, __m512 x, __m512 next) {
        const __m512bh rounded = _mm512_cvtne2ps_pbh(next, x);
        std::memcpy(to, &rounded, sizeof(rounded));
    }
    static __m512 silu(__m512 x) {
        // Far below zero the power would be infinite, and infinity times zero no number.
        const __m512 low = _mm512_max_ps(x, _mm512_set1_ps(-80.0F));
        const __m512 power = exp2(low, _mm512_set1_ps(-1.44269504F), _mm512_setzero_ps());
        return _mm512_div_ps(low, _mm512_add_ps(power, _mm512_set1_ps(1.0F)));
    }
    static bool any_above(__m512 x, float bar) {
        return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bar), _CMP_GT_OQ) != 0;
    }
    // 2^(t - floor t) by a polynomial (relative error 1e-4), times 2^(floor t).
    static __m512 exp2(__m512 x, __m512 factor, __m512 shift) {
        const __m512 t = _mm512_fmadd_ps(x, factor, shift);
        const __m512 r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);
        __m512 sum = _mm512_set1_ps(0.078967257F);
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.224693156F));
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.696324771F));
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.999900288F));
        return _mm512_scalef_ps(sum, t);
    }
};

thread_local Unit::Config Unit::before;

// AMX in the processor, and the kernel's permission to use its registers (given to the whole
// process, once).
bool allowed() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned kTiles = 1U << 24, kBf16 = 1U << 22;
    if ((d & kTiles) == 0 || (d & kBf16) == 0) return false;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bf16")) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
}  // namespace headkv::kernels

// after what it works with
#include "kernels/tiles_impl.h"

namespace headkv::kernels {

const TileKernels* matrix_unit() {
    static constexpr TileKernels kTable = tile_table("amx");
    static const bool usable = allowed();
    return usable ? &kTable : nullptr;
}

}  // namespace headkv::kernels
#else
#include "kernels/tiles.h"
namespace headkv::kernels {
const TileKernels* matrix_unit() { return nullptr; }  // built without AMX
}  // namespace headkv::kernels
#endif
