#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "kernels/simd_avx2.h"
// after the vector type
#include "kernels/attention_impl.h"

namespace headkv::kernels {
extern const Kernels* const kAvx2;
namespace {
constexpr Kernels kTable = table("avx2");
}
const Kernels* const kAvx2 = &kTable;
}  // namespace headkv::kernels
#else
#include "kernels/attention.h"
namespace headkv::kernels {
extern const Kernels* const kAvx2;
const Kernels* const kAvx2 = nullptr;  // built for a CPU without AVX2
}  // namespace headkv::kernels
#endif
