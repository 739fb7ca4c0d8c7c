#include "headkv/batch.h"

#include <algorithm>
#include <map>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

class BatchTest : public testing::Test {
protected:
    BatchRequest request(std::int64_t prompt_tokens, const std::string& method, double rows,
                         std::int64_t answer_tokens, std::uint64_t seed) {
        BatchRequest request;
        request.prompt = random_tokens(prompt_tokens, seed);
        request.method = method_config(method, rows, tiny.model->info().shape);
        request.generate.max_tokens = answer_tokens;
        request.generate.sampler.temperature = 1;
        request.generate.sampler.seed = seed;
        return request;
    }

    // The same request by itself.
    Generation alone(const BatchRequest& request) {
        auto prefilled = tiny.engine->prefill(request.prompt, {&request.method, 1});
        EXPECT_TRUE(prefilled);
        auto result =
            generate(*tiny.engine, prefilled->sequences[0], prefilled->logits, request.generate);
        tiny.engine->release(prefilled->sequences[0]);
        EXPECT_TRUE(result);
        return *result;
    }

    static std::map<RequestId, BatchResult> run(Batch& batch) {
        std::map<RequestId, BatchResult> results;
        for (bool more = true; more;) {
            more = batch.step();
            for (auto& result : batch.take()) results.emplace(result.id, std::move(result));
        }
        return results;
    }

    TinyPair tiny{TinyModel{}};
};

TEST_F(BatchTest, EveryAnswerEqualsTheOneItGetsAlone) {
    std::vector<BatchRequest> requests = {
        request(40, "full", 0, 12, 1),         request(300, "snapkv", 33, 20, 2),
        request(7, "headkv-r2", 21, 1, 3),     request(131, "ada-kv", 40, 17, 4),
        request(90, "pyramidkv", 25, 9, 5),    request(200, "streaming-llm", 20, 30, 6),
        request(64, "headkv-r", 18.5, 5, 7),   request(1, "full", 0, 3, 8),
        request(150, "kvzip", 32, 6, 9),       request(120, "expected-attention", 25.5, 8, 10),
        request(110, "criticalkv", 30, 7, 11), request(140, "fastgen", 30, 24, 12)};
    requests.back().method.options.reserve = 5;  // rows are chosen anew several times
    for (const std::int64_t slots : {1, 3, 16}) {
        for (const double stall : {0.0, 1e9}) {
            Batch batch(*tiny.engine, {.slots = slots, .max_stall_ms = stall});
            std::map<RequestId, std::string> streamed;
            std::vector<RequestId> ids;
            for (const auto& one : requests) {
                BatchRequest copy = one;
                const auto place = static_cast<RequestId>(ids.size()) + 1;
                copy.sink = [&streamed, place](std::string_view piece) {
                    streamed[place] += piece;
                    return true;
                };
                ids.push_back(batch.submit(std::move(copy)).value());
            }
            const auto results = run(batch);
            ASSERT_EQ(results.size(), requests.size());
            for (std::size_t i = 0; i < ids.size(); ++i) {
                const BatchResult& result = results.at(ids[i]);
                const Generation right = alone(requests[i]);
                EXPECT_FALSE(result.error);
                EXPECT_EQ(result.generation.tokens, right.tokens) << i << ", " << slots;
                EXPECT_EQ(result.generation.text, right.text);
                EXPECT_EQ(result.generation.stop_reason, right.stop_reason);
                EXPECT_EQ(streamed[ids[i]], right.text);
                EXPECT_EQ(result.info.prompt_tokens,
                          static_cast<std::int64_t>(requests[i].prompt.size()));
                EXPECT_GT(result.first_token_ms, 0);
                EXPECT_GE(result.total_ms, result.first_token_ms);
            }
            EXPECT_EQ(batch.running() + batch.waiting(), 0);
        }
    }
}

TEST_F(BatchTest, AnswersGoOnWhileALongPromptIsRead) {
    Batch batch(*tiny.engine, {.slots = 4, .max_stall_ms = 0});
    auto quick = request(20, "full", 0, 200, 1);
    quick.generate.sampler.temperature = 0;
    std::int64_t pieces = 0;
    quick.sink = [&](std::string_view) { return ++pieces, true; };
    ASSERT_TRUE(batch.submit(quick));
    while (batch.running() == 0) ASSERT_TRUE(batch.step());
    bool answered = false;
    auto slow = request(400, "snapkv", 40, 2, 2);
    slow.sink = [&](std::string_view) { return answered = true; };
    ASSERT_TRUE(batch.submit(slow));
    const std::int64_t before = pieces;
    std::int64_t between = 0;
    while (!answered) {
        ASSERT_TRUE(batch.step());
        if (!answered) between = pieces - before;
    }
    // 400 tokens in pieces of 32 through every layer: as many rounds, each with a token.
    EXPECT_GE(between, std::min<std::int64_t>(400 / 32, 100));
    EXPECT_EQ(batch.running() + batch.waiting() >= 1, true);
}

TEST_F(BatchTest, NoMoreThanItsSlotsRunAtOnce) {
    Batch batch(*tiny.engine, {.slots = 2, .max_stall_ms = 1e9});
    for (std::uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(batch.submit(request(30, "full", 0, 6, i)));
    std::int64_t most = 0;
    while (batch.step()) most = std::max(most, batch.running());
    EXPECT_EQ(most, 2);
    EXPECT_EQ(batch.take().size(), 5U);
}

TEST_F(BatchTest, CancelledAndStoppedAnswersEndAsInterrupted) {
    Batch batch(*tiny.engine, {.slots = 1});
    auto stopping = request(30, "full", 0, 50, 1);
    stopping.sink = [](std::string_view) { return false; };
    const RequestId first = batch.submit(stopping).value();
    const RequestId second = batch.submit(request(30, "full", 0, 50, 2)).value();
    const RequestId third = batch.submit(request(30, "full", 0, 2, 3)).value();
    batch.cancel(second);
    batch.cancel(4711);
    const auto results = run(batch);
    ASSERT_EQ(results.size(), 3U);
    EXPECT_EQ(results.at(first).generation.stop_reason, "interrupted");
    EXPECT_EQ(results.at(first).generation.tokens.size(), 1U);
    EXPECT_EQ(results.at(second).generation.stop_reason, "interrupted");
    EXPECT_TRUE(results.at(second).generation.tokens.empty());
    EXPECT_NE(results.at(third).generation.stop_reason, "interrupted");
}

TEST_F(BatchTest, AFullContextEndsOneAnswerNotTheOthers) {
    const std::int64_t context = tiny.model->info().context;
    Batch batch(*tiny.engine, {.slots = 4});
    auto endless = request(context - 3, "snapkv", 40, 100, 1);
    auto other = request(20, "full", 0, 40, 2);
    const RequestId first = batch.submit(endless).value();
    const RequestId second = batch.submit(other).value();
    const auto results = run(batch);
    ASSERT_TRUE(results.at(first).error || results.at(first).generation.stop_reason == "end");
    EXPECT_FALSE(results.at(second).error);
    EXPECT_EQ(results.at(second).generation.tokens, alone(other).tokens);
}

TEST_F(BatchTest, BadRequestsAreRefusedAtOnce) {
    Batch batch(*tiny.engine);
    EXPECT_FALSE(batch.submit(request(0, "full", 0, 5, 1)));
    EXPECT_FALSE(batch.submit(request(tiny.model->info().context + 1, "full", 0, 5, 1)));
    EXPECT_FALSE(batch.submit(request(50, "snapkv", 3, 5, 1)));
    BatchRequest odd = request(50, "snapkv", 30, 5, 1);
    odd.prompt[3] = -7;
    const auto id = batch.submit(odd);
    ASSERT_FALSE(id) << "a token outside the vocabulary";
    EXPECT_FALSE(batch.step());
}

}  // namespace
}  // namespace headkv::test
