// `headkv scores`: tables, pages, differences, and the published form.
#include "headkv/scores.h"

#include <cmath>

#include "cli/program.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;

class Scores : public Program {
protected:
    // 2 layers of 4 query heads over 2 KV heads; head i has the score `score(i)`.
    template <class F>
    std::string write_scores(const std::string& name, F score) const {
        HeadScores scores;
        scores.kind = "r2";
        scores.model_name = "a <model>";
        scores.shape = {2, 4, 2};
        scores.probes_tried = 40;
        scores.probes_passed = 25;
        scores.families = {{"single", 20, 15}, {"two_hop", 20, 10}};
        scores.reliability = ScoreReliability{0.875, 0.75, 0.5, 0.25, 50};
        for (int i = 0; i < 8; ++i) {
            scores.mean.push_back(score(i));
            scores.stderr_.push_back(0.01);
        }
        EXPECT_TRUE(save_head_scores(scores, path(name)));
        return path(name);
    }
    std::string rising() const {
        return write_scores("rising.json", [](int i) { return i / 28.0; });
    }
    // 3 layers of 4 query heads, as the tiny model has; two probes.
    std::string published(const std::string& name) const {
        Json json;
        for (int i = 0; i < 12; ++i) {
            json[std::to_string(i / 4) + "-" + std::to_string(i % 4)] = {0.5 * i, 1.5 * i};
        }
        write_file(folder / name, json.dump());
        return path(name);
    }
};

TEST_F(Scores, ShowsTheTableAndThePlan) {
    const Ran shown = call({"scores", "show", rising(), "--rows", "40", "--json", path("s.json")});
    expect_done(shown);
    for (const char* says : {"25 of 40", "single 15 of 20, two_hop 10 of 20", "Spearman 0.875",
                             "1-3 ", "25.0 %", "headkv-r2 at 40 rows"}) {
        EXPECT_NE(shown.out.find(says), std::string::npos) << says << "\n" << shown.out;
    }
    const Json json = Json::parse(read_file(folder / "s.json"));
    EXPECT_EQ(json["top"][0]["layer"], 1);
    EXPECT_EQ(json["top"][0]["head"], 3);
    EXPECT_EQ(json["families"][1]["passed"], 10);
    EXPECT_EQ(json["reliability"]["pearson_kv"], 0.25);
    EXPECT_EQ(json["scores"][1][0].get<double>(), 4 / 28.0);
    // The same rows as `plan` gives.
    const Ran plan = call({"plan", "--heads", rising(), "--rows", "40", "--json", "-"});
    expect_done(plan);
    EXPECT_EQ(json["plan"]["capacity"], Json::parse(plan.out)["capacity"]);
}

TEST_F(Scores, ThePageIsOneFileAndEscapesNames) {
    expect_done(call({"scores", "show", rising(), "--html", path("s.html")}));
    const std::string page = read_file(folder / "s.html");
    EXPECT_TRUE(page.starts_with("<!doctype html>"));
    EXPECT_NE(page.find("a &lt;model&gt;"), std::string::npos);
    EXPECT_EQ(page.find("a <model>"), std::string::npos);
    EXPECT_EQ(page.find("http"), page.find("http-equiv"));  // nothing from elsewhere
    // 8 query heads and 4 KV heads.
    std::size_t cells = 0;
    for (std::size_t at = page.find("<title>layer"); at != std::string::npos;
         at = page.find("<title>layer", at + 1)) {
        ++cells;
    }
    EXPECT_EQ(cells, 12U);
    EXPECT_NE(page.find("layer 1, query head 3: 0.25 +- 0.01, 25.00% of all"), std::string::npos);
}

TEST_F(Scores, DiffSaysHowFarAndWhatMoved) {
    const std::string a = rising();
    const std::string b = write_scores("b.json", [](int i) { return (i == 7 ? 0 : i) / 21.0; });
    const Ran same = call({"scores", "diff", a, a});
    expect_done(same);
    EXPECT_NE(same.out.find("Spearman 1.000"), std::string::npos) << same.out;
    EXPECT_NE(same.out.find("no head moved"), std::string::npos) << same.out;
    const Ran moved = call({"scores", "diff", a, b, "--json", "-"});
    expect_done(moved);
    const Json json = Json::parse(moved.out);
    EXPECT_EQ(json["top_decile_overlap"], 0);
    EXPECT_LT(json["spearman"], 0.5);
    EXPECT_EQ(json["moved"][0]["layer"], 1);
    EXPECT_EQ(json["moved"][0]["head"], 3);
    EXPECT_NEAR(json["moved"][0]["share_a"].get<double>(), 0.25, 1e-12);
    // Both sums are 1: the difference over two errors of 0.01.
    EXPECT_NEAR(json["moved"][0]["z"].get<double>(), -0.25 / std::sqrt(0.0002), 1e-9);
}

TEST_F(Scores, ImportsThePublishedForm) {
    const std::string file = published("x_retrieval_reasoning_heads.json");
    expect_done(call({"scores", "import", file, "-o", path("own.json"), "--kv-heads", "2"}));
    const auto own = load_head_scores(path("own.json"));
    ASSERT_TRUE(own) << own.error().message;
    EXPECT_EQ(own->kind, "r2");
    EXPECT_EQ(own->shape, (HeadShape{3, 4, 2}));
    EXPECT_EQ(own->mean[11], 11);
    EXPECT_EQ(own->probes_passed, 2);
    const Ran named =
        call({"scores", "import", file, "-o", path("named.json"), "-m", model(), "--json", "-"});
    expect_done(named);
    EXPECT_EQ(Json::parse(named.out)["fingerprint"].get<std::string>().size(), 16U);
    // It is taken for that model from then on.
    expect_done(run({"-f", path("doc.txt"), "--heads", path("named.json"), "--method", "headkv-r2",
                     "--rows", "20", "-n", "1"}));
}

TEST_F(Scores, ShuffledOnesAreAskedForByName) {
    expect_done(call({"scores", "import", published("x_retrieval_reasoning_heads.json"), "-o",
                      path("own.json"), "-m", model()}));
    const Ran dealt =
        call({"scores", "shuffle", path("own.json"), "--seed", "2", "-o", path("shuffled.json")});
    expect_done(dealt);
    EXPECT_NE(dealt.out.find("r2-shuffled"), std::string::npos) << dealt.out;
    const auto own = load_head_scores(path("own.json"));
    const auto shuffled = load_head_scores(path("shuffled.json"));
    ASSERT_TRUE(own && shuffled);
    EXPECT_NE(own->mean, shuffled->mean);
    // One prefill compares both: each method has the scores that it names.
    const std::string first = "headkv-r2:heads=" + path("own.json");
    const std::string second = "headkv-r2:heads=" + path("shuffled.json");
    expect_done(run({"-f", path("doc.txt"), "--method", first, "--compare", second, "--rows", "20",
                     "-n", "1", "--json", path("run.json")}));
    expect_refused(run({"-f", path("doc.txt"), "--method", "snapkv:heads=x.json", "-n", "1"}),
                   "no option heads");
    expect_refused(call({"scores", "shuffle", "-o", path("o.json")}), "name a file");
    expect_refused(call({"scores", "shuffle", "-m", model(), "-o", path("o.json")}),
                   "no head scores of kind r2");
    expect_refused(call({"scores", "shuffle", published("heads.json"), "-o", path("o.json")}),
                   "KV heads");
    expect_refused(
        run({"-f", path("doc.txt"), "--method", "headkv-r2:heads=" + path("none.json"), "-n", "1"}),
        "cannot read");
}

TEST_F(Scores, BadInputIsOneLine) {
    const std::string file = published("heads.json");
    const auto import = [&](Arguments more) {
        Arguments all = {"scores", "import", file, "-o", path("o.json")};
        all.insert(all.end(), more.begin(), more.end());
        return call(all);
    };
    expect_refused(import({"--kv-heads", "2"}), "--kind");
    expect_refused(import({"--kind", "r"}), "--kv-heads");
    expect_refused(import({"--kind", "r", "--kv-heads", "3"}), "does not divide");
    expect_refused(import({"--kind", "r", "-m", model(), "--kv-heads", "4"}), "has 2");
    expect_refused(call({"scores", "import", rising(), "-o", path("o.json")}), "already");
    expect_refused(call({"scores", "diff", rising(), file}), "different shapes");
    expect_refused(call({"scores", "show", path("none.json")}), "cannot read");
    expect_refused(call({"scores", "show", rising(), "--rows", "3"}), "at least 9");
    const std::string whole = read_file(path("rising.json"));
    write_file(folder / "cut.json", whole.substr(0, whole.size() / 2));
    expect_refused(call({"scores", "show", path("cut.json")}), "cut short");
    EXPECT_FALSE(std::filesystem::exists(path("o.json")));
}

}  // namespace
}  // namespace headkv::test
