// How head scores were measured, as `calibrate` and `scores` tell it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "headkv/scores.h"

namespace headkv::cli {

// One line: probes answered and asked, by family; empty where the file does not say.
std::string families_text(const HeadScores& scores);
// One line: split-half reliability; says so where there is none.
std::string reliability_text(const HeadScores& scores);
// `families` (name, tried, passed) and `reliability` (null where there is none).
nlohmann::json evidence_json(const HeadScores& scores);

}  // namespace headkv::cli
