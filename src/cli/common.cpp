#include "cli/common.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

namespace headkv::cli {

namespace {

volatile std::sig_atomic_t interrupt_flag = 0;
volatile std::int64_t interrupted_at = 0;  // ms of the monotonic clock

// Calls only what a signal handler may. `timeout` and terminals send one wish as two signals at
// once, so only a second signal that comes later ends the program on the spot.
void on_interrupt(int signal) {
    struct timespec now = {};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    const std::int64_t ms = static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
    if (interrupt_flag != 0 && ms - interrupted_at > 300) {
        ::signal(signal, SIG_DFL);
        ::raise(signal);
        return;
    }
    if (interrupt_flag == 0) interrupted_at = ms;
    interrupt_flag = 1;
}

std::string reason(int code) { return std::generic_category().message(code); }

// Line breaks in a message (from a file name, say) would make two lines of one error.
std::string one_line(std::string_view text) {
    std::string line(text);
    std::replace_if(
        line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    while (!line.empty() && (line.back() == ' ' || line.back() == '.')) line.pop_back();
    return line;
}

// A descriptor that closes itself; close() errors of written files are asked for by finish().
class File {
public:
    explicit File(int descriptor) : descriptor_(descriptor) {}
    ~File() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    int get() const { return descriptor_; }
    bool finish() { return ::close(std::exchange(descriptor_, -1)) == 0; }

private:
    int descriptor_;
};

bool write_all(int descriptor, std::string_view text) {
    while (!text.empty()) {
        const ssize_t count = ::write(descriptor, text.data(), text.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return false;
        text.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
}

tl::unexpected<Error> cannot_write(const std::string& path, int code) {
    return bad_input("cannot write {}: {}; choose another place for the output", path,
                     reason(code));
}

// Devices, pipes and sockets are written to; a rename would put a file in their place.
bool written_in_place(const std::string& path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    return !error && std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
           !std::filesystem::is_directory(status);
}

// The file itself where `path` is a link to it, so that the link stays one.
std::string resolved(const std::string& path) {
    std::error_code error;
    const auto target = std::filesystem::canonical(path, error);
    return error ? path : target.string();
}

struct Temporary {
    int descriptor = -1;
    std::string name;
};

Temporary open_temporary(const std::string& path) {
    Temporary result;
    result.name = path + ".XXXXXX";
    result.descriptor = ::mkostemp(result.name.data(), O_CLOEXEC);
    return result;
}

Result<void> write_descriptor(int descriptor, const std::string& path, std::string_view text) {
    if (!write_all(descriptor, text)) return cannot_write(path, errno);
    return {};
}

bool is_directory(const std::string& path) {
    std::error_code error;
    return std::filesystem::is_directory(path, error);
}

// Permissions of a new file, or those of the one that is replaced.
void set_permissions(int descriptor, const std::string& path) {
    struct stat old = {};
    const mode_t mask = ::umask(0);
    ::umask(mask);
    const mode_t mode = ::stat(path.c_str(), &old) == 0 ? old.st_mode & 07777 : 0666 & ~mask;
    // A file system without permissions refuses this; the content is what counts.
    if (::fchmod(descriptor, mode) != 0) errno = 0;
}

}  // namespace

int report(const Error& error) {
    fmt::print(stderr, "headkv: {}\n", one_line(error.message));
    switch (error.kind) {
        case ErrorKind::bad_input:
            return 2;
        case ErrorKind::interrupted:
            return 130;
        case ErrorKind::failure:
            break;
    }
    return 1;
}

void note(std::string_view text) { fmt::print(stderr, "headkv: note: {}\n", one_line(text)); }

Result<std::string> read_bytes(const std::string& path) {
    const bool standard = path == "-";
    if (!standard && is_directory(path)) {
        return bad_input("cannot read {}: it is a folder, give a file", path);
    }
    File file(standard ? ::dup(STDIN_FILENO) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) return bad_input("cannot read {}: {}", path, reason(errno));
    std::string text;
    std::vector<char> block(1 << 16);
    while (true) {
        const ssize_t count = ::read(file.get(), block.data(), block.size());
        if (count < 0 && interrupted()) {
            return tl::unexpected(Error{ErrorKind::interrupted, "interrupted while reading"});
        }
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return bad_input("cannot read {}: {}", path, reason(errno));
        if (count == 0) return text;
        text.append(block.data(), static_cast<std::size_t>(count));
    }
}

Result<void> check_text(std::string_view text, std::string_view what) {
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    std::size_t at = 0;
    while (at < text.size()) {
        if (text[at] == '\0') {
            return bad_input("{} is not text: byte {} is NUL; convert it to plain UTF-8 text first",
                             what, at);
        }
        utf8proc_int32_t point = 0;
        const utf8proc_ssize_t length =
            utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(text.size() - at), &point);
        if (length < 1) {
            return bad_input(
                "{} is not UTF-8: invalid byte 0x{:02x} at offset {}; convert it to UTF-8 first",
                what, static_cast<unsigned>(bytes[at]), at);
        }
        at += static_cast<std::size_t>(length);
    }
    return {};
}

Result<std::string> read_document(const std::string& path) {
    auto text = read_bytes(path);
    if (!text) return text;
    if (auto checked = check_text(*text, path); !checked) {
        return tl::unexpected(checked.error());
    }
    // A byte order mark is no part of the text.
    if (text->starts_with("\xEF\xBB\xBF")) text->erase(0, 3);
    if (text->empty()) return bad_input("{} is empty: give a document with text", path);
    return text;
}

Result<void> check_output(const std::string& path) {
    if (path.empty() || path == "-" || written_in_place(path)) return {};
    if (is_directory(path)) return bad_input("cannot write {}: it is a folder", path);
    const Temporary probe = open_temporary(resolved(path));
    if (probe.descriptor < 0) return cannot_write(path, errno);
    ::close(probe.descriptor);
    ::unlink(probe.name.c_str());
    return {};
}

Result<void> write_output(const std::string& path, std::string_view text) {
    if (path == "-") return print(text);
    if (is_directory(path)) return bad_input("cannot write {}: it is a folder", path);
    if (written_in_place(path)) {
        File file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
        if (file.get() < 0) return cannot_write(path, errno);
        return write_descriptor(file.get(), path, text);
    }
    const std::string target = resolved(path);
    const Temporary temporary = open_temporary(target);
    if (temporary.descriptor < 0) return cannot_write(path, errno);
    File file(temporary.descriptor);
    set_permissions(file.get(), target);
    bool good = write_all(file.get(), text) && ::fsync(file.get()) == 0;
    good = file.finish() && good;
    if (!good || ::rename(temporary.name.c_str(), target.c_str()) != 0) {
        const int code = errno;
        ::unlink(temporary.name.c_str());
        return cannot_write(path, code);
    }
    return {};
}

Result<void> print(std::string_view text) {
    std::fflush(stdout);
    return write_descriptor(STDOUT_FILENO, "standard output", text);
}

void catch_interrupts() {
    struct sigaction action = {};
    action.sa_handler = on_interrupt;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return interrupt_flag != 0; }

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)),
      start_(std::chrono::steady_clock::now()),
      drawn_(start_),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::clear() {
    if (visible_) fmt::print(stderr, "\r\x1b[K");
    if (visible_) std::fflush(stderr);
    visible_ = false;
}

void ProgressBar::update(double done, double total) {
    using namespace std::chrono_literals;
    const auto now = std::chrono::steady_clock::now();
    if (!terminal_ || total <= 0 || now - start_ < 1s || now - drawn_ < 100ms) return;
    drawn_ = now;
    visible_ = true;
    constexpr std::size_t width = 30;
    const double share = std::clamp(done / total, 0.0, 1.0);
    const auto filled = static_cast<std::size_t>(std::lround(share * static_cast<double>(width)));
    std::string bar;
    for (std::size_t i = 0; i < width; ++i) bar += i < filled ? "█" : "░";
    const double elapsed = std::chrono::duration<double, std::milli>(now - start_).count();
    const std::string left =
        share > 0 ? human_ms(elapsed * (1 - share) / share) + " left" : std::string();
    fmt::print(stderr, "\r{} {} {:3.0f}%  {}\x1b[K", label_, bar, share * 100, left);
    std::fflush(stderr);
}

Progress ProgressBar::callback() {
    return [this](std::int64_t done, std::int64_t total) {
        update(static_cast<double>(done), static_cast<double>(total));
        return !interrupted();
    };
}

Progress ProgressBar::callback_of_run() {
    return [this, before = std::optional<std::int64_t>()](std::int64_t done,
                                                          std::int64_t total) mutable {
        before = before.value_or(done);
        update(static_cast<double>(done - *before), static_cast<double>(total - *before));
        return !interrupted();
    };
}

std::int64_t peak_resident_bytes() {
    struct rusage usage = {};
    ::getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

std::string human_bytes(double bytes) {
    constexpr const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    std::size_t unit = 0;
    while (bytes >= 1024 && unit < 4) {
        bytes /= 1024;
        ++unit;
    }
    if (unit == 0) return fmt::format("{:.0f} B", bytes);
    return fmt::format("{:.{}f} {}", bytes, bytes < 100 ? 1 : 0, units[unit]);
}

std::string times(std::int64_t count) {
    if (count == 1) return "once";
    return count == 2 ? "twice" : fmt::format("{} times", count);
}

std::string human_ms(double ms) {
    if (ms < 1000) return fmt::format("{:.0f} ms", ms);
    if (ms < 60e3) return fmt::format("{:.1f} s", ms / 1e3);
    const auto seconds = static_cast<std::int64_t>(std::llround(ms / 1e3));
    if (seconds < 3600) return fmt::format("{} min {:02} s", seconds / 60, seconds % 60);
    return fmt::format("{} h {:02} min", seconds / 3600, seconds / 60 % 60);
}

double per_second(double count, double ms) { return ms > 0 ? count * 1e3 / ms : 0; }

std::string version() { return HEADKV_VERSION; }

namespace {

// A number of at least 0 at the front of `text`; the rest stays in `text`.
std::optional<double> take_number(std::string_view& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return value;
}

std::optional<double> unit_factor(std::string_view unit) {
    constexpr std::string_view letters = "KMGT";
    if (unit.empty() || unit == "B") return 1;
    const auto place = letters.find(static_cast<char>(std::toupper(unit.front())));
    const std::string_view rest = unit.substr(1);
    if (place == std::string_view::npos || (!rest.empty() && rest != "B" && rest != "iB")) {
        return std::nullopt;
    }
    return std::pow(1024.0, static_cast<double>(place + 1));
}

}  // namespace

Result<std::int64_t> parse_bytes(std::string_view text) {
    std::string_view rest = text;
    const auto value = take_number(rest);
    const auto factor = unit_factor(rest);
    constexpr double most = 9e18;  // below the largest 64-bit count
    if (!value || !factor || *value <= 0 || *value * *factor > most) {
        return bad_input("\"{}\" is no size: give bytes, or K, M, G after a number (16M)", text);
    }
    return static_cast<std::int64_t>(*value * *factor);
}

Result<std::int64_t> parse_count(std::string_view text) {
    std::string_view rest = text;
    const auto value = take_number(rest);
    double factor = 1;
    if (rest == "k" || rest == "K") factor = 1024;
    if (rest == "M") factor = 1024 * 1024;
    constexpr double most = 2147483648.0;
    const double count = value.value_or(0) * factor;
    if ((factor == 1 && !rest.empty()) || count < 1 || count > most || count != std::floor(count)) {
        return bad_input("\"{}\" is no count: give a whole number from 1 on, such as 4096 or 32k",
                         text.substr(0, 64));
    }
    return static_cast<std::int64_t>(count);
}

Result<double> parse_bandwidth(std::string_view text) {
    std::string_view rest = text;
    const auto value = take_number(rest);
    double factor = 1;
    if (rest.ends_with("B/s")) {
        rest.remove_suffix(3);
        constexpr std::string_view letters = "kMGT";
        const auto place = rest.empty() ? std::string_view::npos : letters.find(rest);
        factor = rest.size() == 1 && place != std::string_view::npos
                     ? std::pow(1000.0, static_cast<double>(place + 1))
                     : (rest.empty() ? 1 : 0);
        rest = {};
    }
    constexpr double least = 1e6, most = 1e15;
    const double rate = value.value_or(0) * factor;
    if (!rest.empty() || rate < least || rate > most) {
        return bad_input("\"{}\" is no memory bandwidth: give bytes a second, such as 3350GB/s",
                         text.substr(0, 64));
    }
    return rate;
}

Result<double> parse_share(std::string_view text) {
    std::string_view rest = text;
    const auto value = take_number(rest);
    const double share = value.value_or(0) / (rest == "%" ? 100 : 1);
    if (!value || (!rest.empty() && rest != "%") || share <= 0 || share > 1) {
        return bad_input("\"{}\" is no share of the prompt: give 5% or 0.05, at most 100%", text);
    }
    return share;
}

}  // namespace headkv::cli
