#include "kernels/f32_products.h"

#include <gtest/gtest.h>
#include <sys/time.h>
#include <ucontext.h>

#include <array>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <vector>

#include "support/random.h"

namespace headkv::test {
namespace {

using kernels::multiply_f32;

std::vector<float> values(Random& random, std::int64_t count) {
    std::vector<float> made(static_cast<std::size_t>(count));
    for (float& value : made) value = static_cast<float>(random.normal());
    return made;
}

TEST(F32Products, AreThoseOfAPlainLoopAndTouchNothingElse) {
    if (!kernels::has_f32_products()) GTEST_SKIP() << "built without oneDNN";
    struct Case {
        std::int64_t rows, in, columns;
    };
    Random random(5);
    for (const auto [rows, in, columns] :
         {Case{1, 1, 1}, Case{96, 64, 24}, Case{7, 97, 33}, Case{95, 576, 49}, Case{96, 1031, 5}}) {
        const auto x_stride = in + 3, out_stride = rows + 2;
        const auto a = values(random, rows * in), x = values(random, columns * x_stride);
        std::vector<float> out(static_cast<std::size_t>(columns * out_stride), 77.0F);
        multiply_f32(a.data(), rows, in, x.data(), x_stride, columns, out.data(), out_stride);
        for (std::int64_t j = 0; j < columns; ++j) {
            for (std::int64_t i = 0; i < rows; ++i) {
                double sum = 0;
                for (std::int64_t k = 0; k < in; ++k) {
                    sum += static_cast<double>(a[static_cast<std::size_t>(i * in + k)]) *
                           static_cast<double>(x[static_cast<std::size_t>(j * x_stride + k)]);
                }
                EXPECT_NEAR(out[static_cast<std::size_t>(j * out_stride + i)], sum,
                            1e-4 * std::sqrt(static_cast<double>(in)))
                    << rows << "x" << in << "x" << columns;
            }
            for (std::int64_t i = rows; i < out_stride; ++i) {
                EXPECT_EQ(out[static_cast<std::size_t>(j * out_stride + i)], 77.0F);
            }
        }
    }
}

#ifdef __x86_64__

std::atomic<std::uintptr_t> stack_low, stack_high;
std::atomic<int> alarms, elsewhere;

void on_alarm(int /*signal*/, siginfo_t* /*info*/, void* context) {
    const auto* where = static_cast<const ucontext_t*>(context);
    const auto pointer = static_cast<std::uintptr_t>(where->uc_mcontext.gregs[REG_RSP]);
    ++alarms;
    if (pointer < stack_low || pointer > stack_high) ++elsewhere;
}

// A handler that came in between would write its frame into the heap; this one has a stack of its
// own, so that the test sees it without doing harm.
TEST(F32Products, NoSignalIsHandledOffTheStack) {
    if (!kernels::has_f32_products()) GTEST_SKIP() << "built without oneDNN";
    pthread_attr_t attributes;
    ASSERT_EQ(pthread_getattr_np(pthread_self(), &attributes), 0);
    void* low = nullptr;
    std::size_t bytes = 0;
    ASSERT_EQ(pthread_attr_getstack(&attributes, &low, &bytes), 0);
    pthread_attr_destroy(&attributes);
    stack_low = reinterpret_cast<std::uintptr_t>(low);
    stack_high = stack_low + bytes;

    std::array<std::byte, 1 << 16> other;
    stack_t stack = {}, stack_before = {};
    stack.ss_sp = other.data();
    stack.ss_size = other.size();
    ASSERT_EQ(sigaltstack(&stack, &stack_before), 0);
    struct sigaction action = {}, action_before = {};
    action.sa_sigaction = on_alarm;
    action.sa_flags = SA_RESTART | SA_ONSTACK | SA_SIGINFO;
    ASSERT_EQ(sigaction(SIGALRM, &action, &action_before), 0);
    const itimerval often = {{0, 100}, {0, 100}}, never = {};
    ASSERT_EQ(setitimer(ITIMER_REAL, &often, nullptr), 0);

    Random random(6);
    constexpr std::int64_t rows = 96, in = 1024, columns = 256;
    const auto a = values(random, rows * in), x = values(random, columns * in);
    std::vector<float> out(static_cast<std::size_t>(columns * rows));
    alarms = elsewhere = 0;
    for (int i = 0; i < 20000 && alarms < 300; ++i) {
        multiply_f32(a.data(), rows, in, x.data(), in, columns, out.data(), rows);
    }

    setitimer(ITIMER_REAL, &never, nullptr);
    sigaction(SIGALRM, &action_before, nullptr);
    sigaltstack(&stack_before, nullptr);
    EXPECT_GE(alarms, 300) << "too few signals to show anything";
    EXPECT_EQ(elsewhere, 0);
}

#endif

}  // namespace
}  // namespace headkv::test
