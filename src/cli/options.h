// Groups of options that several subcommands share, and what is made of them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/common.h"
#include "engine/capacity.h"
#include "headkv/chat.h"
#include "headkv/engine.h"
#include "headkv/method.h"
#include "headkv/model.h"
#include "headkv/session.h"

namespace headkv::cli {

struct ModelArguments {
    std::string path;                        // -m, required
    LoadOptions load;                        // -t, --device: a name, or several: cuda0,cuda1
    EngineOptions engine;                    // --precision, --device-memory
    std::optional<std::int64_t> gpu_layers;  // --gpu-layers
    std::vector<double> gpu_split;           // --gpu-split
};
void add_model_options(CLI::App& command, ModelArguments& arguments);
// Errors: those of Model::load and place_layers; weights that do not fit.
Result<std::shared_ptr<const Model>> load_model(const ModelArguments& arguments);
// A device whose memory limits the work, and its part of the model; nothing: all of it.
struct LimitedDevice {
    std::string name;
    std::int64_t available = 0;  // for weights, caches and work
    std::optional<ModelPart> part;
};
// None where the CPU computes and nothing is limited. Errors: no such device, those of
// place_layers.
Result<std::vector<LimitedDevice>> limited_devices(const ModelArguments& arguments,
                                                   const ModelInfo& model);
// The model's own name, or the file's where it has none.
std::string model_title(const ModelInfo& info);

struct MethodArguments {
    std::string method = "headkv-r2";
    // Budgets as written: exactly one may be given, once.
    std::vector<std::string> rows, bytes, keep;
    std::vector<std::string> heads;  // --heads FILE
    bool force_scores = false;
    std::string preset;  // "paper" or empty
    std::optional<std::int64_t> window, protect, skip_tail, draft, kernel, chunk, cluster_size,
        seed, sinks, reserve, class_rows;
    std::optional<std::string> allocate, observe, pool, group_reduce, unit, shrink, normalize,
        kv_type, layout, recall, share, merge, positions;
    std::optional<std::string> curves;  // --curves FILE, for --method auto
    std::optional<double> beta, pyramid_beta, floor, temperature, mix, similarity, frequent, local,
        recovery, query_decay;
};
// `name`: with --method. Without, the subcommand brings its own list of methods.
void add_method_options(CLI::App& command, MethodArguments& arguments, bool name = true);
// Methods are written as a name, and options of their own that go before those that all share:
// "headkv-r2:kernel=13:kv-type=q8_0:q4_0". The arguments of one, with its name alone in `method`.
// Errors (bad_input): unknown option; the name is not looked at.
Result<MethodArguments> written_method(const MethodArguments& arguments, std::string_view written);
// How reports name it: as written, and with the types of its rows where they are not f16.
std::string method_title(std::string_view written, const StoreTypes& types);

// The recipe of `method` with the allocator asked for; methods that keep every row have no use for
// one. Errors (bad_input): unknown names, and what with_allocator() refuses.
Result<Recipe> method_recipe(const MethodArguments& arguments);
// What can be checked without a model: budget given once, well-formed, known names.
Result<Budget> method_budget(const MethodArguments& arguments);
Result<MethodOptions> method_options(const MethodArguments& arguments, const Recipe& recipe);
Result<StoreTypes> method_store(const MethodArguments& arguments, const Recipe& recipe);
// Nothing without --recall or with "off". Errors (bad_input): unknown type; "off" where the recipe
// does not go without.
Result<std::optional<StoreStep>> method_recall(const MethodArguments& arguments,
                                               const Recipe& recipe);
Result<void> check_method(const MethodArguments& arguments, std::string_view written);
// Everything of one method; loads the head scores that it needs (--heads, or by fingerprint).
Result<MethodConfig> method_config(const MethodArguments& arguments, std::string_view written,
                                   const ModelInfo& model);
// Folders where scores of known models are looked for, best first.
std::vector<std::filesystem::path> score_folders();

struct PromptArguments {
    std::string document, question, text;  // -f, -q, -p
    bool raw = false, special = false;
    KeepParts keep;  // --keep-marks, --keep-system
    std::string system, chat_template, truncate;
};
void add_prompt_options(CLI::App& command, PromptArguments& arguments);

// The texts read and checked; no model needed yet.
struct PromptText {
    std::string document, question;
};
Result<PromptText> read_prompt(const PromptArguments& arguments);
// Nothing with --raw; else --chat-template, or what the model brings.
Result<std::optional<ChatTemplate>> prompt_template(const PromptArguments& arguments,
                                                    const Model& model);
// Where the question lies in the prompt; nothing where there is none or no document.
QuestionPart prompt_question(const PromptArguments& arguments, const PromptText& text,
                             const Model& model);
// Ids of the prompt, cut to the context where --truncate asks for it, leaving `reserve` tokens for
// the answer. Error (bad_input): longer than the context; says by how much and what to do.
Result<MarkedPrompt> prompt_tokens(const PromptArguments& arguments, const PromptText& text,
                                   const Model& model, std::int64_t reserve);

}  // namespace headkv::cli
