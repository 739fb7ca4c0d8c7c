// The tasks of `headkv eval` that are examples with a context, a question and right answers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/task.h"
#include "headkv/tokenizer.h"

namespace headkv::cli {

// As given on the command line; unset: the task's own.
struct TaskOptions {
    std::string data;                        // --data
    std::vector<std::string> sets, lengths;  // --tasks, --lengths
    std::optional<std::string> metric;       // --metric
    std::optional<std::int64_t> max_tokens;  // -n
    bool first_line = false;                 // --first-line
    std::int64_t samples = 0;                // --samples, of a generated task; 0: its own
    std::vector<double> depths;              // --depths
    std::int64_t turns = 0;                  // --turns
    bool shared_context = false;             // --turn-mode shared-context
    std::string split;                       // --split
    std::uint64_t seed = 1;                  // --seed
};

struct EvalTask {
    std::string_view name, about;
    std::string_view data = {};     // what --data is of; empty: the task makes its examples itself
    std::string_view sets = {};     // default of --tasks, comma between; empty: no such option
    std::string_view lengths = {};  // the same of --lengths
    std::string_view depths = {};   // the same of --depths
    std::string_view split = {};    // the same of --split
    std::int64_t samples = 0;       // default of --samples; 0: no such option
    std::int64_t turns = 0;         // the same of --turns and --turn-mode
    bool metrics = false;           // takes --metric and --first-line
    bool marks = false;             // its texts are the user's own: takes --keep-marks
    TaskSettings settings = {};     // metric, tokens of an answer
    // `options` with the defaults filled in; tasks that read --data get no tokenizer, so that they
    // load before the model does.
    std::function<Result<TaskData>(const TaskOptions& options, const Tokenizer* tokenizer)> load =
        {};
};

std::span<const EvalTask> eval_tasks();

}  // namespace headkv::cli
