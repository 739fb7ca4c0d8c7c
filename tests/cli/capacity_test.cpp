// `headkv plan --model`, and work that is refused because it cannot fit into a device's memory.
#include <fmt/format.h>

#include <cmath>

#include "cli/program.h"
#include "headkv/method.h"
#include "support/header_only.h"

namespace headkv::test {
namespace {

using Json = nlohmann::json;

class CapacityPlan : public Program {
protected:
    Ran plan(Arguments more) const {
        Arguments arguments = {"plan", "--model", model()};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    }
    Json json_of(Arguments more) const {
        more.insert(more.end(), {"--json", "-"});
        const Ran ran = plan(more);
        expect_done(ran);
        return ran.code == 0 ? Json::parse(ran.out) : Json();
    }
    static Json method_of(const Json& json, const std::string& name) {
        for (const Json& method : json["methods"]) {
            if (method["title"] == name) return method;
        }
        ADD_FAILURE() << name << " is missing";
        return {};
    }
};

TEST_F(CapacityPlan, EveryMethodHasFiguresThatAddUp) {
    const Json json = json_of({"--device-memory", "2GiB", "--prompt", "1k", "--rows", "256",
                               "--slots", "7", "--bandwidth", "1TB/s", "--new-tokens", "64"});
    EXPECT_EQ(json["prompt_tokens"], 1024);
    EXPECT_EQ(json["device"]["memory_bytes"], std::int64_t{2} << 30);
    EXPECT_EQ(json["device"]["bandwidth"], 1e12);
    EXPECT_GT(json["prefill_tok_s"], 0);
    ASSERT_EQ(json["methods"].size(), recipes().size());
    for (const char* name : {"full", "streaming-llm", "snapkv", "pyramidkv", "ada-kv"}) {
        SCOPED_TRACE(name);
        const Json method = method_of(json, name);
        const std::int64_t rows = std::string(name) == "full" ? 1024 : 256;
        EXPECT_EQ(method["rows_mean"], rows);
        EXPECT_EQ(method["kv_bytes"], 3 * 2 * rows * (16 + 16) * 2);
        // Whole blocks of 256 with a reserve of 128; caches of their own: no blocks between heads.
        const std::int64_t spare = std::string(name) == "ada-kv" ? 128 + 256 : 2 * 256;
        EXPECT_EQ(method["kv_bytes_allocated"], 3 * (2 * rows + spare) * (16 + 16) * 2);
        EXPECT_GT(method["sequences"], 7);
        std::int64_t sum = 0;
        for (const auto& part : method["memory"]) sum += part.get<std::int64_t>();
        EXPECT_LE(sum, std::int64_t{2} << 30);
        ASSERT_EQ(method["points"].size(), 3U);
        EXPECT_EQ(method["points"][0]["sequences"], 1);
        EXPECT_EQ(method["points"][1]["sequences"], 7);
        EXPECT_EQ(method["points"][2]["sequences"], method["sequences"]);
        EXPECT_EQ(method["points"][2]["memory_bytes"], sum);
        for (const Json& point : method["points"]) {
            EXPECT_TRUE(point["fits"]);
            double ms = 0;
            for (const char* part : {"weights", "rows", "products", "launches"}) {
                ms += point["step_ms_" + std::string(part)].get<double>();
            }
            EXPECT_NEAR(point["step_ms"].get<double>(), ms, 1e-9);
            EXPECT_NEAR(point["decode_tok_s"].get<double>(),
                        point["sequences"].get<double>() * 1e3 / ms, 1e-6);
        }
    }
    // No head scores of this model are anywhere.
    const Json without = method_of(json, "headkv-r2");
    EXPECT_NE(without["missing"].get<std::string>().find("headkv calibrate"), std::string::npos);
    EXPECT_FALSE(without.contains("points"));
    // Its score needs keys, which stay on a device.
    const Json keys = method_of(json, "knorm");
    EXPECT_NE(keys["missing"].get<std::string>().find("--device cpu"), std::string::npos);
}

TEST_F(CapacityPlan, QuantisedRowsAndFewerRowsHoldMore) {
    const Arguments common = {"--device-memory", "2GiB", "--prompt", "4k", "--methods"};
    const auto held = [&](const std::string& method, const Arguments& more) {
        Arguments arguments = common;
        arguments.push_back(method);
        arguments.insert(arguments.end(), more.begin(), more.end());
        return json_of(arguments)["methods"][0]["sequences"].get<std::int64_t>();
    };
    const auto rows = held("snapkv", {"--rows", "512"});
    EXPECT_GT(rows, held("full", {}));
    EXPECT_GT(rows, held("snapkv", {"--rows", "1024"}));
    EXPECT_GT(held("snapkv:reserve=1", {"--rows", "700"}),
              held("snapkv:reserve=600", {"--rows", "700"}));
    // 16 values a head are no whole block of a quantised row.
    expect_refused(plan({"--prompt", "4k", "--methods", "snapkv", "--kv-type", "q8_0"}), "store");
}

TEST_F(CapacityPlan, ShowsTablesForPeople) {
    const Ran ran = plan({"--device-memory", "2GiB", "--prompt", "1k", "--rows", "256", "--methods",
                          "full,snapkv", "--gpus", "100"});
    expect_done(ran);
    for (const char* word : {"rows/head", "allocated", "tok/s in total", "100 such GPUs"}) {
        EXPECT_NE(ran.out.find(word), std::string::npos) << word;
    }
    // Nothing fits: said, and how much is missing.
    const Ran none = plan({"--device-memory", "64MiB", "--prompt", "1k", "--methods", "full"});
    expect_done(none);
    EXPECT_NE(none.out.find("nothing fits"), std::string::npos) << none.out;
    // A prompt beyond the context is planned all the same.
    const Ran beyond = plan({"--prompt", "64k", "--methods", "full"});
    expect_done(beyond);
    EXPECT_NE(beyond.err.find("more than the model's context of 2048"), std::string::npos);
}

TEST_F(CapacityPlan, NeedsNoWeights) {
    write_header_only("llama-3-8b", 32000, 140000, folder / "header.gguf");
    const Ran ran = call({"plan", "--model", path("header.gguf"), "--prompt", "32k", "--rows",
                          "1024", "--methods", "full,snapkv", "--json", "-"});
    expect_done(ran);
    const Json json = Json::parse(ran.out);
    EXPECT_EQ(method_of(json, "full")["sequences"], 17);
    EXPECT_GT(method_of(json, "snapkv")["sequences"], 256);
}

// A GPU that is too small: what lies where when the CPU has some layers, or another GPU.
TEST_F(CapacityPlan, PlacesLayers) {
    write_header_only("llama-3-8b", 32000, 140000, folder / "header.gguf");
    const auto planned = [&](const Arguments& more) {
        Arguments arguments = {
            "plan", "--model",   path("header.gguf"), "--prompt",        "32k", "--rows",
            "1024", "--methods", "full,snapkv",       "--device-memory", "8GiB"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    };
    const Ran none = planned({"--json", "-"});
    expect_done(none);
    const Json too_much = Json::parse(none.out);
    const auto full = method_of(too_much, "full"), snapkv = method_of(too_much, "snapkv");
    EXPECT_EQ(full["sequences"], 0);
    const auto layers = snapkv["gpu_layers_that_fit"].get<int>();
    EXPECT_GT(layers, full["gpu_layers_that_fit"].get<int>());
    EXPECT_LT(layers, 32);
    EXPECT_NE(planned({}).out.find(fmt::format("--gpu-layers {} fits", layers)), std::string::npos);

    const Ran half = planned({"--gpu-layers", std::to_string(layers), "--json", "-"});
    expect_done(half);
    const Json fits = method_of(Json::parse(half.out), "snapkv");
    EXPECT_GE(fits["sequences"], 1);
    ASSERT_EQ(fits["placement"].size(), 2U);
    EXPECT_EQ(fits["placement"][0]["device"], "cpu");
    EXPECT_EQ(fits["placement"][1]["layers"], layers);
    EXPECT_FALSE(fits["points"][0].contains("step_ms")) << "what a CPU reaches is not known";
    std::int64_t kv = 0;
    for (const auto& place : fits["placement"]) kv += place["kv_bytes"].get<std::int64_t>();
    EXPECT_EQ(kv, fits["kv_bytes"]);

    const Ran two = planned({"--gpu-split", "1,1"});
    expect_done(two);
    for (const char* word : {"gpu0", "0 to 15", "gpu1", "16 to 31", "a cache of snapkv", "tok/s"}) {
        EXPECT_NE(two.out.find(word), std::string::npos) << word << "\n" << two.out;
    }
    expect_refused(planned({"--gpu-split", "1,0"}), "a share of 0");
    expect_refused(planned({"--gpu-layers", "0"}), "nothing lies on a GPU");
}

TEST_F(CapacityPlan, RefusesBadInput) {
    const auto refused = [&](const Arguments& more, const std::string& says) {
        SCOPED_TRACE(says);
        expect_refused(plan(more), says);
    };
    refused({}, "Give --prompt TOKENS");
    refused({"--prompt", "0"}, "no count");
    refused({"--prompt", "3q"}, "no count");
    refused({"--prompt", "1k", "--device-memory", "80XB"}, "--device-memory: \"80XB\" is no size");
    refused({"--prompt", "1k", "--device-memory", "1e18"}, "no GPU has so much");
    refused({"--prompt", "1k", "--device-memory", "12"}, "no GPU has so much");
    refused({"--prompt", "1k", "--gpu", "b300"}, "not measured; there are h100, h200");
    refused({"--prompt", "1k", "--bandwidth", "3 miles"}, "no memory bandwidth");
    refused({"--prompt", "1k", "--bandwidth", "0GB/s"}, "no memory bandwidth");
    refused({"--prompt", "1k", "--rows", "0"}, "--rows 0 is no number of rows");
    refused({"--prompt", "1k", "--rows", "8", "--methods", "snapkv"}, "at least 16 rows");
    refused({"--prompt", "1M", "--rows", "1e6"}, "at most 131072 rows");
    refused({"--prompt", "1k", "--slots", "0"}, "--slots");
    refused({"--prompt", "1k", "--methods", "snapkw"}, "did you mean 'snapkv'");
    refused({"--prompt", "1k", "--methods", "headkv-r2"}, "headkv calibrate");
    refused({"--prompt", "1k", "--kv-type", "q3"}, "q8_0");
    refused({"--prompt", "1k", "--grain", "query"}, "leave out");
    refused({"--prompt", "1k", "--prompt-tokens", "5"}, "given twice");
    expect_refused(call({"plan", "--model", path("doc.txt"), "--prompt", "1k"}), "not a GGUF");
    expect_refused(call({"plan", "--model", path("nothing"), "--prompt", "1k"}), "cannot open");
    expect_refused(
        call({"plan", "--method", "uniform", "--layers", "2", "--kv-heads", "2", "--prompt", "1k"}),
        "with --model");
}

// --- what cannot fit

class DeviceMemoryOption : public Program {};

TEST_F(DeviceMemoryOption, RunMeasuresAndRefuses) {
    const Arguments common = {"-f", path("doc.txt"), "-n",      "2",  "--method", "full", "--json",
                              "-",  "--stock-ops",   "--chunk", "256"};
    const auto with = [&](const std::string& memory) {
        Arguments arguments = common;
        if (!memory.empty()) arguments.insert(arguments.end(), {"--device-memory", memory});
        return run(arguments);
    };
    const Ran free = with("");
    expect_done(free);
    const Json json = Json::parse(free.out);
    const auto peak = json["memory"]["device_peak_bytes"].get<std::int64_t>();
    EXPECT_GT(peak, json["memory"]["weight_bytes"].get<std::int64_t>() +
                        json["kv"]["bytes_allocated"].get<std::int64_t>() +
                        json["kv"]["bytes_peak_prefill"].get<std::int64_t>() - 1);
    EXPECT_GT(json["kv"]["bytes_allocated"], json["kv"]["bytes"]);

    expect_done(with(std::to_string(peak * 3 / 2)));
    // Before the weights are read where they do not fit, else when the prompt is known.
    expect_refused(with("10K"), "the weights take");
    const auto weights = json["memory"]["weight_bytes"].get<std::int64_t>();
    expect_refused(with(std::to_string((weights + peak) / 2)), "not enough memory on cpu");
    expect_refused(with("many"), "no size");
    // Nothing limits the CPU's own kernels.
    const Ran own =
        run({"-f", path("doc.txt"), "-n", "1", "--method", "full", "--device-memory", "1GiB"});
    expect_done(own);
    EXPECT_NE(own.err.find("--device-memory is for --device cuda"), std::string::npos) << own.err;
}

// The rest of the layers on the CPU; here the GPU is the CPU as well.
TEST_F(DeviceMemoryOption, FewerLayersFit) {
    const auto with = [&](const Arguments& more) {
        Arguments arguments = {"-f",      path("doc.txt"), "-n",     "4", "--method",    "full",
                               "--chunk", "256",           "--json", "-", "--stock-ops", "-t",
                               "1"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    };
    const Ran all = with({});
    expect_done(all);
    const Json one = Json::parse(all.out);
    ASSERT_EQ(one["placement"].size(), 1U);
    EXPECT_EQ(one["placement"][0]["layers"], 3);
    EXPECT_EQ(one["placement"][0]["kv_bytes"], one["kv"]["bytes"]);

    const Ran some = with({"--gpu-layers", "2"});
    expect_done(some);
    const Json json = Json::parse(some.out);
    EXPECT_EQ(json["token_ids"], one["token_ids"]);
    const Json& places = json["placement"];
    ASSERT_EQ(places.size(), 2U);
    EXPECT_EQ(places[0]["layers"], 1);
    EXPECT_EQ(places[1]["first_layer"], 1);
    EXPECT_EQ(places[1]["layers"], 2);
    EXPECT_EQ(places[0]["kv_bytes"].get<std::int64_t>() + places[1]["kv_bytes"].get<std::int64_t>(),
              json["kv"]["bytes"].get<std::int64_t>());
    EXPECT_NE(some.err.find("placed   cpu: embedding, layers 0 to 0"), std::string::npos)
        << some.err;

    const Ran split = with({"--device", "cpu,cpu,cpu"});
    expect_done(split);
    EXPECT_EQ(Json::parse(split.out)["token_ids"], one["token_ids"]);
    EXPECT_EQ(Json::parse(split.out)["placement"].size(), 3U);

    const auto peak = one["memory"]["device_peak_bytes"].get<std::int64_t>();
    const Ran refused = with({"--device-memory", std::to_string(peak * 3 / 4)});
    expect_refused(refused, "--gpu-layers ");
    expect_refused(with({"--device", "cpu,abacus"}), "--device abacus: unknown");
    expect_refused(with({"--device", "cpu,cpu", "--gpu-split", "1"}), "1 shares for 2 GPUs");
    expect_refused(with({"--device", "cpu,cpu", "--gpu-layers", "1"}), "1 layers on 2 GPUs");
    expect_refused(run({"-f", path("doc.txt"), "--gpu-layers", "1"}), "give --device cuda");
    expect_refused(run({"-f", path("doc.txt"), "--gpu-layers", "-1"}), "--gpu-layers");
}

TEST_F(DeviceMemoryOption, BenchRefusesBeforeItLoads) {
    // All header: loading it would take 8 GB, and its vocabulary is made up.
    write_header_only("llama-3-8b", 32000, 140000, folder / "header.gguf");
    const auto bench = [&](const Arguments& more) {
        Arguments arguments = {"bench",       "-m",        path("header.gguf"),
                               "--stock-ops", "--methods", "snapkv",
                               "--rows",      "1024"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    };
    const Ran slots =
        bench({"--depth", "512,32768", "--slots", "1,512", "--device-memory", "78GiB"});
    expect_refused(slots, "caches of 512 x 32768 tokens (snapkv)");
    EXPECT_NE(slots.err.find("at a time fit (--slots "), std::string::npos) << slots.err;
    expect_refused(bench({"--depth", "131072", "--device-memory", "9GiB"}), "a prompt of ");
    expect_refused(bench({"--depth", "1", "--device-memory", "1GiB"}), "the weights take 7.2 GiB");
}

TEST_F(DeviceMemoryOption, BenchSaysThePeak) {
    const Ran ran =
        call({"bench", "-m", model(), "-t", "1", "--stock-ops", "--depth", "40", "--methods",
              "full,snapkv", "--rows", "32", "-n", "2", "--repeat", "1", "--json", "-"});
    expect_done(ran);
    const Json report = Json::parse(ran.out);
    for (const Json& result : report["results"]) {
        EXPECT_GT(result["device_peak_bytes"], result["kv_bytes_allocated"]);
    }
}

TEST_F(DeviceMemoryOption, EvalRefuses) {
    write_file(folder / "q.jsonl",
               R"({"context": "The key is blue.", "question": "Which?", "answers": ["blue"]})"
               "\n");
    const Ran ran =
        call({"eval", "generate", "-m", model(), "--raw", "--data", path("q.jsonl"), "--methods",
              "full", "-o", path("OUT"), "--stock-ops", "--device-memory", "10K"});
    expect_refused(ran, "the weights take");
}

}  // namespace
}  // namespace headkv::test
