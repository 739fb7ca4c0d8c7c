// What `headkv run` measured, as JSON, as lines for people and as a table of several methods.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "headkv/engine.h"
#include "headkv/model.h"
#include "headkv/session.h"

namespace headkv::cli {

// One method's cache and answer.
struct MethodRun {
    SequenceInfo info;
    Generation generation;
    std::string title;                   // method_title()
    std::vector<Placement> places = {};  // of the model, with this cache's rows
};

// What all methods of one call share: the model and the one prefill.
struct RunContext {
    std::string model;
    std::string device;
    std::int64_t weight_bytes = 0;
    std::int64_t prompt_tokens = 0;
    std::int64_t readings = 1;  // of the prompt
    double load_ms = 0, prefill_ms = 0, compress_ms = 0;
    std::int64_t scratch_bytes = 0;
    std::int64_t device_peak_bytes = 0;  // 0: no device but this CPU's own kernels
};

// Decode steps behind an answer: its last token is not fed back unless an end token followed it.
std::int64_t decode_steps(const Generation& generation);
double decode_speed(const Generation& generation);  // tokens a second

// The contract of `run --json`.
nlohmann::ordered_json run_json(const RunContext& context, const MethodRun& run);
// A few lines: prompt, answer, cache (the budget in all three forms), memory.
std::string run_statistics(const RunContext& context, const MethodRun& run);
// The same for a further turn of a conversation: answer and cache.
std::string turn_statistics(const MethodRun& run);
// One line a method, and what each saves against the first.
std::string comparison_table(const std::vector<MethodRun>& runs);

// 128 where it is whole, 128.5 where not.
nlohmann::ordered_json number(double value);
std::string dump(const nlohmann::ordered_json& json, int indent = 2);

// Printed in one line of at most `width` columns, "..." at the end of what was cut.
std::string abbreviate(std::string_view text, std::size_t width);
std::size_t display_width(std::string_view text);

// Rows of cells under a heading (rows[0]) and a line: the first column to the left, figures to the
// right; the last to the left, too, where it is text.
std::string render_table(const std::vector<std::vector<std::string>>& rows, bool text_last);

}  // namespace headkv::cli
