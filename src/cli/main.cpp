#include <ggml.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>

#include "cli/common.h"
#include "method/edit_distance.h"

namespace headkv::cli {

namespace {

using Register = void (*)(CLI::App&, Status&);
constexpr Register subcommands[] = {
    register_run,       register_inspect,    register_plan,       register_methods,
    register_calibrate, register_scores,     register_eval,       register_bench,
    register_tokenize,  register_make_model, register_completion,
};

// CLI11 lists types, ranges and exclusions beside every option; a name and the default are enough.
class PlainFormatter : public CLI::Formatter {
public:
    std::string make_option_opts(const CLI::Option* option) const override {
        const std::string type = option->get_type_name();
        std::string text = type.empty() ? "" : " " + type.substr(0, type.find(':'));
        if (!option->get_default_str().empty()) text += " [" + option->get_default_str() + "]";
        if (option->get_required()) text += " (required)";
        return text;
    }
};

void build(CLI::App& app, Status& status) {
    app.name("headkv");
    app.formatter(std::make_shared<PlainFormatter>());  // subcommands inherit it
    app.set_version_flag("--version", "headkv " + version());
    app.set_help_flag("-h,--help", "print this help");
    app.require_subcommand(0, 1);
    app.get_formatter()->column_width(30);
    app.footer(
        "`headkv SUBCOMMAND --help` says more.\n"
        "Example: headkv run -m model.gguf -f report.txt -q \"Who signed it?\" --rows 128");
    for (const Register add : subcommands) add(app, status);
}

// The flag that the user may have meant, of the subcommand at hand.
std::string nearest_flag(const CLI::App& command, const std::string& word) {
    std::string best;
    std::size_t best_distance = 4;  // further away is no typing mistake
    for (const CLI::Option* option : command.get_options()) {
        for (const std::string& name : option->get_lnames()) {
            // A flag that was cut short is the likeliest mistake of all.
            const bool cut = word.size() > 3 && ("--" + name).starts_with(word);
            const std::size_t distance = cut ? 0 : edit_distance("--" + name, word);
            if (distance < best_distance && distance < word.size() / 2) {
                best_distance = distance;
                best = "--" + name;
            }
        }
    }
    return best;
}

std::string nearest_subcommand(const CLI::App& app, const std::string& word) {
    std::string best;
    std::size_t best_distance = 4;
    for (const CLI::App* command : app.get_subcommands({})) {
        const std::size_t distance = edit_distance(command->get_name(), word);
        if (distance < best_distance && distance < word.size()) {
            best_distance = distance;
            best = command->get_name();
        }
    }
    return best;
}

std::string suggestion(const std::string& nearest) {
    return nearest.empty() ? "" : " (did you mean " + nearest + "?)";
}

// CLI11 complains about the first word that it could not place; we add what was meant.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    const bool extras = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
    if (chosen.empty()) {
        const auto rest = app.remaining();
        if (!extras || rest.empty()) return std::string(error.what()) + "; see `headkv --help`";
        return "unknown subcommand " + rest[0] + suggestion(nearest_subcommand(app, rest[0])) +
               "; see `headkv --help`";
    }
    const CLI::App& command = *chosen[0];
    const std::string help = "; see `headkv " + command.get_name() + " --help`";
    auto rest = command.remaining();
    if (rest.empty()) rest = app.remaining();
    if (!extras || rest.empty()) return command.get_name() + ": " + error.what() + help;
    const bool flag = rest[0].starts_with("-");
    return command.get_name() + ": unknown " + (flag ? "option " : "argument ") + rest[0] +
           suggestion(flag ? nearest_flag(command, rest[0]) : "") + help;
}

// What ggml said of its mistakes last, in one line.
std::string& last_mistakes() {
    static std::string text;
    return text;
}

// ggml reports its own progress and mistakes; users get our one line instead.
void listen(ggml_log_level level, const char* text, void* /*unused*/) {
    if (level != GGML_LOG_LEVEL_ERROR) return;
    constexpr std::size_t most = 300;
    auto& said = last_mistakes();
    for (const char letter : std::string_view(text)) {
        if (letter != '\n') {
            said += letter;
        } else if (!said.empty()) {
            said += ' ';
        }
    }
    if (said.size() > most) said.erase(0, said.size() - most);
}

// ggml ends the program where a device fails in the middle of its work: a GPU that is lost, a
// driver that gives up.
[[noreturn]] void give_up(const char* message) {
    const int code = report(
        {ErrorKind::failure,
         fmt::format("the device failed and the work cannot go on: {} ({}); what was written so "
                     "far is kept, and `eval` with the same arguments goes on from there",
                     last_mistakes(), message)});
    std::fflush(nullptr);
    std::_Exit(code);
}

int run(int argc, char** argv) {
    ggml_log_set(listen, nullptr);
    ggml_set_abort_callback(give_up);
    CLI::App app("Answers from long documents with a key-value cache of a few percent: HeadKV.");
    Status status;
    build(app, status);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
        return report({ErrorKind::bad_input, usage_message(app, error)});
    }
    if (app.get_subcommands().empty()) {
        fmt::print(stderr, "{}", app.help());
        return 2;
    }
    return status.code;
}

}  // namespace

}  // namespace headkv::cli

int main(int argc, char** argv) {
    using headkv::ErrorKind;
    try {
        return headkv::cli::run(argc, argv);
    } catch (const std::bad_alloc&) {
        return headkv::cli::report(
            {ErrorKind::failure,
             "out of memory; try a shorter prompt, a smaller --chunk or a smaller model"});
    } catch (const std::exception& error) {
        return headkv::cli::report(
            {ErrorKind::failure, std::string("internal error: ") + error.what()});
    }
}
