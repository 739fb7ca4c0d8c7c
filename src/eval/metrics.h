// How good an answer is, 0 to 1, as the benchmarks define it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

namespace headkv {

enum class Metric {
    f1,              // words in common, without punctuation and articles (SQuAD, LongBench's QA)
    contains,        // the reference occurs in the answer; letter case and white space ignored
    exact,           // the same as `contains`, and nothing else
    rouge_l,         // F-measure of the longest common subsequence of words (Lin 2004)
    edit,            // 2 x longest common subsequence of bytes / bytes of both
    labels,          // the task's labels found in the answer are those of the reference (BABILong)
    rouge_1,         // F-measure of the words in common, counted with multiplicity; not stemmed
    rouge_l_sets,    // LongBench's summaries: see rouge_l_sets
    classification,  // LongBench's few-shot classes: see classification_score
    retrieval,       // LongBench's passages: see number_share; the reference is "Paragraph N"
    count,           // LongBench's counting: see number_share; the reference is N
    code             // LongBench's code completion: see code_similarity
};

std::span<const std::string_view> metric_names();
std::string_view metric_name(Metric metric);
// Error (bad_input): unknown; lists the names.
Result<Metric> metric_by_name(std::string_view name);
// Whether it means anything without the labels of the task (labels, classification).
bool metric_needs_labels(Metric metric);

// One reference; `labels` for classification alone. `labels` needs more than that: see label_score.
double score_answer(Metric metric, std::string_view answer, std::string_view reference,
                    std::span<const std::string> labels = {});
// The best over the references; 0 without any.
double score_answer(Metric metric, std::string_view answer, std::span<const std::string> references,
                    std::span<const std::string> labels = {});

// BABILong (2406.10149) as HeadKV evaluates it: of the answer up to its first full stop, the labels
// that it holds and the question does not must be those of `target` (which may list several,
// separated by commas) and no others.
double label_score(std::string_view answer, std::string_view question, std::string_view target,
                   std::span<const std::string> labels);

}  // namespace headkv
