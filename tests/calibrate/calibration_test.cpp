#include "calibrate/calibration.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace headkv {
namespace {

class Calibration : public ::testing::Test {
protected:
    void SetUp() override {
        folder_ = std::filesystem::temp_directory_path() /
                  ("headkv-calibration-" + std::to_string(::getpid()));
        std::filesystem::remove_all(folder_);
        std::filesystem::create_directories(folder_);
        partial_ = folder_ / "out.json.partial.jsonl";
        specs_ = plan_probes(std::vector<std::int64_t>{100, 200}, std::vector<double>{10, 90}, 3,
                             settings_.seed);
        std::vector<Needle> needles(3);
        for (std::size_t i = 0; i < 3; ++i) needles[i].family = i < 2 ? "easy" : "hard";
        probes_ = needle_probes(specs_, needles);
        settings_.min_passed = 1;
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    // Passes for all needles but the first; scores tell the probe.
    ProbeRunner runner() {
        return [this](std::size_t probe) -> Result<ProbeOutcome> {
            const ProbeSpec& spec = specs_[probe];
            ++runs_;
            ProbeOutcome outcome{"answer\xff of " + std::to_string(spec.needle), 0.25, {}};
            if (spec.needle > 0) {
                outcome.quality = 0.75;
                outcome.scores = {static_cast<double>(spec.length), spec.depth, 1.0,
                                  static_cast<double>(spec.needle)};
            }
            return outcome;
        };
    }

    Result<CalibrationResult> run(const ProbeRunner& runner, std::int64_t stop_after = 1000,
                                  const std::string& fingerprint = "aa") {
        return calibrate(settings_, {{"fingerprint", fingerprint}}, shape_, probes_, runner,
                         partial_,
                         [&](const CalibrationProgress& state) { return state.done < stop_after; });
    }

    std::string partial_text() const {
        std::ifstream in(partial_, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }

    std::filesystem::path folder_, partial_;
    CalibrationSettings settings_;
    HeadShape shape_{2, 2, 1};
    std::vector<ProbeSpec> specs_;
    std::vector<CalibrationProbe> probes_;
    int runs_ = 0;
};

TEST_F(Calibration, AveragesThePassedProbes) {
    const auto result = run(runner());
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ(runs_, 12);
    EXPECT_EQ(result->scores.kind, "r2");
    EXPECT_EQ(result->scores.probes_tried, 12);
    EXPECT_EQ(result->scores.probes_passed, 8);
    EXPECT_EQ(result->scores.mean, (std::vector<double>{150, 50, 1, 1.5}));
    ASSERT_EQ(result->scores.stderr_.size(), 4U);
    EXPECT_GT(result->scores.stderr_[0], 0);
    EXPECT_EQ(result->scores.stderr_[2], 0);
    EXPECT_EQ(result->start, RunLog::Start::fresh);
    // Of the needles 0 and 1 only the latter passes, at both lengths and depths.
    EXPECT_EQ(result->scores.families, (std::vector<ProbeFamily>{{"easy", 8, 4}, {"hard", 4, 4}}));
    ASSERT_TRUE(result->scores.reliability);
    // The halves are needle 1 and needle 2: the same three means, and a fourth that differs.
    EXPECT_GT(result->scores.reliability->pearson, 0.99);
    EXPECT_LT(result->scores.reliability->pearson, 1);
    // Ranks 4, 3, 1.5, 1.5 and 4, 3, 1, 2.
    EXPECT_NEAR(result->scores.reliability->spearman, std::sqrt(0.9), 1e-12);
    EXPECT_DOUBLE_EQ(result->scores.reliability->pearson_kv, 1);  // two heads: always a line
}

TEST_F(Calibration, NoScoresFromTooFewProbes) {
    settings_.min_passed = 9;
    const auto result = run(runner());
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::bad_input);
    for (const char* says : {"8 of 12", "need 9", "--min-passed 8", "of 0"}) {
        EXPECT_NE(result.error().message.find(says), std::string::npos) << result.error().message;
    }
    EXPECT_EQ(result.error().message.find('\n'), std::string::npos);
    // Accepting fewer measures nothing again.
    settings_.min_passed = 8;
    const auto accepted = run(runner());
    ASSERT_TRUE(accepted) << accepted.error().message;
    EXPECT_EQ(runs_, 12);
    EXPECT_EQ(accepted->resumed, 12);
}

TEST_F(Calibration, MeansBelowZeroBecomeZero) {
    const auto result = run([](std::size_t probe) -> Result<ProbeOutcome> {
        const double value = probe % 2 == 0 ? 1.0 : -2.0;
        return ProbeOutcome{"", 1, {value, -value, 0, 3}};
    });
    ASSERT_TRUE(result);
    EXPECT_EQ(result->scores.mean, (std::vector<double>{0, 0.5, 0, 3}));
}

TEST_F(Calibration, GoesOnWhereItStopped) {
    const auto whole = run(runner());
    ASSERT_TRUE(whole);
    std::filesystem::remove(partial_);
    runs_ = 0;
    const auto stopped = run(runner(), 5);
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().kind, ErrorKind::interrupted);
    EXPECT_NE(stopped.error().message.find("5 of 12"), std::string::npos);
    EXPECT_EQ(runs_, 5);
    const auto resumed = run(runner());
    ASSERT_TRUE(resumed);
    EXPECT_EQ(runs_, 12);  // 5 before, 7 now
    EXPECT_EQ(resumed->resumed, 5);
    EXPECT_EQ(resumed->start, RunLog::Start::resumed);
    EXPECT_EQ(resumed->scores.mean, whole->scores.mean);
    EXPECT_EQ(resumed->scores.stderr_, whole->scores.stderr_);
}

TEST_F(Calibration, AProbeStoppedInTheMiddleIsRunAgain) {
    const ProbeRunner inner = runner();
    const auto stopped = run([&](std::size_t probe) -> Result<ProbeOutcome> {
        if (runs_ == 3) return tl::unexpected(Error{ErrorKind::interrupted, "stopped"});
        return inner(probe);
    });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().kind, ErrorKind::interrupted);
    EXPECT_NE(stopped.error().message.find("3 of 12"), std::string::npos);
    const auto resumed = run(runner());
    ASSERT_TRUE(resumed);
    EXPECT_EQ(resumed->resumed, 3);
    EXPECT_EQ(runs_, 12);
}

TEST_F(Calibration, ATornLastLineIsCutOff) {
    ASSERT_FALSE(run(runner(), 5));
    std::filesystem::resize_file(partial_, std::filesystem::file_size(partial_) - 7);
    const auto resumed = run(runner());
    ASSERT_TRUE(resumed);
    EXPECT_EQ(resumed->resumed, 4);
    std::size_t lines = 0;
    std::ifstream in(partial_);
    for (std::string line; std::getline(in, line); ++lines) {
        EXPECT_FALSE(nlohmann::json::parse(line, nullptr, false).is_discarded()) << line;
    }
    EXPECT_EQ(lines, 13U);
}

TEST_F(Calibration, OtherSettingsBeginAnew) {
    ASSERT_FALSE(run(runner(), 5));
    const std::string before = partial_text();
    runs_ = 0;
    const auto other = run(runner(), 1000, "bb");
    ASSERT_TRUE(other);
    EXPECT_EQ(other->start, RunLog::Start::settings_changed);
    EXPECT_EQ(other->resumed, 0);
    EXPECT_EQ(runs_, 12);
    std::ifstream old(partial_.string() + ".old", std::ios::binary);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(old), {}), before);
}

TEST_F(Calibration, NeverTouchesAFileOfAnotherKind) {
    std::ofstream(partial_) << "my notes\n";
    const auto result = run(runner());
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::bad_input);
    EXPECT_EQ(runs_, 0);
    EXPECT_EQ(partial_text(), "my notes\n");
}

TEST_F(Calibration, NoScoresFromAModelThatAnswersNothing) {
    const auto result = run([](std::size_t probe) -> Result<ProbeOutcome> {
        return ProbeOutcome{"I do\nnot know " + std::to_string(probe), 0.1, {}};
    });
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::bad_input);
    const std::string& message = result.error().message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
    std::size_t samples = 0;
    for (std::size_t at = message.find("I do not"); at != std::string::npos;
         at = message.find("I do not", at + 1)) {
        ++samples;
    }
    EXPECT_EQ(samples, 3U) << message;
}

TEST_F(Calibration, AnErrorOfAProbeEndsTheRun) {
    const auto result =
        run([](std::size_t) -> Result<ProbeOutcome> { return bad_input("the probe is too long"); });
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().message, "the probe is too long");
}

TEST_F(Calibration, UnwritableFileIsBadInput) {
    partial_ = folder_ / "missing" / "x.jsonl";
    const auto result = run(runner());
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::bad_input);
    EXPECT_EQ(runs_, 0);
}

TEST(CalibrationSettings, EveryChoiceShowsInTheJson) {
    const Haystack haystack = Haystack::builtin(1);
    CalibrationSettings settings;
    const auto base = settings_json(settings, haystack, comparison_needles());
    EXPECT_EQ(base, settings_json(settings, haystack, comparison_needles()));
    EXPECT_NE(base, settings_json(settings, haystack, single_fact_needles()));
    EXPECT_NE(base, settings_json(settings, Haystack::builtin(2), comparison_needles()));
    settings.lengths.push_back(2500);
    EXPECT_NE(base, settings_json(settings, haystack, comparison_needles()));
    settings = {};
    settings.chat = ChatTemplate::chatml;
    EXPECT_NE(base, settings_json(settings, haystack, comparison_needles()));
    settings = {};
    settings.kind = ScoreKind::r;
    EXPECT_NE(base, settings_json(settings, haystack, comparison_needles()));
}

}  // namespace
}  // namespace headkv
