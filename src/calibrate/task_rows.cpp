// A user's own examples as probes.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "calibrate/forced_probes.h"
#include "calibrate/lines.h"
#include "headkv/session.h"

namespace headkv {
namespace {

std::string_view trimmed(std::string_view text) {
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

// The text of a field; nothing if it is not there or no text.
std::optional<std::string> text_field(const nlohmann::json& row, const char* name) {
    const auto found = row.find(name);
    if (found == row.end() || !found->is_string()) return std::nullopt;
    return found->get<std::string>();
}

Result<TaskLine> parse_row(const std::string& line, const std::string& where) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) return bad_input("{}: not a JSON object", where);
    TaskLine row;
    const auto context = text_field(json, "context");
    if (!context || is_blank(*context)) {
        return bad_input("{}: \"context\" is missing or empty: heads are watched as they read it",
                         where);
    }
    row.context = *context;
    row.question = text_field(json, "question").value_or("");
    auto answer = text_field(json, "answer");
    if (const auto list = json.find("answers"); list != json.end()) {
        if (!list->is_array() || list->empty() || !(*list)[0].is_string()) {
            return bad_input("{}: \"answers\" must be a list with a text in it", where);
        }
        answer = (*list)[0].get<std::string>();
    }
    if (!answer) return bad_input("{}: \"answers\" is missing", where);
    if (is_blank(*answer)) return bad_input("{}: the answer is empty", where);
    row.answer = *answer;
    return row;
}

}  // namespace

Result<std::vector<TaskLine>> load_task_rows(const std::filesystem::path& file) {
    return parse_lines<TaskLine>(
        file, "task's examples", "example",
        [](const std::string& line, const std::string& where, std::int64_t number) {
            auto row = parse_row(line, where);
            if (row) row->line = number;
            return row;
        });
}

std::vector<Token> answer_tokens(const Tokenizer& tokenizer, std::string_view answer, bool chat) {
    const auto plain = tokenizer.encode("a", false, false);
    const bool own_blank = !plain.empty() && tokenizer.piece(plain[0]).starts_with(" ");
    std::string text(chat || own_blank ? "" : " ");
    text += answer;
    return tokenizer.encode(text, false, false);
}

Result<std::vector<ForcedProbe>> task_probes(const Model& model, std::span<const TaskLine> rows,
                                             std::optional<ChatTemplate> chat,
                                             std::int64_t most_tokens) {
    const Tokenizer& tokenizer = model.tokenizer();
    std::vector<ForcedProbe> probes;
    for (const TaskLine& row : rows) {
        ForcedProbe probe;
        auto prompt = question_prompt(model, row.context, row.question, chat);
        if (!prompt) return tl::unexpected(prompt.error());
        probe.prompt = std::move(*prompt);
        probe.answer = answer_tokens(tokenizer, trimmed(row.answer), chat.has_value());
        const auto tokens = static_cast<std::int64_t>(probe.prompt.size() + probe.answer.size());
        if (tokens > model.info().context) {
            return bad_input(
                "line {}: a prompt of {} tokens and an answer of {} do not fit the model's context "
                "of {}: shorten them or leave the line out",
                row.line, probe.prompt.size(), probe.answer.size(), model.info().context);
        }
        if (static_cast<std::int64_t>(probe.answer.size()) > most_tokens) {
            probe.answer.resize(static_cast<std::size_t>(most_tokens));
        }
        std::vector<std::string> pieces;
        pieces.reserve(probe.prompt.size());
        for (const Token token : probe.prompt) pieces.push_back(tokenizer.piece(token, true));
        const std::string_view context = trimmed(row.context);
        const auto span = find_span(pieces, context, context);
        if (!span) {
            return bad_input("line {}: its context is not found in the tokenized prompt", row.line);
        }
        probe.evidence = find_evidence(pieces, *span, row.answer);
        // Without a question nothing stands for the document.
        const std::string_view alone =
            is_blank(row.question) ? "?" : std::string_view(row.question);
        auto without = question_prompt(model, "", alone, chat);
        if (!without) return tl::unexpected(without.error());
        probe.without = std::move(*without);
        probe.probe = {fmt::format("line {}", row.line), probe.evidence.kind, row.line};
        probes.push_back(std::move(probe));
    }
    return probes;
}

}  // namespace headkv
