// One example of a task on the real engine.
#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <numeric>

#include "eval/generate.h"
#include "eval/task.h"
#include "headkv/session.h"
#include "text/keep_marks.h"

namespace headkv {
namespace {

// What the reference is made of: all that is asked for, or the first way to say it.
std::string reference_text(const TaskExample& example, std::span<const std::string> answers) {
    return example.match == StringMatch::all ? joined(answers, ", ") : answers[0];
}

bool ends_in_space(const TaskExample& example) {
    const std::string& last = example.question.empty() ? example.context : example.question;
    return last.ends_with(' ') || last.ends_with('\n');
}

std::size_t common_prefix(std::span<const Token> a, std::span<const Token> b) {
    const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
    return static_cast<std::size_t>(differ - a.begin());
}

double score_of(const TaskExample& example, const TaskSettings& settings, std::string_view text,
                std::string_view question, std::span<const std::string> answers) {
    if (example.match) return string_match(*example.match, text, answers);
    const Metric metric = example.metric.value_or(settings.metric);
    return metric == Metric::labels ? label_score(text, question, answers[0], example.labels)
                                    : score_answer(metric, text, answers, example.labels);
}

struct TaskTexts {
    std::string context, question;
};

// Without <keep> and </keep>, where those are marks.
Result<TaskTexts> texts_of(const TaskExample& example, bool marks) {
    if (!marks) return TaskTexts{example.context, example.question};
    auto context = take_keep_marks(example.context), question = take_keep_marks(example.question);
    if (!context) return bad_input("{}: its context, {}", example.id, context.error().message);
    if (!question) return bad_input("{}: its question, {}", example.id, question.error().message);
    return TaskTexts{std::move(context->text), std::move(question->text)};
}

double mean(std::span<const double> each) {
    return std::accumulate(each.begin(), each.end(), 0.0) / static_cast<double>(each.size());
}

}  // namespace

Result<Asked> ask(const Model& model, const TaskExample& example, const TaskSettings& settings,
                  std::int64_t& cut) {
    const auto chat = example.raw ? std::nullopt : settings.chat;
    assert(!example.verbatim || example.turns.empty());
    const std::string_view system = chat ? std::string_view(settings.system) : "";
    const auto texts = texts_of(example, settings.keep.marks);
    if (!texts) return tl::unexpected(texts.error());
    const auto prompt_of = [&](std::string_view context, std::string_view question,
                               const KeepParts& parts) {
        return example.verbatim ? marked_prompt(model, fmt::format("{}{}", context, question), "",
                                                chat, system, parts)
                                : marked_prompt(model, context, question, chat, system, parts);
    };
    // The tokens alone, of the same context.
    const auto asked_instead = [&](std::string_view question) -> Result<std::vector<Token>> {
        auto other = prompt_of(texts->context, question, {});
        if (!other) return tl::unexpected(other.error());
        return std::move(other->tokens);
    };
    const KeepParts parts{settings.keep.marks, settings.keep.system && chat, true};
    auto marked = prompt_of(example.context, example.question, parts);
    if (!marked) return tl::unexpected(marked.error());
    const std::vector<Token>* const prompt = &marked->tokens;
    Asked asked;
    // No blank opens an answer behind white space, such as a line of code on a line of its own.
    const bool no_blank = chat || (example.verbatim && ends_in_space(example));
    const auto reference_of = [&](std::span<const std::string> answers) {
        return answer_tokens(model.tokenizer(), reference_text(example, answers), no_blank);
    };
    asked.reference = reference_of(example.answers);
    if (asked.reference.empty()) return bad_input("{}: its answer has no tokens", example.id);
    asked.max_tokens = example.max_tokens.value_or(settings.max_tokens);
    asked.first_line = example.first_line.value_or(settings.first_line);
    asked.shared_context = !example.turns.empty() && settings.turn_mode == TurnMode::shared_context;

    // Where the prompt parts from those of other questions: whatever the template does, what stands
    // before is the same for all.
    const bool blind = asked.shared_context || !settings.query_aware;
    std::size_t before = prompt->size();
    if (blind) {
        const auto other = asked_instead(texts->question.starts_with('0') ? "Why" : "0");
        if (!other) return tl::unexpected(other.error());
        before = common_prefix(*prompt, *other);
    }
    std::vector<std::vector<Token>> prompts;  // of the further questions, each for itself
    for (const TaskTurn& turn : example.turns) {
        AskedTurn further;
        further.reference = reference_of(turn.answers);
        if (asked.shared_context) {
            auto own = asked_instead(turn.question);
            if (!own) return tl::unexpected(own.error());
            before = std::min(before, common_prefix(*prompt, *own));
            prompts.push_back(std::move(*own));
        } else if (chat) {
            further.prompt = next_turn_prompt(model, turn.question, *chat);
        } else {
            further.prompt = model.tokenizer().encode(
                fmt::format("\n\nQuestion: {}\nAnswer:", turn.question), false, false);
        }
        if (further.reference.empty() || (further.prompt.empty() && !asked.shared_context)) {
            return bad_input("{}: a further question or its answer has no tokens", example.id);
        }
        asked.turns.push_back(std::move(further));
    }
    if (blind && (example.context.empty() || before == 0 || before == prompt->size())) {
        return bad_input("{}: has nothing before its question to compress without it", example.id);
    }
    if (!marked->keep.empty() && marked->keep.back().end > static_cast<std::int64_t>(before)) {
        return bad_input(
            "{}: its question has marks, but is read behind the compressed context: use "
            "--query-aware yes",
            example.id);
    }
    for (std::size_t i = 0; i < prompts.size(); ++i) {
        asked.turns[i].prompt.assign(prompts[i].begin() + static_cast<std::ptrdiff_t>(before),
                                     prompts[i].end());
        // Only a question that is the beginning of another leaves nothing of itself.
        if (asked.turns[i].prompt.empty()) {
            return bad_input("{}: its question {} is empty", example.id, i + 2);
        }
    }

    const std::size_t behind = prompt->size() - before;       // tokens from the question on
    std::int64_t room = answer_room(asked, asked.reference);  // what follows the prompt
    for (const AskedTurn& turn : asked.turns) {
        const std::int64_t more =
            static_cast<std::int64_t>(turn.prompt.size()) + answer_room(asked, turn.reference);
        room = asked.shared_context ? std::max(room, more - static_cast<std::int64_t>(behind))
                                    : room + more;
    }
    const std::int64_t context = model.info().context;
    const auto length = static_cast<std::int64_t>(prompt->size());
    cut = 0;
    if (context > 0 && length + room > context) {
        const auto limit = std::max<std::int64_t>(context - room, context / 2);
        if (static_cast<std::int64_t>(behind) >= limit / 2) {
            return bad_input("{}: its question of {} tokens does not fit the context of {}",
                             example.id, behind, context);
        }
        *marked = truncate_middle(*marked, limit);
        cut = length - limit;
    }
    asked.compressed = prompt->size() - behind;
    if (!blind && !example.verbatim) {
        asked.question = question_part(model, texts->context, texts->question, chat, system);
    }
    asked.prompt = std::move(marked->tokens);
    asked.keep = std::move(marked->keep);
    return asked;
}

Result<TaskResult> run_example(Engine& engine, const TaskExample& example,
                               std::span<const ConfigUnderTest> configs,
                               const TaskSettings& settings, const Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    TaskResult result;
    result.id = example.id;
    result.group = example.group;
    result.depth = example.depth;
    result.length = example.length;
    result.cluster = example.cluster;
    const auto asked = ask(engine.model(), example, settings, result.cut_tokens);
    if (!asked) {
        result.skipped = asked.error().message;
        return result;
    }
    result.prompt_tokens = static_cast<std::int64_t>(asked->prompt.size());
    if (!asked->keep.empty()) {
        const auto compressed = std::span(asked->prompt).first(asked->compressed);
        for (const MethodConfig& method : asked_methods(*asked, configs)) {
            if (const auto fits = engine.check(compressed, method); !fits) {
                result.skipped = fmt::format("{}: {}", example.id, fits.error().message);
                return result;
            }
        }
    }
    auto answered = answer_with_all(engine, *asked, configs, progress);
    if (!answered) return tl::unexpected(answered.error());
    for (Answered& one : *answered) {
        TaskAnswer answer;
        answer.method = std::move(one.method);
        answer.rows = one.rows;
        answer.score = score_of(example, settings, one.text, example.question, example.answers);
        answer.log_probability = mean(one.log_probability);
        answer.kv_bytes = one.kv_bytes;
        answer.kv_bytes_full = one.kv_bytes_full;
        answer.rows_kept = one.rows_kept;
        answer.archive_bytes = one.archive_bytes;
        answer.text = std::move(one.text);
        if (!one.turns.empty()) {
            answer.turns.push_back({answer.text, answer.score, answer.log_probability});
            for (std::size_t i = 0; i < one.turns.size(); ++i) {
                const TaskTurn& turn = example.turns[i];
                AnsweredTurn& said = one.turns[i];
                const double score =
                    score_of(example, settings, said.text, turn.question, turn.answers);
                const double log_probability = mean(said.log_probability);
                answer.turns.push_back({std::move(said.text), score, log_probability});
                answer.score += score;
                answer.log_probability += log_probability;
            }
            answer.score /= static_cast<double>(answer.turns.size());
            answer.log_probability /= static_cast<double>(answer.turns.size());
        }
        result.answers.push_back(std::move(answer));
    }
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return result;
}

}  // namespace headkv
