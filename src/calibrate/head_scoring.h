// From attention weights to head scores: the two counts of the HeadKV paper (2410.19258).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "calibrate/probe.h"
#include "headkv/tokenizer.h"

namespace headkv {

// R, one step of one head: 1/|needle| if the row with the largest weight (ties: the lower one) lies
// in the needle and the token there is the one emitted. `weights` [rows] over positions 0, 1, ...
double retrieval_score(std::span<const float> weights, std::span<const Token> tokens,
                       TokenSpan needle, Token emitted);

// R2, one step of one head: of the |needle| rows with the largest weights (ties: the lower ones),
// the weights of those inside the needle, summed and divided by |needle|. Whatever is emitted.
double reasoning_score(std::span<const float> weights, TokenSpan needle);

// Mean and standard error of each head's score over the probes that passed.
class ScoreMeans {
public:
    explicit ScoreMeans(std::size_t heads) : mean_(heads), squares_(heads) {}
    void add(std::span<const double> scores);  // [heads]
    std::int64_t count() const { return count_; }
    const std::vector<double>& mean() const { return mean_; }
    std::vector<double> standard_error() const;  // 0 with fewer than two probes

private:
    std::int64_t count_ = 0;
    std::vector<double> mean_;     // [heads]
    std::vector<double> squares_;  // [heads] sum of squared deviations (Welford)
};

}  // namespace headkv
