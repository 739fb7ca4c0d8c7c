// `headkv calibrate` of the built program on a tiny model, which answers nonsense.
#include "cli/program.h"

namespace headkv::test {
namespace {

class Calibrate : public Program {
protected:
    Ran calibrate(Arguments more) const {
        Arguments all = {"calibrate", "-m", model(), "-o", path("s.json"), "-t", "1"};
        all.insert(all.end(), more.begin(), more.end());
        return call(all);
    }
    bool written() const { return std::filesystem::exists(path("s.json")); }
};

TEST_F(Calibrate, AModelThatAnswersNothingLeavesNoFile) {
    const Ran ran = calibrate(
        {"--lengths", "100", "--depths", "50", "--families", "single", "--min-passed", "1"});
    expect_refused(ran, "answered none of 8 probes");
    EXPECT_NE(ran.err.find("it said \""), std::string::npos) << ran.err;
    EXPECT_FALSE(written());
}

TEST_F(Calibrate, BadInputIsOneLine) {
    expect_refused(calibrate({"--kind", "r3"}), "r, r2, causal, task, icl, baklava and share");
    expect_refused(calibrate({"--lengths", "-5"}), "--lengths");
    expect_refused(calibrate({"--depths", "101"}), "--depths");
    expect_refused(calibrate({"--families", "riddle"}), "two_hop");
    expect_refused(calibrate({"--kind", "r", "--families", "two_hop"}), "unknown");
    expect_refused(calibrate({"--limit", "7"}), "--min-passed");
    write_file(folder / "n.jsonl",
               "{\"needle\":\"a b\",\"question\":\"q\",\"real_needle\":\"b\"}\n"
               "{\"needle\":\"a b\",\"question\":\"q\"}\n");
    expect_refused(calibrate({"--needles", path("n.jsonl")}), "line 2");
    expect_refused(calibrate({"--haystack", path("none")}), "haystack");
    EXPECT_FALSE(written());
}

TEST_F(Calibrate, LayersThatShareRowsAndARunWithThem) {
    const Ran ran = calibrate(
        {"--kind", "share", "--share-layers", "1", "--share-cosine", "-0.99", "--json", "-"});
    expect_done(ran);
    const auto json = nlohmann::json::parse(ran.out);
    EXPECT_EQ(json["kind"], "share");
    ASSERT_EQ(json["owner"].size(), 3U);
    const auto file = nlohmann::json::parse(read_file(path("s.json")));
    EXPECT_EQ(file["format"], "headkv-share/1");
    EXPECT_EQ(file["owner"], json["owner"]);
    std::string text;
    for (int i = 0; i < 60; ++i) text += "Line " + std::to_string(i) + " says nothing.\n";
    write_file(folder / "long.txt", text);
    const auto bytes = [&](const std::string& method, Arguments more) {
        Arguments all = {"-f", path("long.txt"), "-n", "4", "--method", method, "--json", "-"};
        all.insert(all.end(), more.begin(), more.end());
        const Ran answered = run(all);
        expect_done(answered);
        return nlohmann::json::parse(answered.out)["kv"];
    };
    EXPECT_EQ(bytes("kvsharer:share=" + path("s.json"), {"--rows", "30"})["bytes"],
              3 * 2 * 30 * (16 + 16) * 2);
    const auto full = bytes("full", {"--share", path("s.json")});
    EXPECT_EQ(full["bytes"].get<double>() * 3, full["bytes_full"].get<double>() * 2);
    expect_refused(run({"-p", "hello", "--method", "kvsharer"}), "calibrate --kind share");
    expect_refused(run({"-p", "hello", "--method", "kvzip", "--share", path("s.json")}),
                   "leave --share out");
    expect_refused(run({"-p", "hello", "--share", path("doc.txt")}), "not JSON");
    // Said before the first prompt of an evaluation is read, whatever the budget.
    expect_refused(call({"eval", "niah", "-m", model(), "-o", path("n"), "--chat-template",
                         "chatml", "--keep-system", "--methods", "snapkv:share=" + path("s.json")}),
                   "cannot keep marked parts");
    expect_refused(calibrate({"--kind", "share", "--share-layers", "3"}), "cannot share");
    expect_refused(calibrate({"--kind", "share", "--share-cosine", "0.999999"}), "--share-cosine");
}

TEST_F(Calibrate, ATaskOfOnesOwn) {
    std::string lines;
    for (int i = 0; i < 12; ++i) {
        lines += nlohmann::json{{"context", "The fox hid key " + std::to_string(i) + " at home."},
                                {"question", "Where is it?"},
                                {"answers", {i % 3 == 0 ? "negative" : "at home"}}}
                     .dump() +
                 '\n';
    }
    write_file(folder / "t.jsonl", lines);
    const Ran ran = calibrate(
        {"--kind", "task", "--data", path("t.jsonl"), "--min-passed", "1", "--json", "-"});
    expect_done(ran);
    const auto json = nlohmann::json::parse(ran.out);
    EXPECT_EQ(json["tried"], 12);
    ASSERT_EQ(json["families"].size(), 2U);
    EXPECT_EQ(json["families"][0]["name"], "document");
    EXPECT_EQ(json["families"][0]["tried"], 4);
    EXPECT_EQ(json["families"][1]["tried"], 8);
    const auto file = nlohmann::json::parse(read_file(path("s.json")));
    EXPECT_EQ(file["kind"], "task");
    EXPECT_EQ(file["settings"]["data"], "t.jsonl");
    expect_done(run({"-f", path("doc.txt"), "--heads", path("s.json"), "--method", "headkv-task",
                     "--rows", "20", "-n", "1"}));
    // Another method asks for scores of its own kind.
    expect_refused(run({"-f", path("doc.txt"), "--heads", path("s.json"), "--method", "headkv-r2",
                        "--rows", "20", "-n", "1"}),
                   "use --method headkv-task");
}

TEST_F(Calibrate, WhatAttentionChanges) {
    const Ran ran =
        calibrate({"--kind", "baklava", "--lengths", "40,60", "--limit", "5", "--min-passed", "1"});
    expect_done(ran);
    const auto file = nlohmann::json::parse(read_file(path("s.json")));
    EXPECT_EQ(file["kind"], "baklava");
    EXPECT_EQ(file["probes"]["passed"], 5);
    double least = 2, most = 0;
    for (const auto& layer : file["scores"]) {
        for (const double score : layer) {
            least = std::min(least, score);
            most = std::max(most, score);
        }
    }
    EXPECT_GE(least, 0);
    EXPECT_LE(most, 2);
    EXPECT_LT(least, most);
    expect_done(run({"-f", path("doc.txt"), "--heads", path("s.json"), "--method", "baklava",
                     "--rows", "20", "-n", "2"}));
    expect_refused(run({"-f", path("doc.txt"), "--heads", path("s.json"), "--method", "headkv-r2",
                        "--rows", "20", "-n", "1"}),
                   "use --method baklava");
    expect_refused(calibrate({"--kind", "baklava", "--lengths", "1"}), "at least 2 tokens");
    expect_refused(calibrate({"--kind", "baklava", "--lengths", "999999"}), "context");
}

TEST_F(Calibrate, ShardsTogetherAreOneRun) {
    const Arguments asked = {"--kind", "baklava",      "--lengths", "40,60",  "--limit",
                             "5",      "--min-passed", "4",         "--json", "-"};
    const auto shard = [&](const std::string& which) {
        auto part = asked;
        part.insert(part.end(), {"--shard", which});
        return calibrate(part);
    };
    expect_done(calibrate(asked));
    const auto whole = read_file(path("s.json"));
    std::filesystem::remove(path("s.json"));
    const Ran first = shard("1/2");
    expect_done(first);
    EXPECT_EQ(nlohmann::json::parse(first.out)["passed"], 3);
    expect_done(shard("2/2"));
    EXPECT_FALSE(std::filesystem::exists(path("s.json")));
    write_file(folder / "s.json.partial.jsonl", read_file(path("s.json.1-of-2.partial.jsonl")) +
                                                    read_file(path("s.json.2-of-2.partial.jsonl")));
    const Ran joined = calibrate(asked);
    expect_done(joined);
    EXPECT_EQ(nlohmann::json::parse(joined.out)["resumed"], 5);
    EXPECT_EQ(read_file(path("s.json")), whole);
    expect_refused(shard("3/2"), "--shard 3/2");
    expect_refused(shard("7/7"), "fewer probes than shards");
    expect_refused(calibrate({"--kind", "share", "--shard", "1/2"}), "--kind share");
}

TEST_F(Calibrate, BadTaskFiles) {
    const auto refused = [&](const std::string& text, const std::string& says) {
        write_file(folder / "t.jsonl", text);
        expect_refused(calibrate({"--kind", "task", "--data", path("t.jsonl")}), says);
    };
    refused("{\"context\": \"c\", \"answers\": [\"\"]}\n", "line 1: the answer is empty");
    refused("{\"answers\": [\"a\"]}\n", "\"context\"");
    refused("", "no example");
    refused(nlohmann::json{{"context", "c"}, {"answer", std::string(3000, 'x')}}.dump() + "\n",
            "do not fit the model's context");
    expect_refused(calibrate({"--kind", "task"}), "--data FILE");
    expect_refused(calibrate({"--data", path("t.jsonl")}), "--kind task");
    expect_refused(calibrate({"--kind", "causal", "--small-rows", "9"}), "--small-rows");
    EXPECT_FALSE(written());
}

TEST_F(Calibrate, SaysThatAShortHaystackIsRepeated) {
    std::filesystem::create_directory(folder / "hay");
    std::string text;
    for (int i = 0; i < 8; ++i) text += "The river rose by a hand and fell again in a day. ";
    write_file(folder / "hay/a.txt", text);
    const auto err = [&](const std::string& length) {
        return calibrate({"--haystack", path("hay"), "--lengths", length, "--depths", "50",
                          "--families", "single", "--limit", "1", "--min-passed", "1"})
            .err;
    };
    EXPECT_EQ(err("40").find("repeated"), std::string::npos);
    EXPECT_NE(err("1000").find("it is repeated"), std::string::npos);
}

}  // namespace
}  // namespace headkv::test
