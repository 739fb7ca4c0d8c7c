// --kv-type: rows stored as f16, q8_0 or q4_0, of all methods or of one.
#include "cli/program.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;

class KvType : public Program {
protected:
    void SetUp() override {
        Program::SetUp();
        TinyModel wide;  // heads of 32 values; those of tiny.gguf have 16
        wide.embedding = 128;
        wide.head_dim = 32;
        write_tiny_model(wide, folder / "wide.gguf");
        std::string text;
        for (int i = 0; i < 60; ++i) text += "Line " + std::to_string(i) + " says something.\n";
        write_file(folder / "long.txt", text);
    }
    Ran wide(Arguments arguments, const std::string& command = "run") const {
        arguments.insert(arguments.begin(),
                         {command, "-m", path("wide.gguf"), "--raw", "-f", path("long.txt")});
        return call(arguments);
    }
    Json json_of(const Ran& ran) const {
        expect_done(ran);
        return Json::parse(ran.out);
    }
    static constexpr int kHeads = 3 * 2;
};

TEST_F(KvType, RunStoresAndReportsIt) {
    const struct {
        const char *type, *keys, *values;
        int row;
    } cases[] = {{"f16", "f16", "f16", 128},
                 {"q8_0", "q8_0", "q8_0", 68},
                 {"q4_0", "q4_0", "q4_0", 36},
                 {"q8_0:q4_0", "q8_0", "q4_0", 52},
                 {"f16:q8_0", "f16", "q8_0", 98}};
    for (const auto& [type, keys, values, row] : cases) {
        const Ran ran = wide(
            {"-n", "4", "--method", "snapkv", "--rows", "32", "--kv-type", type, "--json", "-"});
        const Json json = json_of(ran);
        EXPECT_EQ(json["kv"]["type_k"], keys);
        EXPECT_EQ(json["kv"]["type_v"], values);
        EXPECT_EQ(json["kv"]["rows_kept_mean"], 32);
        EXPECT_EQ(json["kv"]["bytes"], kHeads * 32 * row);
        EXPECT_EQ(json["kv"]["bytes_full"], kHeads * json["prompt_tokens"].get<int>() * 128);
        EXPECT_NE(ran.err.find(std::string(" in ") + type + ","), std::string::npos) << ran.err;
    }
}

TEST_F(KvType, ByteBudgetsFollowIt) {
    const auto rows = [&](const char* type) {
        return json_of(wide({"-n", "1", "--method", "snapkv", "--kv-bytes", "36K", "--kv-type",
                             type, "--json", "-"}))["kv"]["rows_kept_mean"]
            .get<double>();
    };
    EXPECT_NEAR(rows("q8_0") / rows("f16"), 32.0 / 17, 0.02);
    EXPECT_NEAR(rows("q4_0") / rows("f16"), 32.0 / 9, 0.02);
}

TEST_F(KvType, OnePrefillComparesThem) {
    const Ran ran =
        wide({"-n", "4", "--rows", "32", "--method", "full", "--compare",
              "full,snapkv,snapkv:kv-type=q8_0,full:kv-type=q8_0:q4_0", "--json", path("c.json")});
    expect_done(ran);
    const Json all = Json::parse(read_file(folder / "c.json"))["compare"];
    ASSERT_EQ(all.size(), 4U);
    const char* titles[] = {"full", "snapkv", "snapkv:kv-type=q8_0", "full:kv-type=q8_0:q4_0"};
    const char* types[] = {"f16", "f16", "q8_0", "q8_0"};
    for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(all[i]["title"], titles[i]);
        EXPECT_EQ(all[i]["kv"]["type_k"], types[i]);
        EXPECT_NE(ran.out.find(std::string("== ") + titles[i] + " ("), std::string::npos);
    }
    EXPECT_EQ(all[3]["method"], "full");
    EXPECT_EQ(all[3]["kv"]["type_v"], "q4_0");
    EXPECT_EQ(all[1]["kv"]["bytes"], kHeads * 32 * 128);
    EXPECT_EQ(all[2]["kv"]["bytes"], kHeads * 32 * 68);
    EXPECT_NE(ran.out.find("snapkv:kv-type=q8_0 against full: "), std::string::npos) << ran.out;
}

TEST_F(KvType, BenchAndInspectTakeIt) {
    const Ran bench = call({"bench", "-m", path("wide.gguf"), "--depth", "90", "--methods",
                            "full,full:kv-type=q8_0", "-n", "4", "--repeat", "1", "--json", "-"});
    const Json results = json_of(bench)["results"];
    ASSERT_EQ(results.size(), 2U);
    EXPECT_EQ(results[0]["kv_bytes"], kHeads * 90 * 128);
    EXPECT_EQ(results[1]["kv_bytes"], kHeads * 90 * 68);
    EXPECT_EQ(results[1]["kv_bytes_full"], results[0]["kv_bytes"]);
    EXPECT_EQ(results[1]["kv_type_v"], "q8_0");
    EXPECT_EQ(results[1]["title"], "full:kv-type=q8_0");
    const Json kept = json_of(wide(
        {"--method", "snapkv", "--rows", "40", "--kv-type", "q4_0", "--json", "-"}, "inspect"));
    EXPECT_EQ(kept["type_k"], "q4_0");
    EXPECT_EQ(kept["bytes"], kHeads * 40 * 36);
}

TEST_F(KvType, EvaluationsCompareThem) {
    const auto niah = [&](const std::string& methods) {
        return call({"eval", "niah", "-m", path("wide.gguf"), "--raw", "-o", path("niah"),
                     "--lengths", "300", "--limit", "2", "-n", "2", "--rows", "24", "--methods",
                     methods, "--json", "-"});
    };
    const Json json = json_of(niah("snapkv,snapkv:kv-type=q8_0:q4_0,full:kv-type=q8_0"));
    const Json& results = json["results"];
    ASSERT_EQ(results.size(), 4U);
    EXPECT_EQ(results[0]["method"], "full");
    EXPECT_EQ(results[0]["type_k"], "f16");
    EXPECT_EQ(results[2]["method"], "snapkv:kv-type=q8_0:q4_0");
    EXPECT_EQ(results[2]["type_k"], "q8_0");
    EXPECT_EQ(results[2]["type_v"], "q4_0");
    EXPECT_EQ(results[1]["kv_bytes"], kHeads * 24 * 128);
    EXPECT_EQ(results[2]["kv_bytes"], kHeads * 24 * 52);
    EXPECT_EQ(results[3]["rows"], 0);
    EXPECT_NEAR(results[3]["kv_bytes"].get<double>() / results[3]["kv_bytes_full"].get<double>(),
                17.0 / 32, 1e-9);
    // other types are another run
    const Ran other = niah("snapkv:kv-type=q4_0");
    expect_done(other);
    EXPECT_NE(other.err.find("begun anew"), std::string::npos);
    expect_refused(niah("snapkv:kv-type=q5_1"), "q5_1");
}

TEST_F(KvType, BadValuesAreOneLine) {
    for (const char* type : {"q5_0", "q8_0:", "f32", "", "q8_0:q4_0:f16"}) {
        expect_refused(wide({"-n", "1", "--method", "full", "--kv-type", type}), "--kv-type");
    }
    expect_refused(wide({"--method", "full", "--kv-type", "int8"}, "inspect"), "q8_0:q4_0");
    expect_refused(call({"bench", "-m", path("wide.gguf"), "--kv-type", "int8"}), "int8");
    expect_refused(wide({"-n", "1", "--method", "full:kv-type=int8"}), "int8");
    expect_refused(wide({"-n", "1", "--method", "full:kv=q8_0"}), "kv-type");
    // heads of 16 values
    const Ran narrow = run({"-p", "hello", "-n", "1", "--method", "full", "--kv-type", "q8_0"});
    expect_refused(narrow, "blocks of 32");
    EXPECT_NE(narrow.err.find("16"), std::string::npos);
    expect_done(run({"-p", "hello", "-n", "1", "--method", "full", "--kv-type", "f16"}));
}

TEST_F(KvType, CompletionKnowsIt) {
    for (const char* shell : {"bash", "zsh", "fish"}) {
        EXPECT_NE(call({"completion", shell}).out.find("kv-type"), std::string::npos) << shell;
    }
}

}  // namespace
}  // namespace headkv::test
