#include "text/bpe.h"

#include <algorithm>

#include "text/unicode.h"

namespace headkv {
namespace {

// Heap order: the best rank is on top, of equals the leftmost.
bool worse(const Bpe::Workspace::Pair& a, const Bpe::Workspace::Pair& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
}

}  // namespace

Bpe::Bpe(const TokenTable& table, const std::vector<std::string>& merges, bool ignore_merges)
    : table_(&table), ignore_merges_(ignore_merges) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
        byte_symbols_[byte] = symbol_of(byte_alphabet()[byte]);
    }
    merges_.reserve(merges.size());
    std::string joined;
    for (std::size_t i = 0; i < merges.size(); ++i) {
        const std::string_view merge = merges[i];
        const std::size_t space = merge.find(' ', 1);
        if (space == std::string_view::npos) {
            continue;
        }
        const std::string_view left = merge.substr(0, space);
        const std::string_view right = merge.substr(space + 1);
        joined.assign(left);
        joined += right;
        merges_.insert(symbol_of(left), symbol_of(right),
                       {static_cast<std::int32_t>(i), symbol_of(joined)});
    }
}

std::int32_t Bpe::symbol_of(std::string_view text) {
    if (const Token token = table_->find(text); token >= 0) {
        return token;
    }
    if (const auto found = extra_ids_.find(text); found != extra_ids_.end()) {
        return found->second;
    }
    const auto symbol = static_cast<std::int32_t>(table_->texts.size() + extra_.size());
    extra_.emplace_back(text);
    extra_ids_.emplace(extra_.back(), symbol);
    return symbol;
}

std::string_view Bpe::text_of(std::int32_t symbol) const {
    const auto index = static_cast<std::size_t>(symbol);
    const std::size_t tokens = table_->texts.size();
    return index < tokens ? table_->texts[index] : extra_[index - tokens];
}

void Bpe::append(std::int32_t symbol, std::vector<Token>& out) const {
    if (static_cast<std::size_t>(symbol) < table_->texts.size()) {
        out.push_back(symbol);
        return;
    }
    // No token for it: its bytes, as far as they are tokens themselves (ASCII ones may be).
    const std::string_view text = text_of(symbol);
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (const Token token = table_->find(text.substr(i, 1)); token >= 0) {
            out.push_back(token);
        }
    }
}

bool Bpe::find_pair(const Workspace& workspace, std::int32_t left, Workspace::Pair& pair) const {
    if (left < 0) {
        return false;
    }
    const auto& node = workspace.nodes[static_cast<std::size_t>(left)];
    if (node.next < 0) {
        return false;
    }
    const std::int32_t right = workspace.nodes[static_cast<std::size_t>(node.next)].symbol;
    const MergeTable::Merge merge = merges_.find(node.symbol, right);
    pair = {merge.rank, left, node.symbol, right};
    return merge.rank >= 0;
}

void Bpe::push_pair(Workspace& workspace, std::int32_t left) const {
    Workspace::Pair pair{};
    if (find_pair(workspace, left, pair)) {
        workspace.heap.push_back(pair);
        std::push_heap(workspace.heap.begin(), workspace.heap.end(), worse);
    }
}

void Bpe::merge_all(Workspace& workspace) const {
    auto& nodes = workspace.nodes;
    auto& heap = workspace.heap;
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), worse);
        const Workspace::Pair pair = heap.back();
        heap.pop_back();
        auto& left = nodes[static_cast<std::size_t>(pair.left)];
        // Either symbol may have been merged with something else meanwhile.
        if (left.symbol != pair.symbol_left || left.next < 0 ||
            nodes[static_cast<std::size_t>(left.next)].symbol != pair.symbol_right) {
            continue;
        }
        auto& right = nodes[static_cast<std::size_t>(left.next)];
        left.symbol = merges_.find(left.symbol, right.symbol).symbol;
        left.next = right.next;
        right.symbol = -1;
        if (left.next >= 0) {
            nodes[static_cast<std::size_t>(left.next)].previous = pair.left;
        }
        push_pair(workspace, left.previous);
        push_pair(workspace, pair.left);
    }
}

void Bpe::encode(std::string_view word, Workspace& workspace, std::vector<Token>& out) const {
    if (ignore_merges_ && word.size() <= table_->longest) {
        workspace.mapped.clear();
        for (const char c : word) {
            workspace.mapped += byte_alphabet()[static_cast<unsigned char>(c)];
        }
        if (const Token token = table_->find(workspace.mapped); token >= 0) {
            out.push_back(token);
            return;
        }
    }
    const auto count = static_cast<std::int32_t>(word.size());
    auto& nodes = workspace.nodes;
    nodes.clear();
    workspace.heap.clear();
    for (std::int32_t i = 0; i < count; ++i) {
        const auto byte = static_cast<unsigned char>(word[static_cast<std::size_t>(i)]);
        nodes.push_back({byte_symbols_[byte], i - 1, i + 1 < count ? i + 1 : -1});
    }
    for (std::int32_t i = 0; i + 1 < count; ++i) {
        Workspace::Pair pair{};
        if (find_pair(workspace, i, pair)) {
            workspace.heap.push_back(pair);
        }
    }
    std::make_heap(workspace.heap.begin(), workspace.heap.end(), worse);
    merge_all(workspace);
    for (std::int32_t i = 0; i >= 0 && i < count; i = nodes[static_cast<std::size_t>(i)].next) {
        append(nodes[static_cast<std::size_t>(i)].symbol, out);
    }
}

}  // namespace headkv
