// What every subcommand shares: exit status, files in and out, progress, interruption, figures.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/engine.h"
#include "headkv/error.h"

namespace headkv::cli {

// Set by the subcommand that ran; becomes the program's exit status.
struct Status {
    int code = 0;
};

// Prints one line "headkv: ..." to stderr. Returns the exit status: 2, 1 or 130.
int report(const Error& error);
// One line to stderr that is no error: something that the user should know.
void note(std::string_view text);

// --- files
// --------------------------------------------------------------------------------------------

// All bytes of a file; "-" is stdin. Errors (bad_input): cannot be read.
Result<std::string> read_bytes(const std::string& path);
// The same, and it must be text: errors (bad_input) for an empty file and for the first byte (its
// offset is named) that is NUL or no UTF-8.
Result<std::string> read_document(const std::string& path);
// The checks of read_document on a text from elsewhere; `what` names it in the message.
Result<void> check_text(std::string_view text, std::string_view what);

// Fails at once where write_output would fail later, so that no long work is lost. An empty path
// (no output asked for) and "-" are fine.
Result<void> check_output(const std::string& path);
// Writes the whole text or nothing: a temporary name beside, fsync, rename. "-" is stdout, devices
// and pipes are written in place. Errors (bad_input): not writable, disk full.
Result<void> write_output(const std::string& path, std::string_view text);
// Text to stdout, at once. Error: closed or full.
Result<void> print(std::string_view text);

// --- interruption and progress
// ------------------------------------------------------------------------

// From now on the first ctrl-C (or SIGTERM) only sets a flag; a second one ends the program.
void catch_interrupts();
bool interrupted();

// One line on stderr that redraws itself: only on a terminal, only after a second, gone at the end.
class ProgressBar {
public:
    explicit ProgressBar(std::string label);
    ~ProgressBar();
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;

    void update(double done, double total);
    void clear();
    // For prefill() and the like: draws, and stops the call after ctrl-C.
    Progress callback();
    // For runs that go on: what an earlier one left, the first count that comes, says nothing of
    // the time left.
    Progress callback_of_run();

private:
    std::string label_;
    std::chrono::steady_clock::time_point start_, drawn_;
    bool terminal_ = false, visible_ = false;
};

// --- figures
// ------------------------------------------------------------------------------------------

class Stopwatch {
public:
    double ms() const {
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
            .count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::int64_t peak_resident_bytes();          // of this process, so far
std::string human_bytes(double bytes);       // "2.9 MiB"
std::string times(std::int64_t count);       // "once", "twice", "3 times"
std::string human_ms(double ms);             // "850 ms", "12.3 s"
double per_second(double count, double ms);  // 0 where no time was measured
std::string version();                       // "0.1.0"

// "16M", "1.5GiB", "4096" -> bytes (powers of 1024). Error (bad_input).
Result<std::int64_t> parse_bytes(std::string_view text);
// "32k", "1M", "4096" -> a count (k is 1024). Error (bad_input): below 1, above 2^31.
Result<std::int64_t> parse_count(std::string_view text);
// "3350GB/s", "2TB/s", "9e11" -> bytes a second (powers of 1000). Error (bad_input).
Result<double> parse_bandwidth(std::string_view text);
// "5%" or "0.05" -> 0.05, above 0 and at most 1. Error (bad_input).
Result<double> parse_share(std::string_view text);

// --- subcommands, one file each
// -----------------------------------------------------------------------

void register_run(CLI::App& app, Status& status);
void register_inspect(CLI::App& app, Status& status);
void register_plan(CLI::App& app, Status& status);
void register_methods(CLI::App& app, Status& status);
void register_calibrate(CLI::App& app, Status& status);
void register_scores(CLI::App& app, Status& status);
void register_eval(CLI::App& app, Status& status);
void register_tokenize(CLI::App& app, Status& status);
void register_bench(CLI::App& app, Status& status);
void register_make_model(CLI::App& app, Status& status);
void register_completion(CLI::App& app, Status& status);

}  // namespace headkv::cli
