// An evaluation that is killed again and again ends with the results of one that never was.
#include <csignal>

#include "calibrate/random.h"
#include "cli/eval_program.h"

namespace headkv::test {
namespace {

class Killed : public Evaluations {
protected:
    // Examples that the log of a run holds; whole lines only.
    std::int64_t logged(const std::string& out) const {
        const std::string log = read_file(folder / out / "answers.jsonl");
        return std::max<std::int64_t>(std::count(log.begin(), log.end(), '\n') - 1, 0);
    }
};

TEST_F(Killed, AtTwentyRandomMoments) {
    constexpr int questions = 600, kills = 20;
    write_questions(questions, 3);
    const Arguments plain = {"--methods", "snapkv,streaming-llm", "--rows", "20"};
    const auto begin = std::chrono::steady_clock::now();
    expect_done(generate("whole", plain));
    const auto took = std::chrono::duration_cast<std::chrono::microseconds>(
        std::chrono::steady_clock::now() - begin);

    Random random(static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch() /
                                             std::chrono::nanoseconds(1)));
    std::int64_t before = 0, advanced = 0;
    int died = 0;
    for (int i = 0; i < kills; ++i) {
        // From before the model is read to a tenth of the whole run, so that all of them strike.
        const auto wait =
            std::chrono::microseconds(random.below(static_cast<std::size_t>(took.count()) / 10));
        const pid_t process = start(generate_command("killed", plain));
        std::this_thread::sleep_for(wait);
        ::kill(process, SIGKILL);
        const Ran ran = finish(process, path("out"), path("err"));
        died += ran.code == 128 + SIGKILL ? 1 : 0;
        const std::int64_t now = logged("killed");
        EXPECT_GE(now, before) << "a finished example was lost";
        advanced += now > before ? 1 : 0;
        before = now;
    }
    RecordProperty("killed", died);
    EXPECT_GE(died, kills / 2);
    EXPECT_GE(advanced, 2) << "no run came far enough to be worth killing";
    const Ran last = generate("killed", plain);
    expect_done(last);
    EXPECT_EQ(last.err.find("begun anew"), std::string::npos);
    expect_same_results("whole", "killed");

    // Other settings are another run: begun anew, and said.
    const Ran anew = generate("killed", {"--methods", "snapkv,streaming-llm", "--rows", "24"});
    expect_done(anew);
    EXPECT_NE(anew.err.find("begun anew"), std::string::npos);
}

TEST_F(Killed, ByControlCAndGoesOn) {
    write_questions(200, 1);
    const Arguments plain = {"--methods", "snapkv", "--rows", "20"};
    const pid_t process = start(generate_command("stopped", plain));
    ASSERT_TRUE(wait_for([&] { return logged("stopped") >= 3; }));
    ::kill(process, SIGINT);
    const Ran ran = finish(process, path("out"), path("err"));
    EXPECT_EQ(ran.code, 130) << ran.err;
    EXPECT_NE(ran.err.find("the same command goes on"), std::string::npos) << ran.err;
    const std::int64_t left = logged("stopped");
    EXPECT_LT(left, 200);
    expect_done(generate("stopped", plain));
    EXPECT_EQ(logged("stopped"), 200);
    expect_done(generate("whole", plain));
    expect_same_results("whole", "stopped");
}

}  // namespace
}  // namespace headkv::test
