#include "eval/metrics.h"

#include <algorithm>
#include <array>
#include <set>

#include "calibrate/metrics.h"

namespace headkv {
namespace {

constexpr std::array<std::string_view, 6> kNames = {"f1",      "contains", "exact",
                                                    "rouge-l", "edit",     "labels"};

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
std::size_t common_subsequence(const Sequence& a, const Sequence& b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (const auto& item : a) {
        std::size_t diagonal = 0;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t above = row[j + 1];
            row[j + 1] = item == b[j] ? diagonal + 1 : std::max(above, row[j]);
            diagonal = above;
        }
    }
    return row.back();
}

template <class Sequence>
double common_share(const Sequence& a, const Sequence& b) {
    if (a.empty() || b.empty()) return 0;
    return 2 * static_cast<double>(common_subsequence(a, b)) /
           static_cast<double>(a.size() + b.size());
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
        return bad_input(
            "metric {} is unknown; known are f1, contains, exact, rouge-l, edit and labels", name);
    }
    return static_cast<Metric>(found - kNames.begin());
}

double score_answer(Metric metric, std::string_view answer, std::string_view reference) {
    switch (metric) {
        case Metric::f1:
            return answer_f1(answer, reference);
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
    }
    return 0;
}

double score_answer(Metric metric, std::string_view answer,
                    std::span<const std::string> references) {
    double best = 0;
    for (const std::string& reference : references) {
        best = std::max(best, score_answer(metric, answer, reference));
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
