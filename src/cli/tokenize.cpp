// `headkv tokenize`: token ids of a text, one JSON list.
#include <memory>

#include "cli/options.h"
#include "cli/run_report.h"

namespace headkv::cli {

namespace {

struct TokenizeArguments {
    ModelArguments model;
    std::string file, text, json = "-";
    bool special = false, no_bos = false;
};

// Any bytes are welcome here, even none: the tokenizer defines what they become.
Result<void> tokenize(const TokenizeArguments& arguments) {
    if (auto checked = check_output(arguments.json); !checked) return checked;
    const auto text =
        arguments.file.empty() ? Result<std::string>(arguments.text) : read_bytes(arguments.file);
    if (!text) return tl::unexpected(text.error());
    ModelArguments plain = arguments.model;
    plain.load.extra_buffers = false;  // no weight is used: do not repack them
    plain.load.device = "cpu";
    const auto model = load_model(plain);
    if (!model) return tl::unexpected(model.error());
    const auto tokens = (*model)->tokenizer().encode(*text, arguments.special, !arguments.no_bos);
    return write_output(arguments.json, dump(tokens, -1));
}

}  // namespace

void register_tokenize(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<TokenizeArguments>();
    CLI::App* command = app.add_subcommand("tokenize", "token ids of a text, one JSON list");
    command->add_option("-m,--model", arguments->model.path, "model file (GGUF)")
        ->required()
        ->type_name("FILE");
    auto* source = command->add_option_group("text", "what to tokenize");
    source->add_option("-f,--file", arguments->file, "any file; - is stdin")->type_name("FILE");
    source->add_option("-p,--prompt", arguments->text, "the text itself")->type_name("TEXT");
    source->require_option(1);
    command->add_flag("--special", arguments->special,
                      "texts of control tokens become those tokens");
    command->add_flag("--no-bos", arguments->no_bos,
                      "never add BOS (default: where the model's metadata asks for it)");
    command->add_option("--json", arguments->json, "where to; - is stdout")
        ->capture_default_str()
        ->type_name("FILE");
    command->footer("Example: headkv tokenize -m model.gguf -f report.txt");
    command->callback([arguments, &status] {
        if (const auto done = tokenize(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
