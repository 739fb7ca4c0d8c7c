#include "text/pretokenizers.h"

#include <algorithm>

namespace headkv {
namespace {

using Patterns = std::vector<std::string>;

// Building blocks. Case is spelled out, because caseless matching would also take U+017F for an s.
const std::string contraction = R"('(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))";
const std::string words = R"([^\r\n\p{L}\p{N}]?\p{L}+)";
const std::string signs = R"( ?[^\s\p{L}\p{N}]+[\r\n]*)";
const std::string line_ends = R"(\s*[\r\n]+)";
const std::string spaces = R"(\s+(?!\S)|\s+)";

// (fmt::join would do, but g++ 12 warns inside of it.)
template <class Texts>
std::string joined(const Texts& texts, std::string_view separator) {
    std::string out;
    for (const auto& text : texts) {
        if (!out.empty()) {
            out += separator;
        }
        out += text;
    }
    return out;
}

std::string any_of(std::initializer_list<std::string_view> alternatives) {
    return joined(alternatives, "|");
}

std::string gpt2() {
    return R"('(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|)" + spaces;
}

// Llama 3, Qwen 2 and many others differ only in how they group digits.
std::string modern(const std::string& digits) {
    return any_of({contraction, words, digits, signs, line_ends, spaces});
}

// Words change where lower case meets upper case. Both classes hold every letter outside of ASCII.
std::string cased(const std::string& digits, const std::string& ending) {
    const std::string prefix = R"([^\r\n\p{L}\p{N}]?)";
    const std::string upper = R"([^\P{L}a-z])";
    const std::string lower = R"([^\P{L}A-Z])";
    return any_of({prefix + upper + "*" + lower + "+" + ending,
                   prefix + upper + "+" + lower + "*" + ending, digits,
                   R"( ?[^\s\p{L}\p{N}]+[\r\n/]*)", line_ends, spaces});
}

const std::string cjk = R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)";
const std::string ascii_sign_word = R"([!-/:-@\[-`{-~][A-Za-z]+)";
const std::string marked_words = R"([^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)";

Patterns deepseek_v3() {
    return {
        R"(\p{N}{1,3})", cjk,
        any_of({ascii_sign_word, marked_words, R"( ?[\p{P}\p{S}]+[\r\n]*)", line_ends, spaces})};
}

Patterns spark() {
    return {R"(\p{N}{1,3})", cjk,
            any_of({ascii_sign_word, marked_words, R"( ?[\p{P}\p{S}]+)", R"([\r\n])", spaces}),
            R"(\p{N})"};
}

// The ideographs, syllables and symbols from U+0800 on, less the white space among them.
const std::string deepseek_east_asian =
    R"([\x{4E00}-\x{9FA5}\x{800}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027})"
    R"(\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{4E00})"
    R"(\x{AC00}-\x{D7FF}]+)";

const std::string deepseek_letters =
    R"(\s?[)"
    R"(A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF})"
    R"(\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D})"
    R"(\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5})"
    R"(\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5})"
    R"(\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF})"
    R"(\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15})"
    R"(\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59})"
    R"(\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE})"
    R"(\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB})"
    R"(\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128})"
    R"(\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149})"
    R"(\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE})"
    R"(\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F})"
    R"(\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06})"
    R"(\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F})"
    R"(\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
    R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943})"
    R"(]+)";

Patterns deepseek_llm() {
    return {R"([\r\n])",
            deepseek_letters,
            R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+)",
            R"(\s+$)",
            deepseek_east_asian,
            R"(\p{N}+)"};
}

Patterns deepseek_coder() {
    return {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", deepseek_east_asian, R"(\p{N})"};
}

std::string jais2() {
    const std::string runs =
        R"(\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|)"
        R"(\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s)";
    return any_of({contraction, words, R"(\p{N}{1,3})", signs, line_ends, runs});
}

std::string qwen35() {
    return any_of({contraction, R"([^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+)", R"(\p{N})",
                   R"( ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)", line_ends, spaces});
}

std::string bailing() {
    return any_of({contraction, words, R"(\p{N})", signs, R"(\s*[\r\n])", spaces});
}

std::string seed_coder() {
    return any_of({contraction, words, R"(\p{N})", R"( ?[^\s\p{L}\p{N}\r\n]+)", line_ends, spaces});
}

const std::string bloom = R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+)";

Patterns chameleon() {
    return {R"(<sentinel:[0-9]+>)",    R"(IMGIMG[A-I]{1,4}Z)",
            R"([\t\n]|    |  )",       R"(\p{N})",
            R"([\p{P}!-/:-@\[-`{-~])", gpt2()};
}

struct Entry {
    std::vector<std::string_view> names;
    PreTokenizer value;
};

std::vector<Entry> make_table() {
    const std::string ones = R"(\p{N})";
    const std::string threes = R"(\p{N}{1,3})";
    const std::string ascii_threes = "[0-9][0-9][0-9]";
    const std::string marks = R"([\p{P}$+<=>^~|]+)";
    const std::string marks_and_backtick = R"([\p{P}$+<=>^~|`]+)";
    const std::string lines = R"([^\n]+|\n+)";
    return {
        {{"default"}, {{marks, gpt2(), R"(\p{N}+)", ascii_threes}}},
        {{"gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de",
          "jina-v2-code", "roberta-bpe", "gigachat", "a.x-4.0", "mellum", "modern-bert", "mpt",
          "olmo", "jais", "trillion", "granite-docling", "exaone4"},
         {{gpt2()}}},
        {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
          "jina-v5-nano"},
         {{modern(threes)}, true, true}},
        {{"dbrx", "smaug-bpe"}, {{modern(threes)}}},
        {{"chatglm-bpe"}, {{modern(threes)}, false, false, false}},
        {{"glm4", "glm5"}, {{modern(threes)}, false, true, false}},
        {{"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan",
          "solar-open", "grok-2"},
         {{modern(ones)}}},
        {{"qwen35"}, {{qwen35()}}},
        {{"ufakzeka"}, {{any_of({words, ones, signs, line_ends, spaces})}}},
        {{"laguna"}, {{lines, modern(ones)}}},
        {{"minicpm5"}, {{threes, modern(R"(\p{N}+)")}, false, true}},
        {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
          "mellum2"},
         {{ones, gpt2()}}},
        {{"falcon"}, {{marks_and_backtick, gpt2(), ascii_threes}}},
        {{"deepseek-llm"}, {deepseek_llm()}},
        {{"deepseek-coder"}, {deepseek_coder()}},
        {{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"}, {deepseek_v3()}},
        {{"spark2_5"}, {spark()}},
        {{"tekken"}, {{cased(ones, "")}, true, true}},
        {{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"},
         {{cased(threes, "(?:" + contraction + ")?")}}},
        {{"jais-2"}, {{jais2()}}},
        {{"bailingmoe", "bailingmoe2", "llada-moe"}, {{bailing()}}},
        {{"seed-coder"}, {{seed_coder()}}},
        {{"poro-chat", "bloom", "gpt3-finnish"}, {{bloom}}},
        {{"viking"}, {{bloom, ones}}},
        {{"chameleon"}, {chameleon(), true}},
    };
}

const std::vector<Entry>& table() {
    static const std::vector<Entry> entries = make_table();
    return entries;
}

std::string known_names() {
    std::vector<std::string_view> names;
    for (const Entry& entry : table()) {
        names.insert(names.end(), entry.names.begin(), entry.names.end());
    }
    return joined(names, ", ");
}

}  // namespace

Result<PreTokenizer> pre_tokenizer(std::string_view name) {
    if (name.empty()) {
        name = "default";
    }
    for (const Entry& entry : table()) {
        if (std::find(entry.names.begin(), entry.names.end(), name) != entry.names.end()) {
            return entry.value;
        }
    }
    return bad_input(
        "the vocabulary's pre-tokenizer '{}' (tokenizer.ggml.pre) is not supported; supported: {}",
        name, known_names());
}

}  // namespace headkv
