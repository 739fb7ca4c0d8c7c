// Probes whose right answer is read to the model, not asked of it: a user's own examples (kind
// task), and generated lists of in-context examples (kind icl).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/calibration.h"
#include "calibrate/evidence.h"
#include "headkv/chat.h"
#include "headkv/engine.h"
#include "headkv/error.h"

namespace headkv {

struct TaskLine {
    std::int64_t line = 0;  // of the file, from 1
    std::string context, question, answer;
};

// JSON lines of {"context", "question", "answers": [...]} as `eval generate` reads them; one answer
// may stand as "answer", and the first is the reference. Blank lines are skipped, but unlike there
// a bad line is an error (bad_input) that names it: not JSON, no context, no answer, an empty one.
Result<std::vector<TaskLine>> load_task_rows(const std::filesystem::path& file);

// An answer as the model would write it after the prompt. A raw prompt ends with "Answer:", so the
// answer begins with a blank, unless the vocabulary puts one there by itself. Evaluation has it
// from here (eval/answering.h).
std::vector<Token> answer_tokens(const Tokenizer& tokenizer, std::string_view answer, bool chat);

// As the model reads it.
struct ForcedProbe {
    CalibrationProbe probe;
    std::vector<Token> prompt, answer;
    std::vector<Token> without;  // the same prompt without the document; empty: not compared
    Evidence evidence;
};

// Families are the kinds of evidence. Only the first `most_tokens` of an answer are read. Error
// (bad_input): prompt and answer exceed the model's context (names the line and both lengths).
Result<std::vector<ForcedProbe>> task_probes(const Model& model, std::span<const TaskLine> rows,
                                             std::optional<ChatTemplate> chat,
                                             std::int64_t most_tokens = 128);

// Lists of `input -> label`, about `length` tokens long, raw, with labels that mean nothing; asked
// is the label of one more input. The evidence are the labels of
// same_input  the earlier line of the same input
// same_class  all lines whose input ends with a word of the same class; the input itself is new
// Error (bad_input): a length beyond the model's context.
Result<std::vector<ForcedProbe>> icl_probes(const Model& model,
                                            std::span<const std::int64_t> lengths,
                                            std::int64_t each, std::uint64_t seed);

// Reads the answer token by token over a full cache; a head's score is the mean of evidence_score
// over the steps. A probe counts if the document makes the answer more likely (`without`), else if
// every token of the answer is the model's own choice. Quality: the gain in log-probability a
// token, or the share of such tokens.
ProbeRunner engine_forced_runner(Engine& engine, std::span<const ForcedProbe> probes,
                                 const Progress& progress);

// Kind causal. The prompt of a needle is read once for a full cache, one of `small_rows` in every
// head, and for each KV head one in which that head alone has `raised_rows`; all of them then read
// the reference answer as one batch. A head's score is what its rows gain in log-probability a
// token; the query heads of a group share it. A probe counts if the full cache prefers more than
// `pass` of the answer's tokens and the small one loses at least 0.05 a token. Quality: that loss.
ProbeRunner engine_causal_runner(Engine& engine, const Haystack& haystack,
                                 std::span<const Needle> needles, std::span<const ProbeSpec> specs,
                                 const CalibrationSettings& settings, const Progress& progress);

// What the causal runner would refuse. Errors (bad_input): fewer small rows than the window, or
// no more raised ones.
Result<void> check_causal(const CalibrationSettings& settings);

}  // namespace headkv
