// headkv eval curves: results of one model in short, for --method auto.
#include <memory>

#include "cli/common.h"
#include "cli/eval_common.h"
#include "eval/curves.h"

namespace headkv::cli {
namespace {

struct CurvesArguments {
    std::vector<std::string> files;
    std::string out;
};

Result<void> write_curves(const CurvesArguments& arguments) {
    if (auto checked = check_output(arguments.out); !checked) return checked;
    Curves all;
    for (const std::filesystem::path file : arguments.files) {
        std::error_code error;
        const bool folder = std::filesystem::is_directory(file, error);
        auto curves = load_curves(folder ? file / "results.json" : file);
        if (!curves) return tl::unexpected(curves.error());
        if (auto added = add_curves(all, std::move(*curves)); !added) return added;
    }
    return write_output(arguments.out, curves_json(all).dump(1) + "\n");
}

}  // namespace

void register_eval_curves(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<CurvesArguments>();
    CLI::App& command =
        *eval.add_subcommand("curves", "quality by budget out of results, for --method auto");
    command
        .add_option("results", arguments->files,
                    "results.json of runs, or their folders; a later one counts for its tasks")
        ->required()
        ->type_name("FILE...");
    command.add_option("-o,--output", arguments->out, "file of curves; - is stdout")
        ->required()
        ->type_name("FILE");
    command.callback([arguments, &status] {
        if (auto done = write_curves(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
