#include "headkv/batch.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <utility>

#include "engine/answer.h"

namespace headkv {

namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

constexpr std::int64_t kLeastTokens = 32;  // of a prefill step; fewer would mostly be overhead

}  // namespace

struct Batch::Impl {
    // A request from its submission to its end; where it stands follows from what it holds.
    struct Job {
        BatchRequest request;
        BatchResult result;
        Clock::time_point submitted = Clock::now(), last_token, first_token;
        std::optional<PrefillJob> prefill;  // being read
        std::optional<SequenceId> sequence;
        std::unique_ptr<Answer> answer;  // running
        Token next = 0;                  // to be decoded
    };

    Engine& engine;
    BatchOptions options;
    RequestId next_id = 1;
    std::deque<std::unique_ptr<Job>> waiting;  // the first one may be being read
    std::vector<std::unique_ptr<Job>> running;
    std::vector<BatchResult> ended;
    double ms_per_token = 0;  // of a prefill step, lately
    double decode_ms = 0;     // of the last step of the running answers

    void decode();
    void read();
    Result<bool> read_step(Job& job, double budget_ms);
    void begin_answer(std::unique_ptr<Job> job, PrefillResult prefilled);
    void token_out(Job& job, std::span<const float> logits);
    void end(Job& job, std::optional<Error> error);
};

Batch::Batch(Engine& engine, const BatchOptions& options)
    : impl_(std::make_unique<Impl>(Impl{engine, options, 1, {}, {}, {}, 0})) {}

Batch::~Batch() {
    for (const auto& job : impl_->running) {
        if (job->sequence) impl_->engine.release(*job->sequence);
    }
}

Result<RequestId> Batch::submit(BatchRequest request) {
    if (auto checked = impl_->engine.check(request.prompt, request.method); !checked) {
        return tl::unexpected(checked.error());
    }
    auto job = std::make_unique<Impl::Job>();
    job->request = std::move(request);
    job->result.id = impl_->next_id;
    impl_->waiting.push_back(std::move(job));
    return impl_->next_id++;
}

void Batch::cancel(RequestId id) {
    auto& self = *impl_;
    for (auto& job : self.running) {
        if (job->result.id == id) job->answer->stop("interrupted");
    }
    const auto found = std::find_if(self.waiting.begin(), self.waiting.end(),
                                    [id](const auto& job) { return job->result.id == id; });
    if (found == self.waiting.end()) return;
    (*found)->result.generation.stop_reason = "interrupted";
    self.end(**found, std::nullopt);
    self.waiting.erase(found);
}

bool Batch::step() {
    impl_->decode();
    impl_->read();
    return !impl_->running.empty() || !impl_->waiting.empty();
}

std::vector<BatchResult> Batch::take() { return std::exchange(impl_->ended, {}); }

std::int64_t Batch::running() const { return static_cast<std::int64_t>(impl_->running.size()); }
std::int64_t Batch::waiting() const { return static_cast<std::int64_t>(impl_->waiting.size()); }

// One token of every running answer, in one pass.
void Batch::Impl::decode() {
    if (running.empty()) return;
    std::vector<DecodeInput> inputs;
    std::vector<Job*> jobs;
    for (auto& job : running) {
        if (job->answer->ended()) continue;
        inputs.push_back({.sequence = *job->sequence, .token = job->next});
        jobs.push_back(job.get());
    }
    const auto start = Clock::now();
    const auto all = inputs.empty() ? Result<void>() : engine.decode(inputs);
    decode_ms = ms_since(start);
    // Input at fault, as one sequence at the end of its context, is found before anything is done:
    // it must not end the others. After a failure nobody knows who has got how far.
    const bool together = all.has_value();
    const bool each = !together && all.error().kind == ErrorKind::bad_input;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        if (!together) {
            const auto alone = each ? engine.decode({&inputs[i], 1}) : all;
            if (!alone) {
                end(*jobs[i], alone.error());
                continue;
            }
        }
        token_out(*jobs[i], engine.logits(together ? i : 0));
    }
    for (auto& job : running) {
        if (job->sequence && job->answer->ended()) end(*job, std::nullopt);
    }
    std::erase_if(running, [](const auto& job) { return !job->sequence; });
}

// Reads prompts until running answers want their next token, which takes as long as the last one.
void Batch::Impl::read() {
    const auto start = Clock::now();
    const double most_ms = options.max_stall_ms - decode_ms;
    while (!waiting.empty() && static_cast<std::int64_t>(running.size()) < options.slots) {
        const double left = most_ms - ms_since(start);
        // Even where nothing is left one small step is done; 0 would be no limit.
        const double budget = running.empty() ? 0 : std::max(left, 1e-9);
        const auto done = read_step(*waiting.front(), budget);
        if (!done || *done) {
            auto job = std::move(waiting.front());
            waiting.pop_front();
            auto prefilled =
                done ? job->prefill->finish() : Result<PrefillResult>(tl::unexpected(done.error()));
            job->prefill.reset();
            if (prefilled) {
                begin_answer(std::move(job), std::move(*prefilled));
            } else {
                end(*job, prefilled.error());
            }
        }
        // The next step must fit, too.
        const double next = ms_per_token * static_cast<double>(kLeastTokens);
        if (!running.empty() && ms_since(start) + next > most_ms) return;
    }
}

// One step of the job's prefill, as long as `budget_ms` allows (0: no limit). True when all is
// read.
Result<bool> Batch::Impl::read_step(Job& job, double budget_ms) {
    if (!job.prefill) {
        auto begun = engine.start_prefill(job.request.prompt, {&job.request.method, 1},
                                          job.request.generate.max_tokens + 1);
        if (!begun) return tl::unexpected(begun.error());
        job.prefill.emplace(std::move(*begun));
    }
    std::int64_t most = 0;
    if (budget_ms > 0 && ms_per_token > 0) {
        most = std::max(kLeastTokens, static_cast<std::int64_t>(budget_ms / ms_per_token));
    } else if (budget_ms > 0) {
        most = kLeastTokens;  // nothing known yet: a careful first step
    }
    const auto before = job.prefill->done();
    const auto start = Clock::now();
    auto done = job.prefill->step(most);
    if (!done) return done;
    const auto tokens = static_cast<double>(job.prefill->done() - before);
    if (tokens <= 0) return done;  // a token of a draft
    const double cost = ms_since(start) / tokens;
    // Later chunks of a layer see more keys and the last one pays for the compression: the dearest
    // step of late counts, and is forgotten slowly.
    ms_per_token = std::max(cost, 0.98 * ms_per_token);
    return done;
}

void Batch::Impl::begin_answer(std::unique_ptr<Job> job, PrefillResult prefilled) {
    job->sequence = prefilled.sequences[0];
    job->answer = std::make_unique<Answer>(engine.model().tokenizer(), job->request.generate,
                                           job->request.sink);
    token_out(*job, prefilled.logits);
    if (job->answer->ended()) {
        end(*job, std::nullopt);
    } else {
        running.push_back(std::move(job));
    }
}

// Samples the next token of an answer and notes how long it took to come.
void Batch::Impl::token_out(Job& job, std::span<const float> logits) {
    const auto token = job.answer->next(logits);
    const auto now = Clock::now();
    auto& result = job.result;
    if (result.first_token_ms == 0) {
        result.first_token_ms = ms_since(job.submitted);
        job.first_token = now;
    } else {
        const std::chrono::duration<double, std::milli> gap = now - job.last_token;
        result.longest_stall_ms = std::max(result.longest_stall_ms, gap.count());
    }
    job.last_token = now;
    if (token) job.next = *token;
}

void Batch::Impl::end(Job& job, std::optional<Error> error) {
    auto& result = job.result;
    result.error = std::move(error);
    result.total_ms = ms_since(job.submitted);
    if (job.answer) {
        if (result.error) job.answer->stop("error");
        result.generation = job.answer->take();
        result.generation.decode_ms = ms_since(job.first_token);
    }
    if (job.sequence) {
        result.info = engine.info(*job.sequence);
        engine.release(*job.sequence);
        job.sequence.reset();
    }
    ended.push_back(std::move(result));
}

}  // namespace headkv
