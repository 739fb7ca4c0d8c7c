#include "cli/eval_tasks.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

#include "eval/longbench.h"
#include "eval/needle_tasks.h"
#include "eval/parity.h"
#include "eval/ruler.h"
#include "eval/scbench.h"

namespace headkv::cli {
namespace {

TaskSettings answers_of(Metric metric, std::int64_t max_tokens) {
    TaskSettings settings;
    settings.metric = metric;
    settings.max_tokens = max_tokens;
    return settings;
}

// Names with a comma between.
std::string joined(std::span<const std::string_view> names) {
    std::string all;
    for (const std::string_view name : names)
        all += fmt::format("{}{}", all.empty() ? "" : ",", name);
    return all;
}

// Sets of a benchmark's folder; "all" are those that it has.
std::vector<std::string> named_sets(const TaskOptions& options) {
    if (options.sets.size() == 1 && options.sets[0] == "all") return {};
    return options.sets;
}

// "4096" or "4k" (4096): tokens of a prompt.
Result<std::vector<std::int64_t>> token_counts(const std::vector<std::string>& texts) {
    std::vector<std::int64_t> counts;
    for (const std::string& text : texts) {
        std::int64_t count = 0;
        const char* const end = text.data() + text.size();
        const auto [rest, error] = std::from_chars(text.data(), end, count);
        const bool thousands = rest + 1 == end && (*rest == 'k' || *rest == 'K');
        if (error != std::errc() || (rest != end && !thousands) || count < 1 || count > 1 << 24) {
            return bad_input("--lengths {}: give tokens, such as 4096 or 4k", text);
        }
        counts.push_back(thousands ? count * 1024 : count);
    }
    return counts;
}

// Options that all generated tasks have.
template <class Options>
Result<TaskData> make(const TaskOptions& from, const Tokenizer* tokenizer,
                      std::vector<std::string> Options::*names, Options options,
                      Result<TaskData> (*maker)(const Options&, const Tokenizer&)) {
    auto lengths = token_counts(from.lengths);
    if (!lengths) return tl::unexpected(lengths.error());
    options.*names = from.sets;
    options.lengths = std::move(*lengths);
    options.samples = from.samples;
    options.seed = from.seed;
    return maker(options, *tokenizer);
}

}  // namespace

std::span<const EvalTask> eval_tasks() {
    static const std::string ruler = joined(ruler_tasks()), scbench = joined(scbench_tasks()),
                             needles = joined(needle_task_kinds()), parity = joined(parity_kinds());
    static const std::array tasks = {
        EvalTask{.name = "generate",
                 .about = "your own questions, from a file of JSON lines",
                 .data = R"(JSON lines of "context", "question", "answers": [...], "id")",
                 .metrics = true,
                 .marks = true,
                 .settings = answers_of(Metric::f1, 64),
                 .load = [](const TaskOptions& options,
                            const Tokenizer*) { return load_examples(options.data); }},
        EvalTask{.name = "babilong",
                 .about = "BABILong: facts to be combined, hidden in long texts",
                 .data = "folder of tasks.json and 0k.jsonl, 1k.jsonl, ...",
                 .sets = "qa1,qa2,qa3,qa4,qa5",
                 .lengths = "0k,1k,2k,4k",
                 .settings = answers_of(Metric::labels, 15),
                 .load =
                     [](const TaskOptions& options, const Tokenizer*) {
                         return load_babilong(options.data, options.sets, options.lengths);
                     }},
        EvalTask{.name = "longbench",
                 .about = "LongBench: questions, summaries, few-shot, retrieval, code",
                 .data = "folder of tasks.json and SET.jsonl",
                 .sets = "all",
                 .settings = answers_of(Metric::f1, 64),
                 .load =
                     [](const TaskOptions& options, const Tokenizer*) {
                         return load_longbench(options.data, named_sets(options));
                     }},
        EvalTask{.name = "loogle",
                 .about = "LooGLE: questions whose answers need distant parts of a text",
                 .data = "folder of SET.jsonl, with LongBench's beside it",
                 .sets = "all",
                 .settings = answers_of(Metric::f1, 64),
                 .load =
                     [](const TaskOptions& options, const Tokenizer*) {
                         return load_loogle(options.data, named_sets(options));
                     }},
        EvalTask{.name = "needles",
                 .about = "needles of several kinds over lengths and depths, generated",
                 .sets = needles,
                 .lengths = "1000,2500",
                 .depths = "10,50,90",
                 .split = "dev",
                 .samples = 2,
                 .settings = answers_of(Metric::contains, 32),
                 .load =
                     [](const TaskOptions& options, const Tokenizer* tokenizer) {
                         NeedleTaskOptions needle;
                         needle.depths = options.depths;
                         needle.split = options.split;
                         return make(options, tokenizer, &NeedleTaskOptions::kinds, needle,
                                     make_needle_tasks);
                     }},
        EvalTask{.name = "ruler",
                 .about = "RULER's 13 tasks, generated",
                 .sets = ruler,
                 .lengths = "4096",
                 .samples = 10,
                 .settings = answers_of(Metric::contains, 128),
                 .load =
                     [](const TaskOptions& options, const Tokenizer* tokenizer) {
                         return make(options, tokenizer, &RulerOptions::tasks, RulerOptions(),
                                     make_ruler);
                     }},
        EvalTask{.name = "scbench",
                 .about = "SCBench: several questions to one cache, generated",
                 .sets = scbench,
                 .lengths = "4096",
                 .samples = 10,
                 .turns = 5,
                 .settings = answers_of(Metric::contains, 64),
                 .load =
                     [](const TaskOptions& options, const Tokenizer* tokenizer) {
                         ScbenchOptions several;
                         several.turns = options.turns;
                         return make(options, tokenizer, &ScbenchOptions::tasks, several,
                                     make_scbench);
                     }},
        EvalTask{.name = "parity",
                 .about = "the same questions with names, places or groups swapped, generated",
                 .sets = parity,
                 .lengths = "2048",
                 .samples = 10,
                 .settings = answers_of(Metric::contains, 32),
                 .load =
                     [](const TaskOptions& options, const Tokenizer* tokenizer) {
                         return make(options, tokenizer, &ParityOptions::kinds, ParityOptions(),
                                     make_parity);
                     }},
    };
    return tasks;
}

}  // namespace headkv::cli
