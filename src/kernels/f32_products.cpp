#include "kernels/f32_products.h"

#include <cassert>

#ifdef HEADKV_HAVE_DNNL
#include <dnnl.h>
#include <pthread.h>

#include <csignal>
#include <initializer_list>

// The one function of OpenMP that is needed. Its header lies in each compiler's own folder, where
// clang-tidy, which reads what g++ compiles, has none. Threads that parallel regions begun by the
// calling thread may have (OpenMP 5.0, 3.2.1).
extern "C" void omp_set_num_threads(int threads);
#endif

namespace headkv::kernels {

#ifdef HEADKV_HAVE_DNNL

namespace {

// Holds back signals of the calling thread, but those that an instruction of its own causes.
class SignalsWait {
public:
    SignalsWait() {
        sigset_t all;
        ::sigfillset(&all);
        for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) {
            ::sigdelset(&all, own);
        }
        ::pthread_sigmask(SIG_BLOCK, &all, &before_);
    }
    ~SignalsWait() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsWait(const SignalsWait&) = delete;
    SignalsWait& operator=(const SignalsWait&) = delete;

private:
    sigset_t before_;
};

}  // namespace

bool has_f32_products() { return true; }

void multiply_f32(const float* a, std::int64_t rows, std::int64_t in, const float* x,
                  std::int64_t x_stride, std::int64_t columns, float* out,
                  std::int64_t out_stride) {
    thread_local const bool single = (omp_set_num_threads(1), true);
    static_cast<void>(single);
    const SignalsWait wait;
    // row-major: out = x * a^T
    dnnl_sgemm('N', 'T', columns, rows, in, 1.0F, x, x_stride, a, in, 0.0F, out, out_stride);
}

#else

bool has_f32_products() { return false; }

void multiply_f32(const float* /*a*/, std::int64_t /*rows*/, std::int64_t /*in*/,
                  const float* /*x*/, std::int64_t /*x_stride*/, std::int64_t /*columns*/,
                  float* /*out*/, std::int64_t /*out_stride*/) {
    assert(false);
}

#endif

}  // namespace headkv::kernels
