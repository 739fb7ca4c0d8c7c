// `headkv scores show --html`: head scores as two maps of layers and heads.
#pragma once

#include <string>

#include "headkv/method.h"
#include "headkv/scores.h"

namespace headkv::cli {

// What the scores lead to at a budget.
struct ScoresBudget {
    std::string method;
    double rows = 0, beta = 0;
    std::int64_t window = 0;
    Plan plan;  // its heads are query heads where the file does not say how many KV heads there are
};

// One self-contained page: scores of query heads (stronger: a larger share of all), and the rows of
// every head.
std::string scores_page(const HeadScores& scores, const ScoresBudget& budget);

}  // namespace headkv::cli
