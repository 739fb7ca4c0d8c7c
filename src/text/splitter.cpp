#include "text/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>
#include <limits>
#include <utility>

namespace headkv {
namespace {

template <auto free_function>
struct Freed {
    template <class T>
    void operator()(T* object) const {
        free_function(object);
    }
};
using Code = std::unique_ptr<pcre2_code, Freed<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>>;

std::string pcre2_message(int code) {
    std::array<PCRE2_UCHAR, 256> buffer{};
    pcre2_get_error_message(code, buffer.data(), buffer.size());
    return reinterpret_cast<const char*>(buffer.data());
}

Result<Code> compile(const std::string& pattern) {
    int error = 0;
    std::size_t offset = 0;
    Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY | PCRE2_NO_AUTO_CAPTURE,
                            &error, &offset, nullptr));
    if (!code) {
        return failure("PCRE2 refused the pre-tokenizer pattern '{}' at {}: {}", pattern, offset,
                       pcre2_message(error));
    }
    // Without JIT (not built in, or forbidden by the system) the interpreter gives the same result.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
    return code;
}

// Everything one call needs: PCRE2's match data must not be shared between threads.
class Matcher {
public:
    Matcher()
        : data_(pcre2_match_data_create(1, nullptr)),
          context_(pcre2_match_context_create(nullptr)) {
        // Long inputs (a megabyte of spaces) are legitimate; memory is the only limit.
        constexpr std::uint32_t unlimited = std::numeric_limits<std::uint32_t>::max();
        pcre2_set_match_limit(context_.get(), unlimited);
        pcre2_set_depth_limit(context_.get(), unlimited);
        pcre2_set_heap_limit(context_.get(), unlimited);
    }

    // The first match at or after `start`; false when there is none.
    bool find(const pcre2_code* code, std::string_view subject, std::size_t start,
              std::pair<std::size_t, std::size_t>& match) {
        int rc = run(code, subject, start, 0);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
            rc = run(code, subject, start, PCRE2_NO_JIT);
        }
        if (rc < 0) {
            return false;
        }
        const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data_.get());
        match = {ends[0], ends[1]};
        return true;
    }

private:
    int run(const pcre2_code* code, std::string_view subject, std::size_t start,
            std::uint32_t options) {
        return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(),
                           start, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, data_.get(),
                           context_.get());
    }

    MatchData data_;
    MatchContext context_;
};

// Appends the ends of the pieces of text[begin, end) to `ends`.
void cut(const pcre2_code* code, Matcher& matcher, std::string_view text, std::size_t begin,
         std::size_t end, std::vector<std::size_t>& ends) {
    // The piece is its own subject: what lies beyond it must look like the end of the text.
    const std::string_view piece = text.substr(begin, end - begin);
    std::pair<std::size_t, std::size_t> match;
    std::size_t done = 0;
    while (done < piece.size() && matcher.find(code, piece, done, match)) {
        if (match.first > done) {
            ends.push_back(begin + match.first);
        }
        ends.push_back(begin + match.second);
        done = match.second;
    }
    if (done < piece.size()) {
        ends.push_back(end);
    }
}

}  // namespace

struct Splitter::Impl {
    std::vector<Code> codes;
};

Splitter::Splitter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;
Splitter::~Splitter() = default;

Result<Splitter> Splitter::create(const std::vector<std::string>& patterns) {
    auto impl = std::make_unique<Impl>();
    for (const std::string& pattern : patterns) {
        Result<Code> code = compile(pattern);
        if (!code) {
            return tl::unexpected(std::move(code).error());
        }
        impl->codes.push_back(std::move(*code));
    }
    return Splitter(std::move(impl));
}

std::vector<std::size_t> Splitter::split(std::string_view text) const {
    std::vector<std::size_t> ends;
    if (text.empty()) {
        return ends;
    }
    ends.push_back(text.size());
    Matcher matcher;
    for (const Code& code : impl_->codes) {
        std::vector<std::size_t> next;
        next.reserve(ends.size());
        std::size_t begin = 0;
        for (const std::size_t end : ends) {
            cut(code.get(), matcher, text, begin, end, next);
            begin = end;
        }
        ends = std::move(next);
    }
    return ends;
}

}  // namespace headkv
