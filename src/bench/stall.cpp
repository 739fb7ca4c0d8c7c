#include "bench/stall.h"

#include <algorithm>
#include <chrono>

#include "headkv/batch.h"

namespace headkv {

namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point start, Clock::time_point end) {
    return std::chrono::duration<double, std::milli>(end - start).count();
}

constexpr std::int64_t kPlainSteps = 16;  // measured before the late prompt comes

}  // namespace

Result<StallResult> measure_stall(Engine& engine, const BenchCase& what, std::uint64_t seed,
                                  double limit_ms) {
    const Tokenizer& tokenizer = engine.model().tokenizer();
    Batch batch(engine, {.slots = what.slots + 1, .max_stall_ms = limit_ms});
    const auto context = engine.model().info().context;
    const auto submit = [&](std::int64_t tokens, std::int64_t answer) {
        BatchRequest request;
        request.prompt = random_tokens(tokenizer, tokens, seed++);
        request.method = what.method;
        request.generate.max_tokens = answer;
        return batch.submit(std::move(request));
    };
    const auto depth = std::max<std::int64_t>(1, what.depth);
    const auto answer = std::max<std::int64_t>(1, context - depth - 1);
    for (std::int64_t i = 0; i < what.slots; ++i) {
        if (auto id = submit(depth, answer); !id) return tl::unexpected(id.error());
    }
    // One round; what has ended, but for the late prompt, begins again.
    std::optional<RequestId> late;
    bool read = false;
    const auto round = [&]() -> Result<void> {
        batch.step();
        for (const BatchResult& ended : batch.take()) {
            if (ended.error) return tl::unexpected(*ended.error);
            if (late && ended.id == *late) {
                read = true;
            } else if (auto id = submit(depth, answer); !id) {
                return tl::unexpected(id.error());
            }
        }
        return {};
    };
    while (batch.waiting() > 0) {
        if (auto done = round(); !done) return tl::unexpected(done.error());
    }
    StallResult result{.limit_ms = limit_ms,
                       .late_tokens = std::min(std::max(depth, kLeastLateTokens), context - 2)};
    std::vector<double> plain;
    auto last = Clock::now();
    const auto wait = [&] {
        const auto now = Clock::now();
        const auto ms = ms_between(last, now);
        last = now;
        return ms;
    };
    for (std::int64_t i = 0; i < kPlainSteps; ++i) {
        if (auto done = round(); !done) return tl::unexpected(done.error());
        plain.push_back(wait());
    }
    result.step_ms = median(plain);
    const auto start = Clock::now();
    auto id = submit(result.late_tokens, 1);
    if (!id) return tl::unexpected(id.error());
    late = *id;
    while (!read) {
        // A round gives every running answer its next token.
        const bool running = batch.running() > 0;
        if (auto done = round(); !done) return tl::unexpected(done.error());
        const auto ms = wait();
        if (!running) continue;
        result.longest_ms = std::max(result.longest_ms, ms);
        ++result.waits;
    }
    result.read_ms = ms_between(start, Clock::now());
    return result;
}

}  // namespace headkv
