#include "text/unicode.h"

#include <algorithm>

namespace headkv {
namespace {

constexpr std::uint32_t replacement = 0xFFFD;

bool continues(std::string_view text, std::size_t pos) {
    return pos < text.size() && (static_cast<unsigned char>(text[pos]) & 0xC0U) == 0x80U;
}

std::uint32_t byte_at(std::string_view text, std::size_t pos) {
    return static_cast<unsigned char>(text[pos]);
}

// Characters that Debian 12's PCRE2 (Unicode 14) does not know, or that its \s includes and the
// reference's does not. Each is matched as `stand_in`: same class, same length in UTF-8, and on the
// same side of every literal range used in the pattern table.
struct Replaced {
    std::uint32_t first, last, stand_in;
};
constexpr std::uint32_t letter = 0x10000, mark = 0x10A01, number = 0x10107, punctuation = 0x10100,
                        symbol = 0x1F600;
constexpr std::array replaced = {
    Replaced{0x00CF3, 0x00CF3, 0x0901}, Replaced{0x00ECE, 0x00ECE, 0x0EC8},
    Replaced{0x0180E, 0x0180E, 0x200B},  // was a space once, is a format character now
    Replaced{0x02FFC, 0x02FFF, 0x2190}, Replaced{0x031EF, 0x031EF, 0x2190},
    Replaced{0x0D800, 0x0DFFF, 0xFEFF},  // surrogates: not allowed in a PCRE2 subject
    Replaced{0x10EFD, 0x10EFF, mark},   Replaced{0x1123F, 0x11240, letter},
    Replaced{0x11241, 0x11241, mark},   Replaced{0x11B00, 0x11B09, punctuation},
    Replaced{0x11F00, 0x11F01, mark},   Replaced{0x11F02, 0x11F02, letter},
    Replaced{0x11F03, 0x11F03, mark},   Replaced{0x11F04, 0x11F10, letter},
    Replaced{0x11F12, 0x11F33, letter}, Replaced{0x11F34, 0x11F3A, mark},
    Replaced{0x11F3E, 0x11F42, mark},   Replaced{0x11F43, 0x11F4F, punctuation},
    Replaced{0x11F50, 0x11F59, number}, Replaced{0x1342F, 0x1342F, letter},
    Replaced{0x13440, 0x13440, mark},   Replaced{0x13441, 0x13446, letter},
    Replaced{0x13447, 0x13455, mark},   Replaced{0x1B132, 0x1B132, letter},
    Replaced{0x1B155, 0x1B155, letter}, Replaced{0x1D2C0, 0x1D2D3, number},
    Replaced{0x1DF25, 0x1DF2A, letter}, Replaced{0x1E030, 0x1E06D, letter},
    Replaced{0x1E08F, 0x1E08F, mark},   Replaced{0x1E4D0, 0x1E4EB, letter},
    Replaced{0x1E4EC, 0x1E4EF, mark},   Replaced{0x1E4F0, 0x1E4F9, number},
    Replaced{0x1F6DC, 0x1F6DC, symbol}, Replaced{0x1F774, 0x1F776, symbol},
    Replaced{0x1F77B, 0x1F77F, symbol}, Replaced{0x1F7D9, 0x1F7D9, symbol},
    Replaced{0x1FA75, 0x1FA77, symbol}, Replaced{0x1FA87, 0x1FA88, symbol},
    Replaced{0x1FAAD, 0x1FAAF, symbol}, Replaced{0x1FABB, 0x1FABD, symbol},
    Replaced{0x1FABF, 0x1FABF, symbol}, Replaced{0x1FACE, 0x1FACF, symbol},
    Replaced{0x1FADA, 0x1FADB, symbol}, Replaced{0x1FAE8, 0x1FAE8, symbol},
    Replaced{0x1FAF7, 0x1FAF8, symbol}, Replaced{0x2B739, 0x2B739, letter},
    Replaced{0x2EBF0, 0x2EE5D, letter}, Replaced{0x31350, 0x323AF, letter},
};

std::uint32_t stand_in(std::uint32_t code_point) {
    if (code_point < replaced.front().first) {
        return code_point;
    }
    const auto* next =
        std::upper_bound(replaced.begin(), replaced.end(), code_point,
                         [](std::uint32_t value, const Replaced& r) { return value < r.first; });
    const Replaced& r = *(next - 1);
    return code_point <= r.last ? r.stand_in : code_point;
}

std::size_t utf8_length(std::uint32_t code_point) {
    if (code_point < 0x80) {
        return 1;
    }
    if (code_point < 0x800) {
        return 2;
    }
    return code_point < 0x10000 ? 3 : 4;
}

bool self_standing(int byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

std::array<std::uint32_t, 256> alphabet_code_points() {
    std::array<std::uint32_t, 256> points{};
    std::uint32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        points[static_cast<std::size_t>(byte)] =
            self_standing(byte) ? static_cast<std::uint32_t>(byte) : next++;
    }
    return points;
}

// How many bytes of a well-formed character start the text: 0 when the first byte starts none.
// `complete` tells whether the character ends inside of the text.
std::size_t well_formed_prefix(std::string_view text, bool& complete) {
    complete = false;
    const std::uint32_t lead = byte_at(text, 0);
    if (lead < 0x80) {
        complete = true;
        return 1;
    }
    const bool starts = lead >= 0xC2 && lead <= 0xF4;
    if (!starts) {
        return 0;
    }
    const std::size_t length = announced_length(text[0]);
    for (std::size_t i = 1; i < length; ++i) {
        if (i == text.size()) {
            return i;
        }
        const std::uint32_t byte = byte_at(text, i);
        // The second byte is limited further: no overlong forms, surrogates or values too large.
        const std::uint32_t low = i > 1          ? 0x80U
                                  : lead == 0xE0 ? 0xA0U
                                  : lead == 0xF0 ? 0x90U
                                                 : 0x80U;
        const std::uint32_t high = i > 1          ? 0xBFU
                                   : lead == 0xED ? 0x9FU
                                   : lead == 0xF4 ? 0x8FU
                                                  : 0xBFU;
        if (byte < low || byte > high) {
            return i;
        }
    }
    complete = true;
    return length;
}

}  // namespace

std::size_t announced_length(char first) {
    const auto byte = static_cast<unsigned char>(first);
    if (byte < 0xC0) {
        return 1;
    }
    if (byte < 0xE0) {
        return 2;
    }
    return byte < 0xF0 ? 3 : 4;
}

std::uint32_t decode_lenient(std::string_view text, std::size_t& pos) {
    const std::uint32_t lead = byte_at(text, pos);
    if (lead < 0x80) {
        ++pos;
        return lead;
    }
    const std::size_t length = announced_length(text[pos]);
    if (lead < 0xC0 || lead >= 0xF8) {
        ++pos;
        return replacement;
    }
    std::uint32_t value = lead & (0x7FU >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if (!continues(text, pos + i)) {
            ++pos;
            return replacement;
        }
        value = (value << 6U) | (byte_at(text, pos + i) & 0x3FU);
    }
    if (value > 0x10FFFF) {
        ++pos;
        return replacement;
    }
    pos += length;
    return value;
}

void append_utf8(std::uint32_t code_point, std::string& out) {
    const auto put = [&out](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code_point < 0x80) {
        put(code_point);
    } else if (code_point < 0x800) {
        put(0xC0U | (code_point >> 6U));
        put(0x80U | (code_point & 0x3FU));
    } else if (code_point < 0x10000) {
        put(0xE0U | (code_point >> 12U));
        put(0x80U | ((code_point >> 6U) & 0x3FU));
        put(0x80U | (code_point & 0x3FU));
    } else {
        put(0xF0U | (code_point >> 18U));
        put(0x80U | ((code_point >> 12U) & 0x3FU));
        put(0x80U | ((code_point >> 6U) & 0x3FU));
        put(0x80U | (code_point & 0x3FU));
    }
}

void prepare_split_text(std::string_view raw, SplitText& out) {
    bool canonical = true;
    bool known = true;
    for (std::size_t pos = 0; pos < raw.size();) {
        if (byte_at(raw, pos) < 0x80) {
            ++pos;
            continue;
        }
        const std::size_t start = pos;
        const std::uint32_t code_point = decode_lenient(raw, pos);
        canonical = canonical && utf8_length(code_point) == pos - start;
        known = known && stand_in(code_point) == code_point;
    }
    out.text = raw;
    if (!canonical) {
        out.text_storage.clear();
        for (std::size_t pos = 0; pos < raw.size();) {
            append_utf8(decode_lenient(raw, pos), out.text_storage);
        }
        out.text = out.text_storage;
    }
    out.shadow = out.text;
    if (!known) {
        out.shadow_storage.clear();
        for (std::size_t pos = 0; pos < out.text.size();) {
            append_utf8(stand_in(decode_lenient(out.text, pos)), out.shadow_storage);
        }
        out.shadow = out.shadow_storage;
    }
}

const std::array<std::string, 256>& byte_alphabet() {
    static const std::array<std::string, 256> alphabet = [] {
        std::array<std::string, 256> texts;
        const auto points = alphabet_code_points();
        for (std::size_t byte = 0; byte < 256; ++byte) {
            append_utf8(points[byte], texts[byte]);
        }
        return texts;
    }();
    return alphabet;
}

int alphabet_byte(std::uint32_t code_point) {
    constexpr std::size_t limit = 256 + 68;  // 68 bytes are not self-standing
    static const std::array<int, limit> bytes = [] {
        std::array<int, limit> table{};
        table.fill(-1);
        const auto points = alphabet_code_points();
        for (std::size_t byte = 0; byte < 256; ++byte) {
            table[points[byte]] = static_cast<int>(byte);
        }
        return table;
    }();
    return code_point < limit ? bytes[code_point] : -1;
}

std::string take_complete_utf8(std::string& pending) {
    std::string out;
    std::string_view rest = pending;
    while (!rest.empty()) {
        bool complete = false;
        const std::size_t length = well_formed_prefix(rest, complete);
        if (complete) {
            out.append(rest.substr(0, length));
        } else if (length > 0 && length == rest.size()) {
            break;
        } else {
            append_utf8(replacement, out);
        }
        rest.remove_prefix(std::max<std::size_t>(length, 1));
    }
    pending.erase(0, pending.size() - rest.size());
    return out;
}

}  // namespace headkv
