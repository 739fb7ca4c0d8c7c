#include "eval/metrics.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <set>

#include "calibrate/metrics.h"
#include "eval/metrics_longbench.h"
#include "eval/metrics_subsequence.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 12> kNames = {
    "f1",      "contains",     "exact",          "rouge-l",   "edit",  "labels",
    "rouge-1", "rouge-l-sets", "classification", "retrieval", "count", "code"};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Lower case (ASCII), runs of white space as one blank, none at the ends.
std::string plain(std::string_view text) {
    std::string result;
    for (const char c : text) {
        if (!is_space(c)) {
            result += lower(c);
        } else if (!result.empty() && result.back() != ' ') {
            result += ' ';
        }
    }
    if (!result.empty() && result.back() == ' ') result.pop_back();
    return result;
}

template <class Sequence>
double common_share(const Sequence& a, const Sequence& b) {
    if (a.empty() || b.empty()) return 0;
    return 2 * static_cast<double>(common_subsequence(a, b)) /
           static_cast<double>(a.size() + b.size());
}

double rouge_1(std::string_view answer, std::string_view reference) {
    auto given = words_of(answer);
    auto expected = words_of(reference);
    std::sort(given.begin(), given.end());
    std::sort(expected.begin(), expected.end());
    std::vector<std::string> common;
    std::set_intersection(given.begin(), given.end(), expected.begin(), expected.end(),
                          std::back_inserter(common));
    if (common.empty()) return 0;
    return 2 * static_cast<double>(common.size()) /
           static_cast<double>(given.size() + expected.size());
}

std::set<std::string> found_in(std::string_view text, std::span<const std::string> labels) {
    std::set<std::string> found;
    for (const std::string& label : labels) {
        if (text.find(plain(label)) != std::string_view::npos) found.insert(plain(label));
    }
    return found;
}

}  // namespace

std::span<const std::string_view> metric_names() { return kNames; }

std::string_view metric_name(Metric metric) { return kNames[static_cast<std::size_t>(metric)]; }

Result<Metric> metric_by_name(std::string_view name) {
    const auto found = std::find(kNames.begin(), kNames.end(), name);
    if (found == kNames.end()) {
        std::string known;
        for (const std::string_view one : kNames) {
            known.append(known.empty() ? "" : ", ").append(one);
        }
        return bad_input("metric {} is unknown; known are {}", name, known);
    }
    return static_cast<Metric>(found - kNames.begin());
}

bool metric_needs_labels(Metric metric) {
    return metric == Metric::labels || metric == Metric::classification;
}

double score_answer(Metric metric, std::string_view answer, std::string_view reference,
                    std::span<const std::string> labels) {
    switch (metric) {
        case Metric::f1:
            return qa_f1(answer, reference);
        case Metric::contains: {
            const std::string wanted = plain(reference);
            return !wanted.empty() && plain(answer).find(wanted) != std::string::npos ? 1 : 0;
        }
        case Metric::exact:
        case Metric::labels:
            return plain(answer) == plain(reference) ? 1 : 0;
        case Metric::rouge_l:
            return common_share(words_of(answer), words_of(reference));
        case Metric::edit:
            return common_share(answer, reference);
        case Metric::rouge_1:
            return rouge_1(answer, reference);
        case Metric::rouge_l_sets:
            return rouge_l_sets(answer, reference);
        case Metric::classification:
            return classification_score(answer, reference, labels);
        case Metric::retrieval: {
            const auto number = paragraph_number(reference);
            return number ? number_share(answer, *number) : 0;
        }
        case Metric::count:
            return number_share(answer, reference);
        case Metric::code:
            return code_similarity(answer, reference);
    }
    return 0;
}

double score_answer(Metric metric, std::string_view answer, std::span<const std::string> references,
                    std::span<const std::string> labels) {
    double best = 0;
    for (const std::string& reference : references) {
        best = std::max(best, score_answer(metric, answer, reference, labels));
    }
    return best;
}

double label_score(std::string_view answer, std::string_view question, std::string_view target,
                   std::span<const std::string> labels) {
    std::string said = plain(answer);
    for (const std::string_view mark : {".", "<context>", "<example>"}) {
        said.resize(std::min(said.find(mark), said.size()));
    }
    std::set<std::string> wanted;
    while (!target.empty()) {
        const std::size_t comma = std::min(target.find(','), target.size());
        if (const std::string one = plain(target.substr(0, comma)); !one.empty()) {
            wanted.insert(one);
        }
        target.remove_prefix(std::min(comma + 1, target.size()));
    }
    const auto asked = found_in(plain(question), labels);
    std::set<std::string> found;
    for (const std::string& label : found_in(said, labels)) {
        if (!asked.contains(label)) found.insert(label);
    }
    return !wanted.empty() && found == wanted ? 1 : 0;
}

}  // namespace headkv
