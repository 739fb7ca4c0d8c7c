#include "calibrate/head_scoring.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace headkv {

double retrieval_score(std::span<const float> weights, std::span<const Token> tokens,
                       TokenSpan needle, Token emitted) {
    assert(!weights.empty() && weights.size() <= tokens.size() && needle.size() > 0);
    const auto best = std::max_element(weights.begin(), weights.end()) - weights.begin();
    if (!needle.contains(best) || tokens[static_cast<std::size_t>(best)] != emitted) return 0;
    return 1.0 / static_cast<double>(needle.size());
}

double reasoning_score(std::span<const float> weights, TokenSpan needle) {
    assert(needle.begin >= 0 && needle.size() > 0);
    assert(needle.end <= static_cast<std::int64_t>(weights.size()));
    const auto n = static_cast<std::size_t>(needle.size());
    std::vector<std::size_t> order(weights.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto heavier = [&](std::size_t a, std::size_t b) {
        return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
    };
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n - 1), order.end(),
                     heavier);
    double sum = 0;
    for (const std::size_t position : std::span(order).first(n)) {
        if (needle.contains(static_cast<std::int64_t>(position))) {
            sum += static_cast<double>(weights[position]);
        }
    }
    return sum / static_cast<double>(n);
}

void ScoreMeans::add(std::span<const double> scores) {
    assert(scores.size() == mean_.size());
    ++count_;
    for (std::size_t i = 0; i < scores.size(); ++i) {
        const double before = scores[i] - mean_[i];
        mean_[i] += before / static_cast<double>(count_);
        squares_[i] += before * (scores[i] - mean_[i]);
    }
}

std::vector<double> ScoreMeans::standard_error() const {
    std::vector<double> errors(mean_.size(), 0.0);
    if (count_ < 2) return errors;
    const auto n = static_cast<double>(count_);
    for (std::size_t i = 0; i < errors.size(); ++i) {
        errors[i] = std::sqrt(squares_[i] / (n - 1) / n);
    }
    return errors;
}

}  // namespace headkv
