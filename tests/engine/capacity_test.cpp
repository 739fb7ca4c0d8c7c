// What a device's memory must hold and what a step costs: the estimates beside the allocations of
// the engine itself, and beside what was measured on an H100 (docs/performance.md).
#include "engine/capacity.h"

#include "engine/fixture.h"
#include "engine/head_places.h"
#include "support/header_only.h"

namespace headkv::test {
namespace {

double ratio(std::int64_t ours, std::int64_t right) {
    return static_cast<double>(ours) / static_cast<double>(right);
}

// --- beside the engine

class CapacityOfEngine : public testing::TestWithParam<std::string> {
protected:
    CapacityOfEngine() {
        TinyModel tiny;
        tiny.embedding = 128;
        tiny.query_heads = 8;
        tiny.kv_heads = 4;
        tiny.head_dim = 64;
        write_tiny_model(tiny, folder / "tiny.gguf");
        model = load_model(folder / "tiny.gguf");
    }
    std::unique_ptr<Engine> engine(std::int64_t slots, std::int64_t memory = 0) const {
        auto made = Engine::create(
            model,
            {.chunk = 256, .slots = slots, .stock_operations = true, .device_memory = memory});
        EXPECT_TRUE(made);
        return made ? std::move(*made) : nullptr;
    }
    static DeviceLoad load(const MethodConfig& config, std::int64_t prompt, std::int64_t slots) {
        return {.methods = {config},
                .prompt = prompt,
                .sequences = slots,
                .new_tokens = 16,
                .chunk = 256};
    }

    TempFolder folder;
    std::shared_ptr<const Model> model;
};

TEST_P(CapacityOfEngine, EstimatesWhatIsAllocated) {
    constexpr std::int64_t slots = 3;
    for (const std::int64_t length : {20, 700, 1500}) {
        SCOPED_TRACE(length);
        const auto config = method_config(GetParam(), 300, model->info().shape);
        const auto device = engine(slots);
        const auto prompt = random_tokens(length, 5);
        auto read =
            device->prefill(prompt, {&config, 1}, {.progress = {}, .expected_new_tokens = 16});
        ASSERT_TRUE(read) << read.error().message;
        const auto info = device->info(read->sequences[0]);

        const auto use = sequence_use(model->info(), config, length, 16, slots);
        ASSERT_TRUE(use) << use.error().message;
        EXPECT_EQ(use->plan_bytes, info.plan_bytes);
        EXPECT_EQ(use->rows_mean, info.rows_kept_mean);
        if (use->shared) {
            EXPECT_EQ(use->allocated_bytes, info.allocated_bytes);
        } else {  // how many blocks a layer's window has follows the prompt
            const auto blocks = model->info().shape.layers * kRowBlock * use->row_bytes;
            EXPECT_LE(use->allocated_bytes, info.allocated_bytes + blocks);
            EXPECT_LE(info.allocated_bytes, use->allocated_bytes * 33 / 32 + blocks);
        }
        const auto asked = load(config, length, slots);
        const auto memory = memory_use(model->info(), asked, {&*use, 1});
        // ggml places intermediate results with gaps and in whole alignments.
        EXPECT_NEAR(ratio(memory.prefill, read->scratch_bytes), 1, 0.06);

        std::vector<SequenceId> ids = read->sequences;
        while (std::ssize(ids) < slots) ids.push_back(*device->copy(ids[0]));
        std::vector<DecodeInput> inputs;
        for (const auto id : ids) inputs.push_back({.sequence = id, .token = 65});
        ASSERT_TRUE(device->decode(inputs));
        const auto peak = device->device_peak_bytes();
        // The estimate has the reading of a prompt, a step and all caches at the same time. Here
        // caches that are not shared are made when the prompt's memory is free again.
        EXPECT_GT(memory.total(), peak * 97 / 100);
        if (use->shared) {
            EXPECT_LT(memory.total() - memory.step, peak * 103 / 100);
        }
    }
}

TEST_P(CapacityOfEngine, RefusesWhatCannotFitAndNamesWhatDoes) {
    const auto config = method_config(GetParam(), 300, model->info().shape);
    const auto need = memory_use(model->info(), load(config, 700, 4));
    ASSERT_TRUE(need);
    const auto prompt = random_tokens(700, 6);
    const auto refused = [&](std::int64_t bytes) {
        auto read = engine(4, bytes)->prefill(prompt, {&config, 1},
                                              {.progress = {}, .expected_new_tokens = 16});
        if (read) return std::string();
        EXPECT_EQ(read.error().kind, ErrorKind::bad_input);
        return read.error().message;
    };
    EXPECT_EQ(refused(need->total()), "");
    const auto one = memory_use(model->info(), load(config, 700, 3))->total();
    EXPECT_NE(refused(one).find("; 3 at a time fit (--slots 3)"), std::string::npos)
        << refused(one);
    EXPECT_NE(refused(need->weights - 1).find("the weights take"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Methods, CapacityOfEngine,
                         testing::Values("full", "streaming-llm", "snapkv", "pyramidkv", "ada-kv",
                                         "headkv-r2"),
                         [](const auto& each) {
                             std::string name = each.param;
                             std::erase(name, '-');
                             return name;
                         });

// --- beside an H100

class Capacity : public testing::Test {
protected:
    Capacity() {
        write_header_only("llama-3-8b", 32000, 140000, folder / "m.gguf");
        auto info = read_model_info(folder / "m.gguf");
        EXPECT_TRUE(info) << (info ? "" : info.error().message);
        if (info) model = *info;
    }
    MethodConfig config(const std::string& name, double rows = 1024) const {
        return method_config(name, rows, model.shape);
    }
    SequenceUse use(const MethodConfig& config, std::int64_t prompt, std::int64_t slots = 2) const {
        auto result = sequence_use(model, config, prompt, 64, slots);
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? *result : SequenceUse();
    }
    // Tokens a second of all sequences, in the middle of 64 tokens.
    double speed(const std::string& method, std::int64_t prompt, std::int64_t sequences,
                 const RowLayout& layout = {}) const {
        auto chosen = config(method);
        chosen.layout = layout;
        const auto cost = step_cost(model, use(chosen, prompt, sequences), sequences, 32, rates);
        return static_cast<double>(sequences) / cost.seconds();
    }
    DeviceLoad load(const std::string& method, std::int64_t prompt, std::int64_t sequences) const {
        return {.methods = {config(method)},
                .prompt = prompt,
                .sequences = sequences,
                .new_tokens = 64};
    }

    TempFolder folder;
    ModelInfo model;
    DeviceRates rates;
};

constexpr std::int64_t k8 = 8192, k32 = 32768, k128 = 131072;
constexpr std::int64_t kGiB = std::int64_t{1} << 30;

TEST_F(Capacity, StepsCostWhatWasMeasured) {
    struct Measured {
        const char* method;
        std::int64_t prompt, sequences;
        double tokens_per_second, within;
    };
    // `full` after 32k and 128k: llama.cpp's figures, which reads the same bytes.
    for (const auto& [method, prompt, sequences, measured, within] :
         {Measured{"full", 1, 1, 225.9, 0.02}, Measured{"snapkv", k32, 1, 221, 0.03},
          Measured{"snapkv", k8, 32, 2779, 0.03}, Measured{"headkv-r2", k8, 32, 2711, 0.05},
          Measured{"snapkv", k32, 256, 6091, 0.05}, Measured{"full", k32, 1, 150, 0.04},
          Measured{"full", k128, 1, 75, 0.04}}) {
        EXPECT_NEAR(speed(method, prompt, sequences) / measured, 1, within)
            << method << " " << prompt << " x " << sequences << ": "
            << speed(method, prompt, sequences);
    }
    for (const auto& [method, measured] : {std::pair{"headkv-r2", 201.8}, {"ada-kv", 200.0}}) {
        EXPECT_NEAR(speed(method, k32, 1, {256, 2}) / measured, 1, 0.03) << method;
    }
}

// One H200, with q, k, v and gate, up as one product each (docs/performance.md, "Today's code").
TEST_F(Capacity, AnH200IsAsFastAsMeasured) {
    rates = measured_gpus()[1].rates;
    for (const auto& [method, prompt, sequences, measured, within] :
         {std::tuple{"full", std::int64_t{1}, 1, 259.8, 0.02},
          {"snapkv", k32, 1, 258.3, 0.02},
          {"snapkv", k128, 1, 257.7, 0.02},
          {"full", k32, 1, 200.4, 0.03},
          {"snapkv", k8, 32, 3550.0, 0.03},
          {"headkv-r2", k8, 32, 3263.0, 0.04},
          {"snapkv", k32, 256, 7271.0, 0.04}}) {
        EXPECT_NEAR(speed(method, prompt, sequences) / measured, 1, within)
            << method << " " << prompt << " x " << sequences << ": "
            << speed(method, prompt, sequences);
    }
    for (const auto& [prompt, measured] :
         {std::pair{k8, 11692.0}, std::pair{k32, 9090.0}, std::pair{k128, 4196.0}}) {
        const double speed = static_cast<double>(prompt) / prefill_seconds(model, prompt, rates);
        EXPECT_NEAR(speed / measured, 1, 0.06) << prompt << ": " << speed;
    }
}

TEST_F(Capacity, PromptsAreReadAsFastAsMeasured) {
    for (const auto& [prompt, measured] :
         {std::pair{k8, 11612.0}, std::pair{k32, 8871.0}, std::pair{k128, 3967.0}}) {
        const double speed = static_cast<double>(prompt) / prefill_seconds(model, prompt, rates);
        EXPECT_NEAR(speed / measured, 1, 0.07) << prompt << ": " << speed;
    }
}

TEST_F(Capacity, MemoryIsWhatWasMeasured) {
    const auto peak = memory_use(model, load("snapkv", k128, 1))->total() + rates.context_bytes;
    EXPECT_NEAR(ratio(peak, kGiB), 12.5, 0.1);
    // llama.cpp holds 16 sequences of 32k tokens; a prompt in between may round up to one more.
    const auto fit = [&](const std::string& method, std::int64_t memory) {
        return most_sequences(model, load(method, k32, 1), use(config(method), k32),
                              memory - rates.context_bytes);
    };
    EXPECT_NEAR(static_cast<double>(fit("full", 80 * kGiB)), 16, 1);
    EXPECT_GE(fit("snapkv", 80 * kGiB), 256);
    EXPECT_EQ(fit("snapkv", 8 * kGiB), -1);
}

TEST_F(Capacity, TheMostThatFitFitAndOneMoreDoesNot) {
    for (const char* method : {"full", "snapkv", "ada-kv", "headkv-r2"}) {
        for (const std::int64_t memory : {24 * kGiB, 40 * kGiB, 80 * kGiB}) {
            const auto one = use(config(method), k32);
            auto asked = load(method, k32, 1);
            asked.sequences = most_sequences(model, asked, one, memory);
            ASSERT_GT(asked.sequences, 0) << method;
            EXPECT_LE(memory_use(model, asked, {&one, 1}).total(), memory) << method;
            EXPECT_TRUE(check_fits(model, asked, memory, "gpu"));
            ++asked.sequences;
            EXPECT_GT(memory_use(model, asked, {&one, 1}).total(), memory) << method;
            EXPECT_FALSE(check_fits(model, asked, memory, "gpu"));
        }
    }
}

TEST_F(Capacity, BytesAreThePlansAndTheLayouts) {
    // 32 layers x 8 heads, K and V of 128 values of 2 bytes.
    constexpr std::int64_t row = 512, heads = 256;
    const auto snapkv = use(config("snapkv"), k32);
    EXPECT_EQ(snapkv.plan_bytes, 1024 * heads * row);
    EXPECT_EQ(snapkv.allocated_bytes, (1024 + 256) * heads * row);  // 128 rows of reserve: a block
    EXPECT_EQ(snapkv.mask_bytes, (1024 + 256) * 8 * 2);             // of a layer: all are alike
    EXPECT_EQ(snapkv.groups, 32);
    // One slot: exactly the reserve, and whole blocks behind the last head alone.
    const auto alone = use(config("snapkv"), k32, 1);
    EXPECT_EQ(alone.allocated_bytes, ((1024 + 128) * heads + 128 * 32) * row);
    EXPECT_EQ(alone.mask_bytes, snapkv.mask_bytes);
    EXPECT_EQ(use(config("ada-kv"), k32).allocated_bytes, alone.allocated_bytes);
    EXPECT_EQ(use(config("ada-kv"), k32).groups, 32);
    EXPECT_FALSE(use(config("ada-kv"), k32).shared);

    const auto r2 = use(config("headkv-r2"), k32);
    EXPECT_LE(r2.plan_bytes, snapkv.plan_bytes);
    EXPECT_GT(r2.plan_bytes, snapkv.plan_bytes * 99 / 100);
    EXPECT_LE(r2.groups, 64);
    EXPECT_EQ(r2.allocated_bytes, r2.plan_bytes + 256 * heads * row);
    const auto r2_alone = use(config("headkv-r2"), k32, 1);
    EXPECT_EQ(r2_alone.plan_bytes, snapkv.plan_bytes) << "the plan of the CPU";
    EXPECT_EQ(r2_alone.groups, 32);
    EXPECT_LT(r2_alone.allocated_bytes, (1024 + 128) * heads * row * 104 / 100);

    auto small = config("snapkv");
    small.store = {StoreStep::q8_0, StoreStep::q8_0};
    EXPECT_EQ(use(small, k32).plan_bytes, 1024 * heads * 272);
    // Converted before several sequences attend to them: less memory, more time.
    EXPECT_GT(step_cost(model, use(small, k32), 32, 32, rates).rows,
              step_cost(model, snapkv, 32, 32, rates).rows);
    EXPECT_LT(step_cost(model, use(small, k32), 1, 32, rates).rows,
              step_cost(model, snapkv, 1, 32, rates).rows);
}

TEST_F(Capacity, SaysWhatIsNeededAndTheLargestThatFits) {
    const auto said = [&](const DeviceLoad& asked, std::int64_t memory) {
        const auto fits = check_fits(model, asked, memory, "cuda0");
        return fits ? std::string() : fits.error().message;
    };
    EXPECT_EQ(said(load("full", k32, 17), 78 * kGiB), "");
    const auto slots = said(load("full", k32, 32), 78 * kGiB);
    EXPECT_NE(
        slots.find("137.4 GiB are needed (weights 7.2 GiB, caches of 32 x 32768 tokens (full) "),
        std::string::npos)
        << slots;
    EXPECT_NE(slots.find("78.0 GiB are free; 17 at a time fit (--slots 17)"), std::string::npos)
        << slots;

    // A single sequence: fewer rows, where the prompt itself can be read.
    DeviceLoad rows = load("snapkv", k128, 1);
    rows.methods = {config("snapkv", 20000)};
    const auto fewer = said(rows, 13 * kGiB);
    const auto at = fewer.find("; --rows ");
    ASSERT_NE(at, std::string::npos) << fewer;
    rows.methods = {config("snapkv", std::stod(fewer.substr(at + 9)))};
    EXPECT_EQ(said(rows, 13 * kGiB), "");
    // Else a shorter prompt.
    const auto shorter = said(load("snapkv", k128, 1), 9 * kGiB);
    const auto tokens = shorter.find("; a prompt of ");
    ASSERT_NE(tokens, std::string::npos) << shorter;
    const auto length = std::stoll(shorter.substr(tokens + 14));
    EXPECT_EQ(said(load("snapkv", length, 1), 9 * kGiB), "");
    EXPECT_NE(said(load("snapkv", length + 1, 1), 9 * kGiB), "");
    // Else nothing.
    EXPECT_NE(said(load("snapkv", k128, 4), 7 * kGiB).find("the weights take 7.2 GiB"),
              std::string::npos);
    EXPECT_NE(said(load("snapkv", k128, 4), model.weight_bytes + 100).find("not even a prompt"),
              std::string::npos);
}

// The check before a prefill, with what a driver would say is free.
TEST_F(Capacity, RefusesByWhatIsFree) {
    const auto asked = load("snapkv", k32, 4);
    const auto need = memory_use(model, asked)->total();
    const auto check = [&](const FreeMemory& memory) {
        return check_fits(model, asked, usable_bytes(memory), "cuda0");
    };
    FreeMemory memory{.free = need + kPoolBytes, .total = 80 * kGiB};
    EXPECT_TRUE(check(memory));
    --memory.free;
    const auto refused = check(memory);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
    EXPECT_NE(refused.error().message.find("3 at a time fit (--slots 3)"), std::string::npos)
        << refused.error().message;
    // Weights that are there already are not free, and need no room any more.
    memory.loaded = model.weight_bytes;
    memory.free = need + kPoolBytes - model.weight_bytes;
    EXPECT_TRUE(check(memory));
    --memory.free;
    EXPECT_FALSE(check(memory));
    // A limit of one's own counts, whatever is free.
    memory.limit = need;
    EXPECT_TRUE(check(memory));
    EXPECT_EQ(usable_bytes({.limit = 7, .free = 100 * kGiB, .total = 100 * kGiB}), 7);
    // Another program has nearly everything: still a limit, not "none".
    EXPECT_EQ(usable_bytes({.free = 1, .total = kGiB}), 1);
    EXPECT_EQ(usable_bytes({}), 0) << "the driver does not say";
}

// Rows of two types are converted by way of f32, even those of a single sequence.
TEST_F(Capacity, MixedTypesCostTheirConversion) {
    const auto stored = [&](StoreStep keys, StoreStep values) {
        auto chosen = config("snapkv");
        chosen.store = {keys, values};
        return use(chosen, k32);
    };
    const auto equal = stored(StoreStep::q8_0, StoreStep::q8_0);
    const auto both = stored(StoreStep::q8_0, StoreStep::q4_0);
    const auto values = stored(StoreStep::f16, StoreStep::q8_0);
    const auto rows = [&](const SequenceUse& one, std::int64_t sequences) {
        return step_cost(model, one, sequences, 32, rates).rows;
    };
    EXPECT_FALSE(equal.mixed);
    EXPECT_TRUE(both.mixed);
    EXPECT_EQ(both.converted_row, 2 * values.converted_row);
    // Groups of 8 heads and 1280 rows of 128 values: f16 of both; f16 of the keys beside f32 and
    // f16 of the values; f32 and f16 of the values.
    EXPECT_EQ(equal.converted_bytes, 8 * 1280 * 128 * (2 + 2));
    EXPECT_EQ(both.converted_bytes, 8 * 1280 * 128 * (2 + 4 + 2));
    EXPECT_EQ(values.converted_bytes, 8 * 1280 * 128 * (4 + 2));
    EXPECT_EQ(stored(StoreStep::f16, StoreStep::f16).converted_bytes, 0);
    for (const std::int64_t sequences : {1, 32}) {
        EXPECT_GT(rows(both, sequences), rows(equal, sequences));
        EXPECT_GT(rows(both, sequences), rows(values, sequences));
    }
}

TEST_F(Capacity, CachesOfSeveralMethodsAddUp) {
    auto both = load("snapkv", k32, 1);
    both.methods.push_back(config("full"));
    const auto sum = memory_use(model, both)->caches;
    EXPECT_EQ(sum, memory_use(model, load("snapkv", k32, 1))->caches +
                       memory_use(model, load("full", k32, 1))->caches);
    both.methods.push_back(config("nothing"));
    EXPECT_FALSE(memory_use(model, both));
    // Mistakes in a method are said by those who make it.
    EXPECT_TRUE(check_fits(model, both, 1 << 20, "cuda0"));
}

TEST_F(Capacity, AHeaderSaysWhatTheLoadedModelDoes) {
    write_tiny_model(TinyModel{}, folder / "tiny.gguf");
    const auto loaded = load_model(folder / "tiny.gguf");
    const auto header = read_model_info(folder / "tiny.gguf");
    ASSERT_TRUE(header) << header.error().message;
    const ModelInfo& right = loaded->info();
    EXPECT_EQ(header->fingerprint, right.fingerprint);
    EXPECT_EQ(header->weight_bytes, right.weight_bytes);
    EXPECT_EQ(header->shape, right.shape);
    EXPECT_EQ(header->context, right.context);
    // Tied: the embedding is read in every step.
    EXPECT_EQ(header->step_bytes, header->weight_bytes);
    // An embedding of its own is not.
    EXPECT_EQ(model.weight_bytes - model.step_bytes, 32000LL * 4096 * 34 / 32);
    EXPECT_FALSE(read_model_info(folder / "nothing.gguf"));
}

}  // namespace
}  // namespace headkv::test
