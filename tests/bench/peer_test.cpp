#include "bench/peer.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <fstream>

#include "bench/machine.h"
#include "support/random.h"
#include "support/tiny_model.h"

namespace headkv::test {
namespace {

TEST(RunProgram, GivesOutputAndStatus) {
    EXPECT_EQ(run_program({"/bin/echo", "two words", "$HOME"}).value(), "two words $HOME\n");
    EXPECT_EQ(run_program({"/bin/true"}).value(), "");
    const auto failed = run_program({"/bin/false"});
    ASSERT_FALSE(failed);
    EXPECT_NE(failed.error().message.find("status 1"), std::string::npos);
    EXPECT_FALSE(run_program({"/nowhere/at/all"}));
}

class FakePeer : public testing::Test {
protected:
    std::string script(const std::string& name, const std::string& body) {
        const auto file = folder / name;
        std::ofstream(file) << "#!/bin/sh\n" << body;
        ::chmod(file.c_str(), 0755);
        return file.string();
    }
    TempFolder folder;
};

TEST_F(FakePeer, ReadsWhatLlamaBenchPrints) {
    const auto program = script("llama-bench", R"(case "$*" in
*--help*) echo "usage: --n-gen <n>" ;;
*"-n 0 -p 40"*) echo '[{"n_prompt": 40, "n_gen": 0, "n_depth": 0, "avg_ts": 80.5}]' ;;
*"-p 0 -n 7 -d 0,40"*) echo '[{"n_prompt": 0, "n_gen": 7, "n_depth": 0, "avg_ts": 9},'
   echo '{"n_prompt": 0, "n_gen": 7, "n_depth": 40, "avg_ts": 3}]' ;;
*) exit 9 ;;
esac)");
    script("llama-batched-bench", R"(case "$*" in
*"-npp 40 -ntg 7 -npl 4"*) echo noise; echo '{"pp": 40, "speed_pp": 50, "speed_tg": 12}' ;;
*"-npp 1 -ntg 7 -npl 4"*) echo '{"pp": 1, "speed_pp": 50, "speed_tg": 30}' ;;
*) exit 9 ;;
esac)");
    auto peer = LlamaBench::create({program, "m.gguf", 2, 7});
    ASSERT_TRUE(peer) << peer.error().message;
    for (int round = 0; round < 2; ++round) {
        const auto done = peer->round({0, 40}, {1, 4});
        ASSERT_TRUE(done) << done.error().message;
    }
    const auto& speeds = peer->speeds();
    ASSERT_EQ(speeds.size(), 4U);
    EXPECT_EQ(speeds.at({0, 1}).decode, (std::vector<double>{9, 9}));
    EXPECT_TRUE(speeds.at({0, 1}).prefill.empty());
    EXPECT_EQ(speeds.at({40, 1}).prefill, (std::vector<double>{80.5, 80.5}));
    EXPECT_EQ(speeds.at({40, 1}).decode, (std::vector<double>{3, 3}));
    EXPECT_EQ(speeds.at({40, 4}).decode, (std::vector<double>{12, 12}));
    EXPECT_TRUE(speeds.at({0, 4}).prefill.empty());
}

TEST_F(FakePeer, OtherProgramsAreRefused) {
    for (const std::string& program :
         {std::string("/bin/true"), std::string("/nowhere"), folder.path().string()}) {
        const auto peer = LlamaBench::create({program, "m.gguf", 2, 7});
        ASSERT_FALSE(peer) << program;
        EXPECT_EQ(peer.error().kind, ErrorKind::bad_input);
    }
    const auto odd =
        script("llama-bench", "case \"$*\" in *--help*) echo --n-gen ;; *) echo {;; esac");
    auto peer = LlamaBench::create({odd, "m.gguf", 2, 7});
    ASSERT_TRUE(peer);
    EXPECT_FALSE(peer->round({0}, {1}));
}

TEST(RunProgram, EndsWhenItIsStopped) {
    const auto start = std::chrono::steady_clock::now();
    const auto output = run_program({"/bin/sleep", "60"}, [] { return true; });
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    ASSERT_FALSE(output);
    EXPECT_EQ(output.error().kind, ErrorKind::interrupted);
    EXPECT_EQ(run_program({"/bin/echo", "done"}, [] { return false; }).value(), "done\n");
}

TEST(Machine, IsMeasured) {
    const MachineSpeed speed = measure_machine(1);
    EXPECT_GT(speed.copy_gb_s, 0.1);
    EXPECT_GT(speed.read_gb_s, 0.1);
    EXPECT_GE(speed.f32_gflop_s, 0);
}

}  // namespace
}  // namespace headkv::test
