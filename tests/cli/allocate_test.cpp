// --allocate: a method's scores with another way to share rows, of all methods or of one.
#include "cli/program.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;

class Allocate : public Program {
protected:
    Ran written(const std::string& method, const Arguments& more = {}) const {
        std::string text;
        for (int i = 0; i < 100; ++i) text += std::to_string(i) + " ";
        Arguments arguments = {"-p", text,       "-n",   "1",      "--rows",
                               "40", "--method", method, "--json", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    }
    static std::int64_t bytes_of(const Ran& ran) {
        expect_done(ran);
        return Json::parse(ran.out)["kv"]["bytes"].get<std::int64_t>();
    }
};

TEST_F(Allocate, SpendsTheBudgetExactly) {
    constexpr std::int64_t kBytes = 3 * 2 * 40 * (16 + 16) * 2;
    for (const char* method : {"snapkv:allocate=adaptive", "h2o:allocate=pyramid",
                               "kvzip:allocate=uniform", "expected-attention:allocate=adaptive",
                               "chunkkv:allocate=global", "criticalkv:allocate=adaptive"}) {
        EXPECT_EQ(bytes_of(written(method)), kBytes) << method;
    }
    EXPECT_EQ(bytes_of(written("snapkv", {"--allocate", "global"})), kBytes);
}

TEST_F(Allocate, BringsItsOptionsWhereverItStands) {
    expect_done(written("snapkv:floor=0.1:allocate=adaptive"));
    expect_refused(written("snapkv:floor=0.1"), "no option floor");
    expect_refused(written("ada-kv:allocate=uniform:floor=0.1"), "no option floor");
}

TEST_F(Allocate, SaysWhyItCannotBe) {
    expect_refused(written("tova:allocate=adaptive"), "same scores");
    expect_refused(written("h2o:allocate=global"), "know its rows");
    expect_refused(written("streaming-llm:allocate=adaptive"), "no scores");
    expect_refused(written("knorm", {"--allocate", "global"}), "one head only");
    expect_refused(written("snapkv:allocate=evenly"), "uniform, pyramid, adaptive");
    expect_refused(written("full:allocate=uniform"), "no option allocate");
    // No scores of this model are anywhere.
    expect_refused(written("h2o:allocate=head-importance"), "calibrate");
}

TEST_F(Allocate, MethodsListWhatIsPossibleAndResultsKeepIt) {
    const Ran page = call({"methods", "h2o"});
    expect_done(page);
    EXPECT_NE(page.out.find("allocate may be uniform, pyramid, adaptive, head-importance\n"),
              std::string::npos)
        << page.out;
    const auto niah = [&](const Arguments& more) {
        Arguments arguments = {"eval",       "niah",      "-m",  model(),     "--raw", "-o",
                               path("niah"), "--lengths", "300", "--limit",   "1",     "-n",
                               "1",          "--rows",    "24",  "--methods", "snapkv"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    };
    expect_done(niah({}));
    // The method's own way, said, is the same run; another is another.
    const Ran same = niah({"--allocate", "uniform"});
    expect_done(same);
    EXPECT_EQ(same.err.find("begun anew"), std::string::npos) << same.err;
    const Ran other = niah({"--allocate", "adaptive"});
    expect_done(other);
    EXPECT_NE(other.err.find("begun anew"), std::string::npos) << other.err;
}

}  // namespace
}  // namespace headkv::test
