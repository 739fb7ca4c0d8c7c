#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "headkv/scores.h"

namespace headkv {
namespace {

namespace fs = std::filesystem;

class ScoresFile : public testing::Test {
protected:
    ScoresFile() {
        std::string pattern = (fs::temp_directory_path() / "headkv-scores-XXXXXX").string();
        folder_ = ::mkdtemp(pattern.data());
    }
    ~ScoresFile() override { fs::remove_all(folder_); }

    static HeadScores sample() {
        HeadScores scores;
        scores.kind = "r2";
        scores.model_name = "Tiny \"1\" \xc3\xa9";
        scores.architecture = "llama";
        scores.fingerprint = "0123456789abcdef";
        scores.shape = {3, 4, 2};
        scores.probes_tried = 30;
        scores.probes_passed = 21;
        scores.families = {{"hop", 12, 9}, {"single", 18, 12}};
        scores.reliability = ScoreReliability{0.8125, 0.9, -0.25, 1, 50};
        scores.settings_json = R"({"depths":[10,50,90],"seed":7})";
        scores.created_by = "headkv 0.1.0";
        for (int i = 0; i < 12; ++i) scores.mean.push_back(i / 7.0);
        for (int i = 0; i < 12; ++i) scores.stderr_.push_back(i * 1e-17);
        return scores;
    }
    fs::path write(const std::string& name, const std::string& text) const {
        std::ofstream(folder_ / name, std::ios::binary) << text;
        return folder_ / name;
    }
    static std::string read(const fs::path& file) {
        std::ifstream in(file, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    }
    // The refusal of a file with this text; empty if it loads.
    std::string refusal(const std::string& text) const {
        const fs::path file = write("odd.json", text);
        const auto scores = load_head_scores(file);
        if (scores) return "";
        EXPECT_EQ(scores.error().kind, ErrorKind::bad_input);
        EXPECT_NE(scores.error().message.find(file.string()), std::string::npos);
        EXPECT_EQ(scores.error().message.find('\n'), std::string::npos);
        return scores.error().message;
    }
    // The same for a good file with one field replaced.
    std::string refusal_with(const std::string& pointer, const nlohmann::json& value) const {
        const fs::path file = folder_ / "good.json";
        EXPECT_TRUE(save_head_scores(sample(), file));
        auto root = nlohmann::json::parse(read(file));
        root[nlohmann::json::json_pointer(pointer)] = value;
        return refusal(root.dump());
    }

    fs::path folder_;
};

TEST_F(ScoresFile, RoundTripIsExact) {
    const HeadScores scores = sample();
    const fs::path file = folder_ / "scores.json";
    ASSERT_TRUE(save_head_scores(scores, file));
    const auto loaded = load_head_scores(file);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(loaded->kind, scores.kind);
    EXPECT_EQ(loaded->model_name, scores.model_name);
    EXPECT_EQ(loaded->architecture, scores.architecture);
    EXPECT_EQ(loaded->fingerprint, scores.fingerprint);
    EXPECT_EQ(loaded->shape, scores.shape);
    EXPECT_EQ(loaded->probes_tried, 30);
    EXPECT_EQ(loaded->probes_passed, 21);
    EXPECT_EQ(loaded->settings_json, scores.settings_json);
    EXPECT_EQ(loaded->created_by, scores.created_by);
    EXPECT_EQ(loaded->mean, scores.mean);
    EXPECT_EQ(loaded->stderr_, scores.stderr_);
    EXPECT_EQ(loaded->families, scores.families);
    EXPECT_EQ(loaded->reliability, scores.reliability);

    const auto root = nlohmann::json::parse(read(file));
    EXPECT_EQ(root["format"], "headkv-scores/1");
    EXPECT_EQ(root["model"]["kv_heads"], 2);
    EXPECT_EQ(root["scores"].size(), 3U);
    EXPECT_EQ(root["scores"][2][3].get<double>(), 11 / 7.0);
}

TEST_F(ScoresFile, StandardErrorsMayBeAbsent) {
    HeadScores scores = sample();
    scores.stderr_.clear();
    const fs::path file = folder_ / "scores.json";
    ASSERT_TRUE(save_head_scores(scores, file));
    EXPECT_FALSE(nlohmann::json::parse(read(file)).contains("stderr"));
    EXPECT_TRUE(load_head_scores(file).value().stderr_.empty());
}

TEST_F(ScoresFile, FamiliesAndReliabilityMayBeAbsentButNotWrong) {
    HeadScores scores = sample();
    scores.families.clear();
    scores.reliability.reset();
    const fs::path file = folder_ / "scores.json";
    ASSERT_TRUE(save_head_scores(scores, file));
    const auto root = nlohmann::json::parse(read(file));
    EXPECT_FALSE(root.contains("reliability"));
    EXPECT_FALSE(root["probes"].contains("families"));
    EXPECT_FALSE(load_head_scores(file).value().reliability);
    EXPECT_NE(refusal_with("/reliability/pearson", 1.5).find("pearson"), std::string::npos);
    EXPECT_NE(refusal_with("/reliability", 3).find("reliability"), std::string::npos);
    EXPECT_NE(refusal_with("/reliability/splits", 0).find("splits"), std::string::npos);
    EXPECT_NE(refusal_with("/probes/families/hop", 3).find("hop"), std::string::npos);
    EXPECT_NE(refusal_with("/probes/families/hop/passed", 13).find("passed"), std::string::npos);
}

TEST_F(ScoresFile, CutOffInTheMiddle) {
    const fs::path file = folder_ / "good.json";
    ASSERT_TRUE(save_head_scores(sample(), file));
    const std::string text = read(file);
    for (const std::size_t bytes : {std::size_t{1}, text.size() / 2, text.size() - 3}) {
        EXPECT_NE(refusal(text.substr(0, bytes)).find("cut short"), std::string::npos) << bytes;
    }
}

TEST_F(ScoresFile, SavingReplacesAndLeavesNothingBehind) {
    const fs::path file = write("scores.json", "old");
    ASSERT_TRUE(save_head_scores(sample(), file));
    EXPECT_TRUE(load_head_scores(file));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(ScoresFile, SavingRefusesWhatItCouldNotRead) {
    const fs::path file = folder_ / "scores.json";
    HeadScores scores = sample();
    scores.mean[0] = -1;
    EXPECT_FALSE(save_head_scores(scores, file));
    scores = sample();
    scores.mean[0] = INFINITY;
    EXPECT_FALSE(save_head_scores(scores, file));
    scores = sample();
    scores.stderr_.pop_back();
    EXPECT_FALSE(save_head_scores(scores, file));
    scores = sample();
    scores.settings_json = "[1";
    EXPECT_FALSE(save_head_scores(scores, file));
    EXPECT_FALSE(fs::exists(file));
}

TEST_F(ScoresFile, SavingWhereNothingCanBeWritten) {
    const auto missing = save_head_scores(sample(), folder_ / "no" / "such" / "scores.json");
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().kind, ErrorKind::bad_input);
    fs::create_directory(folder_ / "taken");
    write("taken/file", "x");
    EXPECT_FALSE(save_head_scores(sample(), folder_ / "taken"));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(ScoresFile, TruncationsAreRefused) {
    const fs::path file = folder_ / "scores.json";
    ASSERT_TRUE(save_head_scores(sample(), file));
    const std::string text = read(file);
    const std::size_t last_brace = text.rfind('}');
    for (std::size_t length = last_brace % 7; length <= last_brace; length += 7) {
        ASSERT_NE(refusal(text.substr(0, length)), "") << length;
    }
    EXPECT_EQ(refusal(text.substr(0, last_brace + 1)), "");
}

TEST_F(ScoresFile, FilesThatAreSomethingElse) {
    EXPECT_NE(refusal(""), "");
    EXPECT_NE(refusal("GGUF\x03"), "");
    EXPECT_NE(refusal("[1,2]"), "");
    EXPECT_NE(refusal("{}").find("no heads"), std::string::npos);
    EXPECT_NE(refusal(R"({"a":1})").find("headkv-scores/1"), std::string::npos);
    EXPECT_NE(refusal(R"({"format":"headkv-scores/2"})").find("headkv-scores/2"),
              std::string::npos);
    EXPECT_NE(refusal(R"({"format":7})"), "");
    EXPECT_NE(refusal("{\"\xff\":1}"), "");
    EXPECT_NE(refusal(std::string(100000, '[')), "");
    EXPECT_FALSE(load_head_scores(folder_));
    EXPECT_FALSE(load_head_scores(folder_ / "absent.json"));
}

TEST_F(ScoresFile, FieldsThatDoNotFit) {
    EXPECT_EQ(refusal_with("/note", "more is fine"), "");
    EXPECT_NE(refusal_with("/model/layers", 4).find("4 layers"), std::string::npos);
    EXPECT_NE(refusal_with("/model/layers", -1), "");
    EXPECT_NE(refusal_with("/model/layers", 18446744073709551615ULL), "");
    EXPECT_NE(refusal_with("/model/layers", 1e18), "");
    EXPECT_NE(refusal_with("/model/query_heads", 8).find("layer 0"), std::string::npos);
    EXPECT_NE(refusal_with("/model/kv_heads", 3).find("divide"), std::string::npos);
    EXPECT_NE(refusal_with("/model/kv_heads", 0), "");
    EXPECT_NE(refusal_with("/model", "tiny"), "");
    EXPECT_NE(refusal_with("/kind", ""), "");
    EXPECT_NE(refusal_with("/kind", 2), "");
    EXPECT_NE(refusal_with("/probes/tried", -2), "");
    EXPECT_NE(refusal_with("/settings", 1), "");
    EXPECT_NE(refusal_with("/scores/1/2", -0.5).find("[1][2]"), std::string::npos);
    EXPECT_NE(refusal_with("/scores/1/2", "x"), "");
    EXPECT_NE(refusal_with("/scores/1/2", nullptr), "");
    EXPECT_NE(refusal_with("/scores/1", nlohmann::json::array({1, 2, 3})), "");
    EXPECT_NE(refusal_with("/stderr/0/0", -1), "");
}

TEST_F(ScoresFile, NumbersBeyondDouble) {
    EXPECT_NE(refusal(R"({"0-0":[1e999]})").find("too large"), std::string::npos);
}

TEST_F(ScoresFile, PublishedForm) {
    const auto file = write("Some-Model_retrieval_reasoning_heads.json",
                            R"({"0-0":[0,1],"0-1":[0.5,0.5],"1-0":[2,2],"1-1":[0,0]})");
    const auto scores = load_head_scores(file);
    ASSERT_TRUE(scores) << scores.error().message;
    EXPECT_EQ(scores->kind, "r2");
    EXPECT_EQ(scores->shape, (HeadShape{2, 2, 0}));
    EXPECT_EQ(scores->mean, (std::vector<double>{0.5, 0.5, 2, 0}));
    EXPECT_EQ(scores->stderr_, (std::vector<double>{0.5, 0, 0, 0}));
    EXPECT_EQ(scores->probes_passed, 2);
}

// Ten layers or more sort differently as text ("10-0" before "2-0") than as numbers.
TEST_F(ScoresFile, PublishedFormInAnyOrder) {
    nlohmann::json root;
    for (int layer = 0; layer < 12; ++layer) {
        for (int head = 0; head < 11; ++head) {
            root[fmt::format("{}-{}", layer, head)] = {layer * 100 + head};
        }
    }
    const auto scores = load_head_scores(write("heads.json", root.dump())).value();
    EXPECT_EQ(scores.kind, "");
    ASSERT_EQ(scores.shape, (HeadShape{12, 11, 0}));
    for (std::size_t i = 0; i < scores.mean.size(); ++i) {
        const std::size_t layer = i / 11, head = i % 11;
        EXPECT_EQ(scores.mean[i], static_cast<double>(layer * 100 + head));
    }
}

TEST_F(ScoresFile, PublishedFormThatDoesNotFit) {
    EXPECT_NE(refusal(R"({"0-0":[1],"1-1":[1]})").find("2 are missing"), std::string::npos);
    EXPECT_NE(refusal(R"({"0-0":[]})"), "");
    EXPECT_NE(refusal(R"({"0-0":3})"), "");
    EXPECT_NE(refusal(R"({"0-0":[-1]})").find("-1 is no score"), std::string::npos);
    EXPECT_NE(refusal(R"({"0-0":[1],"-1-0":[1]})"), "");
    EXPECT_NE(refusal(R"({"0-0":[1],"00-0":[1],"0-1":[1]})"), "");
    EXPECT_NE(refusal(R"({"0-0":[1],"99999999999999999999-0":[1]})"), "");
    EXPECT_NE(refusal(R"({"65535-65535":[1]})"), "");
}

TEST(CheckScores, ShapeAlwaysFingerprintUnlessForced) {
    HeadScores scores;
    scores.shape = {2, 4, 2};
    scores.fingerprint = "aaaa";
    scores.mean.assign(8, 0.5);
    EXPECT_TRUE(check_head_scores(scores, {2, 4, 2}, "aaaa", false));
    EXPECT_TRUE(check_head_scores(scores, {2, 4, 2}, "", false));
    const auto other = check_head_scores(scores, {2, 4, 2}, "bbbb", false);
    ASSERT_FALSE(other);
    EXPECT_NE(other.error().message.find("--force-scores"), std::string::npos);
    EXPECT_TRUE(check_head_scores(scores, {2, 4, 2}, "bbbb", true));
    const auto shape = check_head_scores(scores, {3, 4, 1}, "aaaa", true);
    ASSERT_FALSE(shape);
    EXPECT_NE(shape.error().message.find("2 layers of 4 query heads, 2 KV heads"),
              std::string::npos);
    EXPECT_NE(shape.error().message.find("3 layers of 4 query heads, 1 KV heads"),
              std::string::npos);
    EXPECT_FALSE(check_head_scores(scores, {2, 4, 1}, "", true));
    scores.fingerprint.clear();
    EXPECT_TRUE(check_head_scores(scores, {2, 4, 2}, "bbbb", false));
}

TEST_F(ScoresFile, FindsTheFirstFolderThatFits) {
    const fs::path first = folder_ / "first";
    const fs::path second = folder_ / "second";
    fs::create_directory(first);
    fs::create_directory(second);
    HeadScores scores = sample();
    ASSERT_TRUE(save_head_scores(scores, second / "b.json"));
    scores.kind = "r";
    ASSERT_TRUE(save_head_scores(scores, first / "a.json"));
    write("first/broken.json", "{");
    write("first/readme.txt", "no scores");

    const std::vector<fs::path> folders = {folder_ / "absent", first, second};
    EXPECT_EQ(find_head_scores(folders, "0123456789abcdef", "r").value().kind, "r");
    EXPECT_EQ(find_head_scores(folders, "0123456789abcdef", "r2").value().kind, "r2");
    for (const auto& missing :
         {find_head_scores(folders, "feedfeedfeedfeed", "r2"), find_head_scores(folders, "", "r2"),
          find_head_scores({}, "0123456789abcdef", "r2")}) {
        ASSERT_FALSE(missing);
        EXPECT_NE(missing.error().message.find("calibrate --kind r2"), std::string::npos);
    }
}

}  // namespace
}  // namespace headkv
