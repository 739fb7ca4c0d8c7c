// Speed of each kernel, and of a plain loop that computes the same ("naive/..."): the ratio of the
// two does not depend on the machine's mood, so tools/bench-kernels checks that and no times.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "headkv/method.h"
#include "headkv/sampler.h"
#include "kernels/attention.h"
#include "kernels/few_columns.h"

namespace headkv {
namespace {

using kernels::Half;
using kernels::HeadDims;
using kernels::Kernels;
using kernels::RowType;

constexpr std::int64_t kDim = 64, kGroup = 3;  // SmolLM2's

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::vector<float> random_floats(std::int64_t count, unsigned seed = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size(count));
    for (float& value : values) value = normal(random);
    return values;
}

std::vector<Half> random_halves(std::int64_t count, unsigned seed) {
    const auto floats = random_floats(count, seed);
    std::vector<Half> halves(floats.size());
    kernels::best().to_half(floats.data(), halves.data(), count);
    return halves;
}

float widened(Half half) {
    const float magnitude = (half & 0x7C00U) == 0
                                ? static_cast<float>(half & 0x3FFU) * 0x1p-24F
                                : std::ldexp(static_cast<float>((half & 0x3FFU) | 0x400U),
                                             static_cast<int>((half >> 10) & 0x1FU) - 25);
    return (half & 0x8000U) != 0 ? -magnitude : magnitude;
}

std::vector<std::byte> stored_rows(RowType type, std::int64_t rows, unsigned seed) {
    const auto floats = random_floats(rows * kDim, seed);
    const auto bytes = kernels::row_bytes(type, kDim);
    std::vector<std::byte> stored(size(rows * bytes));
    for (std::int64_t r = 0; r < rows; ++r) {
        kernels::store_row(type, floats.data() + r * kDim, kDim, stored.data() + r * bytes);
    }
    return stored;
}

// What one decode step does for one KV head: a group of queries over all rows held. The plain loop
// reads f16 rows, whatever `type` says.
struct Decode {
    explicit Decode(std::int64_t rows, RowType row_type = RowType::f16)
        : count(rows),
          type(row_type),
          q(random_floats(kGroup * kDim)),
          keys(random_halves(rows * kDim, 2)),
          values(random_halves(rows * kDim, 3)),
          stored_keys(stored_rows(type, rows, 2)),
          stored_values(stored_rows(type, rows, 3)),
          max(size(kGroup)),
          sum(size(kGroup)),
          out(size(kGroup * kDim)) {}

    void run(const Kernels& kernel) {
        std::fill(max.begin(), max.end(), -std::numeric_limits<float>::infinity());
        std::fill(sum.begin(), sum.end(), 0.0F);
        std::fill(out.begin(), out.end(), 0.0F);
        kernel.attend_rows(q.data(), kGroup,
                           {type, stored_keys.data(), type, stored_values.data(), count},
                           {kDim, kDim}, {max.data(), sum.data(), out.data()});
        benchmark::DoNotOptimize(out.data());
    }
    void run_naive() {
        std::vector<float> weights(size(count));
        for (std::int64_t g = 0; g < kGroup; ++g) {
            float top = -std::numeric_limits<float>::infinity(), total = 0;
            for (std::int64_t r = 0; r < count; ++r) {
                float score = 0;
                for (std::int64_t i = 0; i < kDim; ++i) {
                    score += q[size(g * kDim + i)] * widened(keys[size(r * kDim + i)]);
                }
                weights[size(r)] = score;
                top = std::max(top, score);
            }
            for (float& weight : weights) total += weight = std::exp(weight - top);
            for (std::int64_t i = 0; i < kDim; ++i) out[size(g * kDim + i)] = 0;
            for (std::int64_t r = 0; r < count; ++r) {
                for (std::int64_t i = 0; i < kDim; ++i) {
                    out[size(g * kDim + i)] +=
                        weights[size(r)] / total * widened(values[size(r * kDim + i)]);
                }
            }
        }
        benchmark::DoNotOptimize(out.data());
    }
    void count_bytes(benchmark::State& state) const {
        state.SetBytesProcessed(state.iterations() * count * 2 * kernels::row_bytes(type, kDim));
        state.SetItemsProcessed(state.iterations() * count);  // rows
    }

    std::int64_t count;
    RowType type;
    std::vector<float> q;
    std::vector<Half> keys, values;
    std::vector<std::byte> stored_keys, stored_values;
    std::vector<float> max, sum, out;
};

void decode(benchmark::State& state, RowType type) {
    Decode work(state.range(0), type);
    for (auto _ : state) work.run(kernels::best());
    work.count_bytes(state);
    state.SetLabel(std::string(kernels::best().name));
}
// A whole step's rows, more than any cache holds: 48 heads of 8192 rows, 100 MB, read from memory.
void decode_from_memory(benchmark::State& state) {
    std::vector<Decode> heads;
    heads.reserve(48);
    for (int head = 0; head < 48; ++head) heads.emplace_back(state.range(0));
    for (auto _ : state) {
        for (auto& head : heads) head.run(kernels::best());
    }
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(heads.size()) *
                            state.range(0) * 2 * kernels::row_bytes(RowType::f16, kDim));
}
BENCHMARK(decode_from_memory)->Name("decode/memory")->Arg(8192);
void naive_decode(benchmark::State& state) {
    Decode work(state.range(0));
    for (auto _ : state) work.run_naive();
    work.count_bytes(state);
}
BENCHMARK_CAPTURE(decode, f16, RowType::f16)->Name("decode")->Arg(128)->Arg(8192);
BENCHMARK_CAPTURE(decode, q8_0, RowType::q8_0)->Name("decode/q8_0")->Arg(8192);
BENCHMARK_CAPTURE(decode, q4_0, RowType::q4_0)->Name("decode/q4_0")->Arg(8192);
BENCHMARK(naive_decode)->Name("naive/decode")->Arg(128)->Arg(8192);

// A tile of queries over a long prefix, as in a prefill.
void prefill(benchmark::State& state) {
    const std::int64_t rows = state.range(0), queries = kernels::kMostQueries;
    const Kernels& kernel = kernels::best();
    const HeadDims dims{kDim, kDim};
    const auto q = random_floats(queries * kDim);
    const auto keys = random_halves(rows * kDim, 2), values = random_halves(rows * kDim, 3);
    const std::vector<std::int64_t> visible(size(queries), rows);
    const auto stride = kernel.padded_dim(kDim);
    std::vector<float> max(size(queries)), sum(size(queries)), out(size(queries * stride));
    std::vector<float> work(size(kernel.tile_work_floats(dims)));
    for (auto _ : state) {
        std::fill(max.begin(), max.end(), -std::numeric_limits<float>::infinity());
        std::fill(sum.begin(), sum.end(), 0.0F);
        kernel.attend_tiles(q.data(), queries, visible.data(), {keys.data(), values.data(), rows},
                            dims, {max.data(), sum.data(), out.data()}, work.data());
        benchmark::DoNotOptimize(out.data());
    }
    state.counters["FLOP/s"] =
        benchmark::Counter(static_cast<double>(state.iterations() * queries * rows * 4 * kDim),
                           benchmark::Counter::kIsRate);
}
void rows_one_by_one(benchmark::State& state) {
    const std::int64_t rows = state.range(0), queries = kernels::kMostQueries;
    Decode work(rows);
    for (auto _ : state) {
        for (std::int64_t i = 0; i < queries; i += kGroup) work.run(kernels::best());
    }
}
BENCHMARK(prefill)->Name("prefill")->Arg(4096);
BENCHMARK(rows_one_by_one)->Name("naive/prefill")->Arg(4096);

// A matrix of 1536 rows of 1536 weights with some columns: a feed-forward product of a step that
// decodes as many sequences. The plain loop unpacks a row once and multiplies it with each column.
struct Few {
    static constexpr std::int64_t kRows = 1536, kIn = 1536;
    Few(kernels::WeightType weight_type, std::int64_t count)
        : type(weight_type),
          columns(count),
          weights(size(kRows * kIn / kernels::block_values(type) * kernels::block_bytes(type))),
          x(random_floats(kIn * columns)),
          memory(size(kernels::RoundedColumns::bytes(kIn, columns)) / sizeof(float)),
          rounded(reinterpret_cast<std::byte*>(memory.data()), kIn, columns),
          out(size(kRows * columns)) {
        std::mt19937 random(4);
        // any two such bytes are a finite half
        for (auto& byte : weights) byte = static_cast<std::byte>(random() & 0x2FU);
    }

    void run(const kernels::FewColumns& kernel) {
        for (std::int64_t c = 0; c < columns; ++c) {
            kernel.round(x.data() + c * kIn, 0, kIn / kernels::RoundedColumns::kBlock, c, rounded);
        }
        kernel.multiply(type, weights.data(), kRows, rounded, out.data(), kRows);
        benchmark::DoNotOptimize(out.data());
    }
    void run_naive_q4_1() {
        std::vector<float> row(size(kIn));
        for (std::int64_t r = 0; r < kRows; ++r) {
            for (std::int64_t block = 0; block < kIn / 32; ++block) {
                const auto* from = weights.data() + (r * kIn / 32 + block) * 20;
                Half scale = 0, low = 0;
                std::memcpy(&scale, from, sizeof(scale));
                std::memcpy(&low, from + 2, sizeof(low));
                for (std::int64_t i = 0; i < 32; ++i) {
                    const auto both = std::to_integer<int>(from[4 + i % 16]);
                    row[size(block * 32 + i)] =
                        widened(scale) * static_cast<float>(i < 16 ? both & 15 : both >> 4) +
                        widened(low);
                }
            }
            for (std::int64_t c = 0; c < columns; ++c) {
                float sum = 0;
                for (std::int64_t i = 0; i < kIn; ++i) sum += row[size(i)] * x[size(c * kIn + i)];
                out[size(c * kRows + r)] = sum;
            }
        }
        benchmark::DoNotOptimize(out.data());
    }
    void count(benchmark::State& state) const {
        state.counters["FLOP/s"] =
            benchmark::Counter(static_cast<double>(state.iterations() * 2 * kRows * kIn * columns),
                               benchmark::Counter::kIsRate);
    }

    kernels::WeightType type;
    std::int64_t columns;
    std::vector<std::byte> weights;
    std::vector<float> x, memory;
    kernels::RoundedColumns rounded;
    std::vector<float> out;
};

void few(benchmark::State& state, kernels::WeightType type) {
    Few work(type, state.range(0));
    for (auto _ : state) work.run(kernels::best_few_columns());
    work.count(state);
    state.SetLabel(std::string(kernels::best_few_columns().name));
}
void naive_few(benchmark::State& state) {
    Few work(kernels::WeightType::q4_1, state.range(0));
    for (auto _ : state) work.run_naive_q4_1();
    work.count(state);
}
BENCHMARK_CAPTURE(few, q4_0, kernels::WeightType::q4_0)->Name("few/q4_0")->Arg(16);
BENCHMARK_CAPTURE(few, q4_1, kernels::WeightType::q4_1)->Name("few/q4_1")->Arg(1)->Arg(4)->Arg(16);
BENCHMARK_CAPTURE(few, q5_0, kernels::WeightType::q5_0)->Name("few/q5_0")->Arg(16);
BENCHMARK_CAPTURE(few, q8_0, kernels::WeightType::q8_0)->Name("few/q8_0")->Arg(16);
BENCHMARK_CAPTURE(few, q4_K, kernels::WeightType::q4_K)->Name("few/q4_K")->Arg(16);
BENCHMARK_CAPTURE(few, q6_K, kernels::WeightType::q6_K)->Name("few/q6_K")->Arg(16);
BENCHMARK(naive_few)->Name("naive/few/q4_1")->Arg(16);

void argmax(benchmark::State& state) {
    const auto logits = random_floats(state.range(0));
    Sampler sampler({});
    for (auto _ : state) benchmark::DoNotOptimize(sampler.sample(logits));
    state.SetBytesProcessed(state.iterations() * state.range(0) * 4);
}
void naive_argmax(benchmark::State& state) {
    const auto logits = random_floats(state.range(0));
    for (auto _ : state) {
        std::size_t best = 0;
        for (std::size_t i = 1; i < logits.size(); ++i) {
            if (logits[i] > logits[best]) best = i;
        }
        benchmark::DoNotOptimize(best);
    }
}
BENCHMARK(argmax)->Name("argmax")->Arg(49152)->Arg(151936);
BENCHMARK(naive_argmax)->Name("naive/argmax")->Arg(49152)->Arg(151936);

void sample(benchmark::State& state) {
    const auto logits = random_floats(state.range(0));
    SamplerOptions options;
    options.temperature = 0.8F;
    Sampler sampler(options);
    for (auto _ : state) benchmark::DoNotOptimize(sampler.sample(logits));
}
BENCHMARK(sample)->Name("sample")->Arg(49152)->Arg(151936);

// Pooling and selection of one head of a long prompt.
void select(benchmark::State& state) {
    const std::int64_t n = state.range(0);
    auto observed = random_floats(kGroup * n);
    for (float& value : observed) value = std::exp(value);
    const HeadShape shape{1, kGroup, 1};
    for (auto _ : state) {
        const auto values = score_window(observed, shape, n, 16, 13, Pool::avg, GroupReduce::mean);
        benchmark::DoNotOptimize(select_top_k_window(values, n, 16, 128));
    }
}
void naive_select(benchmark::State& state) {
    const std::int64_t n = state.range(0);
    auto observed = random_floats(kGroup * n);
    for (float& value : observed) value = std::exp(value);
    for (auto _ : state) {
        std::vector<std::pair<float, std::int32_t>> values;
        for (std::int64_t i = 0; i < n - 16; ++i) {
            float sum = 0;
            for (std::int64_t j = std::max<std::int64_t>(0, i - 6); j <= std::min(n - 17, i + 6);
                 ++j) {
                for (std::int64_t g = 0; g < kGroup; ++g) sum += observed[size(g * n + j)];
            }
            values.emplace_back(-sum, static_cast<std::int32_t>(i));
        }
        std::sort(values.begin(), values.end());
        benchmark::DoNotOptimize(values.data());
    }
}
BENCHMARK(select)->Name("select")->Arg(8192);
BENCHMARK(naive_select)->Name("naive/select")->Arg(8192);

}  // namespace
}  // namespace headkv

BENCHMARK_MAIN();
