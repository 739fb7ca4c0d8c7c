// The page of an evaluation: curves, maps and tables, one section a task.
#pragma once

#include <span>
#include <string>

#include "eval/report.h"

namespace headkv::cli {

// One file, nothing from elsewhere, no script; the same for the same results.
std::string report_page(std::span<const Report> reports);

}  // namespace headkv::cli
