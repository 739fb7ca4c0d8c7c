// `headkv completion`: shell completion, made from the options themselves.
#include <memory>

#include "cli/common.h"

namespace headkv::cli {

namespace {

// What the shells need to know of one option.
struct Flag {
    std::vector<std::string> names;  // with their dashes
    std::string help;
    bool value = false, file = false;
};

struct Command {
    std::string name, help;
    std::vector<Flag> flags;
};

void add_flags(const CLI::App& app, std::vector<Flag>& flags) {
    for (const CLI::Option* option : app.get_options()) {
        Flag flag;
        for (const auto& name : option->get_snames()) flag.names.push_back("-" + name);
        for (const auto& name : option->get_lnames()) flag.names.push_back("--" + name);
        if (flag.names.empty()) continue;  // positional
        flag.help = option->get_description();
        flag.value = option->get_items_expected_max() > 0;
        flag.file = option->get_type_name() == "FILE";
        flags.push_back(std::move(flag));
    }
    // Option groups are nameless subcommands.
    for (const CLI::App* group : app.get_subcommands({})) {
        if (group->get_name().empty() || group->get_name().front() == '+') add_flags(*group, flags);
    }
}

std::vector<Command> commands_of(const CLI::App& app) {
    std::vector<Command> commands;
    for (const CLI::App* sub : app.get_subcommands({})) {
        Command command{sub->get_name(), sub->get_description(), {}};
        add_flags(*sub, command.flags);
        commands.push_back(std::move(command));
    }
    return commands;
}

std::string joined(const std::vector<Flag>& flags) {
    std::string text;
    for (const Flag& flag : flags) {
        for (const auto& name : flag.names) text += (text.empty() ? "" : " ") + name;
    }
    return text;
}

std::string without(std::string text, std::string_view characters) {
    std::erase_if(text, [&](char c) { return characters.find(c) != std::string_view::npos; });
    return text;
}

// Values are completed as file names: a file is what most options take.
std::string bash_script(const std::vector<Command>& commands) {
    std::string names;
    std::string cases;
    for (const Command& command : commands) {
        names += (names.empty() ? "" : " ") + command.name;
        cases += fmt::format("        {}) words=\"{}\" ;;\n", command.name, joined(command.flags));
    }
    return fmt::format(R"(# bash completion of headkv
_headkv() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{} --help --version" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{}    esac
    case "$current" in
        -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
        *) COMPREPLY=($(compgen -f -- "$current")) ;;
    esac
}}
complete -o filenames -F _headkv headkv
)",
                       names, cases);
}

std::string zsh_flag(const Flag& flag) {
    const std::string help = without(flag.help, "[]'\\:`");
    std::string text;
    for (const auto& name : flag.names) {
        const std::string value = !flag.value ? "" : (flag.file ? ":file:_files" : ":value: ");
        text += fmt::format(" \\\n                '*{}[{}]{}'", name, help, value);
    }
    return text;
}

std::string zsh_script(const std::vector<Command>& commands) {
    std::string names;
    std::string cases;
    for (const Command& command : commands) {
        names += fmt::format("        '{}:{}'\n", command.name, without(command.help, "'\\`:"));
        cases += fmt::format("        {})\n            _arguments", command.name);
        for (const Flag& flag : command.flags) cases += zsh_flag(flag);
        cases += " \\\n                '*:file:_files'\n            ;;\n";
    }
    return fmt::format(R"(#compdef headkv
_headkv() {{
    local -a commands
    commands=(
{}    )
    if (( CURRENT == 2 )); then
        _describe 'subcommand' commands
        return
    fi
    local name="${{words[2]}}"
    shift words
    (( CURRENT-- ))
    case "$name" in
{}    esac
}}
compdef _headkv headkv
)",
                       names, cases);
}

std::string fish_flag(const std::string& command, const Flag& flag) {
    std::string text =
        fmt::format("complete -c headkv -n '__fish_seen_subcommand_from {}'", command);
    for (const auto& name : flag.names) {
        const bool is_long = name.starts_with("--");
        text += (is_long ? " -l " : " -s ") + name.substr(is_long ? 2 : 1);
    }
    if (flag.value) text += flag.file ? " -rF" : " -x";
    return text + fmt::format(" -d '{}'\n", without(flag.help, "'\\"));
}

std::string fish_script(const std::vector<Command>& commands) {
    std::string text = "# fish completion of headkv\n";
    for (const Command& command : commands) {
        text += fmt::format("complete -c headkv -n __fish_use_subcommand -f -a {} -d '{}'\n",
                            command.name, without(command.help, "'\\"));
    }
    for (const Command& command : commands) {
        for (const Flag& flag : command.flags) text += fish_flag(command.name, flag);
    }
    return text;
}

Result<void> print_completion(const CLI::App& app, const std::string& shell) {
    const auto commands = commands_of(app);
    if (shell == "bash") return print(bash_script(commands));
    if (shell == "zsh") return print(zsh_script(commands));
    return print(fish_script(commands));
}

}  // namespace

void register_completion(CLI::App& app, Status& status) {
    auto shell = std::make_shared<std::string>();
    CLI::App* command = app.add_subcommand("completion", "completion script for a shell");
    command->add_option("shell", *shell, "bash, zsh or fish")
        ->required()
        ->check(CLI::IsMember({"bash", "zsh", "fish"}));
    command->footer("Example: source <(headkv completion bash)");
    command->callback([shell, &app, &status] {
        if (const auto done = print_completion(app, *shell); !done) {
            status.code = report(done.error());
        }
    });
}

}  // namespace headkv::cli
