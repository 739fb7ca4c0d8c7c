#include "eval/curves.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

namespace headkv {
namespace {

using nlohmann::json;

json result(const std::string& method, double rows, double dlogprob, double share_of_full,
            const std::string& type = "f16", const std::string& task = "needles") {
    const double bits = type == "f16" ? 16 : 4.5;
    return {{"task", task},
            {"group", ""},
            {"method", method},
            {"rows", rows},
            {"type_k", type},
            {"type_v", type},
            {"options", {{"window", 16}, {"beta", rows / 32}, {"rows", rows}}},
            {"dlogprob", dlogprob},
            {"dlogprob_interval", {dlogprob - 0.1, dlogprob + 0.1}},
            {"share_of_full", share_of_full},
            {"n", 20},
            {"kv_bytes", (rows == 0 ? 1000 : rows) * bits},
            {"kv_bytes_full", 16000},
            {"rows_kept_mean", rows == 0 ? 1000 : rows}};
}

json results(json list) {
    return {{"format", "headkv-eval/1"},
            {"model", "tiny"},
            {"fingerprint", "f1"},
            {"commit", "c1"},
            {"results", std::move(list)}};
}

TEST(Curves, AreReadOutOfResults) {
    json part = result("snapkv", 32, -1, 0.5);
    part["group"] = "single";
    part["rows_kept_mean"] = 31.9;
    json summed = result("snapkv", 32, -1, 0.5);
    summed["rows_kept_mean"] = 32.00000000000002;
    json blind = result("snapkv", 16, 0, 0);
    blind.erase("dlogprob");
    const auto curves = curves_of_results(
        results({part, blind, result("headkv-r2:heads=mine.json", 32, 0, 1),
                 result("snapkv", 128, -0.1, 0.9), summed,
                 result("snapkv:kv-type=q4_0", 128, -0.2, 0.8, "q4_0"), result("full", 0, 0, 1),
                 result("full:kv-type=q4_0", 0, -0.01, 1, "q4_0")}));
    ASSERT_TRUE(curves) << curves.error().message;
    EXPECT_EQ(curves->fingerprint, "f1");
    ASSERT_EQ(curves->curves.size(), 3U);  // the f16 reference says nothing
    const auto& snapkv = curves->curves[0];
    EXPECT_EQ(snapkv.options, json({{"window", 16}}));
    ASSERT_EQ(snapkv.points.size(), 2U);
    EXPECT_EQ(snapkv.points[0].rows, 32);
    EXPECT_EQ(snapkv.points[1].rows, 128);
    EXPECT_EQ(curves->curves[1].points[0].rows, 128 * 4.5 / 16);
    EXPECT_TRUE(curves->curves[2].whole);
    EXPECT_EQ(curves->curves[2].points[0].share, 4.5 / 16);
}

TEST(Curves, FiguresBetweenTwoBudgetsLieOnALineOverTheLogarithm) {
    const auto curves = curves_of_results(
        results({result("snapkv", 32, -1, 0.5), result("snapkv", 128, -0.2, 0.9)}));
    ASSERT_TRUE(curves);
    const auto at = [&](double rows) { return expectations(*curves, rows, 4000); };
    EXPECT_TRUE(at(31).empty());
    EXPECT_EQ(at(32).at(0).dlogprob, -1);
    const auto half = at(64).at(0);  // half way from log 32 to log 128
    EXPECT_NEAR(half.dlogprob, -0.6, 1e-12);
    EXPECT_NEAR(half.low, -0.7, 1e-12);
    EXPECT_NEAR(half.share_of_full, 0.7, 1e-12);
    EXPECT_EQ(half.measured_low, 32);
    EXPECT_EQ(half.measured_high, 128);
    EXPECT_FALSE(half.beyond);
    const auto above = at(500).at(0);
    EXPECT_EQ(above.dlogprob, -0.2);
    EXPECT_TRUE(above.beyond);
}

TEST(Curves, TheBestOverAllTasksComesFirst) {
    const auto curves = curves_of_results(results(
        {result("a", 64, -0.1, 0.9), result("b", 64, -0.3, 0.9), result("c", 64, 0, 1),
         result("a", 64, -0.5, 0.6, "f16", "ruler"), result("b", 64, -0.1, 0.9, "f16", "ruler")}));
    ASSERT_TRUE(curves);
    const auto found = expectations(*curves, 64, 4000);
    ASSERT_EQ(found.size(), 2U);  // c was not measured on ruler
    EXPECT_EQ(found[0].method, "b");
    EXPECT_NEAR(found[0].dlogprob, -0.2, 1e-12);
    EXPECT_EQ(found[0].examples, 40);
    EXPECT_NEAR(found[1].dlogprob, -0.3, 1e-12);
}

TEST(Curves, AWholeCacheOfQuantisedRowsCountsWhereItFits) {
    const auto curves = curves_of_results(results(
        {result("snapkv", 128, -0.2, 0.9), result("full:kv-type=q4_0", 0, -0.01, 1, "q4_0")}));
    ASSERT_TRUE(curves);
    // 1000 tokens at 4.5 of 16 bits take the bytes of 281.25 rows.
    EXPECT_EQ(expectations(*curves, 281, 1000).at(0).method, "snapkv");
    EXPECT_EQ(expectations(*curves, 282, 1000).at(0).method, "full:kv-type=q4_0");
}

TEST(Curves, OfSeveralRunsTheLaterCounts) {
    auto all = curves_of_results(results({result("a", 64, -0.1, 0.9), result("b", 64, -1, 0.1)}));
    ASSERT_TRUE(all);
    ASSERT_TRUE(add_curves(*all, *curves_of_results(results({result("a", 64, -0.4, 0.8)}))));
    ASSERT_EQ(all->curves.size(), 2U);
    EXPECT_EQ(expectations(*all, 64, 4000).at(0).dlogprob, -0.4);
    auto other = *all;
    other.fingerprint = "f2";
    EXPECT_FALSE(add_curves(*all, other));
}

TEST(Curves, FilesComeBackAsTheyWere) {
    const auto file = std::filesystem::path(testing::TempDir()) / "curves.json";
    const auto curves = curves_of_results(results(
        {result("snapkv", 128, -0.2, 0.9), result("full:kv-type=q4_0", 0, -0.01, 1, "q4_0")}));
    ASSERT_TRUE(curves);
    std::ofstream(file) << curves_json(*curves).dump();
    const auto again = load_curves(file);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(curves_json(*again), curves_json(*curves));

    const auto text = curves_json(*curves).dump();
    std::ofstream(file, std::ios::trunc) << text.substr(0, text.size() / 2);
    EXPECT_NE(load_curves(file).error().message.find("cut off"), std::string::npos);
    std::ofstream(file, std::ios::trunc) << R"({"format":"headkv-curves/1","fingerprint":"f",)"
                                            R"("curves":[{"method":"a","points":[{"rows":1}]}]})";
    EXPECT_NE(load_curves(file).error().message.find("lacks a number"), std::string::npos);
    EXPECT_FALSE(load_curves(file.string() + ".missing"));
}

}  // namespace
}  // namespace headkv
