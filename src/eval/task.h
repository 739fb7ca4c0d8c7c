// Evaluation on examples with a context, a question and right answers: the user's own file, or a
// benchmark's. A task is a function that loads its examples; everything else is shared.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/answering.h"
#include "eval/logged_run.h"
#include "eval/metrics.h"
#include "eval/statistics.h"
#include "eval/string_match.h"
#include "headkv/chat.h"
#include "headkv/engine.h"
#include "headkv/session.h"

namespace headkv {

struct TaskTurn {
    std::string question;
    std::vector<std::string> answers;  // at least one; the first is the reference
};

struct TaskExample {
    std::string id;                    // unique in its task
    std::string group;                 // a line of the report: a dataset, a length; may be empty
    std::string context;               // may be empty
    std::string question;              // may be empty where the context asks
    std::vector<std::string> answers;  // at least one; the first is the reference
    std::vector<std::string> labels;   // for Metric::labels and Metric::classification

    // Where the examples of a task differ; unset: as TaskSettings has it.
    std::optional<Metric> metric = {};
    std::optional<StringMatch> match = {};  // RULER's score, in place of a metric
    std::optional<std::int64_t> max_tokens = {};
    std::optional<bool> first_line = {};
    bool raw = false;  // never in a chat template, as a benchmark prescribes for few-shot prompts
    // The prompt is the context and the question as they stand, with nothing between or behind
    // them: a benchmark's own template, filled in. Such an example has no turns.
    bool verbatim = false;

    // Further questions to the same cache: see TurnMode.
    std::vector<TaskTurn> turns = {};

    // Where the answer stands (percent of the text before it) and the tokens of the whole prompt
    // as asked for: the axes of a heat map.
    std::optional<double> depth = {};
    std::optional<std::int64_t> length = {};
    // Examples that succeed and fail together, such as those of one form of needle: intervals draw
    // them as one. Empty: by itself.
    std::string cluster = {};
};

// A line of a data file that could not be used.
struct SkippedLine {
    std::string file;
    std::int64_t line = 0;  // from 1
    std::string reason;
};

struct TaskData {
    std::vector<TaskExample> examples;
    std::vector<SkippedLine> skipped;
};

// Calls `use(line, number)` for every line of a file that is not blank, numbers from 1. Error
// (bad_input): it cannot be read.
Result<void> each_line(const std::filesystem::path& file,
                       const std::function<void(const std::string&, std::int64_t)>& use);

// JSON lines of {"context", "question", "answers": [...], "id"}: context and id (the line's number)
// may be left out, one answer may stand as "answer". Errors (bad_input): unreadable, or not one
// usable line (names the first reason).
Result<TaskData> load_examples(const std::filesystem::path& file);

// BABILong (2406.10149) from FOLDER/{0k,1k,...}.jsonl and FOLDER/tasks.json: tasks such as "qa1" at
// lengths such as "4k". Errors (bad_input): a file is missing (says which), a task is not in it.
Result<TaskData> load_babilong(const std::filesystem::path& folder,
                               std::span<const std::string> tasks,
                               std::span<const std::string> lengths);

// How the further questions of an example are asked.
enum class TurnMode {
    multi_turn,  // behind the questions and the model's own answers before it, in the same cache
    // Each from a copy of the cache as it was compressed before any question (query_aware is then
    // off, whatever it says).
    shared_context
};

struct TaskSettings {
    Metric metric = Metric::f1;
    std::int64_t max_tokens = 64;
    bool first_line = false;
    bool query_aware = true;  // false: the context is compressed before the question is read
    std::int64_t limit = 0;   // most examples, 0: all
    std::uint64_t seed = 1;   // of the order and of the intervals
    std::optional<ChatTemplate> chat;
    std::string system = {};  // message, where there is a template; empty: the template's own
    // What every head keeps of a prompt. Examples may lack marks, and have no system part without a
    // template.
    KeepParts keep = {};
    TurnMode turn_mode = TurnMode::multi_turn;
};

// What one configuration made of one question of several.
struct TurnAnswer {
    std::string text;
    double score = 0;
    double log_probability = 0;  // per token of the reference, teacher-forced
};

// What one configuration made of one example.
struct TaskAnswer {
    std::string method;
    double rows = 0;  // 0 for full
    std::string text;
    double score = 0;            // with several questions: the mean over them
    double log_probability = 0;  // per token of the reference, teacher-forced; mean as above
    std::int64_t kv_bytes = 0, kv_bytes_full = 0;
    double rows_kept = 0;
    std::vector<TurnAnswer> turns = {};  // of every question, the first too; empty for one alone
    std::int64_t archive_bytes = 0;      // beside the cache, for recall
};

struct TaskResult {
    std::string id, group;
    std::int64_t prompt_tokens = 0;
    std::int64_t cut_tokens = 0;  // taken out of the middle of a prompt beyond the context
    double seconds = 0;
    std::string skipped;                      // why there are no answers; empty otherwise
    std::vector<TaskAnswer> answers;          // full first, then the configurations in their order
    std::optional<double> depth = {};         // as in TaskExample
    std::optional<std::int64_t> length = {};  // as in TaskExample
    std::string cluster = {};                 // as in TaskExample
};

nlohmann::json to_json(const TaskResult& result);
// Nothing if the entry is not of this form (the example is then run again).
std::optional<TaskResult> task_result_from_json(const nlohmann::json& json);

// The examples in the order of a run: shuffled by the seed, so that a run that stops early is
// balanced, and cut to the limit.
std::vector<TaskExample> chosen_examples(std::vector<TaskExample> examples,
                                         const TaskSettings& settings);

// The prompt, where its question begins (see Asked), the reference, and the further questions. A
// prompt that leaves no room for what follows in the context loses its middle, as LongBench
// prescribes (2308.14508); `cut` says how many tokens.
// Errors (bad_input): nothing to compress before the question with query_aware off, or marks in it;
// marks that do not pair.
Result<Asked> ask(const Model& model, const TaskExample& example, const TaskSettings& settings,
                  std::int64_t& cut);

// An example that cannot be asked, or has parts to keep that a budget does not hold, gives a result
// that says why. Errors: those of the engine.
Result<TaskResult> run_example(Engine& engine, const TaskExample& example,
                               std::span<const ConfigUnderTest> configs,
                               const TaskSettings& settings, const Progress& progress = {});

// One question of several as a result of its own, in the group "GROUP/turn N" (N from 1); `turn`
// from 0. Nothing where there is no such question.
std::optional<TaskResult> turn_result(const TaskResult& result, std::size_t turn);

// A method at a budget over all examples of a group ("" is all of them).
struct TaskRow {
    std::string group, method;
    double rows = 0;
    std::int64_t n = 0, cut = 0;  // examples; those with a prompt beyond the context
    Estimate score, dscore;       // mean; minus full's, paired
    double share_of_full = 0;     // score / full's
    Estimate dlog_probability;    // per token of the reference, minus full's
    double kv_bytes = 0, kv_bytes_full = 0, rows_kept = 0;  // means
};
// Skipped examples count nowhere. Groups in alphabetical order behind the line over all; one group
// alone gets no line of its own. Examples with several questions count with the mean over them;
// behind their group's lines stand those of each question, as groups "GROUP/turn 1", ...
std::vector<TaskRow> summarize(std::span<const TaskResult> results, std::uint64_t seed);

using TaskRun = LoggedRun<TaskResult>;
// Runs what `log_file` (answers.jsonl) does not hold yet. Error (interrupted): says how to go on.
Result<TaskRun> run_task(
    std::span<const TaskExample> examples,
    const std::function<Result<TaskResult>(const TaskExample&)>& runner,
    const std::filesystem::path& log_file, const nlohmann::json& identity,
    const std::function<bool(std::int64_t done, std::int64_t total)>& progress);

}  // namespace headkv
