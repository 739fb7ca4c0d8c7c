// --draft: the prompt is read twice, at the same bytes; what it brings along, and where it cannot
// be.
#include "cli/program.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;

class DraftOption : public Program {
protected:
    Ran written(const std::string& method, const Arguments& more = {}) const {
        std::string text;
        for (int i = 0; i < 150; ++i) text += std::to_string(i) + " ";
        Arguments arguments = {"-p", text,       "-n",   "2",      "--rows",
                               "40", "--method", method, "--json", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    }
    // What a result says of the method's options.
    Json options(const std::string& method) const {
        write_file(folder / "data.jsonl",
                   R"({"context":"The fox hid the key under the stone.","question":"Where?",)"
                   R"("answers":["stone"],"id":"a"})"
                   "\n");
        const std::string out = path("run" + std::to_string(runs_++));
        expect_done(call({"eval", "generate", "-m", model(), "--data", path("data.jsonl"), "-o",
                          out, "-n", "2", "--rows", "20", "--methods", method}));
        return Json::parse(read_file(std::filesystem::path(out) / "results.json"));
    }

private:
    mutable int runs_ = 0;
};

TEST_F(DraftOption, ReadsThePromptTwiceForTheSameBytes) {
    const Ran plain = written("snapkv"), drafted = written("snapkv:draft=5");
    expect_done(plain);
    expect_done(drafted);
    const Json once = Json::parse(plain.out), twice = Json::parse(drafted.out);
    EXPECT_EQ(once["prompt_readings"], 1);
    EXPECT_EQ(twice["prompt_readings"], 2);
    EXPECT_EQ(once["kv"]["bytes"], twice["kv"]["bytes"]);
    EXPECT_NE(drafted.err.find("read twice"), std::string::npos) << drafted.err;
    EXPECT_EQ(Json::parse(written("snapkv", {"--draft", "5"}).out)["token_ids"],
              twice["token_ids"]);
}

TEST_F(DraftOption, LooksAlmostAloneUnlessToldOtherwise) {
    const auto said = [&](const std::string& method, const char* option) {
        const Json results = options(method);
        const auto text = results.dump();
        const auto at = text.find(std::string("\"") + option + "\":");
        EXPECT_NE(at, std::string::npos) << text;
        return std::atoi(text.c_str() + at + std::string(option).size() + 3);
    };
    EXPECT_EQ(said("snapkv:draft=4", "draft"), 4);
    EXPECT_EQ(said("snapkv:draft=4", "observe"), 1);
    EXPECT_EQ(said("snapkv:draft=4", "kernel"), 7);
    EXPECT_EQ(said("snapkv:draft=4:observe=6:kernel=3", "observe"), 6);
    EXPECT_EQ(said("snapkv:draft=4:observe=6:kernel=3", "kernel"), 3);
    EXPECT_EQ(said("snapkv:draft=4:window=9", "observe"), 1);
    EXPECT_EQ(said("snapkv:draft=0:window=9", "observe"), 0);
}

TEST_F(DraftOption, IsRefusedWhereItCannotBe) {
    expect_refused(written("snapkv:draft=-1"), "draft is -1");
    expect_refused(written("streaming-llm:draft=4"), "no option draft");
    expect_refused(written("h2o:draft=4"), "no option draft");
    expect_refused(written("snapkv:draft=some"), "draft");
}

}  // namespace
}  // namespace headkv::test
