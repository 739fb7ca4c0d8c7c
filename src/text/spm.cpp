#include "text/spm.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "text/unicode.h"

namespace headkv {
namespace {

constexpr std::string_view space_mark = "\u2581";

std::size_t byte_at(std::string_view text, std::size_t pos) {
    return static_cast<unsigned char>(text[pos]);
}

// Symbols go by their first byte alone: broken UTF-8 stays as it is and ends up as byte tokens.
std::size_t symbol_end(std::string_view text, std::size_t begin) {
    return std::min(begin + announced_length(text[begin]), text.size());
}

}  // namespace

// Buffers of one call, and the heap of mergeable pairs.
struct Spm::Workspace {
    struct Node {
        std::int64_t begin, length;  // bytes of the stretch; length 0: merged into its left one
        std::int64_t previous, next;
    };
    struct Pair {
        float score;
        std::int64_t left, length;

        // Heap order: the best score is on top, of equals the leftmost.
        static bool worse(const Pair& a, const Pair& b) {
            return a.score != b.score ? a.score < b.score : a.left > b.left;
        }
    };
    const Spm& spm;
    std::string_view text;
    std::vector<Node> nodes;
    std::vector<Pair> heap;

    Node& node(std::int64_t index) { return nodes[static_cast<std::size_t>(index)]; }
    std::string_view text_at(std::int64_t begin, std::int64_t length) const {
        return text.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(length));
    }
    void start(std::string_view stretch);
    bool find_pair(std::int64_t left, Pair& pair);
    void push_pair(std::int64_t left);
    void merge_all();
};

void Spm::Workspace::start(std::string_view stretch) {
    text = stretch;
    nodes.clear();
    heap.clear();
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = symbol_end(text, begin);
        const auto index = static_cast<std::int64_t>(nodes.size());
        nodes.push_back({static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end - begin),
                         index - 1, end == text.size() ? -1 : index + 1});
        begin = end;
    }
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        Pair pair{};
        if (find_pair(static_cast<std::int64_t>(i), pair)) {
            heap.push_back(pair);
        }
    }
    std::make_heap(heap.begin(), heap.end(), Pair::worse);
}

bool Spm::Workspace::find_pair(std::int64_t left, Pair& pair) {
    if (left < 0 || node(left).next < 0) {
        return false;
    }
    const Node& a = node(left);
    const std::int64_t length = a.length + node(a.next).length;
    if (length > static_cast<std::int64_t>(spm.table_->longest)) {
        return false;
    }
    const Token token = spm.table_->find(text_at(a.begin, length));
    if (token < 0) {
        return false;
    }
    pair = {(*spm.scores_)[static_cast<std::size_t>(token)], left, length};
    return true;
}

void Spm::Workspace::push_pair(std::int64_t left) {
    Pair pair{};
    if (find_pair(left, pair)) {
        heap.push_back(pair);
        std::push_heap(heap.begin(), heap.end(), Pair::worse);
    }
}

void Spm::Workspace::merge_all() {
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), Pair::worse);
        const Pair pair = heap.back();
        heap.pop_back();
        Node& left = node(pair.left);
        // Either side may have been merged with something else meanwhile; the lengths tell.
        if (left.length == 0 || left.next < 0 ||
            left.length + node(left.next).length != pair.length) {
            continue;
        }
        Node& right = node(left.next);
        left.length = pair.length;
        left.next = right.next;
        right.length = 0;
        if (left.next >= 0) {
            node(left.next).previous = pair.left;
        }
        push_pair(left.previous);
        push_pair(pair.left);
    }
}

Spm::Spm(const TokenTable& table, const std::vector<float>& scores, std::optional<Token> unknown)
    : table_(&table), scores_(&scores) {
    for (int byte = 0; byte < 256; ++byte) {
        Token token = table.find(fmt::format("<0x{:02X}>", byte));
        if (token < 0) {
            token = table.find(std::string(1, static_cast<char>(byte)));
        }
        bytes_[static_cast<std::size_t>(byte)] = token >= 0 ? token : unknown.value_or(-1);
    }
    for (const std::string& text : table.texts) {
        note_neighbours(text);
    }
}

void Spm::note_neighbours(std::string_view token) {
    for (std::size_t i = 1; i < token.size(); ++i) {
        adjacent_bytes_.set(byte_at(token, i - 1) * 256 + byte_at(token, i));
        if (token.substr(i).starts_with(space_mark)) {
            before_space_.set(byte_at(token, i - 1));
        }
    }
}

// Whether any token could cover both sides of the border between two symbols. Where none can, the
// sides never influence each other, and a text falls into short stretches that mostly repeat.
bool Spm::may_merge_across(std::string_view text, std::size_t border) const {
    const std::size_t before = byte_at(text, border - 1);
    if (text.substr(border).starts_with(space_mark)) {
        return before_space_.test(before);
    }
    return adjacent_bytes_.test(before * 256 + byte_at(text, border));
}

void Spm::append(std::string_view symbol, std::vector<Token>& out) const {
    if (const Token token = table_->find(symbol); token >= 0) {
        out.push_back(token);
        return;
    }
    for (const char c : symbol) {
        if (const Token token = bytes_[static_cast<unsigned char>(c)]; token >= 0) {
            out.push_back(token);
        }
    }
}

void Spm::encode_stretch(std::string_view stretch, Workspace& workspace,
                         std::vector<Token>& out) const {
    workspace.start(stretch);
    workspace.merge_all();
    for (std::int64_t i = 0; i >= 0; i = workspace.node(i).next) {
        append(workspace.text_at(workspace.node(i).begin, workspace.node(i).length), out);
    }
}

void Spm::encode(std::string_view text, std::vector<Token>& out) const {
    struct Place {
        std::size_t begin, count;  // of `out`
    };
    std::unordered_map<std::string_view, Place> known;
    constexpr std::size_t longest_known = 64;
    Workspace workspace{*this, {}, {}, {}};
    std::size_t begin = 0;
    while (begin < text.size()) {
        std::size_t end = symbol_end(text, begin);
        while (end < text.size() && may_merge_across(text, end)) {
            end = symbol_end(text, end);
        }
        const std::string_view stretch = text.substr(begin, end - begin);
        begin = end;
        if (stretch.size() > longest_known) {
            encode_stretch(stretch, workspace, out);
            continue;
        }
        const auto [found, added] = known.try_emplace(stretch, Place{out.size(), 0});
        if (added) {
            encode_stretch(stretch, workspace, out);
            found->second.count = out.size() - found->second.begin;
            continue;
        }
        const Place place = found->second;
        for (std::size_t i = 0; i < place.count; ++i) {
            out.push_back(out[place.begin + i]);
        }
    }
}

}  // namespace headkv
