// Continuous batching: many requests over one engine. Every round decodes one token of all running
// answers in one pass, then reads waiting prompts for as long as the answers may stand still.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "headkv/session.h"

namespace headkv {

struct BatchOptions {
    std::int64_t slots = 16;   // most sequences that answer at once; the others wait in order
    double max_stall_ms = 50;  // longest that a prompt may keep running answers from their next
                               // token; one step of 32 tokens in one layer is done in any case
};

struct BatchRequest {
    std::vector<Token> prompt;
    MethodConfig method;
    GenerateOptions generate;
    TextSink sink;  // may be empty; false ends this answer only ("interrupted")
};

using RequestId = std::int64_t;

struct BatchResult {
    RequestId id = 0;
    std::optional<Error> error;  // then the rest is what was reached until then
    Generation generation;
    SequenceInfo info;            // when it ended
    double first_token_ms = 0;    // from submit() to the first token
    double total_ms = 0;          // from submit() to the end
    double longest_stall_ms = 0;  // longest wait between two of its tokens
};

// Not thread-safe. Answers equal those of generate() on the same engine, whatever runs beside them.
class Batch {
public:
    // Must not outlive `engine`. Sequences that the caller holds there are left alone.
    explicit Batch(Engine& engine, const BatchOptions& options = {});
    ~Batch();

    // Queues a request. Errors as Engine::prefill, found at once where the prompt or the method is
    // at fault.
    Result<RequestId> submit(BatchRequest request);
    void cancel(RequestId id);  // its result comes as "interrupted"; unknown ids are ignored

    // One round. False when nothing is left to do.
    bool step();
    // What has ended since the last call, in the order of ending.
    std::vector<BatchResult> take();

    std::int64_t running() const;  // answers under way
    std::int64_t waiting() const;  // prompts queued or being read

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace headkv
