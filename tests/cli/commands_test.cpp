#include <regex>

#include "cli/program.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;
using Commands = Program;

std::string long_text() {
    std::string text;
    for (int i = 0; i < 60; ++i) text += "Line " + std::to_string(i) + " says <b>&amp;</b> ü.\n";
    return text;
}

TEST_F(Commands, HelpIsEverywhere) {
    const Ran help = call({"--help"});
    expect_done(help);
    for (const char* name : {"run", "inspect", "plan", "methods", "calibrate", "eval", "tokenize",
                             "bench", "completion"}) {
        EXPECT_NE(help.out.find(name), std::string::npos) << name;
        const Ran sub = call({name, "--help"});
        expect_done(sub);
        EXPECT_NE(sub.out.find("Example"), std::string::npos) << name;
        EXPECT_EQ(sub.err, "");
    }
    const Ran version = call({"--version"});
    expect_done(version);
    EXPECT_TRUE(version.out.starts_with("headkv ")) << version.out;
}

TEST_F(Commands, RunWritesItsContract) {
    write_file(folder / "long.txt", long_text());
    const Ran ran = run({"-f", path("long.txt"), "-n", "12", "--method", "snapkv", "--rows", "32",
                         "--json", path("run.json")});
    expect_done(ran);
    const Json json = Json::parse(read_file(folder / "run.json"));
    EXPECT_EQ(json["method"], "snapkv");
    EXPECT_EQ(json["text"].get<std::string>() + "\n", ran.out);
    EXPECT_EQ(json["token_ids"].size(), json["generated_tokens"]);
    EXPECT_EQ(json["kv"]["rows_budget"], 32);
    EXPECT_EQ(json["kv"]["rows_kept_mean"], 32);
    // 3 layers x 2 heads x 32 rows of K and V, 16 values of 2 bytes each.
    EXPECT_EQ(json["kv"]["bytes"], 3 * 2 * 32 * (16 + 16) * 2);
    EXPECT_EQ(json["kv"]["bytes_full"], 3 * 2 * json["prompt_tokens"].get<int>() * (16 + 16) * 2);
    EXPECT_GT(json["kv"]["bytes_peak_prefill"], 0);
    for (const char* name : {"load", "prefill", "compress", "decode"}) {
        EXPECT_GE(json["time_ms"][name], 0) << name;
    }
    EXPECT_GT(json["speed"]["prefill_tok_s"], 0);
    EXPECT_GT(json["speed"]["decode_tok_s"], 0);
    EXPECT_GT(json["memory"]["rss_peak_bytes"], 1 << 20);
    EXPECT_EQ(json["memory"]["device_peak_bytes"], 0);
    // No temporary file is left beside it.
    for (const auto& name : files()) EXPECT_FALSE(name.starts_with("run.json.")) << name;
}

TEST_F(Commands, TheThreeBudgetsMeanTheSame) {
    write_file(folder / "long.txt", long_text());
    const auto bytes = [&](const std::string& option, const std::string& value) {
        const Ran ran = run({"-f", path("long.txt"), "-n", "1", "--method", "snapkv", option, value,
                             "--json", "-"});
        expect_done(ran);
        return Json::parse(ran.out)["kv"]["bytes"].get<int>();
    };
    const int rows = bytes("--rows", "32");
    EXPECT_EQ(bytes("--kv-bytes", std::to_string(rows)), rows);
    EXPECT_EQ(bytes("--kv-bytes", "12K"), rows);
    const int half = bytes("--keep", "50%");
    EXPECT_EQ(bytes("--keep", "0.5"), half);
    EXPECT_GT(half, rows);
}

TEST_F(Commands, JsonOnStdoutIsAlone) {
    const Ran ran = run({"-p", "hello", "-n", "3", "--method", "full", "--json", "-"});
    expect_done(ran);
    EXPECT_EQ(Json::parse(ran.out)["generated_tokens"], 3);
}

TEST_F(Commands, CompareReadsOnceAndEqualsSingleRuns) {
    write_file(folder / "long.txt", long_text());
    const auto single = [&](const std::string& method) {
        const Ran ran = run(
            {"-f", path("long.txt"), "-n", "8", "--rows", "24", "--method", method, "--json", "-"});
        expect_done(ran);
        return Json::parse(ran.out)["token_ids"];
    };
    const Ran ran = run({"-f", path("long.txt"), "-n", "8", "--rows", "24", "--method", "snapkv",
                         "--compare", "full,snapkv,streaming-llm", "--json", path("c.json")});
    expect_done(ran);
    const Json all = Json::parse(read_file(folder / "c.json"))["compare"];
    ASSERT_EQ(all.size(), 3U);
    const char* order[] = {"full", "snapkv", "streaming-llm"};
    for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(all[i]["method"], order[i]);
        EXPECT_EQ(all[i]["token_ids"], single(order[i])) << order[i];
        EXPECT_NE(ran.out.find(std::string("== ") + order[i]), std::string::npos);
    }
    EXPECT_NE(ran.out.find("snapkv against full"), std::string::npos) << ran.out;
}

TEST_F(Commands, SeedsAndStopTexts) {
    const auto text = [&](std::vector<std::string> more) {
        std::vector<std::string> arguments = {"-p",  "hello",    "-n",   "24",     "--temp",
                                              "1.5", "--method", "full", "--json", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        const Ran ran = run(arguments);
        expect_done(ran);
        return Json::parse(ran.out);
    };
    const Json whole = text({"--seed", "7"});
    EXPECT_EQ(text({"--seed", "7"})["token_ids"], whole["token_ids"]);
    EXPECT_NE(text({"--seed", "8"})["token_ids"], whole["token_ids"]);
    const auto answer = whole["text"].get<std::string>();
    // The first printable character pair of the answer ends it.
    const auto at = std::adjacent_find(answer.begin(), answer.end(), [](char a, char b) {
        return a > ' ' && a < 0x7f && b > ' ' && b < 0x7f;
    });
    if (at == answer.end()) GTEST_SKIP() << "the drawn text has no two plain characters";
    const std::string stop(at, at + 2);
    const Json stopped = text({"--seed", "7", "--stop", stop});
    EXPECT_EQ(stopped["stop_reason"], "stop");
    EXPECT_EQ(stopped["text"], answer.substr(0, answer.find(stop)));
}

TEST_F(Commands, ChatKeepsOneCacheOverItsTurns) {
    write_file(folder / "long.txt", long_text());
    const Ran ran =
        call({"run", "-m", model(), "--chat", "--chat-template", "chatml", "-f", path("long.txt"),
              "-n", "6", "--method", "snapkv", "--rows", "40", "--json", path("chat.json")},
             "what is on line 3?\n\nand on line 4?\nthanks");
    expect_done(ran);
    const Json json = Json::parse(read_file(folder / "chat.json"));
    ASSERT_EQ(json["turns"].size(), 3U);
    EXPECT_EQ(json["turns"][1]["user"], "and on line 4?");
    std::string answers;
    for (const auto& turn : json["turns"]) answers += turn["text"].get<std::string>() + "\n";
    EXPECT_EQ(ran.out, answers);
    // The prompt was read once; turns add their own tokens only, and the rows stay bounded.
    const int first = json["turns"][0]["tokens"], last = json["turns"][2]["tokens"];
    EXPECT_GT(last, first + 10);
    EXPECT_LT(last, first + 200);
    EXPECT_LE(json["turns"][2]["bytes_held"], 3 * 2 * (40 + 128) * (16 + 16) * 2);
}

TEST_F(Commands, ChatWithoutQuestions) {
    expect_refused(call({"run", "-m", model(), "--chat", "-f", path("doc.txt")}), "no question");
    expect_refused(call({"run", "-m", model(), "--chat", "-f", "-"}, "text"), "stdin");
}

TEST_F(Commands, TokenizePrintsOneList) {
    write_file(folder / "bytes", std::string("a\0\xff", 3) + "<|im_end|>");
    const auto ids = [&](std::vector<std::string> more) {
        std::vector<std::string> arguments = {"tokenize", "-m", model()};
        arguments.insert(arguments.end(), more.begin(), more.end());
        const Ran ran = call(arguments);
        expect_done(ran);
        EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 1);
        return Json::parse(ran.out);
    };
    EXPECT_GT(ids({"-p", "hello"}).size(), 0U);
    EXPECT_GT(ids({"-f", path("bytes")}).size(), 3U);
    write_file(folder / "empty", "");
    EXPECT_TRUE(ids({"-f", path("empty"), "--no-bos"}).is_array());
    expect_refused(call({"tokenize", "-m", model()}), "");
    expect_refused(call({"tokenize", "-m", model(), "-f", path("none")}), "none");
}

TEST_F(Commands, InspectTellsWhatWasKept) {
    write_file(folder / "long.txt", long_text());
    const Ran ran = call(
        {"inspect", "-m",     model(),  "--raw",           "-f",     path("long.txt"), "--method",
         "snapkv",  "--rows", "40",     "--window",        "8",      "--kernel",       "5",
         "--pool",  "avg",    "--json", path("kept.json"), "--html", path("kept.html")});
    expect_done(ran);
    const Json json = Json::parse(read_file(folder / "kept.json"));
    EXPECT_EQ(json["method"], "snapkv");
    EXPECT_EQ(json["rows"], 40);
    EXPECT_EQ(json["window"], 8);
    EXPECT_EQ(json["kernel"], 5);
    EXPECT_EQ(json["pool"], "avg");
    EXPECT_EQ(json["order"], "group_then_pool");
    const auto tokens = json["n_tokens"].get<std::int32_t>();
    ASSERT_EQ(json["kept"].size(), 3U);
    for (const auto& layer : json["kept"]) {
        ASSERT_EQ(layer.size(), 2U);
        for (const auto& head : layer) {
            const auto kept = head.get<std::vector<std::int32_t>>();
            EXPECT_EQ(kept.size(), 40U);
            EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
            for (std::int32_t i = 0; i < 8; ++i) {
                EXPECT_EQ(kept[kept.size() - 1 - static_cast<std::size_t>(i)], tokens - 1 - i);
            }
        }
    }
}

TEST_F(Commands, TheInspectionPageStandsAlone) {
    write_file(folder / "long.txt", long_text() + "<script>alert(1)</script>");
    const Ran ran = call({"inspect", "-m", model(), "--raw", "-f", path("long.txt"), "--method",
                          "streaming-llm", "--rows", "40", "--html", "-"});
    expect_done(ran);
    const std::string& page = ran.out;
    EXPECT_TRUE(page.starts_with("<!doctype html>"));
    EXPECT_TRUE(page.ends_with("</html>\n"));
    for (const char* outside :
         {"http:", "https:", "src=", "<link", "url(", "@import", "alert(1)</"}) {
        EXPECT_EQ(page.find(outside), std::string::npos) << outside;
    }
    EXPECT_EQ(page.find("<b>&amp;</b>"), std::string::npos);
    // One cell a head, and every head kept the 4 sinks and the 36 last tokens.
    std::size_t cells = 0;
    for (auto at = page.find("class=cell"); at != std::string::npos;
         at = page.find("class=cell", at + 1)) {
        ++cells;
    }
    EXPECT_EQ(cells, 6U);
    EXPECT_NE(page.find("layer 2, head 1: 40 rows"), std::string::npos);
    EXPECT_NE(page.find("kept by 6 of 6 heads"), std::string::npos);
    EXPECT_NE(page.find("kept by 0 of 6 heads"), std::string::npos);
    EXPECT_NE(page.find("\"0-3,"), std::string::npos);
}

TEST_F(Commands, LatentRowsOfAModelThatHasNoneAreRefused) {
    expect_refused(run({"-p", "hello", "--method", "clla"}), "trained with it");
    const Ran page = call({"methods", "clla", "--json", "-"});
    expect_done(page);
    const Json json = Json::parse(page.out)[0];
    EXPECT_EQ(json["store"], "q4_0");
    EXPECT_EQ(json["latent"], true);
}

// The program prints the page; its options are those that the method has (tools/method-pages).
TEST_F(Commands, EveryMethodHasAPage) {
    const Ran ran = call({"methods", "--json", "-"});
    expect_done(ran);
    for (const auto& method : nlohmann::ordered_json::parse(ran.out)) {  // options in their order
        const auto name = method["name"].get<std::string>();
        const auto page = method["page"].get<std::string>();
        ASSERT_EQ(page.substr(0, page.find('\n')), "# " + name)
            << "write docs/methods/" << name << ".md in the form of snapkv.md";
        std::string options = "## Options\n";
        for (const auto& [option, value] : method["options"].items()) {
            const auto text = value.is_string() ? value.get<std::string>() : value.dump();
            options += "- `--" + option + " " + text + "`\n";
        }
        if (method["options"].empty()) options += "None.\n";
        EXPECT_NE(page.find("\n" + options + "\n"), std::string::npos)
            << name << ": run tools/method-pages\n"
            << options;
        std::size_t before = 0;
        for (const char* section : {"Formula", "Options", "Cost", "Paper", "Measured"}) {
            const std::size_t at = page.find(std::string("\n## ") + section + "\n");
            ASSERT_NE(at, std::string::npos) << name << " " << section;
            EXPECT_GT(at, before) << name << " " << section;
            before = at;
        }
        const auto paper = method["paper"].get<std::string>();
        EXPECT_NE(page.find(paper.empty() ? "None." : "arXiv " + paper), std::string::npos) << name;
    }
    const Ran one = call({"methods", "snapkv"});
    expect_done(one);
    EXPECT_NE(one.out.find("## Formula"), std::string::npos);
}

TEST_F(Commands, BenchMeasuresEachCase) {
    const Ran ran =
        call({"bench", "-m", model(), "--depth", "0,90", "--methods", "full,snapkv", "--slots",
              "1,2", "--rows", "24", "-n", "4", "--repeat", "2", "--json", path("bench.json")});
    expect_done(ran);
    const Json results = Json::parse(read_file(folder / "bench.json"))["results"];
    ASSERT_EQ(results.size(), 8U);
    for (const auto& result : results) {
        EXPECT_GT(result["prefill_tok_s"], 0);
        EXPECT_GT(result["decode_tok_s"], 0);
        EXPECT_GT(result["rss_peak_bytes"], 0);
        EXPECT_EQ(result["decode_ms_all"].size(), 2U);
        const bool deep = result["depth"] == 90;
        const int rows = !deep ? 1 : (result["method"] == "full" ? 90 : 24);
        EXPECT_EQ(result["kv_bytes"], 3 * 2 * rows * (16 + 16) * 2) << result;
    }
    EXPECT_NE(ran.out.find("decode tok/s"), std::string::npos);
}

TEST_F(Commands, BenchWritesCsvAndAPage) {
    const Ran ran = call({"bench", "-m", model(), "--depth", "0,90", "--methods", "full,snapkv",
                          "--rows", "24", "-n", "4", "--repeat", "1", "--csv", path("bench.csv"),
                          "--html", path("bench.html")});
    expect_done(ran);
    const std::string csv = read_file(folder / "bench.csv");
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 5);
    const auto commas = [](const std::string& line) {
        return std::count(line.begin(), line.end(), ',');
    };
    const std::size_t heading = csv.find('\n');
    const std::string first = csv.substr(heading + 1, csv.find('\n', heading + 1) - heading - 1);
    EXPECT_EQ(commas(first), commas(csv.substr(0, heading)));
    EXPECT_EQ(first.substr(0, 9), "0,full,1,");
    const std::string page = read_file(folder / "bench.html");
    EXPECT_NE(page.find("<polyline"), std::string::npos);
    EXPECT_NE(page.find("snapkv: "), std::string::npos);
    EXPECT_EQ(page.find("nan"), std::string::npos);
    EXPECT_EQ(page.find("http"), page.find("http-equiv"));  // nothing from elsewhere
    expect_refused(call({"bench", "-m", model(), "--vs", "/bin/true"}), "llama-bench");
}

TEST_F(Commands, BenchDrawsAPictureAndMeasuresStalls) {
    const Ran ran = call({"bench",
                          "-m",
                          model(),
                          "--depth",
                          "0,90",
                          "--methods",
                          "full,snapkv",
                          "--rows",
                          "24",
                          "-n",
                          "2",
                          "--repeat",
                          "1",
                          "--svg",
                          path("bench.svg"),
                          "--csv",
                          path("bench.csv"),
                          "--json",
                          path("bench.json"),
                          "--max-stall-ms",
                          "0.5"});
    expect_done(ran);
    EXPECT_NE(ran.out.find("longest stall"), std::string::npos);
    const std::string svg = read_file(folder / "bench.svg");
    EXPECT_EQ(svg.rfind("<svg xmlns=", 0), 0U);
    std::size_t lines = 0;
    for (auto at = svg.find("<polyline"); at != std::string::npos;
         at = svg.find("<polyline", at + 1)) {
        ++lines;
    }
    EXPECT_EQ(lines, 2U);
    // As XML wants it: quoted attributes. (A style has none, a tag no text.)
    const std::string body = svg.substr(svg.find("</style>") + 8);
    EXPECT_FALSE(std::regex_search(body.begin(), body.end(), std::regex("=[a-z0-9]")));
    const Json results = Json::parse(read_file(folder / "bench.json"))["results"];
    for (const auto& result : results) {
        EXPECT_EQ(result["stall"]["limit_ms"], 0.5);
        EXPECT_GT(result["stall"]["waits"], 0);
        EXPECT_LE(result["stall"]["longest_ms"], result["stall"]["read_ms"]);
    }
    const std::string csv = read_file(folder / "bench.csv");
    std::set<std::ptrdiff_t> commas;
    std::istringstream rows(csv);
    for (std::string row; std::getline(rows, row);) {
        commas.insert(std::count(row.begin(), row.end(), ','));
    }
    EXPECT_EQ(commas.size(), 1U);
    for (const char* bad : {"0", "-1", "soon"}) {
        expect_refused(call({"bench", "-m", model(), "--max-stall-ms", bad}), "--max-stall-ms");
    }
}

TEST_F(Commands, CompletionKnowsEveryFlag) {
    for (const char* shell : {"bash", "zsh", "fish"}) {
        const Ran ran = call({"completion", shell});
        expect_done(ran);
        for (const char* word : {"run", "inspect", "tokenize", "kv-bytes", "group-reduce"}) {
            EXPECT_NE(ran.out.find(word), std::string::npos) << shell << " " << word;
        }
    }
    write_file(folder / "complete.bash", call({"completion", "bash"}).out);
    const std::string question = "bash -c 'source " + path("complete.bash") +
                                 "; COMP_WORDS=(headkv run --kv-b); COMP_CWORD=2; _headkv; "
                                 "test \"${COMPREPLY[*]}\" = --kv-bytes'";
    EXPECT_EQ(std::system(question.c_str()), 0);
    expect_refused(call({"completion", "cmd"}), "bash");
}

}  // namespace
}  // namespace headkv::test
