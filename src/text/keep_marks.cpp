#include "text/keep_marks.h"

#include <algorithm>

namespace headkv {

Result<UnmarkedText> take_keep_marks(std::string_view text) {
    constexpr std::string_view kOpen = "<keep>", kClose = "</keep>";
    UnmarkedText result;
    const auto line = [&](std::size_t at) {
        return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    };
    bool open = false;
    std::size_t done = 0, begin = 0, opened = 0;
    while (true) {
        const auto next_open = text.find(kOpen, done), next_close = text.find(kClose, done);
        const auto at = std::min(next_open, next_close);
        result.text += text.substr(done, at == std::string_view::npos ? at : at - done);
        if (at == std::string_view::npos) break;
        const bool opens = at == next_open;
        if (opens == open) {
            return bad_input("line {} has {} {}", line(at), opens ? kOpen : kClose,
                             opens ? "inside another" : "without <keep> before it");
        }
        if (opens) {
            begin = result.text.size();
            opened = at;
        } else if (result.text.size() > begin) {
            result.spans.push_back({begin, result.text.size()});
        }
        open = opens;
        done = at + (opens ? kOpen : kClose).size();
    }
    if (open) return bad_input("line {} has <keep> without </keep> behind it", line(opened));
    return result;
}

}  // namespace headkv
