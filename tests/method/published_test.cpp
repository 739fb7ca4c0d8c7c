// The published allocation, bit for bit: every table of the shared data.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "headkv/method.h"

namespace headkv {
namespace {

namespace fs = std::filesystem;

fs::path shared_data() {
    const char* named = std::getenv("HEADKV_SHARED_DATA");
    return named != nullptr ? fs::path(named) : fs::path(HEADKV_SOURCE_DIR) / "../shared/data";
}

HeadScores load_of(const std::string& model, const std::string& scores) {
    const std::map<std::string, std::string> files = {{"llama-3-8b", "Meta-Llama-3-8B-Instruct"},
                                                      {"mistral-7b", "Mistral-7B-Instruct-v0.2"}};
    return load_head_scores(shared_data() / "head_scores" /
                            (files.at(model) + "_" + scores + "_heads.json"))
        .value();
}

TEST(Published, EveryTableOfTheSharedData) {
    const fs::path folder = shared_data() / "allocation";
    if (!fs::is_directory(folder)) {
        GTEST_SKIP() << "no tables in " << folder << ": name the data with HEADKV_SHARED_DATA";
    }
    std::map<std::string, HeadScores> loaded;
    int tables = 0;
    for (const auto& entry : fs::directory_iterator(folder)) {
        if (entry.path().extension() != ".json") continue;
        const auto table = nlohmann::json::parse(std::ifstream(entry.path()));
        const auto model = table["model"].get<std::string>();
        const auto kind = table["scores"].get<std::string>();
        auto [scores, added] = loaded.try_emplace(model + "_" + kind);
        if (added) scores->second = load_of(model, kind);
        const auto capacity =
            allocate_as_published(scores->second, table["kv_size"].get<std::int64_t>(),
                                  table["window"].get<std::int64_t>(), table["beta"].get<double>());
        std::vector<std::int64_t> expected;
        for (const auto& layer : table["capacity"]) {
            for (const auto& rows : layer) expected.push_back(rows.get<std::int64_t>());
        }
        EXPECT_EQ(capacity, expected) << entry.path();
        ++tables;
    }
    EXPECT_GE(tables, 80);
}

TEST(Published, FilesTellShapeKindAndProbes) {
    if (!fs::is_directory(shared_data() / "head_scores")) {
        GTEST_SKIP() << "no score files in " << shared_data();
    }
    const auto retrieval = load_of("llama-3-8b", "retrieval");
    EXPECT_EQ(retrieval.shape, (HeadShape{32, 32, 0}));
    EXPECT_EQ(retrieval.kind, "r");
    EXPECT_EQ(retrieval.probes_passed, 107);
    EXPECT_EQ(std::count(retrieval.mean.begin(), retrieval.mean.end(), 0.0), 728);
    const auto reasoning = load_of("mistral-7b", "retrieval_reasoning");
    EXPECT_EQ(reasoning.kind, "r2");
    EXPECT_EQ(reasoning.probes_passed, 76);
    // Grouped heads are the caller's to say: 8 of them take these scores.
    EXPECT_TRUE(check_head_scores(reasoning, {32, 32, 8}, "", false));
}

// Dividing and rounding down is not the same: 6 / 0.1 rounds up to 60, yet 0.1 in binary is a
// little more than a tenth and fits into 6 only 59 times.
TEST(Published, DividesAsPythonDoes) {
    HeadScores scores;
    scores.shape = {1, 2, 0};
    scores.mean = {1, 0};
    // Python: 120 // 1.2 = 100.0, 6 // 0.1 = 59.0, 1 // 0.1 = 9.0.
    EXPECT_EQ(allocate_as_published(scores, 128, 8, 1.2), (std::vector<std::int64_t>{220, 20}));
    EXPECT_EQ(allocate_as_published(scores, 14, 8, 0.1), (std::vector<std::int64_t>{65, -53}));
    EXPECT_EQ(allocate_as_published(scores, 9, 8, 0.1), (std::vector<std::int64_t>{10, -8}));
}

TEST(Published, RoundsHalvesToEven) {
    HeadScores scores;
    scores.shape = {1, 4, 0};
    scores.mean = {3, 5, 3, 5};  // 1.5 and 2.5 of a pool of 8
    EXPECT_EQ(allocate_as_published(scores, 10, 8, 1), (std::vector<std::int64_t>{2, 2, 2, 2}));
}

TEST(Published, AllZeroScoresShareEqually) {
    HeadScores scores;
    scores.shape = {1, 4, 0};
    scores.mean.assign(4, 0.0);
    EXPECT_EQ(allocate_as_published(scores, 128, 8, 2),
              (std::vector<std::int64_t>{120, 120, 120, 120}));
}

}  // namespace
}  // namespace headkv
