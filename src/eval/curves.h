// Measured quality of methods at several budgets, for choosing one: what `eval` wrote, in short
// (docs/formats.md, headkv-curves/1).
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "headkv/error.h"

namespace headkv {

// One method at one budget, over the examples of one task.
struct CurvePoint {
    double rows = 0;            // f16 rows a head with the same bytes, mean over heads and examples
    double share = 0;           // of the bytes of a full f16 cache
    double dlogprob = 0;        // log-probability of the right answer minus full's, nats a token
    double low = 0, high = 0;   // 95 % interval of dlogprob
    double share_of_full = 0;   // score, as a share of full's
    std::int64_t examples = 0;  // that count
};

struct Curve {
    std::string method;  // as --methods takes it: "headkv-r2:kv-type=q8_0"
    std::string task;    // "needles"
    // Of the method when it was measured, but for those that follow the budget.
    nlohmann::json options;
    bool whole = false;              // keeps every row: its points have a share and no budget
    std::vector<CurvePoint> points;  // by rows, ascending
};

struct Curves {
    std::string model, fingerprint, commit;
    std::vector<Curve> curves;
};

// All options of a method but those that its budget decides: a curve has one set of them.
nlohmann::json without_budget(nlohmann::json options);

// What results.json of `eval` (one task or several) says of whole tasks. Groups, turns,
// results without a log-probability and methods with files of their own (:heads=) are left out.
// Error (bad_input): no such file, another format, or no result that counts.
Result<Curves> curves_of_results(const nlohmann::json& results);
// The same methods and tasks from several runs; equal (method, task) pairs: the later one counts.
// Error (bad_input): another model than that of `into`.
Result<void> add_curves(Curves& into, Curves more);
nlohmann::ordered_json curves_json(const Curves& curves);
// A file of curves, or results.json itself. Error (bad_input): says what is wrong where.
Result<Curves> load_curves(const std::filesystem::path& file);

// What a method is expected to do within a budget.
struct Expectation {
    std::string method;
    nlohmann::json options;
    double dlogprob = 0, low = 0, high = 0;      // mean over the tasks
    double share_of_full = 0;                    // the same
    std::int64_t examples = 0;                   // of the measurements around the budget, all tasks
    double measured_low = 0, measured_high = 0;  // rows of the measurements that it lies between
    bool beyond = false;  // above the largest budget measured: that one's figures
};

// Expectations within `rows` f16 rows a head of a prompt of `prompt_tokens`, best first (highest
// dlogprob, then share_of_full, then name). A method counts if it was measured on every task of the
// curves and at no more than `rows` on each; between two budgets figures are interpolated over the
// logarithm of the rows. Methods that keep every row count if all their rows fit.
std::vector<Expectation> expectations(const Curves& curves, double rows,
                                      std::int64_t prompt_tokens);

}  // namespace headkv
