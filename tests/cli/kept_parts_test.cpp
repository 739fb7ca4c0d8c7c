// Methods that came after the table's first, through every subcommand; merging, parts of a prompt
// that stay, and positions in the cache, as a user writes them.
#include <set>
#include <string_view>

#include "cli/program.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;

class KeptParts : public Program {
protected:
    static std::string numbers() {
        std::string text;
        for (int i = 0; i < 100; ++i) text += std::to_string(i) + " ";
        return text;
    }
    Ran inspect(const std::string& text, const std::string& method,
                const Arguments& more = {}) const {
        Arguments arguments = {"inspect", "-m",    model(),    "-t",   "1",      "-p",
                               text,      "--raw", "--method", method, "--json", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    }
    Ran written(const std::string& method, const Arguments& more = {}) const {
        Arguments arguments = {"-p", numbers(),  "-n",   "3",      "--rows",
                               "40", "--method", method, "--json", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    }
    static std::int64_t bytes_of(const Ran& ran) {
        expect_done(ran);
        return Json::parse(ran.out)["kv"]["bytes"].get<std::int64_t>();
    }
};

TEST_F(KeptParts, NewMethodsAndWrappersSpendTheBudgetExactly) {
    constexpr std::int64_t kBytes = 3 * 2 * 40 * (16 + 16) * 2;
    for (const char* method :
         {"fastgen", "fastgen:class-rows=9:frequent=0.1:local=0.1", "ems", "ems:merge=0",
          "snapkv:merge=50%", "h2o:merge=20:similarity=0.2", "streaming-llm:positions=in-cache"}) {
        EXPECT_EQ(bytes_of(written(method)), kBytes) << method;
    }
    EXPECT_LT(bytes_of(written("fastgen:recovery=0.01")), kBytes);
    // A flag for all methods that it concerns; the full cache has no use for it.
    expect_done(run({"-p", numbers(), "-n", "2", "--rows", "40", "--method", "snapkv", "--compare",
                     "full,tova", "--merge", "10"}));
}

TEST_F(KeptParts, SaysWhatCannotBe) {
    expect_refused(written("streaming-llm:merge=5"), "no option merge");
    expect_refused(written("streaming-llm", {"--merge", "5"}), "does not rank rows");
    expect_refused(written("kv-compress", {"--merge", "5"}), "takes rows back");
    expect_refused(written("snapkv:merge=many"), "--merge is many");
    expect_refused(written("snapkv:merge=5:recall=f16"), "recall");
    expect_refused(written("snapkv:similarity=2"), "cosine");
    expect_refused(written("snapkv", {"--positions", "in-cache"}), "streaming-llm");
    expect_refused(written("streaming-llm:positions=cache"), "text or in-cache");
    expect_refused(written("fastgen:allocate=uniform"), "its classes decide");
    expect_refused(written("ems:allocate=global"), "taken back");
    for (const char* method :
         {"ems", "fastgen", "snapkv:merge=5", "streaming-llm:positions=in-cache"}) {
        expect_refused(written(method, {"--stock-ops"}), "--device cpu");
    }
}

TEST_F(KeptParts, MarkedPartsStayAndTheMarksGo) {
    std::string text = numbers();
    const auto plain = inspect(text, "snapkv", {"--rows", "30"});
    expect_done(plain);
    const auto at = text.find("20 ");
    text.insert(text.find("23 "), "</keep>");
    text.insert(at, "<keep>");
    const auto marked = inspect(text, "snapkv", {"--rows", "30", "--keep-marks"});
    expect_done(marked);
    const auto before = Json::parse(plain.out), after = Json::parse(marked.out);
    EXPECT_EQ(before["token_ids"], after["token_ids"]);
    EXPECT_EQ(before["bytes"], after["bytes"]);
    EXPECT_NE(before["kept"], after["kept"]);
    std::set<int> common;  // positions that every head keeps
    for (int i = 0; i < after["n_tokens"].get<int>(); ++i) common.insert(i);
    for (const auto& layer : after["kept"]) {
        for (const auto& head : layer) {
            const std::set<int> kept(head.begin(), head.end());
            std::erase_if(common, [&](int position) { return !kept.contains(position); });
        }
    }
    // The window's sixteen rows, and at least a token for each number.
    EXPECT_GE(common.size(), 16U + 3U);
    expect_refused(inspect(text, "snapkv", {"--rows", "17", "--keep-marks"}), "marked to be kept");
    expect_refused(inspect(numbers(), "snapkv", {"--keep-marks"}), "between <keep> and </keep>");
    expect_refused(inspect("a <keep> b", "snapkv", {"--keep-marks"}), "without </keep>");
    expect_refused(inspect(numbers(), "snapkv", {"--keep-system"}), "--raw");
    expect_done(call({"run", "-m", model(), "-t", "1", "-p", numbers(), "--system", "Be terse.",
                      "--chat-template", "chatml", "--method", "h2o", "--rows", "60", "-n", "2",
                      "--keep-system"}));
}

TEST_F(KeptParts, AnEvaluationKeepsWhatItsFileMarks) {
    const auto line = [](const std::string& id, const std::string& context) {
        return Json{{"id", id}, {"context", context}, {"question", "Which?"}, {"answers", {"7"}}}
                   .dump() +
               "\n";
    };
    const std::string text = numbers();
    write_file(folder / "data.jsonl", line("marked", text + "<keep>alpha</keep> " + text) +
                                          line("plain", text) + line("torn", text + "<keep>") +
                                          line("large", "<keep>" + text + "</keep>"));
    // The same model without its chat template: under another key nothing finds it.
    std::string bytes = read_file(model());
    constexpr std::string_view kKey = "tokenizer.chat_template", kOther = "tokenizer.none_template";
    bytes.replace(bytes.find(kKey), kKey.size(), kOther);
    write_file(folder / "plain.gguf", bytes);
    const auto eval = [&](const Arguments& more, const std::string& file = "tiny.gguf") {
        Arguments arguments = {
            "eval", "generate", "-m",     path(file), "--data",    path("data.jsonl"),
            "-o",   path("o"),  "--rows", "40",       "--methods", "snapkv,h2o",
            "-n",   "2",        "--json", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    };
    const Ran ran = eval({"--raw", "--keep-marks"});
    expect_done(ran);
    const auto json = Json::parse(ran.out);
    EXPECT_EQ(json["results"][1]["n"], 2) << ran.out;
    EXPECT_DOUBLE_EQ(json["results"][1]["rows_kept_mean"].get<double>(), 40);
    EXPECT_EQ(json["flags"]["keep_marks"], true);
    std::set<std::string> reasons;
    for (const auto& left : json["skipped"]) reasons.insert(left["reason"].get<std::string>());
    ASSERT_EQ(reasons.size(), 2U) << ran.out;
    EXPECT_TRUE(reasons.begin()->starts_with("large: a budget of 40 rows")) << *reasons.begin();
    EXPECT_TRUE(reasons.rbegin()->starts_with("torn: its context, line 1")) << *reasons.rbegin();
    // Without the flag they are text, and nothing is left out.
    const Ran text_only = eval({"--raw"});
    expect_done(text_only);
    EXPECT_EQ(Json::parse(text_only.out)["results"][1]["n"], 4);

    expect_done(eval(
        {"--chat-template", "chatml", "--system", "Be terse.", "--keep-system", "--rows", "60"}));
    expect_refused(eval({"--keep-system"}, "plain.gguf"), "no chat template");
    expect_refused(eval({"--system", "x"}, "plain.gguf"), "no chat template");
    const auto niah = [&](const Arguments& more, const std::string& file = "tiny.gguf") {
        Arguments arguments = {"eval",      "niah", "-m",        path(file), "-o", path("n"),
                               "--lengths", "300",  "--limit",   "1",        "-n", "2",
                               "--rows",    "60",   "--methods", "snapkv"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    };
    expect_done(niah({"--chat-template", "chatml", "--system", "Be terse.", "--keep-system"}));
    EXPECT_NE(read_file(folder / "n/results.json").find("\"keep_system\": true"),
              std::string::npos);
    expect_refused(niah({"--chat-template", "chatml", "--system", text, "--keep-system"}),
                   "marked to be kept");
    expect_refused(niah({"--keep-system"}, "plain.gguf"), "no chat template");
    expect_refused(call({"eval", "parity", "-m", model(), "-o", path("p"), "--keep-marks"}),
                   "--keep-marks is no option of eval parity");
}

TEST_F(KeptParts, NewMethodsRunThroughEvalAndBench) {
    const Ran niah = call({"eval", "niah", "-m", model(), "--raw", "-o", path("niah"), "--lengths",
                           "300", "--limit", "2", "-n", "2", "--rows", "30", "--methods",
                           "fastgen,ems,snapkv:merge=50%,streaming-llm:positions=in-cache"});
    expect_done(niah);
    for (const char* name : {"fastgen", "ems", "snapkv:merge=50%", "positions=in-cache"}) {
        EXPECT_NE(niah.out.find(name), std::string::npos) << niah.out;
    }
    const Ran bench =
        call({"bench", "-m", model(), "-t", "1", "--depth", "100", "--rows", "30", "--methods",
              "fastgen,ems,snapkv:merge=50%", "--tokens", "2", "--json", path("b.json")});
    expect_done(bench);
}

TEST_F(KeptParts, AllMethodsAreThoseThatWorkWithTheModel) {
    const Ran bench = call({"bench", "-m", model(), "-t", "1", "--depth", "120", "--rows", "40",
                            "--methods", "all,snapkv:kernel=5", "--tokens", "1", "--repeat", "2",
                            "--json", path("b.json"), "--csv", path("b.csv")});
    expect_done(bench);
    EXPECT_NE(bench.out.find("overhead: prefill beyond that of streaming-llm in"),
              std::string::npos)
        << bench.out;
    const auto results = Json::parse(read_file(folder / "b.json"))["results"];
    std::set<std::string> names;
    for (const auto& result : results) {
        const std::string name = result["title"];
        names.insert(name);
        if (name == "streaming-llm") {
            EXPECT_TRUE(result["overhead"].is_null());
            continue;
        }
        EXPECT_EQ(result["overhead"]["of"], "streaming-llm") << name;
        EXPECT_EQ(result["overhead"]["share_all"].size(), 2U);
        EXPECT_NEAR(result["compress_share"].get<double>(),
                    result["compress_ms"].get<double>() / result["prefill_ms"].get<double>(), 1e-9);
    }
    // Every line of the table is measured or left out with a reason.
    const auto methods = Json::parse(call({"methods", "--json", "-"}).out);
    for (const auto& method : methods) {
        const auto name = method["name"].get<std::string>();
        const bool left_out = bench.err.find("all leaves out " + name + ": ") != std::string::npos;
        EXPECT_NE(names.contains(name), left_out) << name << '\n' << bench.err;
    }
    EXPECT_TRUE(names.contains("fastgen") && names.contains("snapkv:kernel=5"));
    EXPECT_FALSE(names.contains("kvsharer") || names.contains("clla"));
    const std::string csv = read_file(folder / "b.csv");
    const auto columns = [&](std::size_t from) {
        const auto end = csv.find('\n', from);
        return std::count(csv.begin() + static_cast<std::ptrdiff_t>(from),
                          csv.begin() + static_cast<std::ptrdiff_t>(end), ',');
    };
    EXPECT_EQ(columns(0), columns(csv.find('\n') + 1));
    EXPECT_NE(csv.find(",overhead,overhead_low,overhead_high,overhead_of\n"), std::string::npos);

    const Ran niah =
        call({"eval", "niah", "-m", model(), "--raw", "-o", path("all"), "--lengths", "300",
              "--limit", "1", "-n", "2", "--rows", "40,30", "--methods", "all"});
    expect_done(niah);
    EXPECT_NE(niah.out.find("fastgen"), std::string::npos);
    EXPECT_NE(niah.err.find("all leaves out headkv-r2: "), std::string::npos) << niah.err;
    expect_refused(call({"bench", "-m", model(), "--methods", "all,all"}), "all is named twice");
    expect_refused(run({"-p", "x", "--method", "all"}), "unknown method");
}

}  // namespace
}  // namespace headkv::test
