#include "bench/machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "bench/bench.h"
#include "kernels/f32_products.h"
#include "kernels/tiles.h"

namespace headkv {

namespace {

constexpr std::size_t kBytes = std::size_t{96} << 20;  // a thread; far beyond any cache
constexpr std::int64_t kSide = 1024;                   // of the square products
constexpr int kRuns = 5;

// Median milliseconds of `work(thread)` done by all threads together.
double timed(int threads, const std::function<void(int)>& work) {
    std::vector<double> times;
    for (int run = 0; run <= kRuns; ++run) {
        const auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> pool;
        for (int i = 1; i < threads; ++i) pool.emplace_back(work, i);
        work(0);
        for (auto& thread : pool) thread.join();
        const std::chrono::duration<double, std::milli> spent =
            std::chrono::steady_clock::now() - start;
        if (run > 0) times.push_back(spent.count());  // the first one touches the memory
    }
    return median(std::move(times));
}

// Sums whole cache lines in several chains, so that memory and not the adder is the limit.
std::uint64_t sum_of(const std::vector<std::uint64_t>& values) {
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i + 8 <= values.size(); i += 8) {
        for (std::size_t k = 0; k < 8; ++k) sums[k] += values[i + k];
    }
    return std::accumulate(std::begin(sums), std::end(sums), std::uint64_t{0});
}

}  // namespace

MachineSpeed measure_machine(int threads) {
    MachineSpeed speed;
    threads = std::max(threads, 1);
    const auto count = static_cast<std::size_t>(threads);
    {
        const std::size_t words = kBytes / sizeof(std::uint64_t);
        std::vector<std::vector<std::uint64_t>> from(count, std::vector<std::uint64_t>(words, 1));
        std::vector<std::vector<std::uint64_t>> to = from;
        std::vector<std::uint64_t> sums(count);
        const double bytes = static_cast<double>(kBytes) * threads;
        const double copy = timed(threads, [&](int thread) {
            const auto i = static_cast<std::size_t>(thread);
            std::memcpy(to[i].data(), from[i].data(), kBytes);
        });
        speed.copy_gb_s = 2 * bytes / copy / 1e6;
        const double read = timed(threads, [&](int thread) {
            const auto i = static_cast<std::size_t>(thread);
            sums[i] = sum_of(to[i]);
        });
        // The sums are looked at, else no compiler would read anything.
        speed.read_gb_s = sums[0] == words ? bytes / read / 1e6 : 0;
    }
    const double flops =
        2.0 * static_cast<double>(kSide) * static_cast<double>(kSide) * static_cast<double>(kSide);
    if (kernels::has_f32_products()) {
        const std::vector<float> a(kSide * kSide, 0.5F);
        std::vector<std::vector<float>> results(count, std::vector<float>(kSide * kSide));
        const double f32 = timed(threads, [&](int thread) {
            kernels::multiply_f32(a.data(), kSide, kSide, a.data(), kSide, kSide,
                                  results[static_cast<std::size_t>(thread)].data(), kSide);
        });
        speed.f32_gflop_s = flops * threads / f32 / 1e6;
    }
    if (const auto* unit = kernels::matrix_unit(); unit != nullptr) {
        const std::vector<float> weights(kSide * kSide, 0.5F);
        kernels::PackedBuffer packed(kernels::packed_weights(kSide, kSide));
        unit->pack_weights(weights.data(), kSide, kSide, packed.data());
        const std::vector<kernels::Bf16> x(kSide * kSide, 0x3F00);  // 0.5
        std::vector<std::vector<float>> products(count, std::vector<float>(kSide * kSide));
        const double bf16 = timed(threads, [&](int thread) {
            unit->multiply(packed.data(), kSide, kSide, x.data(), kSide, kSide,
                           products[static_cast<std::size_t>(thread)].data(), kSide);
        });
        speed.bf16_gflop_s = flops * threads / bf16 / 1e6;
    }
    return speed;
}

}  // namespace headkv
