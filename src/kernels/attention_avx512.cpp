// g++ 12 takes the undefined pass-through operands inside its own AVX-512 header for a mistake.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "kernels/simd_avx512.h"
// after the vector type
#include "kernels/attention_impl.h"

namespace headkv::kernels {
extern const Kernels* const kAvx512;
namespace {
constexpr Kernels kTable = table("avx512");
}
const Kernels* const kAvx512 = &kTable;
}  // namespace headkv::kernels
#else
#include "kernels/attention.h"
namespace headkv::kernels {
extern const Kernels* const kAvx512;
const Kernels* const kAvx512 = nullptr;  // built for a CPU without AVX-512
}  // namespace headkv::kernels
#endif
