#include <cmath>

#include "cli/program.h"
#include "headkv/engine.h"
#include "headkv/model.h"
#include "support/random.h"

namespace headkv::test {
namespace {

class MakeModel : public Program {
protected:
    Ran make(Arguments more) const {
        more.insert(more.begin(), "make-model");
        return call(more);
    }

    // A named shape, cut to sizes that a test can wait for.
    Ran make_small(const std::string& shape, Arguments more) const {
        Arguments arguments = {"--shape",      shape, "--embedding", "128", "--heads",    "4",
                               "--kv-heads",   "2",   "--ffn",       "256", "--head-dim", "32",
                               "--vocabulary", "700"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return make(arguments);
    }

    struct Logits {
        std::vector<float> prompt, decoded;
    };

    // After a prompt, and after one more token.
    Logits logits(const std::string& name, const std::vector<Token>& prompt) const {
        const auto model = Model::load(path(name), {.device = "cpu", .threads = 2});
        EXPECT_TRUE(model) << model.error().message;
        auto engine = Engine::create(*model);
        EXPECT_TRUE(engine) << engine.error().message;
        MethodConfig config;
        config.method = "full";
        auto read = (*engine)->prefill(prompt, {&config, 1});
        EXPECT_TRUE(read) << read.error().message;
        const DecodeInput input{read->sequences[0], 300};
        EXPECT_TRUE((*engine)->decode({&input, 1}));
        const auto decoded = (*engine)->logits(0);
        return {read->logits, {decoded.begin(), decoded.end()}};
    }

    static void expect_sane(const std::vector<float>& logits) {
        ASSERT_EQ(logits.size(), 700U);
        double sum = 0, squares = 0;
        for (const float value : logits) {
            ASSERT_TRUE(std::isfinite(value));
            sum += static_cast<double>(value);
            squares += static_cast<double>(value) * static_cast<double>(value);
        }
        const double count = static_cast<double>(logits.size()), mean = sum / count;
        const double deviation = std::sqrt(squares / count - mean * mean);
        EXPECT_GT(deviation, 0.5);
        EXPECT_LT(deviation, 5);
    }

    static double correlation(const std::vector<float>& a, const std::vector<float>& b) {
        double ab = 0, aa = 0, bb = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            const auto x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
            ab += x * y;
            aa += x * x;
            bb += y * y;
        }
        return ab / std::sqrt(aa * bb);
    }
};

TEST_F(MakeModel, ComputesThroughAllLayersOfEveryFamily) {
    for (const char* shape : {"llama-3-70b", "qwen2.5-7b", "qwen3-8b", "smollm2-135m"}) {
        SCOPED_TRACE(shape);
        expect_done(make_small(shape, {"-o", path("m.gguf"), "--force"}));
        auto prompt = random_tokens(200, 3, 600);
        const Logits first = logits("m.gguf", prompt);
        expect_sane(first.prompt);
        expect_sane(first.decoded);
        // The last token counts, and so does one long before it.
        prompt.back() = (prompt.back() + 1) % 600;
        const Logits other = logits("m.gguf", prompt);
        EXPECT_LT(correlation(first.prompt, other.prompt), 0.9);
        prompt.back() = random_tokens(200, 3, 600).back();
        prompt[100] = (prompt[100] + 1) % 600;
        EXPECT_LT(correlation(first.prompt, logits("m.gguf", prompt).prompt), 1 - 1e-7);
    }
}

TEST_F(MakeModel, TheProgramTakesWhatItMade) {
    for (const char* type : {"f32", "F16", "q8_0", "q4_0", "q4_K"}) {
        SCOPED_TRACE(type);
        const Ran made =
            make({"--layers", "2", "--embedding", "256", "--heads", "4", "--kv-heads", "2", "--ffn",
                  "256", "--vocabulary", "800", "--type", type, "-o", path("m.gguf"), "--force"});
        expect_done(made);
        EXPECT_EQ(made.err, "");
        const auto size = std::filesystem::file_size(folder / "m.gguf");
        EXPECT_NE(made.out.find(std::to_string(size) + " bytes"), std::string::npos) << made.out;
        // 2 layers x 2 heads x 64 values of K and V, 2 bytes each
        EXPECT_NE(made.out.find("1024 bytes per token"), std::string::npos) << made.out;
        const Ran ran = call({"run", "-m", path("m.gguf"), "-f", path("doc.txt"), "-q", "where?",
                              "--method", "snapkv", "--rows", "24", "-n", "5", "--json", "-"});
        expect_done(ran);
        EXPECT_GT(nlohmann::json::parse(ran.out)["prompt_tokens"], 30);
    }
    expect_done(call({"bench", "-m", path("m.gguf"), "--depth", "0,64", "--methods", "full"}));
}

TEST_F(MakeModel, PrintsItsTable) {
    const Ran plain = make({});
    expect_done(plain);
    for (const char* name :
         {"llama-3-8b", "llama-3-70b", "llama-2-7b", "mistral-7b", "qwen2.5-0.5b", "qwen2.5-1.5b",
          "qwen2.5-7b", "qwen3-8b", "smollm2-135m", "tinyllama-1.1b"}) {
        EXPECT_NE(plain.out.find(name), std::string::npos) << name;
    }
    EXPECT_EQ(make({"--shape", "list"}).out, plain.out);
    const Ran help = make({"--help"});
    expect_done(help);
    EXPECT_NE(help.out.find("Example"), std::string::npos);
    EXPECT_NE(call({"--help"}).out.find("make-model"), std::string::npos);
}

TEST_F(MakeModel, SameSeedSameFile) {
    const auto bytes = [&](Arguments more) {
        more.insert(more.end(), {"--layers", "2", "-o", path("m.gguf"), "--force"});
        expect_done(make_small("qwen3-8b", more));
        return read_file(folder / "m.gguf");
    };
    const std::string one = bytes({"-t", "1"});
    EXPECT_TRUE(bytes({"-t", "3"}) == one);
    EXPECT_TRUE(bytes({"--seed", "1"}) == one);
    EXPECT_FALSE(bytes({"--seed", "2"}) == one);
}

TEST_F(MakeModel, BadInput) {
    const auto before = files();
    const std::string out = path("m.gguf");
    const auto small = [&](Arguments more) {
        more.insert(more.end(), {"-o", out});
        return make_small("smollm2-135m", more);
    };
    expect_refused(make({"--shape", "lama-3-8b", "-o", out}), "did you mean 'llama-3-8b'?");
    expect_refused(make({"--shape", "Qwen2.5-1.5B", "-o", out}), "did you mean 'qwen2.5-1.5b'?");
    expect_refused(make({"--shape", std::string(100000, 'x'), "-o", out}), "unknown shape");
    expect_refused(make({"--shape", "smollm2-135m"}), "give -o FILE");
    expect_refused(make({"-o", out}), "--shape");
    expect_refused(make({"--layers", "2", "-o", out}), "--embedding is missing");
    expect_refused(make({"--shape", "smollm2-135m", "--type", "q7", "-o", out}), "q8_0");
    expect_refused(make({"--shape", "smollm2-135m", "--type", "q4_K", "-o", out}),
                   "the embedding is 576");
    expect_refused(small({"--arch", "gpt2"}), "supported are: llama");
    expect_refused(small({"--seed", "one"}), "--seed");
    expect_refused(small({"--threads", "-1"}), "threads");
    expect_refused(make({"--shape", "smollm2-135m", "--kv-heads", "2", "-o", out}),
                   "9 query heads cannot share 2 KV heads");
    expect_refused(make({"--shape", "smollm2-135m", "--head-dim", "65", "-o", out}), "even");
    expect_refused(make({"--shape", "smollm2-135m", "--layers", "0", "-o", out}), "0 layers");
    expect_refused(make({"--shape", "smollm2-135m", "--layers", "99999999999999999999", "-o", out}),
                   "layers");
    expect_refused(
        make({"--layers", "2", "--embedding", "64", "--heads", "0", "--ffn", "64", "-o", out}),
        "0 query heads");
    expect_refused(make({"--shape", "llama-3-70b", "--layers", "1000", "--type", "f32", "-o", out}),
                   "GiB are free");
    EXPECT_EQ(files().size(), before.size() + 3);  // the program's own streams
    const auto named = [&](const std::string& file) {
        return make_small("smollm2-135m", {"-o", file});
    };
    expect_refused(named(path("no/such/m.gguf")), "cannot write");
    expect_refused(named(path("doc.txt/m.gguf")), "cannot write");
    expect_refused(named(folder.path().string()), "it is a folder");
    expect_refused(named("/dev/null"), "no regular file");
    expect_refused(named(path("doc.txt")), "--force");
    EXPECT_NE(read_file(folder / "doc.txt"), "");
}

TEST_F(MakeModel, ControlCLeavesNothingBehind) {
    const pid_t process = start({"make-model", "--shape", "smollm2-360m", "--layers", "600", "-o",
                                 path("m.gguf"), "-t", "1"});
    const auto writing = [&] {
        const auto names = files();
        return std::any_of(names.begin(), names.end(),
                           [](const auto& name) { return name.starts_with("m.gguf."); });
    };
    ASSERT_TRUE(wait_for(writing));
    kill(process, SIGINT);
    const Ran ran = finish(process, path("out"), path("err"));
    EXPECT_EQ(ran.code, 130) << ran.err;
    EXPECT_EQ(ran.out, "");
    EXPECT_FALSE(writing());
    EXPECT_FALSE(std::filesystem::exists(folder / "m.gguf"));
}

}  // namespace
}  // namespace headkv::test
