#include "eval/niah.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

namespace headkv {
namespace {

NiahProbe made_up(const ProbeSpec& spec, bool full_hit, bool hit, double loss) {
    NiahProbe probe;
    probe.spec = spec;
    probe.prompt_tokens = spec.length + 30;
    probe.seconds = 0.5;
    probe.answers.push_back({"full", 0, "f", full_hit, -0.5, -0.25, 1000, 1000, 500});
    probe.answers.push_back(
        {"snapkv", 64, "s\xff", hit, -0.5 - loss, -0.25 - 2 * loss, 100, 1000, 64});
    return probe;
}

TEST(Niah, HitIsTheKeyInAnyCase) {
    Needle needle{"The owl lives in Zarn.", "Where?", "in Zarn", "The owl lives in Zarn.", "Zarn"};
    EXPECT_TRUE(is_hit("It lives in ZARN, of course", needle));
    EXPECT_FALSE(is_hit("It lives in Zorn", needle));
    EXPECT_FALSE(is_hit("", needle));
    needle.key.clear();
    needle.real_needle = "one two three four";
    EXPECT_TRUE(is_hit("four three two", needle));
    EXPECT_FALSE(is_hit("one two", needle));  // exactly half
}

TEST(Niah, JsonRoundTrip) {
    const NiahProbe probe = made_up({2500, 12.5, 3}, true, false, 0.125);
    const auto back = niah_probe_from_json(to_json(probe));
    ASSERT_TRUE(back);
    EXPECT_EQ(to_json(*back), to_json(probe));
    EXPECT_EQ(niah_probe_id(back->spec), "needle 4 length 2500 depth 12.5");
    EXPECT_FALSE(niah_probe_from_json({{"length", 1}}));
}

TEST(Niah, SummaryPairsWithFull) {
    // Full right in three of four; the method keeps two of them and is right once where full errs.
    const std::vector<NiahProbe> probes = {
        made_up({1000, 10, 0}, true, true, 0.1), made_up({1000, 50, 1}, true, false, 0.3),
        made_up({1000, 90, 2}, true, true, 0.0), made_up({1000, 10, 3}, false, true, -0.2)};
    const auto rows = summarize(probes, 1);
    ASSERT_EQ(rows.size(), 2U);
    EXPECT_EQ(rows[0].method, "full");
    EXPECT_DOUBLE_EQ(rows[0].score.value, 0.75);
    EXPECT_EQ(rows[0].kept_right, 3);
    EXPECT_DOUBLE_EQ(rows[0].dlog_probability.value, 0);
    const NiahRow& row = rows[1];
    EXPECT_EQ(row.method, "snapkv");
    EXPECT_EQ(row.rows, 64);
    EXPECT_EQ(row.n, 4);
    EXPECT_EQ(row.full_right, 3);
    EXPECT_EQ(row.kept_right, 2);
    EXPECT_DOUBLE_EQ(row.score.value, 0.75);
    EXPECT_DOUBLE_EQ(row.kept.value, 2.0 / 3);
    EXPECT_NEAR(row.dlog_probability.value, -0.05, 1e-12);
    EXPECT_NEAR(row.dlog_probability_key.value, -0.1, 1e-12);
    EXPECT_DOUBLE_EQ(row.kv_bytes, 100);
    EXPECT_DOUBLE_EQ(row.rows_kept, 64);
    EXPECT_LE(row.score.low, 0.75);
    EXPECT_GE(row.score.high, 0.75);
}

TEST(Niah, GoesOnFromTheAnswersOfAnEarlierRun) {
    const auto file = std::filesystem::temp_directory_path() /
                      ("headkv-niah-" + std::to_string(::getpid()) + ".jsonl");
    std::filesystem::remove(file);
    const auto specs =
        plan_probes(std::vector<std::int64_t>{100}, std::vector<double>{0, 50}, 3, 1);
    int runs = 0;
    const NiahRunner runner = [&](const ProbeSpec& spec) -> Result<NiahProbe> {
        ++runs;
        return made_up(spec, true, spec.needle > 0, 0.5);
    };
    const auto stop_at = [](std::int64_t limit) {
        return [limit](std::int64_t done, std::int64_t) { return done < limit; };
    };
    const auto stopped = run_niah(specs, runner, file, {{"a", 1}}, stop_at(2));
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().kind, ErrorKind::interrupted);
    const auto rest = run_niah(specs, runner, file, {{"a", 1}}, stop_at(100));
    ASSERT_TRUE(rest);
    EXPECT_EQ(rest->results.size(), 6U);
    EXPECT_EQ(rest->resumed, 2);
    EXPECT_EQ(runs, 6);
    const auto again = run_niah(specs, runner, file, {{"a", 1}}, stop_at(100));
    ASSERT_TRUE(again);
    EXPECT_EQ(runs, 6);
    const auto other = run_niah(specs, runner, file, {{"a", 2}}, stop_at(100));
    ASSERT_TRUE(other);
    EXPECT_EQ(runs, 12);
    EXPECT_EQ(other->start, RunLog::Start::settings_changed);
    std::filesystem::remove(file);
    std::filesystem::remove(file.string() + ".old");
}

TEST(ClusteredEstimate, RatioAndInterval) {
    EXPECT_EQ(clustered_estimate({}, 1).value, 0);
    // All alike: no spread.
    const std::vector<ProbeValue> alike = {{0, 1, 1}, {1, 1, 1}, {2, 1, 1}};
    const Estimate sure = clustered_estimate(alike, 1);
    EXPECT_DOUBLE_EQ(sure.low, 1);
    EXPECT_DOUBLE_EQ(sure.high, 1);
    // 50 independent coin tosses, 25 heads: the interval is about 0.5 +- 1.96 * 0.5 / sqrt(50).
    std::vector<ProbeValue> coins;
    for (int i = 0; i < 50; ++i) coins.push_back({i, static_cast<double>(i % 2), 1});
    const Estimate fair = clustered_estimate(coins, 1);
    EXPECT_DOUBLE_EQ(fair.value, 0.5);
    EXPECT_NEAR(fair.low, 0.36, 0.03);
    EXPECT_NEAR(fair.high, 0.64, 0.03);
    // The same tosses in 5 clusters of 10 equal ones tell less: the interval is wider.
    std::vector<ProbeValue> clumped;
    for (int i = 0; i < 50; ++i) clumped.push_back({i / 10, static_cast<double>(i / 10 % 2), 1});
    const Estimate wide = clustered_estimate(clumped, 1);
    EXPECT_GT(wide.high - wide.low, 2 * (fair.high - fair.low));
    // Weight 0 leaves a probe out.
    const std::vector<ProbeValue> partly = {{0, 1, 1}, {0, 0, 0}, {1, 0, 1}, {1, 0, 0}};
    EXPECT_DOUBLE_EQ(clustered_estimate(partly, 1).value, 0.5);
}

}  // namespace
}  // namespace headkv
