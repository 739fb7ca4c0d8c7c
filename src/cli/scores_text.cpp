#include "cli/scores_text.h"

#include <fmt/format.h>

namespace headkv::cli {

std::string families_text(const HeadScores& scores) {
    std::string text;
    for (const ProbeFamily& family : scores.families) {
        text += fmt::format("{}{} {} of {}", text.empty() ? "answered by family: " : ", ",
                            family.name, family.passed, family.tried);
    }
    return text.empty() ? text : text + '\n';
}

std::string reliability_text(const HeadScores& scores) {
    if (!scores.reliability) return "split-half reliability: not known\n";
    const ScoreReliability& half = *scores.reliability;
    return fmt::format(
        "split-half reliability: query heads Spearman {:.3f}, Pearson {:.3f}; KV heads Spearman "
        "{:.3f}, Pearson {:.3f}\n",
        half.spearman, half.pearson, half.spearman_kv, half.pearson_kv);
}

nlohmann::json evidence_json(const HeadScores& scores) {
    nlohmann::json json = {{"families", nlohmann::json::array()}, {"reliability", nullptr}};
    for (const ProbeFamily& family : scores.families) {
        json["families"].push_back(
            {{"name", family.name}, {"tried", family.tried}, {"passed", family.passed}});
    }
    if (scores.reliability) {
        json["reliability"] = {{"spearman", scores.reliability->spearman},
                               {"pearson", scores.reliability->pearson},
                               {"spearman_kv", scores.reliability->spearman_kv},
                               {"pearson_kv", scores.reliability->pearson_kv},
                               {"splits", scores.reliability->splits}};
    }
    return json;
}

}  // namespace headkv::cli
