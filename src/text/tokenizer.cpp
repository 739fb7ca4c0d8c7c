#include "headkv/tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "text/bpe.h"
#include "text/pretokenizers.h"
#include "text/special_tokens.h"
#include "text/splitter.h"
#include "text/spm.h"
#include "text/token_table.h"
#include "text/unicode.h"

namespace headkv {
namespace {

constexpr std::string_view space_mark = "\u2581";

// Replaces every `from` in the text.
std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    std::size_t pos = 0;
    while (true) {
        const std::size_t found = text.find(from, pos);
        out.append(text.substr(pos, found - pos));
        if (found == std::string_view::npos) {
            return out;
        }
        out.append(to);
        pos = found + from.size();
    }
}

// The byte of a token such as <0x0A>; nothing when the text is not of this form.
std::string byte_token_text(std::string_view text) {
    unsigned value = 0;
    if (text.size() != 6 || !text.starts_with("<0x") || text.back() != '>') {
        return {};
    }
    const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, value, 16);
    if (error != std::errc() || end != text.data() + 5) {
        return {};
    }
    return {static_cast<char>(value)};
}

// A byte-level BPE text back to the bytes it stands for.
std::string unmapped(std::string_view text) {
    std::string out;
    for (std::size_t pos = 0; pos < text.size();) {
        const std::size_t start = pos;
        const int byte = alphabet_byte(decode_lenient(text, pos));
        if (byte >= 0) {
            out.push_back(static_cast<char>(byte));
        } else {
            out.append(text.substr(start, pos - start));
        }
    }
    return out;
}

Result<void> check_lengths(const Vocabulary& vocabulary) {
    const std::size_t count = vocabulary.tokens.size();
    if (count == 0 || count > static_cast<std::size_t>(std::numeric_limits<Token>::max() / 2)) {
        return bad_input("the vocabulary (tokenizer.ggml.tokens) has {} entries", count);
    }
    if (!vocabulary.types.empty() && vocabulary.types.size() != count) {
        return bad_input("the vocabulary has {} tokens but {} types (tokenizer.ggml.token_type)",
                         count, vocabulary.types.size());
    }
    if (!vocabulary.scores.empty() && vocabulary.scores.size() != count) {
        return bad_input("the vocabulary has {} tokens but {} scores (tokenizer.ggml.scores)",
                         count, vocabulary.scores.size());
    }
    if (vocabulary.merges.size() >
        static_cast<std::size_t>(std::numeric_limits<Token>::max() / 4)) {
        return bad_input("the vocabulary has {} merges (tokenizer.ggml.merges)",
                         vocabulary.merges.size());
    }
    return {};
}

Result<void> check_ids(const Vocabulary& v) {
    const std::pair<const char*, std::optional<Token>> ids[] = {{"bos", v.bos},
                                                                {"eos", v.eos},
                                                                {"eot", v.eot},
                                                                {"eom", v.eom},
                                                                {"unknown", v.unknown},
                                                                {"padding", v.pad},
                                                                {"fim_pre", v.fim_prefix},
                                                                {"fim_suf", v.fim_suffix},
                                                                {"fim_mid", v.fim_middle},
                                                                {"fim_pad", v.fim_pad},
                                                                {"fim_rep", v.fim_repo},
                                                                {"fim_sep", v.fim_separator}};
    for (const auto& [name, id] : ids) {
        if (id && (*id < 0 || static_cast<std::size_t>(*id) >= v.tokens.size())) {
            return bad_input("tokenizer.ggml.{}_token_id is {}, but the vocabulary has {} tokens",
                             name, *id, v.tokens.size());
        }
    }
    return {};
}

// The id, or the default of the model kind where the vocabulary is large enough to have it.
std::optional<Token> id_or(std::optional<Token> id, Token fallback, const Vocabulary& vocabulary) {
    if (!id && static_cast<std::size_t>(fallback) < vocabulary.tokens.size()) {
        return fallback;
    }
    return id;
}

// Adjacent special segments make one range: a control token may span them.
std::vector<ByteRange> special_ranges(std::span<const Segment> segments) {
    std::vector<ByteRange> ranges;
    std::size_t begin = 0;
    for (const Segment& segment : segments) {
        const std::size_t end = begin + segment.text.size();
        if (segment.special && end > begin) {
            if (!ranges.empty() && ranges.back().end == begin) {
                ranges.back().end = end;
            } else {
                ranges.push_back({begin, end});
            }
        }
        begin = end;
    }
    return ranges;
}

}  // namespace

struct Tokenizer::Impl {
    bool spm = false;
    bool add_bos = false, add_eos = false, add_space_prefix = false;
    std::optional<Token> bos, eos;
    std::string chat_template;
    std::vector<float> scores;  // SPM only
    TokenTable table;
    std::optional<SpecialTokens> specials;
    std::optional<Splitter> splitter;  // BPE only
    std::optional<Bpe> bpe;
    std::optional<Spm> spm_encoder;

    Result<void> set_up_bpe(Vocabulary& vocabulary);
    Result<void> set_up_spm(Vocabulary& vocabulary);
    std::vector<Token> encode(std::string_view text, std::span<const ByteRange> allowed,
                              bool add_ends) const;
    void encode_bpe(std::string_view text, std::span<const Fragment> fragments,
                    std::vector<Token>& out) const;
    void encode_spm(std::string_view text, std::span<const Fragment> fragments,
                    std::vector<Token>& out) const;
};

Result<void> Tokenizer::Impl::set_up_bpe(Vocabulary& vocabulary) {
    Result<PreTokenizer> pre = pre_tokenizer(vocabulary.pre);
    if (!pre) {
        return tl::unexpected(std::move(pre).error());
    }
    if (vocabulary.merges.empty()) {
        return bad_input("the vocabulary has no merges (tokenizer.ggml.merges)");
    }
    Result<Splitter> created = Splitter::create(pre->patterns);
    if (!created) {
        return tl::unexpected(std::move(created).error());
    }
    splitter.emplace(std::move(*created));
    // What the reference assumes for files that name no id; such an id ends nothing.
    constexpr Token bpe_default = 11;
    bos = pre->has_bos ? id_or(vocabulary.bos, bpe_default, vocabulary) : vocabulary.bos;
    eos = id_or(vocabulary.eos, bpe_default, vocabulary);
    add_bos = vocabulary.add_bos.value_or(pre->add_bos);
    add_eos = vocabulary.add_eos.value_or(false);
    table = make_token_table(vocabulary);
    bpe.emplace(table, vocabulary.merges, pre->ignore_merges);
    return {};
}

Result<void> Tokenizer::Impl::set_up_spm(Vocabulary& vocabulary) {
    spm = true;
    vocabulary.bos = bos = id_or(vocabulary.bos, 1, vocabulary);
    vocabulary.eos = eos = id_or(vocabulary.eos, 2, vocabulary);
    vocabulary.unknown = id_or(vocabulary.unknown, 0, vocabulary);
    add_bos = vocabulary.add_bos.value_or(true);
    add_eos = vocabulary.add_eos.value_or(false);
    add_space_prefix = vocabulary.add_space_prefix.value_or(true);
    scores = std::move(vocabulary.scores);
    scores.resize(vocabulary.tokens.size(), 0.0F);
    for (float& score : scores) {
        if (std::isnan(score)) {
            score = std::numeric_limits<float>::lowest();  // the heap needs a strict order
        }
    }
    table = make_token_table(vocabulary);
    spm_encoder.emplace(table, scores, vocabulary.unknown);
    return {};
}

void Tokenizer::Impl::encode_bpe(std::string_view text, std::span<const Fragment> fragments,
                                 std::vector<Token>& out) const {
    struct Place {
        std::size_t begin, count;  // of `out`
    };
    // Words of natural text repeat: each is merged once a call. The keys borrow from `texts`.
    std::unordered_map<std::string_view, Place> known;
    constexpr std::size_t longest_known = 64;
    std::vector<std::unique_ptr<SplitText>> texts;
    Bpe::Workspace workspace;
    for (const Fragment& fragment : fragments) {
        if (fragment.token >= 0) {
            out.push_back(fragment.token);
            continue;
        }
        SplitText& split = *texts.emplace_back(std::make_unique<SplitText>());
        prepare_split_text(
            text.substr(fragment.range.begin, fragment.range.end - fragment.range.begin), split);
        std::size_t begin = 0;
        for (const std::size_t end : splitter->split(split.shadow)) {
            const std::string_view word = split.text.substr(begin, end - begin);
            begin = end;
            if (word.size() > longest_known) {
                bpe->encode(word, workspace, out);
                continue;
            }
            const auto [found, added] = known.try_emplace(word, Place{out.size(), 0});
            if (added) {
                bpe->encode(word, workspace, out);
                found->second.count = out.size() - found->second.begin;
                continue;
            }
            const Place place = found->second;
            for (std::size_t i = 0; i < place.count; ++i) {
                out.push_back(out[place.begin + i]);
            }
        }
    }
}

void Tokenizer::Impl::encode_spm(std::string_view text, std::span<const Fragment> fragments,
                                 std::vector<Token>& out) const {
    bool after_special = true;  // the start of the text counts as well
    for (const Fragment& fragment : fragments) {
        if (fragment.token >= 0) {
            out.push_back(fragment.token);
            after_special = true;
            continue;
        }
        const std::string_view plain =
            text.substr(fragment.range.begin, fragment.range.end - fragment.range.begin);
        std::string escaped = add_space_prefix && after_special ? std::string(space_mark) : "";
        escaped += replaced(plain, " ", space_mark);
        spm_encoder->encode(escaped, out);
        after_special = false;
    }
}

std::vector<Token> Tokenizer::Impl::encode(std::string_view text,
                                           std::span<const ByteRange> allowed,
                                           bool add_ends) const {
    const std::vector<Fragment> fragments = specials->partition(text, allowed);
    std::vector<Token> out;
    if (add_ends && add_bos && bos) {
        out.push_back(*bos);
    }
    if (spm) {
        encode_spm(text, fragments, out);
    } else {
        encode_bpe(text, fragments, out);
    }
    if (add_ends && add_eos && eos) {
        out.push_back(*eos);
    }
    return out;
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::create(Vocabulary vocabulary) {
    if (vocabulary.model != "gpt2" && vocabulary.model != "llama") {
        return bad_input(
            "the vocabulary's model '{}' (tokenizer.ggml.model) is not supported; supported: gpt2 "
            "(byte-level BPE), llama (SentencePiece BPE)",
            vocabulary.model);
    }
    if (auto checked = check_lengths(vocabulary); !checked) {
        return tl::unexpected(std::move(checked).error());
    }
    if (auto checked = check_ids(vocabulary); !checked) {
        return tl::unexpected(std::move(checked).error());
    }
    auto impl = std::make_unique<Impl>();
    impl->chat_template = std::move(vocabulary.chat_template);
    auto done =
        vocabulary.model == "gpt2" ? impl->set_up_bpe(vocabulary) : impl->set_up_spm(vocabulary);
    if (!done) {
        return tl::unexpected(std::move(done).error());
    }
    impl->specials.emplace(impl->table);
    return Tokenizer(std::move(impl));
}

std::vector<Token> Tokenizer::encode(std::string_view text, bool special, bool add_bos) const {
    const std::array whole = {ByteRange{0, text.size()}};
    return impl_->encode(text, std::span(whole).first(special ? 1 : 0), add_bos);
}

std::vector<Token> Tokenizer::encode(std::span<const Segment> segments, bool add_bos) const {
    std::string text;
    for (const Segment& segment : segments) {
        text += segment.text;
    }
    return impl_->encode(text, special_ranges(segments), add_bos);
}

std::string Tokenizer::piece(Token token, bool special) const {
    const TokenTable& table = impl_->table;
    if (token < 0 || token >= size()) {
        return {};
    }
    const std::string& text = table.texts[static_cast<std::size_t>(token)];
    if (table.has(token, attribute_control | attribute_unknown)) {
        return special ? text : std::string();
    }
    if (table.has(token, attribute_user_defined)) {
        return text;
    }
    if (table.has(token, attribute_normal)) {
        return impl_->spm ? replaced(text, space_mark, " ") : unmapped(text);
    }
    return table.has(token, attribute_byte) ? byte_token_text(text) : std::string();
}

std::string Tokenizer::decode(std::span<const Token> tokens, bool special) const {
    std::string out;
    bool first = impl_->add_space_prefix;
    for (const Token token : tokens) {
        const std::string text = piece(token, special);
        // Encoding put a space before the first word; it was not part of the text.
        const bool drop = first && text.starts_with(' ');
        first = first && text.empty();
        out.append(text, drop ? 1 : 0);
    }
    return out;
}

std::int64_t Tokenizer::size() const {
    return static_cast<std::int64_t>(impl_->table.texts.size());
}

bool Tokenizer::is_end(Token token) const {
    return token >= 0 && token < size() && impl_->table.ends[static_cast<std::size_t>(token)];
}

bool Tokenizer::is_control(Token token) const {
    return token >= 0 && token < size() && impl_->table.has(token, attribute_control);
}

std::optional<Token> Tokenizer::bos() const { return impl_->bos; }

std::optional<Token> Tokenizer::eos() const { return impl_->eos; }

std::optional<Token> Tokenizer::find(std::string_view text) const {
    const Token token = impl_->table.find(text);
    return token >= 0 ? std::optional(token) : std::nullopt;
}

const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }

std::string StreamDecoder::push(Token token) {
    const std::string piece = tokenizer_->piece(token);
    if (piece.empty()) {
        return {};
    }
    pending_ += first_ ? tokenizer_->decode(std::span(&token, 1)) : piece;
    first_ = false;
    return take_complete_utf8(pending_);
}

std::string StreamDecoder::flush() {
    std::string out = take_complete_utf8(pending_);
    if (!pending_.empty()) {
        append_utf8(0xFFFD, out);
        pending_.clear();
    }
    first_ = true;
    return out;
}

}  // namespace headkv
