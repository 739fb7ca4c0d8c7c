// One example of a task on the real engine.
#include <algorithm>
#include <chrono>
#include <numeric>

#include "eval/task.h"
#include "headkv/session.h"

namespace headkv {

Result<Asked> ask(const Model& model, const TaskExample& example, const TaskSettings& settings,
                  std::int64_t& cut) {
    const auto chat = example.raw ? std::nullopt : settings.chat;
    auto prompt = question_prompt(model, example.context, example.question, chat);
    if (!prompt) return tl::unexpected(prompt.error());
    Asked asked;
    asked.reference = answer_tokens(model.tokenizer(), example.answers[0], chat.has_value());
    if (asked.reference.empty()) return bad_input("{}: its answer has no tokens", example.id);
    asked.max_tokens = example.max_tokens.value_or(settings.max_tokens);
    asked.first_line = example.first_line.value_or(settings.first_line);

    std::size_t behind = 0;  // tokens from the question on
    if (!settings.query_aware) {
        // Where the prompt parts from that of another question: whatever the template does, what
        // stands before is the same for all.
        const bool digit = !example.question.empty() && example.question[0] == '0';
        const auto other = question_prompt(model, example.context, digit ? "Why" : "0", chat);
        if (!other) return tl::unexpected(other.error());
        const auto [mine, theirs] =
            std::mismatch(prompt->begin(), prompt->end(), other->begin(), other->end());
        if (example.context.empty() || mine == prompt->begin() || mine == prompt->end()) {
            return bad_input("{}: has nothing before its question to compress without it",
                             example.id);
        }
        behind = static_cast<std::size_t>(prompt->end() - mine);
    }
    const std::int64_t context = model.info().context;
    const auto length = static_cast<std::int64_t>(prompt->size());
    const auto answer =
        std::max(asked.max_tokens, static_cast<std::int64_t>(asked.reference.size()));
    cut = 0;
    if (context > 0 && length + answer > context) {
        const auto limit = std::max<std::int64_t>(context - answer, context / 2);
        if (static_cast<std::int64_t>(behind) >= limit / 2) {
            return bad_input("{}: its question of {} tokens does not fit the context of {}",
                             example.id, behind, context);
        }
        *prompt = truncate_middle(*prompt, limit);
        cut = length - limit;
    }
    asked.compressed = prompt->size() - behind;
    asked.prompt = std::move(*prompt);
    return asked;
}

Result<TaskResult> run_example(Engine& engine, const TaskExample& example,
                               std::span<const ConfigUnderTest> configs,
                               const TaskSettings& settings, const Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    TaskResult result;
    result.id = example.id;
    result.group = example.group;
    const auto asked = ask(engine.model(), example, settings, result.cut_tokens);
    if (!asked) {
        result.skipped = asked.error().message;
        return result;
    }
    result.prompt_tokens = static_cast<std::int64_t>(asked->prompt.size());
    const Metric metric = example.metric.value_or(settings.metric);
    auto answered = answer_with_all(engine, *asked, configs, progress);
    if (!answered) return tl::unexpected(answered.error());
    for (Answered& one : *answered) {
        TaskAnswer answer;
        answer.method = std::move(one.method);
        answer.rows = one.rows;
        answer.score = metric == Metric::labels ? label_score(one.text, example.question,
                                                              example.answers[0], example.labels)
                                                : score_answer(metric, one.text, example.answers);
        const auto& each = one.log_probability;
        answer.log_probability =
            std::accumulate(each.begin(), each.end(), 0.0) / static_cast<double>(each.size());
        answer.kv_bytes = one.kv_bytes;
        answer.kv_bytes_full = one.kv_bytes_full;
        answer.rows_kept = one.rows_kept;
        answer.text = std::move(one.text);
        result.answers.push_back(std::move(answer));
    }
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return result;
}

}  // namespace headkv
