// `headkv make-model`: a model of a usual shape with random weights, for measurements.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "cli/common.h"
#include "method/edit_distance.h"
#include "model/architecture.h"
#include "model/random_model.h"

namespace headkv::cli {

namespace {

struct MakeModelArguments {
    std::string shape, type = "q8_0", out, architecture;
    std::optional<std::int64_t> layers, embedding, heads, kv_heads, head_dim, feed_forward,
        vocabulary, context;
    std::uint64_t seed = 1;
    int threads = 0;
    bool force = false;

    bool has_sizes() const {
        return !architecture.empty() || layers || embedding || heads || kv_heads || head_dim ||
               feed_forward || vocabulary || context;
    }
};

// Keys and values of one token in f16.
std::int64_t row_bytes(const ModelShape& shape) {
    return shape.layers * shape.kv_heads * shape.head_dim * 2 * 2;
}

std::string table_text() {
    const auto row = [](auto... cells) {
        return fmt::format("{:<15} {:<6} {:>6} {:>6} {:>5} {:>3} {:>4} {:>6} {:>7} {:>7} {:>9}  {}",
                           cells...);
    };
    std::string text = row("shape", "family", "layers", "embed.", "heads", "KV", "dim", "ffn",
                           "vocab.", "context", "KV/token", "also\n");
    for (const ModelShape& shape : model_shapes()) {
        const auto traits = find_architecture(shape.architecture);
        std::string also = fmt::format("RoPE base {}", shape.rope_base);
        if (traits && (*traits)->qkv_bias == Presence::required) also += ", q/k/v biases";
        if (traits && (*traits)->qk_norm == Presence::required) also += ", q/k norms";
        if (shape.tied) also += ", tied embedding";
        text +=
            row(shape.name, shape.architecture, shape.layers, shape.embedding, shape.query_heads,
                shape.kv_heads, shape.head_dim, shape.feed_forward, shape.vocabulary, shape.context,
                human_bytes(static_cast<double>(row_bytes(shape))), also) +
            "\n";
    }
    return text + "`headkv make-model --shape NAME -o FILE` writes one.\n";
}

Result<ModelShape> find_shape(const std::string& name) {
    const auto shapes = model_shapes();
    // A name of any length may come in; comparing its start is enough for a suggestion.
    const std::string_view start = std::string_view(name).substr(0, 64);
    std::string_view nearest;
    std::size_t least = start.size() + 64;
    for (const ModelShape& shape : shapes) {
        if (shape.name == name) return shape;
        const std::size_t distance = edit_distance(start, shape.name);
        if (distance < least) nearest = shape.name;
        least = std::min(least, distance);
    }
    return bad_input("unknown shape '{}': did you mean '{}'? `headkv make-model` lists all", start,
                     nearest);
}

// A shape from the sizes alone; what follows from others may be left out.
Result<ModelShape> shape_from_nothing(const MakeModelArguments& arguments) {
    const std::pair<const char*, bool> needed[] = {{"--layers", arguments.layers.has_value()},
                                                   {"--embedding", arguments.embedding.has_value()},
                                                   {"--heads", arguments.heads.has_value()},
                                                   {"--ffn", arguments.feed_forward.has_value()}};
    for (const auto& [flag, given] : needed) {
        if (!given) {
            return bad_input(
                "{} is missing: without --shape, --layers, --embedding, --heads and --ffn are "
                "needed",
                flag);
        }
    }
    ModelShape shape{.name = "model", .architecture = "llama"};
    shape.kv_heads = *arguments.heads;
    shape.vocabulary = 32000;
    shape.context = 8192;
    if (*arguments.heads > 0) shape.head_dim = *arguments.embedding / *arguments.heads;
    return shape;
}

// The shape that the arguments describe; it borrows `name` and texts of `arguments`.
Result<ModelShape> shape_of(const MakeModelArguments& arguments, std::string& name) {
    auto shape =
        arguments.shape.empty() ? shape_from_nothing(arguments) : find_shape(arguments.shape);
    if (!shape || !arguments.has_sizes()) return shape;
    if (!arguments.shape.empty()) {
        name = fmt::format("model like {}", shape->name);
        shape->name = name;
    }
    if (!arguments.architecture.empty()) shape->architecture = arguments.architecture;
    shape->layers = arguments.layers.value_or(shape->layers);
    shape->embedding = arguments.embedding.value_or(shape->embedding);
    shape->query_heads = arguments.heads.value_or(shape->query_heads);
    shape->kv_heads = arguments.kv_heads.value_or(shape->kv_heads);
    shape->head_dim = arguments.head_dim.value_or(shape->head_dim);
    shape->feed_forward = arguments.feed_forward.value_or(shape->feed_forward);
    shape->vocabulary = arguments.vocabulary.value_or(shape->vocabulary);
    shape->context = arguments.context.value_or(shape->context);
    return shape;
}

Result<void> make_model(const MakeModelArguments& arguments) {
    const bool nothing = arguments.shape.empty() && !arguments.has_sizes();
    if (arguments.shape == "list" || (nothing && arguments.out.empty())) return print(table_text());
    if (nothing) {
        return bad_input("which shape? Name one with --shape; `headkv make-model` lists them");
    }
    std::string name;
    const auto shape = shape_of(arguments, name);
    if (!shape) return tl::unexpected(shape.error());
    const auto type = find_random_model_type(arguments.type);
    if (!type) return tl::unexpected(type.error());
    if (arguments.threads < 0 || arguments.threads > 4096) {
        return bad_input("{} threads: give 1 to 4096, or 0 for one per core", arguments.threads);
    }
    if (arguments.out.empty()) return bad_input("there is no file to write: give -o FILE");
    const auto model = RandomModel::plan(*shape, *type, arguments.seed);
    if (!model) return tl::unexpected(model.error());

    catch_interrupts();
    const Stopwatch watch;
    ProgressBar bar("writing");
    const auto written = write_random_model(
        *model, arguments.out,
        {.threads = arguments.threads, .overwrite = arguments.force, .progress = bar.callback()});
    bar.clear();
    if (!written) return tl::unexpected(written.error());
    return print(fmt::format(
        "{}: random {}, {}, seed {}\n"
        "  file        {} bytes ({}), written in {}\n"
        "  parameters  {}\n"
        "  KV cache    {} bytes per token ({})\n",
        arguments.out, shape->name, ggml_type_name(*type), arguments.seed, model->bytes(),
        human_bytes(static_cast<double>(model->bytes())), human_ms(watch.ms()), model->parameters(),
        row_bytes(*shape), human_bytes(static_cast<double>(row_bytes(*shape)))));
}

std::string type_names() {
    std::string names;
    for (const ggml_type type : random_model_types()) {
        names += (names.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    return names;
}

}  // namespace

void register_make_model(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<MakeModelArguments>();
    CLI::App* command = app.add_subcommand(
        "make-model", "a model of a usual shape with random weights, for measurements");
    const auto add = [&](const char* flag, auto& target, const std::string& help,
                         const char* type) {
        return command->add_option(flag, target, help)->type_name(type);
    };
    add("--shape", arguments->shape, "of a known model; list, or nothing, prints them", "NAME");
    add("-o,--output", arguments->out, "the GGUF file to write", "FILE");
    add("--type", arguments->type, "of the matrices: " + type_names(), "NAME")
        ->capture_default_str();
    add("--seed", arguments->seed, "of the weights; the same seed gives the same file", "N")
        ->capture_default_str();
    command->add_flag("--force", arguments->force, "overwrite FILE where it exists");
    add("-t,--threads", arguments->threads, "CPU threads; 0: one per core", "N")
        ->capture_default_str();
    add("--arch", arguments->architecture, "family: llama, qwen2 (q/k/v biases), qwen3 (q/k norms)",
        "NAME");
    add("--layers", arguments->layers, "in place of the shape's, as all below", "N");
    add("--embedding", arguments->embedding, "values of a hidden state", "N");
    add("--heads", arguments->heads, "query heads of a layer", "N");
    add("--kv-heads", arguments->kv_heads, "key/value heads of a layer", "N");
    add("--head-dim", arguments->head_dim, "values of a head", "N");
    add("--ffn", arguments->feed_forward, "values inside the feed-forward part", "N");
    add("--vocabulary", arguments->vocabulary, "tokens", "N");
    add("--context", arguments->context, "most tokens that the file says it is made for", "N");
    command->footer(
        "Without --shape the sizes describe a model of their own.\n"
        "Example: headkv make-model --shape llama-3-8b --type q8_0 -o llama-3-8b.gguf");
    command->callback([arguments, &status] {
        if (const auto done = make_model(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
