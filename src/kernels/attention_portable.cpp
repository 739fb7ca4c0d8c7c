#include "kernels/simd_portable.h"
// after the vector type
#include "kernels/attention_impl.h"

namespace headkv::kernels {

extern const Kernels* const kAvx2;
extern const Kernels* const kAvx512;

namespace {

constexpr Kernels kTable = table("portable");

bool runs_avx2() {
#if defined(__x86_64__)
    // Every CPU with AVX2 converts halves (F16C); clang 16 cannot ask for that by name.
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

bool runs_avx512() {
#if defined(__x86_64__)
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

}  // namespace

const Kernels* by_name(std::string_view name) {
    if (name == "avx512" && kAvx512 != nullptr && runs_avx512()) return kAvx512;
    if (name == "avx2" && kAvx2 != nullptr && runs_avx2()) return kAvx2;
    return name == "portable" ? &kTable : nullptr;
}

const Kernels& best() {
    static const Kernels* const chosen = [] {
        for (const char* name : {"avx512", "avx2"}) {
            if (const auto* found = by_name(name)) return found;
        }
        return &kTable;
    }();
    return *chosen;
}

}  // namespace headkv::kernels
